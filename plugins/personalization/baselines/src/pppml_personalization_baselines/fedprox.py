"""``fedprox``: local training held near the shared model. Li et al. 2020 (arXiv:1812.06127), Algorithm 2."""

from __future__ import annotations

import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import GradientRule, LocalData, PersonalState, Update
from pppml_core.learning.arrays import difference, snapshot
from pppml_personalization_baselines.config import FedProxConfig
from pppml_personalization_baselines.parts import towards


class FedProx(FedAvg):
    """Site k minimizes ``h_k(w) = F_k(w) + mu/2 ||w - w^t||^2`` from the received ``w^t``, with `training.optimizer`.

    ``mu`` 0 is FedAvg bit for bit. The first step is FedAvg's for any ``mu``, because the pull is zero at ``w^t``; so a round of one step
    shares one plain gradient. Where the paper draws sites in proportion to their data and takes the uniform mean, the mean here is
    weighted by training examples; ``weight_cap: 1`` makes it uniform. Everybody, also a new site, uses the shared model.
    """

    config: FedProxConfig

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """The configured epochs or steps on ``h_k``; the loss reported is ``F_k`` alone."""
        start = snapshot(model)
        metrics = data.train(model, towards(gradients, start, self.config.mu))
        return Update(difference(model, start), metrics), state
