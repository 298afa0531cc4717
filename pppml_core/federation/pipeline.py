"""From a site's update to the integers a sum takes, and from the sum back to a mean. Two halves of one page.

The weight of a site enters twice and is the same number both times: rounded once to ``k = round(w / w_max * levels)``, the update is
multiplied by ``k / levels`` and ``k`` itself is a coordinate of the sum. So the mean is exactly the one with weights ``k``: what the sum
is divided by adds no error of its own. Against the true weights ``w`` each site's effective weight is off by
:func:`weight_error`, which the plan reports. Nobody is told a single site's weight unless they see its whole contribution.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.config.run_config import EncodingSection
from pppml_core.errors import PppmlError, RoundAborted
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.values import FixedPoint, Layout, TensorSpec, ValueSpec, automatic_ranges

WEIGHT = "#weight"
#: Training metrics that travel as further coordinates, with the largest absolute value each may have.
#: ``#loss_defined`` is 1 where a site made a step and so has a loss: the mean loss is over those sites.
METRIC_RANGES = {"#loss": 16.0, "#loss_defined": 1.0, "#saturated": 1.0}


def levels_of(bits: int) -> int:
    """The largest integer of one coordinate."""
    return int(2 ** (bits - 1) - 1)


def rounded_weight(weight: int, max_weight: int, bits: int) -> int:
    """The integer ``k`` that stands for a weight, 0 to ``levels``; 0: the weight cannot be told from none."""
    return round(weight / max_weight * levels_of(bits))


def weight_error(weight: int, max_weight: int, bits: int) -> float:
    """Relative error of the effective weight, ``|k / levels - w / w_max| / (w / w_max)``; 1 where ``k`` is 0."""
    true = weight / max_weight
    return abs(rounded_weight(weight, max_weight, bits) / levels_of(bits) - true) / true


def contribution_layout(shared: tuple[TensorSpec, ...], *, metrics: bool) -> Layout:
    """Shared tensors, then the weight, then training metrics."""
    extra = tuple(TensorSpec(n, (), "metric") for n in METRIC_RANGES) if metrics else ()
    return Layout((*shared, TensorSpec(WEIGHT, (), "weight"), *extra))


def contribution_ranges(
    shared: tuple[TensorSpec, ...], encoding: EncodingSection, previous: Mapping[str, float] | None, initial_rms: Mapping[str, float]
) -> tuple[float, ...]:
    """The range of each shared tensor in this round, from public knowledge: config, initial model, last aggregate.

    A buffer's start is 8 times its RMS in the initial model and at least ``start``: running statistics move by their own size.
    """
    start = encoding.start
    buffers = {t.name: max(start, 8.0 * initial_rms[t.name]) for t in shared if t.role == "buffer"}
    automatic = automatic_ranges(Layout(shared), previous, start=start, buffer_start=buffers)
    if encoding.range == "auto":
        return automatic
    if isinstance(encoding.range, float | int):
        return tuple(float(encoding.range) for _ in shared)
    explicit = encoding.range
    return tuple(
        next((float(r) for pattern, r in explicit.items() if fnmatch.fnmatchcase(t.name, pattern)), auto)
        for t, auto in zip(shared, automatic, strict=True)
    )


@dataclass(frozen=True)
class Pipeline:
    """One round's encoding, the same at every party: built from public terms alone.

    Args:
        layout: see :func:`contribution_layout`.
        ranges: of the shared tensors, in order.
        bits: of one coordinate.
        max_weight: public upper bound of a site's weight.
        privacy: the run's; clips and noises the shared tensors.
        real: ``encoding: float``: no quantization; ``dtype`` is then the model's.
    """

    layout: Layout
    ranges: tuple[float, ...]
    bits: int
    max_weight: int
    privacy: PrivacyPlan
    real: bool = False
    dtype: str = "float32"

    @property
    def fixed_point(self) -> FixedPoint:
        """Ranges of shared tensors, weight (1) and metrics (their own)."""
        extra = tuple(METRIC_RANGES.get(t.name, 1.0) for t in self.layout.tensors if t.role in ("weight", "metric"))
        return FixedPoint(self.layout, (*self.ranges, *extra), self.bits)

    @property
    def spec(self) -> ValueSpec:
        """What the aggregator is given."""
        if self.real:
            return ValueSpec(self.layout.length, "real", None, self.dtype)
        noise = 0 if self.privacy.placement == "server" else self.privacy.noise_bound
        return ValueSpec(self.layout.length, "integer", self.fixed_point.levels + noise)

    @property
    def shared(self) -> Layout:
        """The model's tensors alone; they come first in the flat vector."""
        return Layout(tuple(t for t in self.layout.tensors if t.role in ("parameter", "buffer")))

    def encode(
        self, tensors: Mapping[str, npt.ArrayLike], weight: int, metrics: Mapping[str, float], generator: np.random.Generator
    ) -> tuple[npt.NDArray[Any], int]:
        """A site's contribution and how many coordinates saturated, metrics included.

        Raises PppmlError on a weight above ``max_weight`` or too small for the encoding, NaN or infinity.
        """
        if not 0 < weight <= self.max_weight:
            hint = "raise encoding.max_weight, or set personalization.weight_cap"
            raise PppmlError(f"weight {weight} is not in 1..{self.max_weight}", place="encoding", hint=hint)
        levels, numerator = levels_of(self.bits), rounded_weight(weight, self.max_weight, self.bits)
        if not self.real and numerator == 0:
            hint = "lower encoding.max_weight or use more encoding.bits"
            raise PppmlError(f"weight {weight} of {self.max_weight} is nothing in {self.bits} bits", place="encoding", hint=hint)
        ratio = weight / self.max_weight if self.real else numerator / levels
        flat = np.empty(self.layout.length, self.dtype)
        length = self.shared.length
        flat[:length] = self.privacy.constrain(self.shared.flatten(tensors, self.dtype))
        told = {**metrics, "loss_defined": float("loss" in metrics)}
        cut = 0
        for tensor, place in self.layout.slices():
            if tensor.role == "weight":
                flat[place] = 1.0
            elif tensor.role == "metric":
                limit, value = METRIC_RANGES[tensor.name], told.get(tensor.name[1:], 0.0)
                cut += abs(value) > limit
                flat[place] = np.clip(value, -limit, limit)
        flat *= flat.dtype.type(ratio)
        if self.real:
            if not np.isfinite(flat).all():
                raise PppmlError("the update holds NaN or infinity", place="encoding", hint="lower the learning rate")
            return flat, 0
        integers, saturated = self.fixed_point.encode(flat, generator)
        saturated += cut
        where = {t.name: s for t, s in self.layout.slices()}
        integers[where[WEIGHT]] = numerator
        if "#loss_defined" in where:
            integers[where["#loss_defined"]] = numerator if told["loss_defined"] else 0
        if "#saturated" in where:
            # Rounded up: a single saturated coordinate must not vanish in rounding. So the mean share is an upper bound.
            integers[where["#saturated"]] = int(np.ceil(min(1.0, saturated / max(1, length)) * numerator))
        if self.privacy.placement in ("local", "distributed"):
            integers[:length] = self.privacy.noise(integers[:length])
        return integers, saturated

    def released(self, total: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum as it may be used: with placement ``server``, whoever sees it first adds the noise, before anything is made of it."""
        if self.privacy.placement != "server":
            return total
        total = total.copy()
        total[: self.shared.length] = self.privacy.noise(total[: self.shared.length])
        return total

    def decode(self, total: npt.NDArray[Any]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, float], float]:
        """Of a released sum: weighted means of the shared tensors (model dtype), of the metrics, and the summed weight in examples.

        ``loss`` is the mean over the sites that have one, and absent where none has; ``saturated`` is an upper bound of the share.
        Raises RoundAborted where the summed weight is not positive: some site lied.
        """
        flat = total.astype(np.float64) if self.real else self.fixed_point.decode(total)
        values = self.layout.unflatten(flat)
        weight = float(values[WEIGHT])
        if not weight > 0:
            raise RoundAborted(f"the summed weight is {weight}", place="decode", hint="a site sent a contribution that cannot be right")
        mean = {t.name: (values[t.name] / weight).astype(self.dtype) for t in self.layout.tensors if t.role in ("parameter", "buffer")}
        metrics = {t.name[1:]: float(values[t.name] / weight) for t in self.layout.tensors if t.role == "metric"}
        defined = metrics.pop("loss_defined", 0.0)
        if "loss" in metrics:
            loss = metrics.pop("loss")
            metrics = {"loss": loss / defined, **metrics} if defined > 0 else metrics
        return mean, metrics, weight * self.max_weight
