"""Per-example gradients by ``torch.func``: the gradient of one example's loss, vectorized over a few examples at a time.

For networks whose layers cannot be book-kept. Memory is that of some gradients of the whole network, so a batch is taken in chunks.
"""

from __future__ import annotations

import torch
from torch.func import functional_call, grad, vmap

from pppml_core.learning.gradients import LossFunction
from pppml_dp.clipping import SMALLEST, Clipping, layers_of
from pppml_dp.loop import Sums, own_loss, trainable
from pppml_dp.rows import add_weighted, squared_norms

#: what the gradients of one chunk may take.
CHUNK_BYTES = 2**28


def add_functional(
    sums: Sums,
    model: torch.nn.Module,
    loss: LossFunction,
    images: torch.Tensor,
    targets: torch.Tensor,
    shares: torch.Tensor,
    clipping: Clipping,
) -> list[int]:
    """Add the clipped gradients to ``sums``; as :func:`.add_loop`. Returns the examples it left out: their norm is not finite, or huge.

    Dropout draws for each example. Raises whatever torch raises for operations that cannot be vectorized.
    """
    parameters = trainable(model)
    layers = layers_of(list(parameters))
    rest = {**{n: p.detach() for n, p in model.named_parameters() if n not in parameters}, **dict(model.named_buffers())}
    bytes_each = sum(p.numel() * p.element_size() for p in parameters.values())

    def value(weights: Sums, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = functional_call(model, {**weights, **rest}, (image[None],))
        return own_loss(loss, output, target[None], 0), output.isfinite().all()

    gradients_of = vmap(grad(value, has_aux=True), in_dims=(None, 0, 0), randomness="different")
    weights = {n: p.detach() for n, p in parameters.items()}
    left_out: list[int] = []
    chunk = max(1, CHUNK_BYTES // max(1, bytes_each))
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        gradients, finite = gradients_of(weights, images[part], targets[part])
        squares = torch.zeros(len(finite), max(layers) + 1, dtype=torch.float64, device=images.device)
        for layer, gradient in zip(layers, gradients.values(), strict=True):
            squares[:, layer] += squared_norms(gradient)
        known = (finite & squares.sum(1).isfinite()).cpu()
        factors = clipping.factors(squares.cpu().sqrt().where(known[:, None], 0), shares[part])
        good = known & (factors.amin(1) >= SMALLEST * shares[part])
        for layer, (name, gradient) in zip(layers, gradients.items(), strict=True):
            add_weighted(sums[name], gradient, factors[:, layer], good)
        left_out += [start + int(i) for i in (~good).nonzero()]
    return left_out
