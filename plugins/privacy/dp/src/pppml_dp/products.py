"""Weight gradients as sums of products over positions: of single examples, of a weighted batch, and their norms.

The norm of one example's gradient is found in one of two ways, whichever is cheaper by the layer's sizes (the mixed ghost norm of Bu et al.
2022, arXiv:2205.10683): from the instantiated gradient, or without it from the Gram matrices of the two factors over positions,
``||g^T x||^2 = sum over t, s of (x_t . x_s) (g_t . g_s)`` (Goodfellow 2015, arXiv:1510.01799). Those terms cancel, so Gram matrices are
float64. Of a convolution, the Gram matrix of patches is a sum of shifted Gram matrices of pixels, which are smaller by the kernel's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional as F

from pppml_dp.rows import good_rows, squared_norms

#: temporary arrays (patches, Gram matrices) of some examples at a time.
CHUNK_BYTES = 2**23
#: multiplications of one example from which a convolution by itself is faster on a CPU than patches and a matrix product.
ALONE = 2e6


def _norms_of_chunks(chunks: Iterator[torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = torch.cat([squared_norms(rows) for rows in chunks])
    return found


def _scaled(values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return values * factors.to(values).reshape(-1, *[1] * (values.ndim - 1))


def _squared(values: torch.Tensor) -> torch.Tensor:
    """Squared norms of each example, to a few digits; infinite where they overflow."""
    norms: torch.Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.double().square()


@dataclass(frozen=True)
class Dense:
    """Of a linear layer: ``x`` is ``(n, positions, inputs)``, ``g`` is ``(n, positions, outputs)``."""

    x: torch.Tensor
    g: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of the gradient."""
        return self.g.dtype

    @property
    def gradient_numbers(self) -> int:
        """In one example's gradient."""
        return self.x.shape[2] * self.g.shape[2]

    @property
    def factor_numbers(self) -> int:
        """In what one example's gradient is made of."""
        return self.x.shape[1] * (self.x.shape[2] + self.g.shape[2])

    @property
    def prefers_gram(self) -> bool:
        """Whether norms from Gram matrices take fewer multiplications than from gradients; those of float64 count twice."""
        inputs, outputs = self.x.shape[2], self.g.shape[2]
        return 2 * self.x.shape[1] * (inputs + outputs + 4) < inputs * outputs

    def chunks(self) -> Iterator[torch.Tensor]:
        """The examples' gradients, some at a time: ``(some, *shape of the weight)``."""
        step = max(1, CHUNK_BYTES // (self.gradient_numbers * self.g.element_size()))
        for start in range(0, len(self.x), step):
            part = slice(start, start + step)
            yield self.g[part].mT @ self.x[part]

    def squared_norms(self) -> torch.Tensor:
        """Of the examples' gradients, float64 ``(n,)``."""
        positions = self.x.shape[1]
        if positions == 1:
            return squared_norms(self.x) * squared_norms(self.g)
        if not self.prefers_gram:
            return _norms_of_chunks(self.chunks())
        out = []
        step = max(1, CHUNK_BYTES // (16 * positions**2))
        for start in range(0, len(self.x), step):
            x, g = (v[start : start + step].double() for v in (self.x, self.g))
            out.append(((x @ x.mT) * (g @ g.mT)).sum((1, 2)).clamp_min(0))
        return torch.cat(out)

    def squared_scale(self) -> torch.Tensor:
        """Product of the squared norms of what is multiplied, float64 ``(n,)``: the measure of rounding errors. 0: nothing is added up."""
        scale = _squared(self.x) * _squared(self.g)
        return scale if self.x.shape[1] > 1 else torch.zeros_like(scale)

    def weighted(self, factors: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
        """The sum of the good examples' gradients times their factors, in the weight's shape. Both ``(n,)``, on the CPU."""
        g = _scaled(good_rows(self.g, good), factors[good])
        return g.flatten(0, 1).T @ good_rows(self.x, good).flatten(0, 1)


@dataclass(frozen=True)
class Correlation:
    """Of a convolution: the sum over positions t of ``small[o, t] big[c, stride t + dilation k - padding]``, by group of channels.

    ``big`` is the input and ``small`` the gradient by the output; of a transposed convolution it is the other way round.
    """

    big: torch.Tensor
    small: torch.Tensor
    weight: torch.Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the gradient."""
        return self.small.dtype

    @property
    def gradient_numbers(self) -> int:
        """In one example's gradient."""
        return self.weight.numel()

    @property
    def factor_numbers(self) -> int:
        """In what one example's gradient is made of."""
        return self.big[0].numel() + self.small[0].numel()

    @property
    def _kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @cached_property
    def _positions(self) -> tuple[int, ...]:
        return tuple(self.small.shape[2:])

    @cached_property
    def _pixels(self) -> int:
        return math.prod(size + 2 * p for size, p in zip(self.big.shape[2:], self.padding, strict=True))

    @property
    def prefers_gram(self) -> bool:
        """As of :class:`Dense`."""
        positions, around = math.prod(self._positions), 4 * self.groups
        gram = self._pixels**2 * (self.big.shape[1] + around) + positions**2 * (self.small.shape[1] + around)
        return 2 * gram < positions * self.gradient_numbers

    def _gradient(self, big: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
        how = self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups
        found: torch.Tensor = torch.ops.aten.convolution_backward(small, big, self.weight, None, *how, [False, True, False])[1]
        return found

    def weighted(self, factors: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
        """The sum of the good examples' gradients times their factors, in the weight's shape. Both ``(n,)``, on the CPU."""
        if not bool(good.any()):
            return torch.zeros_like(self.weight)
        return self._gradient(good_rows(self.big, good), _scaled(good_rows(self.small, good), factors[good]))

    def chunks(self) -> Iterator[torch.Tensor]:
        """The examples' gradients, some at a time: ``(some, *shape of the weight)``."""
        positions = math.prod(self._positions)
        if self.big.device.type == "cpu" and positions * self.gradient_numbers >= ALONE:
            for i in range(len(self.big)):
                yield self._gradient(self.big[i : i + 1], self.small[i : i + 1])[None]
            return
        columns = self.big.shape[1] * math.prod(self._kernel)
        step = max(1, CHUNK_BYTES // (columns * positions * self.big.element_size()))
        for start in range(0, len(self.big), step):
            patches = self._patches(self._padded(start, step)).reshape(-1, columns // self.groups, positions)
            small = self.small[start : start + step].reshape(len(patches), -1, positions)
            yield torch.bmm(small, patches.mT).reshape(-1, *self.weight.shape)

    def _padded(self, start: int, count: int) -> torch.Tensor:
        part = self.big[start : start + count]
        return F.pad(part, [p for amount in reversed(self.padding) for p in (amount, amount)]) if any(self.padding) else part

    def _patches(self, padded: torch.Tensor) -> torch.Tensor:
        """Views ``(n, channels, *kernel, *positions)``."""
        padded = padded.contiguous()
        along = padded.stride()[2:]
        by_kernel = [d * s for d, s in zip(self.dilation, along, strict=True)]
        by_position = [d * s for d, s in zip(self.stride, along, strict=True)]
        shape = *padded.shape[:2], *self._kernel, *self._positions
        return padded.as_strided(shape, (*padded.stride()[:2], *by_kernel, *by_position))

    def squared_norms(self) -> torch.Tensor:
        """Of the examples' gradients, float64 ``(n,)``."""
        if not self.prefers_gram:
            return _norms_of_chunks(self.chunks())
        step = max(1, CHUNK_BYTES // (8 * self.groups * (self._pixels**2 + math.prod(self._positions) ** 2)))
        return torch.cat([self._ghost(start, step) for start in range(0, len(self.big), step)]).clamp_min(0)

    def _ghost(self, start: int, count: int) -> torch.Tensor:
        """Of some examples, from Gram matrices."""
        padded = self._padded(start, count).double()
        n, sizes, axes = len(padded), tuple(padded.shape[2:]), len(self._kernel)
        big = padded.reshape(n, self.groups, -1, math.prod(sizes))
        small = self.small[start : start + count].double().reshape(n, self.groups, -1, math.prod(self._positions))
        gram = (big.mT @ big).reshape(n, self.groups, *sizes, *sizes)
        for axis, (stride, dilation, kernel) in enumerate(zip(self.stride, self.dilation, self._kernel, strict=True)):
            gram = sum(self._shifted(gram, axis, axes, stride, k * dilation) for k in range(kernel))  # type: ignore[assignment]
        return (gram.reshape(n, -1) * (small.mT @ small).reshape(n, -1)).sum(1)

    def _shifted(self, gram: torch.Tensor, axis: int, axes: int, stride: int, offset: int) -> torch.Tensor:
        """The pixels that one place of the kernel meets along an axis, in rows and in columns."""
        end = offset + stride * (self._positions[axis] - 1) + 1
        index: list[Any] = [slice(None)] * gram.ndim
        index[2 + axis] = index[2 + axes + axis] = slice(offset, end, stride)
        return gram[tuple(index)]

    def squared_scale(self) -> torch.Tensor:
        """Product of the squared norms of what is multiplied, float64 ``(n,)``: the measure of rounding errors. 0: nothing is added up."""
        return math.prod(self._kernel) * _squared(self.big) * _squared(self.small)


def linear_product(x: torch.Tensor, g: torch.Tensor) -> Dense:
    """Of a linear layer with any dimensions between examples and features."""
    return Dense(x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1]))


def convolution_product(module: Any, x: torch.Tensor, g: torch.Tensor) -> Correlation:
    """Of a convolution or a transposed convolution, with any stride, padding, dilation and groups."""
    shape = module.weight.detach(), module.stride
    if module.transposed:
        # Rows that no input reached (output padding) have no part in the weight's gradient.
        reach = [
            (n - 1) * s + d * (k - 1) + 1 - 2 * p + s - 1
            for n, s, d, k, p in zip(x.shape[2:], module.stride, module.dilation, module.kernel_size, module.padding, strict=True)
        ]
        big = g[(slice(None), slice(None), *(slice(0, end) for end in reach))]
        return Correlation(big, x, *shape, module.padding, module.dilation, module.groups)
    sides = _sides(module)
    if module.padding_mode == "zeros" and all(before == after for before, after in sides):
        return Correlation(x, g, *shape, tuple(before for before, _ in sides), module.dilation, module.groups)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, [amount for pair in reversed(sides) for amount in pair], mode=mode)
    return Correlation(padded, g, *shape, (0,) * len(sides), module.dilation, module.groups)


def _sides(module: Any) -> list[tuple[int, int]]:
    """Padding before and after, by axis."""
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in module.padding]
