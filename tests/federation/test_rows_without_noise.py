"""A mechanism that replaces gradients and adds no noise: nothing that the plan says or refuses speaks of noise that protects."""

from __future__ import annotations

import math

import pytest

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacyStatement


class Clipping(PrivacyMechanism):
    """Its own gradient rule, at a placement, with the epsilon a test says."""

    def __init__(self, placement, epsilon):
        self.placement, self.epsilon = placement, epsilon

    def plan(self, setting):
        return ClippingPlan(self)


class ClippingPlan(PrivacyPlan):
    constant_weight, admits_metrics = 1, False

    def __init__(self, owner):
        self.placement, self._epsilon = owner.placement, owner.epsilon

    @property
    def statement(self):
        return PrivacyStatement("clipping", self._epsilon, 1e-5, "example", "add-remove", self.placement, "pld", "anyone")

    def gradient_rule(self, plain):
        return lambda model, batch: plain(model, batch)


class TwoGradients(FedAvg):
    """A rule that says it makes two gradients a step."""

    gradient_calls = 2

    def __init__(self):
        super().__init__(FedAvgConfig())


MANY = {"personalization": TwoGradients(), "training": {"steps": 3, "optimizer": {"use": "adam"}}}
ONE = {"training": {"steps": 1, "optimizer": {"use": "sgd"}}}


@pytest.mark.parametrize("epsilon", [None, math.inf])
def test_where_nobody_noises_and_nothing_is_claimed_any_rule_may_be_used(experiment, epsilon):
    plan = experiment(privacy=Clipping("none", epsilon), **MANY).plan().plan
    assert plan.misfits == []
    assert not [text for text in plan.warnings if "noise" in text]


@pytest.mark.parametrize("placement", ["distributed", "server"])
def test_one_gradient_a_sum_is_demanded_in_words_without_noise(experiment, placement):
    found = experiment(privacy=Clipping(placement, math.inf), **MANY).plan().plan.misfits
    what = f"clipping with placement {placement}"
    remedy = "use fedavg, or a mechanism with placement local"
    for text in (
        f"personalization: object does not fit {what}: it makes 2 gradients a step, and a sum is of one clipped gradient a site; {remedy}",
        f"training: {what} clips one gradient a sum, and 'site_1' makes 3 steps a round; set training.steps: 1",
        f"training.optimizer: with {what} what a site shares must be its gradient alone: use sgd, without keep_optimizer and "
        "weight_decay (the server may have momentum or Adam)",
    ):
        assert text in found
    assert not [text for text in found if "noise" in text]
    assert experiment(privacy=Clipping(placement, math.inf), **ONE).plan().plan.misfits == []


def test_a_claim_without_anybody_who_noises_has_no_noise_in_its_name(experiment):
    found = experiment(privacy=Clipping("none", 4.0), **MANY).plan().plan.misfits
    assert [text for text in found if "object does not fit clipping with placement none: it makes 2 gradients a step" in text]
    assert not [text for text in found if "none noise" in text]


@pytest.mark.parametrize(("epsilon", "said"), [(math.inf, "no noise; rounds as with placement local"), (4.0, "placement local")])
def test_the_stage_says_whether_there_is_noise(experiment, epsilon, said):
    (stage,) = (s for s in experiment(privacy=Clipping("local", epsilon), **ONE).plan().plan.stages if s.name == "privacy (clipping)")
    assert stage.gives == said
