"""``ditto``: a personal model beside the shared one. Li et al. 2021 (arXiv:2012.04221), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import GradientRule, LocalData, PersonalState, Update
from pppml_core.learning.arrays import difference, load_state, snapshot
from pppml_personalization_baselines.config import DittoConfig
from pppml_personalization_baselines.parts import calls_of, held, length_misfits, optimizer_remark, schedule_remark, towards


class Ditto(FedAvg):
    """The shared model is FedAvg's, bit for bit. Site k also keeps ``v_k``, trained on ``F_k(v) + lambda/2 ||v - w^t||^2``.

    ``w^t`` are the weights received in this round, not those the site has just trained (Algorithm 1: both are updated from ``w^t``).
    ``v_k`` begins as the shared model of the site's first round and has running statistics of its own. It never leaves the site, and
    nothing that is shared depends on it. The paper's mean is uniform: ``weight_cap: 1``. A new site trains ``v`` from the shared weights on
    the support examples, with the same pull.
    """

    config: DittoConfig
    personalizes = True

    def __init__(self, config: DittoConfig) -> None:
        super().__init__(config)
        self.gradient_calls = 1 + calls_of(config.personal_epochs, config.personal_steps)

    def misfits(self, model: torch.nn.Module, examples: Mapping[str, int], training: Mapping[str, Any]) -> list[str]:
        """A length of the personal training that has no bound for each configured step."""
        return length_misfits("personal", self.config.personal_epochs, self.config.personal_steps, training)

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """The optimizer."""
        return optimizer_remark("ditto (Li et al. 2021)", training) + schedule_remark(training)

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """First ``v_k``, then the shared model's part, so that the model is left as FedAvg leaves it."""
        received = snapshot(model)
        load_state(model, state.get("model", {}))
        rule = towards(gradients, received, self.config.strength)
        data.train(model, rule, epochs=self.config.personal_epochs, steps=self.config.personal_steps, purpose="personal")
        personal = held(model)

        load_state(model, received)
        metrics = data.train(model, gradients)
        return Update(difference(model, received), metrics), {"model": personal}

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """``v_k``; a new site trains one."""
        if "model" in state:
            load_state(model, state["model"])
            return model
        rule = towards(gradients, snapshot(model), self.config.strength)
        data.train(model, rule, epochs=self.config.adapt_epochs, steps=self.config.adapt_steps, purpose="adapt")
        return model
