"""``clip-only``: what ``dp-sgd`` or ``dp-update`` do, without their noise. It guarantees nothing, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pppml_core.interfaces.personalization import Personalization
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacySetting
from pppml_dp.config import ClipOnlyConfig, DpSgdConfig, DpUpdateConfig
from pppml_dp.dp_sgd import make_sgd_plan, poisson_rate, training_misfits
from pppml_dp.dp_update import make_update_plan
from pppml_dp.validate import problems


class ClipOnly(PrivacyMechanism):
    """The mechanism of that name."""

    config: ClipOnlyConfig

    def sample_rate(self, examples: Mapping[str, int], batch_size: int) -> float | None:
        """As ``dp-sgd``, where examples are clipped."""
        return poisson_rate(self.config.sample_rate, examples, batch_size) if self.config.unit == "example" else None

    def misfits(
        self, setting: PrivacySetting, personalization: Personalization, model: torch.nn.Module, training: Mapping[str, Any]
    ) -> list[str]:
        """What makes an example's gradient no example's; there is no claim that could be false."""
        return [*problems(model), *training_misfits(training)] if self.config.unit == "example" else []

    def plan(self, setting: PrivacySetting) -> PrivacyPlan:
        """The plan of the mechanism that it is a row beside, with a noise multiplier of 0."""
        config = self.config
        if config.unit == "site":
            return make_update_plan(DpUpdateConfig(clip=config.clip, noise_multiplier=0.0), setting)
        same = {name: getattr(config, name) for name in ("clip", "clipping", "placement", "sample_rate", "physical_batch")}
        return make_sgd_plan(DpSgdConfig(noise_multiplier=0.0, **same), setting)
