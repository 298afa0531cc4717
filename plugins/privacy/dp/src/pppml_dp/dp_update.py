"""``dp-update``: a site's update of a round is clipped and noised as a whole, so that a whole hospital is the protected unit.

This is the mechanism of the DPResNet paper, whose preset states the epsilon that its setting really has over all rounds. With ten or
twenty hospitals and millions of weights an honest epsilon leaves little of the model: that is a finding, not a defect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Defence
from pppml_core.interfaces.personalization import Personalization
from pppml_core.interfaces.privacy import Encoding, PrivacyMechanism, PrivacyPlan, PrivacySetting, PrivacyStatement
from pppml_dp import placing
from pppml_dp.accounting import classical_sd
from pppml_dp.budget import composed
from pppml_dp.config import PAPER, DpUpdateConfig
from pppml_dp.grid import BITS
from pppml_dp.sizing import Sized, size_noise


class DpUpdatePlan(PrivacyPlan):
    """Bound to a run. ``noise`` None: clipping alone, without a claim."""

    constant_weight = 1
    admits_metrics = False

    def __init__(self, config: DpUpdateConfig, clip: float, setting: PrivacySetting, sized: Sized) -> None:
        self.config, self.placement, self.clip = config, config.placement, clip
        self._setting, self._grid, self._noise, self._budget = setting, sized.grid, sized.noise, sized.budget
        self.min_survivors = setting.min_survivors if config.placement == "distributed" else 1
        self.noise_bound = 0 if self._noise is None else self._noise.bound

    @property
    def statement(self) -> PrivacyStatement:
        """Zero-out adjacency (the roster of sites is public) of one site, for the whole run."""
        config, setting = self.config, self._setting
        if self._noise is None:
            return placing.unprotected("site", {"clip": self.clip})
        return PrivacyStatement(
            mechanism="dp-update",
            epsilon=self._budget.limit,
            delta=self._budget.delta,
            unit="site",
            adjacency="zero-out",
            placement=self.placement,
            accountant=self._budget.accountant,
            adversary=placing.adversary(self.placement, setting, config.colluders),
            details={
                "noise_multiplier": self._budget.event.noise_multiplier,
                "updates": setting.rounds,
                "clip": self.clip,
                "noise": config.noise,
                "integer_sensitivity": self._grid.l2,
                "share_variance": self._noise.variance,
                "colluders": config.colluders,
                "honest_shares": placing.honest_shares(self.placement, setting, config.colluders),
                **self._claimed(),
            },
        )

    def _claimed(self) -> dict[str, float]:
        if self.config.preset is None:
            return {}
        return {"claimed_epsilon": PAPER["claimed_epsilon"], "noise_sd": paper_sd()}

    def remarks(self, model: torch.nn.Module) -> list[str]:
        """How much noise, and for the paper's preset what was claimed and what holds."""
        noised = f"noised with {self._budget.event.noise_multiplier:.4g} times that; {self._setting.rounds:,} noised updates"
        out = [
            f"the update of a round is clipped to {self.clip:g} and {noised if self._noise else 'not noised'}",
            "every site weighs 1; training metrics stay at the sites",
            *self._budget.remarks,
        ]
        if self.config.preset is not None:
            out.append(
                f"the paper's setting: epsilon {PAPER['claimed_epsilon']:g} was claimed (one round, sensitivity "
                f"{PAPER['claimed_sensitivity']:g} under a clip of {PAPER['clip']:g}); the true epsilon over {self._setting.rounds} rounds "
                f"is {self._budget.planned:,.0f} (unit site, adjacency zero-out, delta {PAPER['delta']:g}, accountant "
                f"{self._budget.accountant}, placement local, adversary: {placing.adversary('local', self._setting, 0)})"
            )
        return out

    def cross_checks(self) -> Mapping[str, float | None]:
        """Epsilon of the planned rounds by each accountant that can compute it here; None: it cannot."""
        return self._budget.cross_checks()

    def constrain(self, flat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The update scaled to at most ``clip`` in L2 norm; one that is not finite becomes zero, so that nobody sees that it was."""
        wide = flat.astype(np.float64)
        norm = float(np.linalg.norm(wide))
        if not math.isfinite(norm):
            return np.zeros_like(flat)
        return (wide * min(1.0, self.clip / norm)).astype(flat.dtype) if norm > 0 else flat

    def encoding(self, round: int) -> Encoding:
        """No coordinate of a clipped update is beyond the clip."""
        return Encoding(self.clip * self._grid.range_in_clips, BITS)

    def noise(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Integers with a share of noise, or with all of it (placements local and server)."""
        return values if self._noise is None else (values + self._noise.sample(values.size)).astype(values.dtype)

    def defence(self, round: int, sites: int) -> Defence:
        """The clip of a whole update, and its noise."""
        if self._noise is None:
            return Defence("clip-only", self.clip, "update")
        noise = placing.noise_in_sum(self.placement, self._noise.variance, sites) * self.clip / self._grid.clip_steps
        return Defence("dp-update", self.clip, "update", noise, multiplier=self._budget.event.noise_multiplier)

    def charge(self, round: int) -> Mapping[str, Any] | None:
        """The same each round."""
        return None if self._noise is None else self._budget.charge()

    def spent(self, charges: Sequence[Mapping[str, Any]]) -> float | None:
        """By the stated accountant."""
        return self._budget.spent(charges)

    def affords(self, charges: Sequence[Mapping[str, Any]]) -> bool:
        """By counting."""
        return self._budget.affords(charges)


def delta_of(config: DpUpdateConfig) -> float:
    """Of the claim: the config's, or the paper's."""
    return config.delta if config.preset is None else PAPER["delta"]


def paper_sd() -> float:
    """Standard deviation of the noise on each weight in the authors' setting: 0.699."""
    return classical_sd(PAPER["claimed_epsilon"], PAPER["delta"], PAPER["claimed_sensitivity"])


class DpUpdate(PrivacyMechanism):
    """The mechanism of that name."""

    config: DpUpdateConfig

    def misfits(
        self, setting: PrivacySetting, personalization: Personalization, model: torch.nn.Module, training: Mapping[str, Any]
    ) -> list[str]:
        """Everything that would make the claim false."""
        config = self.config
        return [
            *(
                []
                if personalization.shares
                else ["nothing leaves a site here, so there is no update to protect; use privacy: none or dp-sgd"]
            ),
            *placing.misfits(config.placement, setting, config.colluders, personalization.shares),
            *placing.delta_misfits(delta_of(config), len(setting.examples), "sites"),
        ]

    def plan(self, setting: PrivacySetting) -> DpUpdatePlan:
        """Solve for the noise where epsilon is given; else compute epsilon."""
        return make_update_plan(self.config, setting)

    def spent(self, charges: Sequence[Mapping[str, Any]]) -> float:
        """By the accountant that makes the statement."""
        return composed(charges, delta_of(self.config))


def make_update_plan(config: DpUpdateConfig, setting: PrivacySetting) -> DpUpdatePlan:
    """The plan of a config with noise, or without (``noise_multiplier`` 0)."""
    clip, delta, multiplier = config.clip or 1.0, delta_of(config), config.noise_multiplier
    if config.preset is not None:
        clip = PAPER["clip"]
        multiplier = paper_sd() / clip
    # One clipped vector: the clip itself is the largest value, so the grid is as fine as its bits allow.
    sized = size_noise(config, setting, rate=1.0, each=1, expected=0.5, delta=delta, multiplier=multiplier)
    return DpUpdatePlan(config, clip, setting, sized)
