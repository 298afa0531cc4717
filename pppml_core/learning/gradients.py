"""Gradient rules: how the gradient of one batch is made. The plain rule is autograd; a privacy mechanism may bring its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from pppml_core.interfaces.personalization import Batch, GradientRule

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain_gradients(loss: LossFunction, precision: str = "float32") -> GradientRule:
    """Autograd: zero the gradients, one forward and one backward pass; returns the batch's mean loss.

    ``precision`` ``bf16`` runs the forward pass under autocast; parameters and gradients stay float32.
    """

    def rule(model: torch.nn.Module, batch: Batch) -> float:
        images, targets = batch
        model.zero_grad(set_to_none=True)
        mixed = torch.autocast(images.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        with mixed:
            value = loss(model(images), targets)
        value.backward()
        return float(value.detach())

    return rule
