"""``fedbn``: normalization stays at the site. Li et al. 2021 (arXiv:2102.07623), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import GradientRule, LocalData, PersonalState, Update
from pppml_core.learning.arrays import difference, snapshot
from pppml_personalization_baselines.config import FedBNConfig
from pppml_personalization_baselines.parts import optimizer_remark, schedule_remark, train_own_part

#: ``_NormBase`` is batch and instance normalization.
ALL = (_NormBase, nn.GroupNorm, nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))


class FedBN(FedAvg):
    """FedAvg on all other layers; scale, shift and running statistics of normalization layers are the site's own.

    The paper knows batch normalization only; ``layers: all`` takes group, layer and instance normalization too, a departure that has its
    idea but not its argument about statistics. The paper's mean is uniform: ``weight_cap: 1``. A new site trains normalization of its own
    on the support examples, with the shared layers fixed, and then takes its running statistics from them.
    """

    config: FedBNConfig
    personalizes = True
    # The gradient is taken at weights that hold the site's own, un-noised normalization.
    shares_one_gradient = False

    @property
    def has_global_model(self) -> bool:
        """No: without normalization the shared layers are no model."""
        return False

    def _own(self, name: str, model: torch.nn.Module) -> bool:
        kinds = ALL if self.config.layers == "all" else _BatchNorm
        return isinstance(model.get_submodule(name.rpartition(".")[0]), kinds)

    def shared(self, name: str, model: torch.nn.Module) -> bool:
        """Whether the module that holds it is no normalization."""
        return not self._own(name, model)

    def misfits(self, model: torch.nn.Module, examples: Mapping[str, int], training: Mapping[str, Any]) -> list[str]:
        """A network without normalization that could stay."""
        if any(self._own(n, model) for n, t in model.state_dict().items() if t.is_floating_point()):
            return []
        others = self.config.layers == "batch" and any(isinstance(m, ALL) and list(m.parameters()) for m in model.modules())
        what = "batch normalization" if self.config.layers == "batch" else "normalization with parameters or statistics"
        remedy = "choose a network with it (`norm: batch`)" + (", or set `layers: all`" if others else "")
        return [f"personalization.layers: the network has no {what}, so fedbn would be fedavg; {remedy}"]

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """The optimizer, and other layers than the paper's."""
        further = (
            ["fedbn (Li et al. 2021) is about batch normalization; `layers: all` goes beyond it"] if self.config.layers == "all" else []
        )
        return further + optimizer_remark("fedbn (Li et al. 2021)", training) + schedule_remark(training)

    def init(self, model: torch.nn.Module) -> PersonalState:
        """Not trained yet."""
        return {"trained": False}

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """As FedAvg; the difference of the shared layers alone."""
        start = snapshot(model)
        metrics = data.train(model, gradients)
        delta = {n: d for n, d in difference(model, start).items() if self.shared(n, model)}
        return Update(delta, metrics), {"trained": True}

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """The model holds the site's normalization already; a new site makes its own."""
        if state["trained"]:
            return model
        own = {n for n in model.state_dict() if self._own(n, model)}
        return train_own_part(model, own, data, gradients, self.config.adapt_epochs, self.config.adapt_steps)
