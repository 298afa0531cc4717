"""A small mechanism with known noise, correct or broken in one place, to be audited."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from pppml_core.interfaces.privacy import Canaries, Encoding, PrivacyPlan, PrivacyStatement


def gaussian_multiplier(epsilon: float, delta: float) -> float:
    """Noise of one Gaussian release that is exactly (epsilon, delta)-DP (Balle and Wang 2018, theorem 8)."""

    def gap(sd: float) -> float:
        return norm.cdf(1 / (2 * sd) - epsilon * sd) - math.exp(epsilon) * norm.cdf(-1 / (2 * sd) - epsilon * sd) - delta

    return float(brentq(gap, 1e-2, 1e3))


@dataclass(frozen=True, eq=False)
class Gaussian(PrivacyPlan):
    """Sums of clipped gradients (clip 1) with Gaussian noise, rounded to a grid of ``steps`` to the clip.

    ``multiplier``: noise in clips of all ``honest`` parties together; ``clips`` False: examples are not clipped; ``scale``: what a clipped
    gradient is multiplied by after its noise was sized for the clip, 64 where the sum of a batch of 64 gets the noise of its mean.
    """

    multiplier: float
    placement: str = "distributed"
    claim: float = 1.0
    delta: float = 1e-5
    rate: float = 1.0
    honest: int = 1
    clips: bool = True
    scale: float = 1.0
    unit: str = "example"
    rates: tuple[float, ...] = (1.0,) * 50
    canaries: Canaries | None = None

    steps = 1000
    constant_weight = 1
    admits_metrics = False

    @property
    def noise_bound(self) -> int:  # type: ignore[override]
        return 0 if self.placement == "local" else 2**20

    @property
    def statement(self) -> PrivacyStatement:
        return PrivacyStatement(
            "gaussian", self.claim, self.delta, self.unit, "add-remove", self.placement, "closed form", "the server",
            {"honest_shares": self.honest},
        )  # fmt: skip

    def audited(self, canaries: Canaries) -> PrivacyPlan | None:
        return replace(self, canaries=canaries) if self.unit == "example" else None

    def gradient_rule(self, plain):
        def rule(model, batch):
            plain(model, batch)
            flat = model.weight.grad.reshape(-1)
            if self.canaries is not None:
                drawn = np.random.default_rng().random(len(self.canaries.coordinates)) < self.rate
                values = self.canaries.values[drawn]
                values = values / np.maximum(1.0, np.abs(values)) if self.clips else values
                flat[torch.from_numpy(self.canaries.coordinates[drawn])] += torch.from_numpy(values).float() * self.scale
            if self.placement == "local":
                flat += torch.from_numpy(np.random.default_rng().normal(0, 1, len(flat))).float() * self.multiplier
            return 0.0

        return rule

    def encoding(self, round):
        return None if self.placement == "local" else Encoding(self.rates[round - 1] * (2**19 - 1) / self.steps, 20)

    def noise(self, values):
        if self.placement == "local":
            return values
        share = self.multiplier * self.steps / math.sqrt(self.honest)
        return values + np.rint(np.random.default_rng().normal(0, share, len(values))).astype(values.dtype)


@pytest.fixture(scope="session")
def gaussian():
    """``make(factor=1, **changes)``: the mechanism of one step that is exactly (1, 1e-5)-DP, with ``factor`` times its noise."""
    multiplier = gaussian_multiplier(1.0, 1e-5)

    def make(factor: float = 1.0, **changes) -> Gaussian:
        return Gaussian(factor * multiplier, **changes)

    return make
