"""What is done to a volume: thick slices, lung box, resizing.

Volumes are ``(slices, rows, columns)``: head to feet, front to back, right to left, in HU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.learning.scanner import window

Volume = npt.NDArray[Any]
#: voxels that are kept around the lungs
MARGIN = 4


def thicken(volume: Volume, spacing_mm: float, thickness_mm: float) -> npt.NDArray[np.float32]:
    """The volume as a scanner with slices of ``thickness_mm`` would show it, on its own grid of ``spacing_mm``, same shape, float32.

    Contiguous slabs of ``thickness_mm`` are averaged from the first slice on (a slab may begin or end within a slice: then that slice
    counts in part), and the slabs are interpolated linearly back to the original slice positions; beyond the centres of the outermost slabs
    their values hold. Nothing is padded: every voxel of the result is a mean of measured ones.

    PPPML-HMI's paper states 2, 5 and 10 mm; its code averages groups of 1, 5 and 10 slices of a nominal 1 mm and pads the stack with
    zeros back to 70 slices, so that 80 and 90 % of two clients' volumes are padding.
    """
    count = len(volume)
    if thickness_mm <= spacing_mm:
        return np.asarray(volume, np.float32)
    # The integral over z from the first slice's upper face, at every face; its differences give exact slab means.
    integral = np.concatenate([np.zeros((1, *volume.shape[1:])), np.cumsum(volume, axis=0, dtype=np.float64)])
    slabs = max(1, round(count * spacing_mm / thickness_mm))
    faces = np.minimum(np.arange(slabs + 1) * thickness_mm / spacing_mm, count)
    faces[-1] = count
    means = np.diff(_at(integral, faces), axis=0) / np.diff(faces)[:, None, None]
    centres = (faces[1:] + faces[:-1]) / 2
    places = np.interp(np.arange(count) + 0.5, centres, np.arange(slabs))
    return _at(means, places).astype(np.float32)


def _at(stack: npt.NDArray[np.float64], places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Linear interpolation along the first axis at fractional indices in ``[0, len - 1]``."""
    low = np.minimum(np.floor(places).astype(int), len(stack) - 1)
    high = np.minimum(low + 1, len(stack) - 1)
    part = (places - low)[:, None, None]
    out: npt.NDArray[np.float64] = stack[low] * (1 - part) + stack[high] * part
    return out


def lung_box(volume: Volume, margin: int = MARGIN) -> tuple[slice, slice, slice] | None:
    """The box around the lungs, or None where none is found.

    Lungs: air (below -400 HU) that does not touch the side faces of the volume, in connected parts of at least half a percent of it.
    It is looked for on a grid of at least 100 voxels a side (3.2 mm in RAD-ChestCT); ``margin`` voxels are added on each side.
    """
    from scipy.ndimage import find_objects, label

    step = max(1, min(volume.shape) // 100)
    coarse = np.asarray(volume)[::step, ::step, ::step] < -400
    parts, _ = label(coarse)
    sides = np.concatenate([parts[:, [0, -1]].ravel(), parts[:, :, [0, -1]].ravel()])
    sizes = np.bincount(parts.ravel())
    sizes[np.unique(sides)] = 0
    sizes[0] = 0
    keep = np.flatnonzero(sizes >= 0.005 * coarse.size)
    if not keep.size:
        return None
    box = find_objects(np.isin(parts, keep).astype(np.int8))[0]
    return tuple(  # type: ignore[return-value]
        slice(max(0, s.start * step - margin), min(n, s.stop * step + margin)) for s, n in zip(box, volume.shape, strict=True)
    )


def resized(volume: Volume, size: int) -> npt.NDArray[np.int16]:
    """The volume as a cube of ``size`` voxels a side, rounded HU: trilinear, after a Gaussian filter where it shrinks (MONAI's Resize)."""
    import torch
    from monai.transforms import Resize

    cube = Resize((size,) * 3, mode="trilinear", anti_aliasing=True)(torch.from_numpy(np.asarray(volume, np.float32)[None]))
    out: npt.NDArray[np.int16] = np.rint(np.asarray(cube)[0]).astype(np.int16)
    return out


def as_image(hu: Volume, centre: float, width: float) -> npt.NDArray[np.float32]:
    """A cube of HU as float32 ``(1, size, size, size)`` in [-1, 1]."""
    return window(hu, centre, width)[None]


def augment(
    image: npt.NDArray[np.float32], target: npt.NDArray[np.int64], generator: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """MONAI's random left-right flip, scaling (0.9 to 1.1) and shift (up to 0.05) of intensity, driven by ``generator``."""
    from monai.transforms import Compose, RandFlip, RandScaleIntensity, RandShiftIntensity

    steps = Compose([RandFlip(prob=0.5, spatial_axis=2), RandScaleIntensity(factors=0.1, prob=0.5), RandShiftIntensity(0.05, prob=0.5)])
    steps.set_random_state(seed=int(generator.integers(2**32)))
    return np.ascontiguousarray(np.asarray(steps(image)), np.float32), target
