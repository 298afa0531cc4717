"""Per-example gradients one at a time: a forward and a backward pass for each example. Slow, and right for every network.

The other methods hand over to it the examples of which rounding or overflow could make their norm wrong: here the norm is taken, in
float64 and without overflow, of the very numbers that enter the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from pppml_core.learning.gradients import LossFunction
from pppml_dp.clipping import Clipping, layers_of
from pppml_dp.untouched import buffers_kept

Sums = dict[str, torch.Tensor]


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; a shared one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def own_loss(loss: LossFunction, outputs: torch.Tensor, targets: torch.Tensor, index: int) -> torch.Tensor:
    """An example's own loss: that of the batch of this example alone."""
    return loss(outputs[index : index + 1], targets[index : index + 1])


def add_loop(
    sums: Sums,
    model: torch.nn.Module,
    loss: LossFunction,
    images: torch.Tensor,
    targets: torch.Tensor,
    shares: torch.Tensor,
    clipping: Clipping,
    examples: Iterable[int] | None = None,
) -> None:
    """Add the clipped gradients of these examples to ``sums``; an example whose output or gradient is not finite adds nothing.

    Args:
        sums: parameter name -> tensor of its shape, changed in place.
        model: its ``.grad`` fields are left as they are.
        loss: mean loss of a batch.
        images: and ``targets``, of the batch.
        targets: see there.
        shares: float64 ``(batch,)``, on the CPU.
        clipping: kind and norm.
        examples: positions in the batch; None: all.

    """
    parameters = trainable(model)
    layers = layers_of(list(parameters))
    for index in range(len(images)) if examples is None else examples:
        output, gradients = alone(model, loss, images[index : index + 1], targets[index : index + 1])
        if not (bool(output.isfinite().all()) and all(g is None or bool(g.isfinite().all()) for g in gradients)):
            continue
        norms = [0.0] * (max(layers) + 1)
        for layer, gradient in zip(layers, gradients, strict=True):
            norms[layer] = math.hypot(norms[layer], 0.0 if gradient is None else safe_norm(gradient))
        factors = clipping.factors(torch.tensor([norms], dtype=torch.float64), shares[index : index + 1])[0].tolist()
        for name, layer, gradient in zip(parameters, layers, gradients, strict=True):
            if gradient is not None:
                sums[name].add_((gradient * factors[layer]).to(sums[name].dtype))


def alone(
    model: torch.nn.Module, loss: LossFunction, image: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Output and float64 gradients, by parameter, of the batch of one example; None for a parameter that has no part in it."""
    parameters = list(trainable(model).values())
    with buffers_kept(model), torch.enable_grad():  # what a layer keeps of one example must not reach the next
        output = model(image)
        value = own_loss(loss, output, target, 0)
        found = torch.autograd.grad(value, parameters, allow_unused=True) if value.requires_grad else [None] * len(parameters)
    return output.detach(), [None if g is None else g.detach().double() for g in found]


def safe_norm(values: torch.Tensor) -> float:
    """L2 norm of finite float64 values, whose squares may overflow or vanish."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return largest * float(torch.linalg.vector_norm(values / largest)) if largest > 0 else 0.0
