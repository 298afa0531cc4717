"""``he-fedavg`` over the back ends that users have: one exact sum, whatever encrypts."""

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.errors import RoundLost
from pppml_core.testing import SessionHarness
from pppml_core.testing.lying import edited
from pppml_he_fedavg.aggregator import HeFedAvg

SETTINGS = [
    ("pppml_he_tenseal", {"scheme": "bfv"}),
    ("pppml_he_tenseal", {"scheme": "ckks"}),
    ("pppml_he_pyfhel", {"scheme": "bfv"}),
    ("pppml_he_pyfhel", {"scheme": "bgv"}),
    ("pppml_he_pyfhel", {"scheme": "ckks"}),
]


@pytest.fixture(params=SETTINGS, ids=lambda setting: "-".join([setting[0].removeprefix("pppml_he_"), setting[1]["scheme"]]))
def aggregator(request):
    """Over one real back end; skipped where that is not installed."""
    package, settings = request.param
    (component,) = pytest.importorskip(f"{package}.plugin").pppml_he_backends()
    if component.missing():
        pytest.skip(f"{component.name} needs {', '.join(component.missing())}")
    return HeFedAvg(ComponentConfig(), backend=component.load()(component.config(**settings)))


def test_the_sum_is_exact(aggregator):
    """Also at the largest integers, with one site lost before and one after its update."""
    given = {site: np.full(9_000, sign * 32_767, np.int32) for site, sign in zip("abcdef", (1, 1, 1, 1, -1, 1), strict=True)}
    for contributions in (None, given):
        result = SessionHarness(
            aggregator,
            6,
            9_000,
            contributions=contributions,
            faults=[{"site": "f", "stage": "encrypt", "do": "drop"}, {"site": "a", "stage": "decrypt", "do": "drop"}],
        ).run()
        assert result.correct
        assert result.survivors == tuple("abcde")
        assert result.released["b"] == (tuple("abcde"),)
    predicted = SessionHarness(aggregator, 6, 9_000).session().predicted_bytes()
    for p in result.transcript.sent_by_sites():
        assert abs(predicted[p.message.stage] - p.size) <= 0.1 * p.size + 512, p.message.stage


def test_a_ciphertext_of_another_key_is_neither_added_nor_decrypted(aggregator):
    """A site that encrypts under a key of its own is a lost one; a server that asks to decrypt such a ciphertext gets nothing."""
    session = SessionHarness(aggregator, 4, 50).session()
    backend, params = session._backend, session._params
    public, _ = backend.keygen(params)
    zero = np.zeros(params.length, np.uint64 if params.arithmetic == "exact" else np.float64)
    foreign = backend.encrypt(params, public, zero)

    def swapped(stage, site, body):
        return {"ciphertext": foreign} if (stage, site) == ("encrypt", "a") else body

    result = SessionHarness(aggregator, 4, 50, coordinate=lambda session, ctx: edited(session, ctx, replies=swapped)).run()
    assert result.correct
    assert result.survivors == tuple("bcd")

    def asked(operation):
        if operation.stage != "decrypt":
            return operation
        return type(operation)("decrypt", {s: {**body, "total": foreign} for s, body in operation.bodies.items()}, operation.fold)

    result = SessionHarness(aggregator, 4, 50, coordinate=lambda session, ctx: edited(session, ctx, asked)).run()
    assert isinstance(result.aborted, RoundLost)
    assert not any(p.message.stage == "decrypt" and p.message.kind == "reply" for p in result.transcript.passages)
    assert not result.crashes


def test_the_papers_parameters_are_refused():
    """Their numbers are not rounded in the paper; here that scale is for the exhibit only."""
    plugin = pytest.importorskip("pppml_he_tenseal.plugin")
    (component,) = plugin.pppml_he_backends()
    built = HeFedAvg(ComponentConfig(), backend=component.load()(component.config(scheme="ckks", preset="paper")))
    assert "preset paper" in built.misfits(SessionHarness(built, 4).value, "abcd")[0]
