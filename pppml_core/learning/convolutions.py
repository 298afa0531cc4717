"""Convolutions for Hessian-vector products: the same numbers as torch's, for two thirds of the work.

A convolution is bilinear in images and weights. With its two adjoints (the gradients by images and by weights, bilinear as well) every
second derivative is one of these three, and all have fast implementations. Torch's own second derivative takes a slow one instead: a
convolution whose kernel is as large as the image. And differentiating a gradient computes the gradient itself on the way, though only its
derivative is asked for: a third of a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_convolution = torch.ops.aten.convolution
_adjoints = torch.ops.aten.convolution_backward

#: stride, padding, dilation, whether transposed, output padding, groups.
_How = tuple[list[int], list[int], list[int], bool, list[int], int]


class TwiceDifferentiableConvolutions(TorchFunctionMode):
    """Inside the block, a forward pass makes convolutions whose gradient can be differentiated at the least number of convolutions.

    For gradients that are taken with ``create_graph`` and of which only the derivative is used: the values of those by weights that are
    parameters are left out (zero). In a network of convolutions a product then costs 8/3 of a gradient instead of more than 3.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Convolutions are replaced where their arguments are the usual ones; everything else is as it was."""
        read = _READ.get(func)
        call = read(*args, **(kwargs or {})) if read else None
        if call is None:
            return func(*args, **(kwargs or {}))
        images, weight, bias, how = call
        made = _Convolution.apply(images, weight, *how)  # type: ignore[no-untyped-call]
        return made if bias is None else made + bias.reshape(-1, *[1] * (weight.ndim - 2))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, weight: torch.Tensor, *how: Any) -> Any:
        ctx.save_for_backward(images, weight)
        ctx.how = how
        return _convolution(images, weight, None, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        images, weight = ctx.saved_tensors
        of_images, of_weight = ctx.needs_input_grad[:2]
        # A graph is made of the first gradient only; its value by a parameter is not used, the last one's are the result.
        wanted = of_images, of_weight, torch.is_grad_enabled() and weight.is_leaf
        found = _Adjoints.apply(gradients[0], images, weight, wanted, *ctx.how)  # type: ignore[no-untyped-call]
        return *found, *(None for _ in ctx.how)


class _Adjoints(torch.autograd.Function):
    """Gradients by images and by weights, of which a further derivative can be taken once."""

    @staticmethod
    def forward(
        ctx: Any, gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, wanted: tuple[bool, bool, bool], *how: Any
    ) -> Any:
        ctx.save_for_backward(gradient, images, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        of_images, of_weight, derivative_only = wanted
        by_images, by_weight, _ = _adjoints(gradient, images, weight, None, *how, [of_images, of_weight and not derivative_only, False])
        return by_images, weight.new_zeros(()).expand_as(weight) if of_weight and derivative_only else by_weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, along_images: torch.Tensor | None, along_weight: torch.Tensor | None) -> Any:
        gradient, images, weight = ctx.saved_tensors
        how, (of_gradient, of_images, of_weight) = ctx.how, ctx.needs_input_grad[:3]
        by_gradient = by_images = by_weight = None
        if of_gradient:
            pairs = ((along_images, weight), (images, along_weight))
            parts = [_convolution(x, w, None, *how) for x, w in pairs if x is not None and w is not None]
            by_gradient = parts[0].add_(parts[1]) if len(parts) == 2 else parts[0] if parts else None
        if of_images and along_weight is not None:
            by_images = _adjoints(gradient, images, along_weight, None, *how, [True, False, False])[0]
        if of_weight and along_images is not None:
            by_weight = _adjoints(gradient, along_images, weight, None, *how, [False, True, False])[1]
        return by_gradient, by_images, by_weight, None, *(None for _ in how)


def _read(
    input: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    return _call(input, weight, bias, stride, padding, dilation, False, 0, groups)


def _read_transposed(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    return _call(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _call(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, _How] | None:
    """Images ``(batch, channels, *size)``, weights, bias, and how; None: torch's own convolution is to take it."""
    if isinstance(padding, str) or images.ndim != weight.ndim or images.dtype != weight.dtype or not weight.is_floating_point():
        return None
    axes = weight.ndim - 2
    lists = [[value] * axes if isinstance(value, int) else list(value) for value in (stride, padding, dilation, output_padding)]
    lists = [values * axes if len(values) == 1 else values for values in lists]
    return images, weight, bias, (lists[0], lists[1], lists[2], transposed, lists[3], groups)


_READ: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv1d: _read,
    torch.conv2d: _read,
    torch.conv3d: _read,
    torch.conv_transpose1d: _read_transposed,
    torch.conv_transpose2d: _read_transposed,
    torch.conv_transpose3d: _read_transposed,
}
