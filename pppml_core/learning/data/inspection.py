"""Whether examples are what their task says they are, before anything is trained on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.task import Examples, TaskSpec

#: Values looked at together: what is copied of an array in memory stays below 64 MB.
BLOCK = 1 << 26


def faults(examples: Examples, spec: TaskSpec, *, training: bool, until: float) -> list[str]:
    """What is wrong with one part of a site, each a sentence with its remedy: shapes, NaN and infinity, classes out of range.

    Arrays in memory are looked at as a whole. Examples that are read or made one by one are looked at in turn as long as
    ``time.monotonic()`` is below ``until``, the first in any case; training and evaluation look at every image again when they take it.

    Args:
        examples: the part; an empty one has no fault here.
        spec: what the task says of them.
        training: whether images must have the task's size; held-out ones may be larger.
        until: seconds of ``time.monotonic()``.

    """
    if not len(examples):
        return []
    if misshapen := _misshapen(examples, spec, training=training):
        return [misshapen]
    found: dict[str, str] = {}
    for index in _suspects(examples, until):
        image, target = examples.example(index)
        if not np.isfinite(image).all():
            found.setdefault("image", f"image {index} holds NaN or infinity; remove or repair it")
        if wrong := _outside(target, spec):
            found.setdefault("class", wrong)
        if len(found) == 2:
            break
    stored = examples.labels() if spec.kind == "classification" else _stored(examples, "targets")
    if stored is not None and (wrong := _outside(stored, spec)):
        found.setdefault("class", wrong)
    return list(found.values())


def _misshapen(examples: Examples, spec: TaskSpec, *, training: bool) -> str:
    image, target = (np.asarray(array) for array in examples.example(0))
    fits = image.shape == (spec.channels, *spec.size) if training else image.shape[0] == spec.channels and image.ndim == 1 + len(spec.size)
    if not fits:
        return f"an image of shape {image.shape}, but the task says {(spec.channels, *spec.size)}; correct the images or the task's spec"
    wanted = image.shape[1:] if spec.kind == "segmentation" else ()
    if target.shape != wanted:
        return f"a target of shape {target.shape} for an image of shape {image.shape}; {spec.kind} needs {wanted}"
    return ""


def _suspects(examples: Examples, until: float) -> Iterator[int]:
    """Indices worth preparing: of a float array those with NaN or infinity, else all that time allows."""
    yield 0
    stored = _stored(examples, "images")
    if stored is None:
        for index in range(1, len(examples)):
            if time.monotonic() > until:
                return
            yield index
    elif np.issubdtype(stored.dtype, np.floating):
        step = max(1, BLOCK * len(stored) // max(1, stored.size))
        for start in range(0, len(stored), step):
            block = stored[start : start + step].reshape(min(step, len(stored) - start), -1)
            yield from (start + np.flatnonzero(~np.isfinite(block).all(axis=1))).tolist()


def _outside(targets: npt.NDArray[Any], spec: TaskSpec) -> str:
    """A sentence where labels or masks hold a value that is no class; else empty."""
    classes = len(spec.classes)
    if not targets.size or (targets.min() >= 0 and targets.max() < classes):
        return ""
    value = int(targets.min() if targets.min() < 0 else targets.max())
    what = "label" if spec.kind == "classification" else "a mask with the value"
    return f"{what} {value}, but there are only {classes} classes, 0 to {classes - 1}; correct it or name the class"


def _stored(examples: Examples, name: str) -> npt.NDArray[Any] | None:
    """The array of that name where the examples are arrays in memory."""
    array = getattr(getattr(examples, "inner", examples), name, None)
    return array if isinstance(array, np.ndarray) else None
