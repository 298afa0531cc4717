"""Normalization with running statistics: which tensors are statistics, and training with those that are there."""

from __future__ import annotations

import torch

from pppml_core.interfaces.personalization import Batch, StepRule
from pppml_core.learning.statistics import with_statistics


def is_statistic(name: str, model: torch.nn.Module) -> bool:
    """Whether a state-dict name is a running statistic, by the module that holds it."""
    owner, _, tensor = name.rpartition(".")
    module = model.get_submodule(owner)
    return getattr(module, "running_mean", None) is not None and tensor in dict(module.named_buffers(recurse=False))


def with_fixed_statistics(rule: StepRule) -> StepRule:
    """The same step with normalization as in evaluation: it uses its running statistics and leaves them alone."""

    def step(model: torch.nn.Module, batches: Batch | tuple[Batch, ...]) -> float:
        training = [m for m in with_statistics(model) if m.training]
        for module in training:
            module.eval()
        try:
            return rule(model, batches)
        finally:
            for module in training:
                module.train()

    return step
