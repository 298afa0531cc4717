"""Examples in memory: arrays with a group for each, subsets of them, and several lists as one.

All three satisfy :class:`pppml_core.interfaces.task.Examples`. Pixels stay in the dtype they were stored in (uint8 needs a quarter of
float32) and become float32 images one example at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import Examples

Image = npt.NDArray[np.float32]
Target = npt.NDArray[np.int64]
#: one stored image -> float32 ``(channels, *size)``
ToImage = Callable[[npt.NDArray[Any]], Image]
#: image, target, generator -> augmented image and target of the same shapes
Augment = Callable[[Image, Target, np.random.Generator], tuple[Image, Target]]


def channels_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One 2-D image as ``(channels, height, width)``: grey ``(H, W)`` gets a channel axis, ``(H, W, 1|3|4)`` is transposed.

    An array that already starts with 1, 3 or 4 channels and does not end with them is returned as it is. Raises DataError otherwise.
    """
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        return np.moveaxis(array, -1, 0)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return array
    raise DataError(f"an image of shape {array.shape} is neither grey nor colour", hint="store images as (H, W) or (H, W, 3)")


def unit(array: npt.NDArray[Any]) -> Image:
    """Float32 ``(channels, height, width)``: integers divided by the largest value of their dtype (uint8: 255), floats as they are."""
    image = channels_first(array)
    if np.issubdtype(image.dtype, np.integer):
        return np.ascontiguousarray(image, dtype=np.float32) / np.float32(np.iinfo(image.dtype).max)
    return np.ascontiguousarray(image, dtype=np.float32)


def centred(array: npt.NDArray[Any]) -> Image:
    """``(x / 255 - 0.5) / 0.5``: float32 ``(channels, height, width)`` in [-1, 1] for uint8."""
    return (unit(array) - np.float32(0.5)) / np.float32(0.5)


def stacked(pairs: Sequence[tuple[Image, Target]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Examples as one batch: images ``(n, channels, *size)`` and targets. Raises DataError where an image holds NaN or infinity."""
    images, targets = np.stack([image for image, _ in pairs]), np.stack([target for _, target in pairs])
    # In float64 a sum of finite float32 values cannot overflow, and it needs no memory of its own.
    if not np.isfinite(images.sum(dtype=np.float64)):
        raise DataError("an image holds NaN or infinity", place="examples", hint="remove or repair it")
    return images, targets


def dihedral(image: Image, target: Target, generator: np.random.Generator) -> tuple[Image, Target]:
    """One of the eight flips and quarter turns of the plane, drawn uniformly; a mask turns with its image.

    Quarter turns only where height equals width. ``image`` is ``(channels, height, width)``, ``target`` ``()`` or ``(height, width)``.
    """
    turns, flip = int(generator.integers(4)), bool(generator.integers(2))
    if image.shape[-1] != image.shape[-2]:
        turns -= turns % 2
    image = np.rot90(image, turns, axes=(-2, -1))
    image = np.flip(image, -1) if flip else image
    if target.ndim:
        target = np.rot90(target, turns, axes=(-2, -1))
        # (not for labels: ascontiguousarray would make one dimension of none)
        target = np.ascontiguousarray(np.flip(target, -1) if flip else target)
    return np.ascontiguousarray(image), target


class ArrayExamples:
    """Examples over numpy arrays.

    Args:
        images: N stored images, any dtype ``to_image`` takes: ``(N, H, W)``, ``(N, H, W, C)``, ``(N, C, H, W)`` or volumes.
        targets: ``(N,)`` class indices or ``(N, *size)`` masks, any integer dtype.
        groups: ``(N,)`` patient, smear or volume of each example.
        to_image: one stored image -> float32 ``(channels, *size)``; default :func:`unit`.
        augment: applied to an example only when a generator is handed to :meth:`example`.

    Raises DataError where the lengths differ.

    """

    def __init__(
        self,
        images: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        groups: npt.NDArray[Any],
        to_image: ToImage | None = None,
        augment: Augment | None = None,
    ) -> None:
        if not len(images) == len(targets) == len(groups):
            raise DataError(f"{len(images)} images, {len(targets)} targets and {len(groups)} groups do not fit", place="examples")
        self.images, self.targets, self.groups = images, targets, np.asarray(groups)
        self.to_image = to_image or unit
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[Image, Target]:
        """Image, float32 ``(channels, *size)``, and target, int64 ``()`` or ``size``; augmented when a generator is given."""
        image, target = self.to_image(self.images[index]), np.asarray(self.targets[index], dtype=np.int64)
        if augment is not None and self.augment is not None:
            image, target = self.augment(image, target, augment)
        return image, target

    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each example, or (masks) 1 where any foreground is present, else 0; shape ``(len,)``."""
        if self.targets.ndim == 1:
            return self.targets.astype(np.int64)
        axes = tuple(range(1, self.targets.ndim))
        return np.asarray((self.targets > 0).any(axis=axes), dtype=np.int64)


class Subset:
    """Some examples of a list, in the order of ``indices``."""

    def __init__(self, examples: Examples, indices: npt.NDArray[np.integer] | Sequence[int]) -> None:
        self.examples = examples
        self.indices = np.asarray(indices, dtype=np.int64)
        self.groups = np.asarray(examples.groups)[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[Image, Target]:
        """The example at place ``index`` of this subset."""
        return self.examples.example(int(self.indices[index]), augment)

    def labels(self) -> npt.NDArray[np.int64]:
        """The labels of the chosen examples, shape ``(len,)``."""
        return self.examples.labels()[self.indices]


class Concatenated:
    """Several lists as one, in order: what pooled (centralized) training sees.

    Groups become strings ``"<part>:<group>"``, because patient 1 of one site is not patient 1 of another; ``names`` are the parts'
    names (default 0, 1, ...).
    """

    def __init__(self, parts: Sequence[Examples], names: Sequence[str] | None = None) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        names = [str(i) for i in range(len(self.parts))] if names is None else names
        tagged = [[f"{name}:{group}" for group in part.groups] for name, part in zip(names, self.parts, strict=True)]
        self.groups = np.array([group for part in tagged for group in part], dtype=np.str_)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[Image, Target]:
        """The example at place ``index``, counted through all parts."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = index % len(self)
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part].example(index - int(self.starts[part]), augment)

    def labels(self) -> npt.NDArray[np.int64]:
        """The labels of all parts, shape ``(len,)``."""
        return np.concatenate([part.labels() for part in self.parts]) if self.parts else np.zeros(0, np.int64)
