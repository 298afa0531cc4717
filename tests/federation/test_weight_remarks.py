"""What a rule says of its weights is in the plan where they count, and nowhere else."""

from __future__ import annotations

import pytest

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacyStatement
from pppml_core.registry import Registry

INSTALLED = Registry.discover()
TEXT = "its mean is uniform; here sites weigh by examples"


class Uniform(FedAvg):
    def __init__(self, shares: bool = True) -> None:
        super().__init__(FedAvgConfig())
        self.shares, self.personalizes = shares, not shares

    def weight_remarks(self):
        return [TEXT]


class Constant(PrivacyMechanism):
    def __init__(self, weight):
        self.weight = weight

    def plan(self, setting):
        class Bound(PrivacyPlan):
            constant_weight = self.weight
            statement = PrivacyStatement("constant")

        return Bound()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({}, True),
        ({"privacy": Constant(None)}, True),
        ({"privacy": Constant(1)}, False),
        ({"personalization": Uniform(shares=False)}, False),
    ],
    ids=["no mechanism", "own weights", "constant weight", "nothing shared"],
)
def test_only_where_the_weights_count(experiment, sections, said):
    plan = experiment(**{"personalization": Uniform(), **sections}).plan().plan
    assert plan.misfits == []
    assert (f"personalization: {TEXT}" in plan.warnings) == said


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ("none", True),
        ({"use": "dp-sgd", "noise_multiplier": 1.0}, False),
        ({"use": "dp-update", "noise_multiplier": 1.0}, False),
        ({"use": "clip-only"}, False),
    ],
    ids=["none", "dp-sgd", "dp-update", "clip-only"],
)
def test_per_fedavg_does_not_say_that_sites_weigh_by_examples_where_they_do_not(experiment, privacy, said):
    for kind, use in (("personalization", "per-fedavg"), ("privacy", privacy if isinstance(privacy, str) else privacy["use"])):
        if not any(c.name == use and not c.missing() for c in INSTALLED.components(kind)):
            pytest.skip(f"{use} is not installed")
    plan = experiment(personalization="per-fedavg", privacy=privacy, only=INSTALLED).plan().plan
    assert plan.misfits == []
    assert any("weigh by training examples" in text for text in plan.warnings) == said
    assert said or "every site weighs 1" in next(s.gives for s in plan.stages if s.name.startswith("privacy"))
