"""What travels through a sum: named tensors, one flat vector, and its fixed-point integers.

``Layout`` says where each tensor lies in the flat vector. ``FixedPoint`` turns real coordinates into integers of ``bits`` bits, with a
range of its own per tensor, unbiased stochastic rounding and counted saturation, so that sums are exact and every aggregator that
sums integers gives the same model, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PppmlError, WireError

Vector = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64] | npt.NDArray[np.int32]
Role = Literal["parameter", "buffer", "weight", "metric"]


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a contribution: ``role`` decides its range rule and who reads it after the sum."""

    name: str
    shape: tuple[int, ...]
    role: Role = "parameter"

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Order and place of tensors in the flat vector."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if doubled:
            raise PppmlError(f"tensors of one name: {', '.join(doubled)}", place="layout")

    @cached_property
    def length(self) -> int:
        """Number of coordinates in the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    def slices(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Each tensor with the slice it takes in the flat vector."""
        start = 0
        for tensor in self.tensors:
            yield tensor, slice(start, start + tensor.size)
            start += tensor.size

    def flatten(self, tensors: Mapping[str, npt.ArrayLike], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[np.floating]:
        """The tensors as one vector of ``dtype``. Raises PppmlError on a missing name or another shape."""
        flat = np.empty(self.length, dtype=dtype)
        for tensor, where in self.slices():
            if tensor.name not in tensors:
                raise PppmlError(f"{tensor.name!r} is missing from the contribution", place="flatten")
            value = np.asarray(tensors[tensor.name])
            if value.shape != tensor.shape:
                raise PppmlError(f"{tensor.name!r} has shape {value.shape}, declared {tensor.shape}", place="flatten")
            flat[where] = value.ravel()
        return flat

    def unflatten(self, flat: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.floating]]:
        """The inverse of :meth:`flatten`; the tensors are views of ``flat``."""
        if flat.shape != (self.length,):
            raise PppmlError(f"a vector of shape {flat.shape} does not fit the layout of length {self.length}", place="unflatten")
        return {tensor.name: flat[where].reshape(tensor.shape) for tensor, where in self.slices()}


@dataclass(frozen=True)
class ValueSpec:
    """What one site's contribution to a sum looks like, as stages of the plan hand it on.

    Args:
        length: coordinates.
        kind: ``integer`` (the rule) or ``real`` (``encoding: float`` only).
        bound: largest absolute value of one coordinate of one contribution; None where it is not bounded.
        real_dtype: floating type on the wire of a ``real`` value.
    """

    length: int
    kind: Literal["integer", "real"]
    bound: int | None
    real_dtype: str = "float32"

    def sum_bound(self, contributions: int) -> int | None:
        """Largest absolute value of a coordinate of the sum of ``contributions`` values."""
        return None if self.bound is None else self.bound * contributions

    def dtype(self) -> np.dtype[np.generic]:
        """The smallest numpy dtype that holds one contribution on the wire."""
        if self.kind == "real":
            return np.dtype(self.real_dtype)
        if self.bound is None:
            return np.dtype(np.int64)
        return next(np.dtype(f"i{size}") for size in (1, 2, 4, 8) if self.bound < 2 ** (8 * size - 1))

    def check(self, values: object) -> None:
        """Raise WireError unless ``values`` is one contribution: an array of this length and dtype, within the bound, or finite.

        For whoever reads a contribution in the clear: a number out of its range must not enter a sum.
        """
        if not isinstance(values, np.ndarray) or values.dtype != self.dtype() or values.shape != (self.length,):
            found = f"{values.dtype} of {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise WireError(f"a contribution is {self.dtype()} of ({self.length},), not {found}", place="contribution")
        if self.kind == "real":
            if not np.isfinite(values).all():
                raise WireError("a contribution holds NaN or infinity", place="contribution")
        elif self.bound is not None and self.length and max(int(values.max()), -int(values.min())) > self.bound:
            raise WireError(f"a contribution holds a number beyond {self.bound:,}", place="contribution")


@dataclass(frozen=True)
class FixedPoint:
    """Real coordinates as signed integers: ``round(x / range * levels)`` with ``levels = 2**(bits-1) - 1``.

    Args:
        ranges: one positive, finite range per tensor of the layout, in its order; values beyond it saturate and are counted.
        bits: 2 to 24; the integers lie in ``[-levels, levels]``.

    The error of a decoded coordinate is below one step, ``range / levels``, per contribution, and zero in expectation (to float64's
    precision).
    """

    layout: Layout
    ranges: tuple[float, ...]
    bits: int = 16

    def __post_init__(self) -> None:
        if len(self.ranges) != len(self.layout.tensors):
            raise PppmlError(f"{len(self.ranges)} ranges for {len(self.layout.tensors)} tensors", place="fixed point")
        for tensor, limit in zip(self.layout.tensors, self.ranges, strict=True):
            if not (np.isfinite(limit) and limit > 0):
                raise PppmlError(f"the range of {tensor.name!r} must be positive and finite, not {limit}", place="fixed point")
        if not 2 <= self.bits <= 24:
            raise PppmlError(f"bits must be 2 to 24, not {self.bits}", place="fixed point")

    @property
    def levels(self) -> int:
        """The largest integer of one coordinate."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def spec(self) -> ValueSpec:
        """What the aggregator will be given."""
        return ValueSpec(self.layout.length, "integer", self.levels)

    def step(self, tensor_index: int) -> float:
        """The distance of two neighbouring values of a tensor, in the tensor's unit."""
        return self.ranges[tensor_index] / self.levels

    def encode(self, flat: npt.NDArray[np.floating], generator: np.random.Generator) -> tuple[npt.NDArray[np.int32], int]:
        """Integers of ``flat`` (floating, shape ``(length,)``) and the number of saturated coordinates.

        Rounding is stochastic and unbiased: ``floor(x + u)``, ``u`` uniform in [0, 1) from ``generator``. Raises PppmlError on NaN or
        infinity, naming the tensor: a model that has diverged must not enter a sum.
        """
        if flat.shape != (self.layout.length,):
            raise PppmlError(f"a vector of shape {flat.shape} does not fit length {self.layout.length}", place="fixed point")
        out = np.empty(flat.shape, dtype=np.int32)
        saturated = 0
        # Two buffers for all blocks: memory that is asked for anew costs more than what is computed in it.
        numbers, uniform = np.empty((2, min(_BLOCK, max(1, self.layout.length))))
        for (tensor, where), limit in zip(self.layout.slices(), self.ranges, strict=True):
            # In blocks that stay in cache.
            for start in range(where.start, where.stop, _BLOCK):
                part = slice(start, min(start + _BLOCK, where.stop))
                x, u = numbers[: part.stop - part.start], uniform[: part.stop - part.start]
                # float64 also where x is float32: with 24 bits float32 has no fraction left to round, with 16 too little for no bias.
                np.copyto(x, flat[part])
                low, high = x.min(), x.max()
                if not (np.isfinite(low) and np.isfinite(high)):
                    raise PppmlError(f"{tensor.name!r} holds NaN or infinity", place="fixed point", hint="lower the learning rate")
                if max(high, -low) > limit:
                    saturated += int(np.count_nonzero(np.abs(x) > limit))
                    np.clip(x, -limit, limit, out=x)
                x *= self.levels / limit
                generator.random(out=u)
                x += u
                np.floor(x, out=x)
                # limit * (levels / limit) may round past levels, and so may levels + u: the integer must not leave its range.
                np.clip(x, -self.levels, self.levels, out=x)
                out[part] = x
        return out, saturated

    def decode(self, total: npt.NDArray[np.integer], dtype: npt.DTypeLike = np.float64) -> npt.NDArray[np.floating]:
        """Real values of an integer sum (any integer dtype, shape ``(length,)``). Raises PppmlError on another shape."""
        if total.shape != (self.layout.length,):
            raise PppmlError(f"a sum of shape {total.shape} does not fit length {self.layout.length}", place="fixed point")
        out = np.empty(total.shape, dtype=dtype)
        for index, (_, where) in enumerate(self.layout.slices()):
            np.multiply(total[where], self.step(index), out=out[where], dtype=np.float64, casting="same_kind")
        return out


_BLOCK = 65_536


def automatic_ranges(
    layout: Layout, previous: Mapping[str, float] | None, *, start: float, buffer_start: Mapping[str, float], multiple: float = 64.0
) -> tuple[float, ...]:
    """The ``range: auto`` rule: public knowledge only, the same at every party.

    Args:
        layout: the tensors that need a range.
        previous: RMS of each tensor in the last public aggregate; None in round 1.
        start: range of parameters in round 1.
        buffer_start: range of each buffer in round 1 (from the public initial model).
        multiple: how far above the last RMS a coordinate may lie. 64 leaves a site's largest coordinate ample room and still gives
            500 levels within one RMS at 16 bits.

    Weights and metrics have fixed ranges and are not passed here. A tensor whose last aggregate was (nearly) zero keeps a range that
    is not: at least a thousandth of the RMS over all tensors.
    """
    if previous is None:
        return tuple(buffer_start[t.name] if t.role == "buffer" else start for t in layout.tensors)
    sizes = {t.name: t.size for t in layout.tensors}
    overall = float(np.sqrt(sum(previous[n] ** 2 * sizes[n] for n in sizes) / max(1, sum(sizes.values()))))
    floor = max(overall * 1e-3, 1e-12)
    return tuple(multiple * max(previous[t.name], floor) for t in layout.tensors)


def rms(tensors: Mapping[str, npt.NDArray[np.floating]], names: Sequence[str]) -> dict[str, float]:
    """Root mean square of each named tensor, in float64."""
    return {n: float(np.sqrt(np.mean(np.square(tensors[n], dtype=np.float64)))) if tensors[n].size else 0.0 for n in names}
