"""The last layer of a network, and what its update says of the labels: two numbers for each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Images, Knowledge, Sight
from pppml_core.learning.rounding import error_variance
from pppml_core.learning.single import remembered

Numbers = npt.NDArray[np.float64]
#: difference of two correct float32 computations of an update, of its root mean square.
NUMERICS = 1e-4


@dataclass(frozen=True)
class Head:
    """Names of the weight ``(classes, ...)`` and the bias ``(classes,)`` of the last layer; empty: none, or not shared."""

    weight: str
    bias: str

    @classmethod
    def of(cls, model: torch.nn.Module, image: torch.Tensor, classes: int, shared: Mapping[str, Any]) -> Head:
        """Of the linear layer or convolution that is called last; ``image``: a batch of one, ``shared``: by tensor name."""
        called: list[str] = []
        kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
        hooks = [m.register_forward_hook(lambda *_, n=n: called.append(n)) for n, m in model.named_modules() if isinstance(m, kinds)]
        with torch.no_grad():
            model(image)
        for hook in hooks:
            hook.remove()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        last = f"{called[-1]}." if called and called[-1] else ""
        names = [n if n in trained and n in shared and len(trained[n]) == classes else "" for n in (f"{last}weight", f"{last}bias")]
        return cls(*names)

    @property
    def shared(self) -> bool:
        """Whether anything of it is."""
        return bool(self.weight or self.bias)

    def rows(self, update: Mapping[str, npt.ArrayLike]) -> tuple[Numbers, Numbers]:
        """Weight ``(classes, inputs)`` and bias ``(classes,)`` of an update; with 0 inputs, or of length 0, where it has none."""
        bias = np.asarray(update[self.bias], np.float64) if self.bias else np.zeros(0)
        weight = np.asarray(update[self.weight], np.float64) if self.weight else np.zeros((len(bias), 0))
        return weight.reshape(len(weight), -1), bias


@dataclass(frozen=True)
class Reading:
    """What is read off the last layer's update: its bias, and its weight along one direction of unit length.

    Each class's row of the weight's update is a sum of features, times how far the prediction was off. Features that are never negative
    resemble each other, so the direction most common to public images collects what a row says, and noise only once.
    """

    head: Head
    direction: Numbers

    def of(self, update: Mapping[str, npt.ArrayLike]) -> Numbers:
        """``(readings,)``: ``2 classes``, or ``classes`` of a layer without bias or weight."""
        weight, bias = self.head.rows(update)
        return np.concatenate([bias, weight @ self.direction]) if weight.shape[1] else bias

    def error(self, sight: Sight, ctx: Knowledge) -> Numbers:
        """Variance of noise, rounding and numerics, ``(readings,)``, above 0."""
        weight, bias = self.head.rows(sight.update)

        def of(name: str, values: Numbers) -> float:
            numerics = NUMERICS**2 * float(np.square(values).mean()) + 1e-20
            return error_variance(sight, ctx, name) + numerics

        parts = [np.full(len(bias), of(self.head.bias, bias))] if len(bias) else []
        if weight.shape[1]:
            parts.append(np.full(len(weight), of(self.head.weight, weight)))
        return np.concatenate(parts)


def learn(head: Head, updates: list[Mapping[str, npt.ArrayLike]]) -> Reading:
    """The reading whose direction is the first right singular vector of the rows in these updates of public images."""
    rows = np.concatenate([head.rows(update)[0] for update in updates])
    return Reading(head, np.linalg.svd(rows, full_matrices=False)[2][0] if rows.shape[1] else np.zeros(0))


def updates_of(ctx: Knowledge, model: torch.nn.Module, images: Images, head: Head) -> list[Mapping[str, npt.ArrayLike]]:
    """What each image as a batch of one makes of the last layer."""
    names = [name for name in (head.weight, head.bias) if name]
    shapes = [tuple(model.get_parameter(name).shape) for name in names]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    rows = remembered(ctx, model, images, names)
    return [{n: part.reshape(s) for n, s, part in zip(names, shapes, np.split(row, ends), strict=True)} for row in rows]


def unit(ctx: Knowledge) -> Knowledge:
    """Under which the update of a single image is computed: of recorded rounds with one step, as theirs are too many."""
    return ctx if ctx.training.exact else replace(ctx, training=replace(ctx.training, steps=1))
