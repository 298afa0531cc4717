"""What a privacy mechanism's noise becomes in a step, and that the plan says so."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacyStatement
from pppml_perfedavg.config import PerFedAvgConfig
from pppml_perfedavg.meta_gradient import MetaGradient
from pppml_perfedavg.perfedavg import PerFedAvg

THREE = ((torch.zeros(1), torch.zeros(1)),) * 3  # batches at which nobody looks


class Noise:
    """The gradient rule of a privacy mechanism on a loss that does not depend on the weights: independent noise alone, std 0.01."""

    std = 0.01

    def __init__(self):
        self.generator = np.random.default_rng(0)  # not torch's streams, which both sides of a difference share

    def __call__(self, model, batch):
        for p in model.parameters():
            p.grad = torch.from_numpy(self.generator.normal(0, self.std, p.shape)).to(p)
        return 0.0


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("hessian_step", [0.001, 0.5, "auto"])
def test_the_remark_on_noise_gives_its_measured_amplification(hessian_step, precision):
    """Of 40,000 coordinates. The step has the noise of v and, independent of it, that of the product."""
    method = PerFedAvg(PerFedAvgConfig(order="hessian-free", inner_lr=0.05, hessian_step=hessian_step))
    (text,) = method.noise_remarks({"precision": precision})
    product, unit, total, _ = re.search(r"(\S+) (\|v\| s|s) in the Hessian product and (\S+) (\|v\| s|s) \(inner_lr", text).groups()
    assert float(total) == pytest.approx(0.05 * float(product), rel=0.01)
    model = nn.Linear(200, 200, bias=False, dtype=getattr(torch, precision))
    nn.init.zeros_(model.weight)
    MetaGradient(Noise(), 0.05, "hessian-free", hessian_step)(model, THREE)
    v = Noise.std * 200 if hessian_step == "auto" else 1.0  # the length of 40,000 coordinates of noise
    assert (unit == "|v| s") == (hessian_step == "auto")
    measured = float(model.weight.grad.std()) / Noise.std
    assert measured == pytest.approx(math.hypot(1, float(total) * v), rel=0.03)


def test_without_differences_noise_is_not_amplified():
    for quiet in ({"order": "first"}, {"order": "exact"}, {"order": "hessian-free", "inner_lr": 0.0}):
        assert PerFedAvg(PerFedAvgConfig(**quiet)).noise_remarks({"precision": "float32"}) == []
    model = nn.Linear(200, 200, bias=False)
    MetaGradient(Noise(), 0.05, "first")(model, THREE)
    assert float(model.weight.grad.std()) == pytest.approx(Noise.std, rel=0.03)


class NoisedPlan(PrivacyPlan):
    """Brings a gradient rule of its own; its noise does not matter to the plan."""

    placement = "local"

    @property
    def statement(self):
        return PrivacyStatement("noised", placement="local")

    def gradient_rule(self, plain):
        return lambda model, batch: plain(model, batch)


class Noised(PrivacyMechanism):
    """A mechanism that replaces the gradient rule."""

    def __init__(self):
        pass

    def plan(self, setting):
        return NoisedPlan()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        # 1 / (sqrt(2) 0.001), and that times 0.01.
        ({"order": "hessian-free", "hessian_step": 0.001}, "707 s in the Hessian product and 7.07 s"),
        # 1 / (sqrt(2) eps^(1/3)) with eps = 2^-23.
        ({"order": "hessian-free"}, "at most 144 |v| s in the Hessian product and 1.44 |v| s"),
        ({"order": "first"}, None),
        ({"order": "hessian-free", "inner_lr": 0.0}, None),
    ],
)
def test_the_plan_says_that_a_mechanisms_noise_is_divided_by_the_step(experiment, settings, words):
    made = {"use": "per-fedavg", **settings}
    plans = [experiment(personalization=made, privacy=privacy).plan().plan for privacy in (Noised(), "none")]
    said = [[text for text in plan.warnings if "noise" in text] for plan in plans]
    assert said[1] == []
    assert len(said[0]) == (words is not None)
    assert words is None or words in said[0][0]
