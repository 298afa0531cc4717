"""Convolutions for Hessian-vector products: the same numbers as torch's, by the least number of convolutions.

A convolution is bilinear in images and weights. With its two adjoints (the gradients by images and by weights, bilinear as well) every
second derivative is one of these three, and all have fast implementations. Torch's own second derivative takes a slow one instead: a
convolution whose kernel is as large as the image. And differentiating a gradient computes the gradient itself on the way, though only its
derivative is asked for: a third of a backward pass. Without both, a product takes 8 convolutions where a gradient takes 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_convolution = torch.ops.aten.convolution
_adjoints = torch.ops.aten.convolution_backward


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


def convolution(
    input: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> torch.Tensor | None:
    """As ``torch.conv1d`` to ``conv3d``; None where torch is to make it itself."""
    return _made(input, weight, bias, stride, padding, dilation, False, 0, groups)


def transposed_convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> torch.Tensor | None:
    """As ``torch.conv_transpose1d`` to ``conv_transpose3d``; None where torch is to make it itself."""
    return _made(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _made(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> torch.Tensor | None:
    if isinstance(padding, str) or images.ndim != weight.ndim or images.dtype != weight.dtype or not weight.is_floating_point():
        return None
    axes = weight.ndim - 2
    lists = [[value] * axes if isinstance(value, int) else list(value) for value in (stride, padding, dilation, output_padding)]
    lists = [values * axes if len(values) == 1 else values for values in lists]
    how = lists[0], lists[1], lists[2], transposed, lists[3], groups
    made: torch.Tensor = _Convolution.apply(images, weight, *how)  # type: ignore[no-untyped-call]
    return made if bias is None else made + bias.reshape(-1, *[1] * axes)


CONVOLUTIONS: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    torch.conv1d: convolution,
    torch.conv2d: convolution,
    torch.conv3d: convolution,
    torch.conv_transpose1d: transposed_convolution,
    torch.conv_transpose2d: transposed_convolution,
    torch.conv_transpose3d: transposed_convolution,
}
