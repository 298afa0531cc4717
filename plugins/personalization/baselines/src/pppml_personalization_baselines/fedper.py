"""``fedper``: a personal head on a shared body, trained together. Arivazhagan et al. 2019 (arXiv:1912.00818), Algorithms 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import GradientRule, LocalData, PersonalState, Update
from pppml_core.learning.arrays import difference, snapshot
from pppml_personalization_baselines.config import FedPerConfig
from pppml_personalization_baselines.parts import head_misfits, head_names, optimizer_remark, schedule_remark, train_own_part


class FedPer(FedAvg):
    """FedAvg on the body; the head (the paper's personalization layers) stays at the site, with its running statistics if it has any.

    A new site trains a head from its initial value on the support examples, with the body fixed.
    """

    config: FedPerConfig
    personalizes = True
    # The gradient is taken at weights that hold the site's own, un-noised head.
    shares_one_gradient = False

    @property
    def has_global_model(self) -> bool:
        """No: a body without a head is no model."""
        return False

    def shared(self, name: str, model: torch.nn.Module) -> bool:
        """Whether it is of the body."""
        return name not in head_names(model, self.config.head)

    def misfits(self, model: torch.nn.Module, examples: Mapping[str, int], training: Mapping[str, Any]) -> list[str]:
        """A head that is nothing or everything."""
        return head_misfits(model, self.config.head)

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """The optimizer."""
        return optimizer_remark("fedper (Arivazhagan et al. 2019)", training) + schedule_remark(training)

    def init(self, model: torch.nn.Module) -> PersonalState:
        """Not trained yet."""
        return {"trained": False}

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """As FedAvg, head and body together; the difference of the body alone."""
        start, head = snapshot(model), head_names(model, self.config.head)
        metrics = data.train(model, gradients)
        delta = {n: d for n, d in difference(model, start).items() if n not in head}
        return Update(delta, metrics), {"trained": True}

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """The model holds the site's head already; a new site trains one."""
        if state["trained"]:
            return model
        head = head_names(model, self.config.head)
        return train_own_part(model, head, data, gradients, self.config.adapt_epochs, self.config.adapt_steps)
