"""The noise in what really leaves a site and in the sum that is decoded, over whole runs.

Gradients are replaced by zeros, so that what moves the model is noise alone; its variance is then within an interval that a correct
mechanism leaves with probability 1e-7. Computing noise and throwing it away, sizing it for a mean, or losing a share would fail here.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from pppml_core.registry import Registry
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SERVER
from pppml_core.wire.transcript import read_payload, read_transcript
from pppml_dp.dp_sgd import DpSgdPlan

pytestmark = pytest.mark.usefixtures("stated_epsilon_alone")

FALSE_ALARM = 1e-7
INSTALLED = Registry.discover()
DP = {"use": "dp-sgd", "clip": 2.0, "epsilon": 6, "delta": 1e-5}


@pytest.fixture
def no_gradients(monkeypatch):
    def zeros(self, model, loss, batch):
        return torch.zeros(sum(p.numel() for p in model.parameters()))

    monkeypatch.setattr(DpSgdPlan, "clipped", zeros)


def moved(run):
    """How far the run has moved the model, flat, float64."""
    final, first = load_file(run.folder / "model.safetensors"), run._assembly.initial_state
    return torch.cat([(final[n].double() - first[n].double()).flatten() for n in first]).numpy()


def interval(noise):
    """Where the mean square of so many normal numbers of variance 1 lies."""
    return (stats.chi2.ppf(p, noise.size) / noise.size for p in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))


def in_clips(run, privacy, survivors):
    """Standard deviation of the noise in the sum of one round, in clips; the last round moved the model by lr/divisor times the mean."""
    return moved(run) * survivors * privacy["expected_batch"] / (0.5 * privacy["clip"])


@pytest.mark.parametrize("lost", [[], ["site_2", "site_9"]], ids=["all sites", "two dropouts"])
def test_the_decoded_sum_has_the_noise_of_its_survivors_and_never_less_than_is_charged(experiment, secagg, no_gradients, tmp_path, lost):
    faults = [{"site": site, "stage": "mask", "round": 1, "do": "drop", "times": 99} for site in lost]
    engine = {"use": "local", "faults": faults} if lost else "local"
    made = experiment({**DP, "placement": "distributed"}, sites=10, aggregator=secagg, run={"rounds": 1}, engine=engine)
    run = made.run(tmp_path / "r", reporters=False, report=False)
    survivors = run.result["survivors"]["1"]
    assert len(survivors) == 10 - len(lost)
    privacy = run.result["privacy"]
    about = privacy["details"]
    assert about["honest_shares"] == 6, "of ten sites seven must survive, and one of them may collude"
    noise = in_clips(run, about, len(survivors))
    # The sensitivity is 1.001 clips and a step of rounding for each coordinate (L2).
    clip = (about["integer_sensitivity"] - np.sqrt(noise.size)) / 1.001
    low, high = interval(noise)
    assert low < np.mean(noise**2) / (len(survivors) * about["share_variance"] / clip**2) < high
    assert np.mean(noise**2) > about["noise_multiplier"] ** 2 * low
    assert (run.result["privacy"]["epsilon"], privacy["unit"], privacy["accountant"]) == (6, "example", "pld")


@pytest.mark.parametrize("placement", ["local", "server"])
def test_local_and_server_noise_reach_the_model(experiment, no_gradients, tmp_path, placement):
    sites = 5
    run = experiment({**DP, "placement": placement}, run={"rounds": 1}).run(tmp_path / "r", reporters=False, report=False)
    about = run.result["privacy"]["details"]
    noise = in_clips(run, about, sites)
    whole = about["noise_multiplier"] ** 2 * 1.0
    sums = sites if placement == "local" else 1
    # The grid rounds the sensitivity up by one percent at most; the noise is sized for that.
    ratio = np.mean(noise**2) / (sums * whole)
    low, high = interval(noise)
    assert low < ratio < high * 1.03


def test_two_runs_of_one_seed_have_other_noise(experiment, no_gradients, tmp_path):
    made = experiment({**DP, "placement": "local"}, run={"rounds": 1, "seed": 4})
    first, second = (moved(made.run(tmp_path / name, reporters=False, report=False)) for name in "ab")
    assert abs(np.corrcoef(first, second)[0, 1]) < stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(first.size)


def test_noise_of_different_steps_is_uncorrelated(experiment, no_gradients, tmp_path):
    run = experiment({**DP, "placement": "server"}, run={"rounds": 2, "transcript": "payloads"}).run(
        tmp_path / "r", reporters=False, report=False
    )
    assert [json.loads(line)["round"] for line in (run.folder / "ledger.jsonl").read_text().splitlines()] == [1, 2]
    about = run.result["privacy"]["details"]
    both = in_clips(run, about, 5)
    low, high = interval(both)
    # Independent noise of two rounds adds up to twice the variance; the same noise twice would make it four times.
    assert low < np.mean(both**2) / (2 * about["noise_multiplier"] ** 2) < high * 1.03


def test_all_that_leaves_a_site_is_noised_integers_and_a_constant(experiment, no_gradients, tmp_path):
    """The payloads themselves: beside the integers nothing differs between sites of other images, and without gradients these are noise."""
    made = experiment({**DP, "placement": "local"}, run={"rounds": 1, "transcript": "payloads", "metrics": "none"})
    run = made.run(tmp_path / "r", reporters=False, report=False)
    sent = [decode_message(read_payload(run.folder, hop.sha256)) for hop in read_transcript(run.folder)]
    sent = [message for message in sent if message.sender != SERVER]
    by_stage = {stage: [m for m in sent if m.stage == stage] for stage in {m.stage for m in sent}}
    assert len(by_stage["contribute"]) == 5
    for messages in by_stage.values():
        rest = [{k: v for k, v in m.body.items() if k != "values"} for m in messages]
        assert all(one == rest[0] for one in rest), "no array, and no number of a site's own"
        assert not any(isinstance(v, bytes | float | np.ndarray) for one in rest for v in one.values())
    rows = np.stack([m.body["values"] for m in by_stage["contribute"]])
    parameters = sum(t.numel() for t in load_file(run.folder / "model.safetensors").values())
    assert rows.shape == (5, parameters + 1)
    assert len(np.unique(rows[:, -1])) == 1, "the weight"
    noise = rows[:, :-1].astype(float)
    limit = stats.norm.isf(FALSE_ALARM / 20) / np.sqrt(parameters)  # of each of ten pairs
    assert np.abs(np.corrcoef(noise)[np.triu_indices(5, 1)]).max() < limit
    assert noise.std(1).min() > 1


def test_the_manifest_names_nothing_without_noise(experiment, secagg, tmp_path):
    """The manifest of a contribution: noised parameters and a constant weight, no metrics; buffers stay."""
    made = experiment({**DP, "placement": "distributed"}, aggregator=secagg, run={"rounds": 1, "transcript": "payloads"})
    run = made.run(tmp_path / "r", reporters=False, report=False)
    rows = json.loads((run.folder / "manifest.json").read_text())["contribution"]
    assert {r["role"] for r in rows} == {"parameter", "weight"}
    assert all("after dp-sgd" in r["mechanism"] for r in rows if r["role"] == "parameter")


def test_a_sum_over_fewer_sites_than_the_noise_is_sized_for_is_opened_by_no_site(experiment, no_gradients, tmp_path):
    """A ring bridges a lost site. Its plan counts on all five, so the sum over four must not be released, whatever the server asks."""
    if not any(c.name == "cyclic-he" and not c.missing() for c in INSTALLED.components("aggregator")):
        pytest.skip("pppml-cyclic-he is not installed")
    faults = [{"site": "site_2", "stage": "ring-1", "do": "drop", "times": 99}]
    made = experiment(
        {**DP, "placement": "distributed"},
        aggregator={"use": "cyclic-he", "backend": "tenseal"},
        engine={"use": "local", "faults": faults},
        run={"rounds": 1, "on_abort": "skip"},
    )
    run = made.run(tmp_path / "r", reporters=False, report=False)
    assert run.result["survivors"]["1"] == []
