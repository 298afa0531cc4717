"""Running statistics of normalization: which modules keep them, and measuring them anew at a site that has none of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pppml_core.interfaces.personalization import Batch, LocalData


def with_statistics(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that keep running statistics: BatchNorm, and InstanceNorm where it tracks them."""
    return [m for m in model.modules() if getattr(m, "running_mean", None) is not None]


def measure_statistics(model: torch.nn.Module, modules: Sequence[torch.nn.Module], data: LocalData) -> None:
    """The running statistics of ``modules`` as the plain mean over the batches of one pass, as in AdaBN (Li et al. 2016, arXiv:1603.04779).

    After a few steps of training a moving average would still be mostly its initial value. Nothing else changes: no parameter, no other
    module's statistics, no momentum. A last batch of a single example is passed over, because some layers cannot normalize it.
    """
    if not modules:
        return
    momenta = [m.momentum for m in modules]
    others = [m for m in with_statistics(model) if not any(m is own for own in modules)]
    for module in modules:
        module.reset_running_stats()  # type: ignore[operator]
    seen = 0

    def look(network: torch.nn.Module, batch: Batch) -> float:
        nonlocal seen
        network.zero_grad(set_to_none=True)  # without gradients the optimizer moves nothing
        if seen and len(batch[0]) == 1:
            return 0.0
        for module in others:
            module.eval()
        seen += 1
        for module in modules:
            # A falling momentum is the plain mean. (None would be for BatchNorm; InstanceNorm takes it for 0.)
            module.momentum = 1 / seen  # type: ignore[assignment]
        with torch.no_grad():
            network(batch[0])
        return 0.0

    try:
        data.train(model, look, epochs=1, purpose="adapt-statistics")
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
