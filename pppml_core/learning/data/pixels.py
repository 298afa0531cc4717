"""Stored pixels: what dtypes and shapes are taken, resizing, intensity windows, masks with 255 for foreground."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError

Array = npt.NDArray[Any]
#: Dtypes that images may be stored in.
IMAGE_DTYPES = ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64")


def check_images(shape: tuple[int, ...], dtype: np.dtype[Any], place: str, name: str = "images") -> tuple[int, tuple[int, int]]:
    """Channels, and height and width, of ``(N, H, W)`` or ``(N, H, W, C)`` images. Raises DataError on another shape or dtype."""
    if str(dtype) not in IMAGE_DTYPES:
        raise DataError(f"`{name}` has dtype {dtype}", place=place, hint=f"store images as one of {', '.join(IMAGE_DTYPES)}")
    if len(shape) == 3:
        return 1, (shape[1], shape[2])
    if len(shape) == 4 and shape[-1] in (1, 3, 4):
        return shape[-1], (shape[1], shape[2])
    raise DataError(
        f"`{name}` has shape {shape}", place=place, hint="store images as (N, height, width) or (N, height, width, 1, 3 or 4 channels)"
    )


def check_range(images: Array, place: str, window: tuple[float, float] | None) -> None:
    """Raise DataError where pixels need an intensity window and none is given: signed integers, or floats outside [0, 1]."""
    if window is not None or images.dtype in (np.uint8, np.uint16) or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if np.issubdtype(images.dtype, np.integer) or low < 0 or high > 1:
        raise DataError(
            f"pixels of dtype {images.dtype} lie in [{low:g}, {high:g}]; what is black and what is white?",
            place=place,
            hint="give `window: [black, white]`, e.g. [-1000, 400] for CT in HU, or store uint8 or floats in [0, 1]",
        )


def windowed(images: Array, window: tuple[float, float]) -> npt.NDArray[np.float32]:
    """``(x - low) / (high - low)`` clipped to [0, 1], float32, for ``window = (low, high)``."""
    low, high = window
    scaled: npt.NDArray[np.float32] = (images.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def resize(images: Array, size: tuple[int, ...], *, masks: bool = False) -> Array:
    """``(N, H, W)`` or ``(N, H, W, C)`` resized to ``size``, in the dtype given.

    Images: bilinear with anti-aliasing (torch, as MONAI's ``Resize`` does), integers rounded. Masks: nearest pixel centre.
    """
    if images.shape[1:3] == tuple(size) or len(images) == 0:
        return images if len(images) else np.zeros((0, *size, *images.shape[3:]), images.dtype)
    import torch
    from torch.nn.functional import interpolate

    out = np.empty((len(images), *size, *images.shape[3:]), images.dtype)
    for start in range(0, len(images), 256):  # in blocks: float32 copies of all images at once could be four times the data
        block = images[start : start + 256]
        channels = block[:, None] if block.ndim == 3 else np.moveaxis(block, -1, 1)
        tensor = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))
        if masks:
            tensor = interpolate(tensor, size=tuple(size), mode="nearest-exact")
        else:
            tensor = interpolate(tensor, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
        result = tensor.numpy()
        result = result[:, 0] if block.ndim == 3 else np.moveaxis(result, 1, -1)
        if np.issubdtype(images.dtype, np.integer):
            limits = np.iinfo(images.dtype)
            result = np.clip(np.rint(result), limits.min, limits.max)
        out[start : start + 256] = result
    return out


def check_labels(labels: Array, classes: int | None, place: str, name: str = "labels") -> npt.NDArray[np.int64]:
    """``(N,)`` int64 classes from ``(N,)`` or ``(N, 1)`` integers. Raises DataError on another shape, dtype, or a class out of range."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"`{name}` has shape {labels.shape}; several labels per image are not supported", place=place, hint="give one class per image"
        )
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != np.bool_:
        raise DataError(f"`{name}` has dtype {labels.dtype}, not integers", place=place, hint="number the classes from 0")
    labels = labels.astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= (classes if classes is not None else np.iinfo(np.int64).max)))
    if len(wrong):
        there = f"only 0 to {classes - 1} have a name" if classes is not None else "classes are numbered from 0"
        raise DataError(
            f"`{name}` of example {wrong[0]} is {labels[wrong[0]]}, but {there}", place=place, hint="correct it or add a class name"
        )
    return labels


def class_masks(masks: Array, classes: int, place: str, name: str = "masks") -> Array:
    """Masks with values 0 to ``classes - 1``; 0 and 255 alone are taken for background and foreground. Raises DataError otherwise."""
    if not np.issubdtype(masks.dtype, np.integer) and masks.dtype != np.bool_:
        raise DataError(f"`{name}` has dtype {masks.dtype}, not integers", place=place, hint="store class indices, 0 for background")
    if masks.dtype == np.bool_ or not masks.size:
        return masks.astype(np.uint8)
    if masks.min() >= 0 and masks.max() < classes:
        return masks
    values = np.unique(masks)
    if classes == 2 and set(values.tolist()) <= {0, 255}:
        return (masks > 0).astype(np.uint8)
    bad = (masks < 0) | (masks >= classes)
    first = int(np.flatnonzero(bad.reshape(len(masks), -1).any(axis=1))[0]) if masks.ndim > 2 else 0
    raise DataError(
        f"`{name}` has the value {int(masks[bad][0])} (first in example {first}), but there are {classes} classes, 0 to {classes - 1}",
        place=place,
        hint="name all classes, or correct the masks",
    )
