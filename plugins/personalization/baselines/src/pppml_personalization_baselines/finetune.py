"""``fedavg-finetune``: FedAvg, then a little local training. The cheapest personalization, and the one every other has to beat.

McMahan et al. 2017, Algorithm 1 (arXiv:1602.05629); Yu, Bagdasaryan and Shmatikov 2020, section 3, "fine-tuning" (arXiv:2002.04758).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import GradientRule, LocalData, PersonalState
from pppml_personalization_baselines.config import FineTuneConfig
from pppml_personalization_baselines.parts import schedule_remark


class FineTune(FedAvg):
    """The shared model is FedAvg's, bit for bit. A new site does what every site does: it fine-tunes on its support examples."""

    config: FineTuneConfig
    personalizes = True

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """A schedule reaches fine-tuning too."""
        return schedule_remark(training)

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """All weights, from the shared ones, with a fresh optimizer; in place."""
        c = self.config
        epochs = 1 if c.steps is None and c.epochs is None else c.epochs
        data.train(model, gradients, lr=c.lr, epochs=epochs, steps=c.steps, purpose="adapt")
        return model
