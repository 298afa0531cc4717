"""Real TenSEAL ciphertexts: the key where sums are published in full precision, no key where they are rounded, nothing to do for BFV."""

import numpy as np
import pytest

import pppml_core as pppml
from pppml_core.errors import WireError
from pppml_core.testing import PluginSuite
from pppml_he_key_recovery.recovery import is_key
from pppml_he_key_recovery.seal import expanded

pytest.importorskip("pppml_he_tenseal", reason="the ciphertexts are TenSEAL's: install pppml-he-tenseal")
pytest.importorskip("pppml_cyclic_he", reason="the paper's ring is attacked: install pppml-cyclic-he")
pytest.importorskip("pppml_he_fedavg", reason="a run with encrypted sums is attacked: install pppml-he-fedavg")


class TestPlugin(PluginSuite):
    plugin = "pppml_he_key_recovery.plugin"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def run(name, backend=None, aggregator="plain"):
        if name not in made:
            aggregator = {"use": "he-fedavg", "backend": backend} if backend else aggregator
            experiment = pppml.Experiment(task={"use": "tiny", "sites": 3, "examples": 6}, run={"rounds": 1}, aggregator=aggregator)
            made[name] = experiment.run(tmp_path_factory.mktemp("keys") / name, reporters=False, report=False)
        return made[name]

    return run


def test_ckks_under_the_release_rule_keeps_its_key_and_the_control_gets_it(runs):
    run = runs("ckks", {"use": "tenseal", "scheme": "ckks"})
    record = run.attack("he-key-recovery")
    assert record["outcome"] == "not_shown_to_leak", record["reason"]
    assert record["control"]["passed"]
    assert record["control"]["update_correlation"] > 0.9999
    assert record["metrics"] == {"key_recovered": False, "update_correlation": 0.0}


def test_what_this_run_never_publishes_is_no_attack_on_it(runs):
    record = runs("ckks", {"use": "tenseal", "scheme": "ckks"}).attack("he-key-recovery", published="full-precision")
    assert record["outcome"] == "not_applicable"
    assert "releases whole numbers" in record["reason"]


def test_the_papers_parameters_in_full_precision_give_the_key(runs):
    """PPPML-HMI's parameters, and sums published as its code publishes them."""
    aggregator = {"use": "cyclic-he", "variant": "paper", "backend": {"use": "tenseal", "scheme": "ckks", "preset": "paper"}}
    record = runs("paper", aggregator=aggregator).attack("he-key-recovery", published="full-precision")
    assert record["outcome"] == "recovered", record["reason"]
    assert record["metrics"]["update_correlation"] > 0.999999


def test_it_does_not_apply_to_exact_integers_and_to_sums_in_the_clear(runs):
    exact = runs("bfv", {"use": "tenseal", "scheme": "bfv"}).attack("he-key-recovery")
    assert exact["outcome"] == "not_applicable"
    assert "exact integers" in exact["reason"]
    clear = runs("plain").attack("he-key-recovery")
    assert (clear["outcome"], clear["reason"]) == ("not_applicable", "this run encrypts nothing homomorphically")
    outsider = runs("bfv", {"use": "tenseal", "scheme": "bfv"}).attack("he-key-recovery", vantage="public")
    assert outsider["outcome"] == "not_applicable"


def test_a_key_has_three_values_only():
    assert is_key(np.array([-1, 0, 1, 1], dtype=object))
    assert not is_key(np.array([-1, 0, 2], dtype=object))


def test_other_bytes_are_refused():
    with pytest.raises(WireError, match="not a zstd-packed object"):
        expanded(bytes(32))
