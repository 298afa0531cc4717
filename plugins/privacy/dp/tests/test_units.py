"""What is protected is what the claim says: patients that the data know, each at one site; gradients, each of them charged."""

from __future__ import annotations

import json
import re

import pytest

from pppml_core.builtin.tiny import TinyTask
from pppml_core.registry import Registry
from pppml_dp.dp_sgd import DpSgdPlan

pytestmark = pytest.mark.usefixtures("stated_epsilon_alone")

INSTALLED = {c.name for c in Registry.discover().components("personalization")}
DP = {"use": "dp-sgd", "epsilon": 6, "delta": 1e-5}


@pytest.fixture
def groups(monkeypatch):
    """Gives the training examples of each site other groups: ``name(site, index)``."""

    def patch(name):
        original = TinyTask.load

        def load(self, site):
            data = original(self, site)
            data.train.groups[:] = [name(site, index) for index in range(len(data.train.groups))]
            return data

        monkeypatch.setattr(TinyTask, "load", load)

    return patch


def misfits(experiment, unit):
    return experiment({**DP, "unit": unit}).plan().misfits


def test_a_patient_at_two_sites_would_count_twice(experiment, groups):
    groups(lambda site, index: f"p{index // 2}")
    (found,) = misfits(experiment, "patient")
    assert "privacy.unit: patient, but 'p0' is at 'site_1' and at 'site_2', and would count twice" in found
    assert found.endswith("name different people apart, or use unit: example")
    assert misfits(experiment, "example") == []
    groups(lambda site, index: f"{site[-1]}p{index // 2}")
    assert misfits(experiment, "patient") == []


def test_where_no_two_images_are_of_one_patient_the_data_know_none(experiment, groups):
    groups(lambda site, index: f"{site[-1]}-{index}")
    (found,) = misfits(experiment, "patient")
    assert "every example is a group of its own: the data do not say which images are of one patient; give groups, or use" in found
    assert misfits(experiment, "example") == []


def test_a_budget_that_ends_before_the_last_round_is_said_in_the_plan(experiment):
    plan = experiment({**DP, "noise_multiplier": 0.8}, run={"rounds": 50}).plan()
    assert plan.misfits == []
    (stage,) = [s for s in plan.to_dict()["stages"] if s["name"] == "privacy (dp-sgd)"]
    (rounds,) = re.findall(r"the budget is spent after (\d+) of 50 rounds: the run will stop there \(exit code 4\)", stage["gives"])
    assert 1 < int(rounds) < 20


@pytest.mark.parametrize(
    ("use", "each"),
    [
        ("fedavg", 1),
        ("fedprox", 1),
        ("fedavg-finetune", 1),
        ("fedper", 1),
        ("fedrep", 2),
        ("ditto", 2),
        ("apfl", 2),
        ("per-fedavg", 2),
        ("local-only", 1),
    ],
)
def test_under_local_noise_every_gradient_has_a_sample_and_a_charge_of_its_own(experiment, tmp_path, monkeypatch, use, each):
    """Methods that make several gradients a step draw for each, and what adapts after training is charged for nothing."""
    if use not in INSTALLED:
        pytest.skip(f"{use} is not installed")
    made, drawn = [], []
    clipped, sample = DpSgdPlan.clipped, DpSgdPlan.sample
    monkeypatch.setattr(DpSgdPlan, "clipped", lambda self, *batch: (made.append(1), clipped(self, *batch))[1])
    monkeypatch.setattr(DpSgdPlan, "sample", lambda self, groups: (drawn.append(1), sample(self, groups))[1])
    one = experiment(DP, sites=1, training={"steps": 3}, run={"rounds": 2}, personalization=use)
    run = one.run(tmp_path / "r", reporters=False, report=False)
    charges = [json.loads(line) for line in (run.folder / "sites" / "site_1" / "ledger.jsonl").read_text().splitlines()]
    assert [c["count"] for c in charges] == [3 * each] * 2
    assert len(made) == len(drawn) == 2 * 3 * each
