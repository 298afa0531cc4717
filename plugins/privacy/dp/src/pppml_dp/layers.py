"""The layers that can be book-kept, and what one call of a layer contributes: per-example norms, and the weighted sum of gradients.

The gradient of example ``i`` is a product of the layer's input ``x[i]`` and the gradient ``g[i]`` by its output. Small parameters (biases,
normalization, and weights that take no more memory than a few times ``x`` and ``g``) are instantiated for each example, kept, and summed
with the clipping factors. Of a large weight only the norm is taken (:mod:`.products`), and its sum is later one gradient of the whole
batch, of ``g`` times the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pppml_dp.products import Correlation, Dense, convolution_product, linear_product
from pppml_dp.rows import add_weighted, squared_norms

#: instantiated gradients are kept where they take at most this many times the memory of the activations they are made of.
KEPT = 4
#: relative error of a weight gradient, in roundings of its dtype, measured against the product of the norms of what is multiplied.
ROUNDINGS = 8
Rows = dict[str, list[torch.Tensor]]


@dataclass
class Contribution:
    """What one layer adds to the examples' gradients. Parameters are named as in the layer.

    Args:
        squares: squared norms by example, float64 ``(n,)``; not finite where something overflowed.
        slack: squared bound of the rounding between those norms and what ``add`` sums, float64 ``(n,)``.
        kept: instantiated gradients, in chunks ``(some examples, *shape)``.
        later: makes the weighted sum from factors ``(n,)`` and the examples that count, bool ``(n,)``; both on the CPU.

    """

    squares: torch.Tensor
    slack: torch.Tensor
    kept: Rows = field(default_factory=dict)
    later: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = field(default_factory=dict)

    def add(self, sums: dict[str, torch.Tensor], prefix: str, factors: torch.Tensor, good: torch.Tensor) -> None:
        """Add the good examples' gradients times their factors to ``sums[prefix + name]``."""
        for name, chunks in self.kept.items():
            start = 0
            for rows in chunks:
                part = slice(start, start + len(rows))
                add_weighted(sums[prefix + name], rows, factors[part], good[part])
                start += len(rows)
        for name, weighted in self.later.items():
            sums[prefix + name].add_(weighted(factors, good))


def contribution(module: nn.Module, x: torch.Tensor, g: torch.Tensor, statistics: Any = None) -> Contribution:
    """Of one call: input ``x`` and gradient ``g`` by the output, both ``(examples, ...)``; ``statistics`` as :func:`statistics_of` gave."""
    zero = torch.zeros(len(x), dtype=torch.float64, device=g.device)
    made = Contribution(zero, zero.clone())
    wanted = {name for name, p in module.named_parameters(recurse=False) if p.requires_grad}
    small = {name: rows for name, rows in _SMALL[type(module)](module, x, g, statistics).items() if name in wanted}
    for name, rows in small.items():
        made.kept[name] = [rows]
        made.squares += squared_norms(rows)
    if "weight" in wanted and isinstance(module, _WEIGHTED):
        _add_weight(made, linear_product(x, g) if isinstance(module, nn.Linear) else convolution_product(module, x, g))
    return made


def _add_weight(made: Contribution, product: Dense | Correlation) -> None:
    if product.gradient_numbers <= KEPT * product.factor_numbers:
        made.kept["weight"] = list(product.chunks())
        made.squares += torch.cat([squared_norms(rows) for rows in made.kept["weight"]])
        return
    made.squares += product.squared_norms()
    made.slack += (ROUNDINGS * torch.finfo(product.dtype).eps / 2) ** 2 * product.squared_scale()
    made.later["weight"] = product.weighted


def misfit(module: nn.Module) -> str | None:
    """Why this module's own parameters cannot be book-kept, or None."""
    if type(module) not in _SMALL:
        return "layers of this kind are not book-kept"
    if {name for name, p in module.named_parameters(recurse=False) if p.requires_grad} - {"weight", "bias"}:
        return "its weight is computed from other parameters"
    if isinstance(module, _INSTANCE) and module.track_running_stats:
        return "it keeps running statistics"
    return None


def statistics_of(module: nn.Module, output: torch.Tensor) -> Any:
    """Mean and reciprocal standard deviation that GroupNorm's backward pass keeps anyway, each ``(examples, groups)``; else None."""
    if type(module) is not nn.GroupNorm or output.grad_fn is None or output.grad_fn.name() != "NativeGroupNormBackward0":
        return None
    found = tuple(getattr(output.grad_fn, f"_saved_result{i}", None) for i in (1, 2))
    shape = (len(output), module.num_groups)
    return found if all(isinstance(s, torch.Tensor) and s.shape == shape for s in found) else None


def fits_batch(module: nn.Module, x: torch.Tensor, examples: int) -> bool:
    """Whether an input can have its examples in the first dimension."""
    if isinstance(module, nn.LayerNorm):
        least = len(module.normalized_shape) + 1
    elif isinstance(module, nn.modules.conv._ConvNd):
        least = module.weight.ndim
    else:
        least = next((3 + axis for axis, kind in enumerate(_INSTANCE) if isinstance(module, kind)), 2)
    return x.ndim >= least and len(x) == examples


# -- parameters that are always instantiated: name -> rows (n, *shape) ------------------------------------------------------------------


def _sum_to_channels(values: torch.Tensor) -> torch.Tensor:
    """``(n, channels, *positions)`` summed over positions."""
    return values.reshape(*values.shape[:2], -1).sum(2)


def _linear(module: Any, x: torch.Tensor, g: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
    return {} if module.bias is None else {"bias": g.reshape(len(g), -1, g.shape[-1]).sum(1)}


def _convolution(module: Any, x: torch.Tensor, g: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
    return {} if module.bias is None else {"bias": _sum_to_channels(g)}


def _group_norm(module: Any, x: torch.Tensor, g: torch.Tensor, statistics: Any) -> dict[str, torch.Tensor]:
    n, channels = x.shape[:2]
    positions = x.reshape(n, channels, -1)
    if statistics is None:
        sizes = n, channels, positions.shape[2], module.num_groups, module.eps
        statistics = torch.native_group_norm(positions.contiguous(), None, None, *sizes)[1:]
    mean, scale = (s.reshape(n, -1, 1) for s in statistics)
    bias = _sum_to_channels(g)
    products = torch.linalg.vecdot(g.reshape(positions.shape), positions).reshape(n, module.num_groups, -1)
    weight = scale * (products - mean * bias.reshape(products.shape))
    return {"weight": weight.reshape(n, channels), "bias": bias}


def _layer_norm(module: Any, x: torch.Tensor, g: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
    normal = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return {name: values.reshape(len(x), -1, *module.normalized_shape).sum(1) for name, values in (("weight", g * normal), ("bias", g))}


def _instance_norm(module: Any, x: torch.Tensor, g: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
    return {"weight": _sum_to_channels(g * F.instance_norm(x, eps=module.eps)), "bias": _sum_to_channels(g)}


def _prelu(module: Any, x: torch.Tensor, g: torch.Tensor, _: Any) -> dict[str, torch.Tensor]:
    by_channel = _sum_to_channels(torch.where(x > 0, 0, g * x))
    return {"weight": by_channel if module.num_parameters > 1 else by_channel.sum(1, keepdim=True)}


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTIONS)
_SMALL: dict[type[nn.Module], Callable[[Any, torch.Tensor, torch.Tensor, Any], dict[str, torch.Tensor]]] = {
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_INSTANCE, _instance_norm),
}
