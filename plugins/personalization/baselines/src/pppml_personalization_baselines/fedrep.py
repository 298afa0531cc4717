"""``fedrep``: a personal head on a shared body, the head trained first. Collins et al. 2021 (arXiv:2102.07089), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pppml_core.interfaces.personalization import GradientRule, LocalData, PersonalState, Update
from pppml_core.learning.arrays import difference, snapshot
from pppml_personalization_baselines.config import FedRepConfig
from pppml_personalization_baselines.fedper import FedPer
from pppml_personalization_baselines.parts import calls_of, head_names, length_misfits, optimizer_remark, schedule_remark, train_part


class FedRep(FedPer):
    """FedPer with another local training: first the head ``h`` on the received body ``phi^t``, then the body under that head.

    While one part is trained, the other is a fixed function: it gets no step, and its batch normalization uses its running statistics and
    leaves them alone. So the head learns on the representation it is evaluated with, as in Algorithm 1 where ``phi^t`` is fixed (the
    authors' code lets the statistics of the fixed body move). Departures: the head's steps use batches, the body takes the configured
    training and not a single step, as in the paper's experiments; the mean is weighted by examples (``weight_cap: 1`` is the paper's).
    A new site trains a head from its initial value on the support examples, with the body fixed, as in the paper.
    """

    config: FedRepConfig

    def __init__(self, config: FedRepConfig) -> None:
        super().__init__(config)
        self.gradient_calls = 1 + calls_of(config.head_epochs, config.head_steps)

    def misfits(self, model: torch.nn.Module, examples: Mapping[str, int], training: Mapping[str, Any]) -> list[str]:
        """A head that is nothing or everything; a length of its training that has no bound for each configured step."""
        lengths = length_misfits("head", self.config.head_epochs, self.config.head_steps, training)
        return super().misfits(model, examples, training) + lengths

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """The optimizer."""
        return optimizer_remark("fedrep (Collins et al. 2021)", training) + schedule_remark(training)

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """The head, then the body."""
        start, head = snapshot(model), head_names(model, self.config.head)
        body = start.keys() - head
        train_part(model, head, data, gradients, epochs=self.config.head_epochs, steps=self.config.head_steps, purpose="head")
        metrics = train_part(model, body, data, gradients)
        delta = {n: d for n, d in difference(model, start).items() if n in body}
        return Update(delta, metrics), {"trained": True}
