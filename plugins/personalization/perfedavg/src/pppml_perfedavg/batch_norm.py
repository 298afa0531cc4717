"""Normalization with running statistics: which tensors are statistics, training with those that are there, and measuring them anew."""

from __future__ import annotations

import torch

from pppml_core.interfaces.personalization import Batch, LocalData, StepRule


def normalizations(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that keep running statistics: BatchNorm, and InstanceNorm where it tracks them."""
    return [m for m in model.modules() if getattr(m, "running_mean", None) is not None]


def is_statistic(name: str, model: torch.nn.Module) -> bool:
    """Whether a state-dict name is a running statistic, by the module that holds it."""
    owner, _, tensor = name.rpartition(".")
    module = model.get_submodule(owner)
    return getattr(module, "running_mean", None) is not None and tensor in dict(module.named_buffers(recurse=False))


def with_fixed_statistics(rule: StepRule) -> StepRule:
    """The same step with normalization as in evaluation: it uses its running statistics and leaves them alone."""

    def step(model: torch.nn.Module, batches: Batch | tuple[Batch, ...]) -> float:
        training = [m for m in normalizations(model) if m.training]
        for module in training:
            module.eval()
        try:
            return rule(model, batches)
        finally:
            for module in training:
                module.train()

    return step


def measure_statistics(model: torch.nn.Module, data: LocalData) -> None:
    """Running statistics as the plain mean over the batches of one pass, as in AdaBN (Li et al. 2016, arXiv:1603.04779).

    For a site that has none yet: after a few steps a moving average would still be mostly its initial value.
    """
    modules = normalizations(model)
    momenta = [m.momentum for m in modules]
    for module in modules:
        module.reset_running_stats()  # type: ignore[operator]
        module.momentum = None  # type: ignore[assignment]  # torch: the mean over all batches since the reset

    def look(network: torch.nn.Module, batch: Batch) -> float:
        with torch.no_grad():
            network(batch[0])
        return 0.0

    model.zero_grad(set_to_none=True)  # without gradients the optimizer moves nothing
    try:
        data.train(model, look, epochs=1, purpose="adapt-statistics")
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
