"""One CT volume with its mask: read, checked, turned, resampled, cut into slices. MONAI does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.reading import read_images

AIR = -1024
#: Where rows, columns and slices point to (posterior, left, superior, inferior), so that a slice looks as a viewer shows it.
AXES = {"axial": "PLS", "coronal": "ILP", "sagittal": "IPL"}
#: The ends of the world's axes, RAS: where each starts and where it points to.
DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))
_READ = TaskSpec("segmentation", 1, (1, 1), ("background", "lesion"), "", "dice", {})


def prepare(ct: Path, mask: Path, *, spacing: float, axis: str, size: int, fit: str) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """HU and mask (0 or 1) of all slices, both ``(slices, size, size)``.

    Orientation and spacing by MONAI (bilinear for the CT, nearest for the mask); slices run from feet to head (axial), front to back
    (coronal) or right to left (sagittal), are centre-cropped or padded with air to ``size``, or resized. Raises DataError naming the file.
    """
    volumes = turned(read_pair(ct, mask), axis, (spacing,) * 3)
    hu, lesion = (np.moveaxis(np.asarray(volumes[key], np.float32)[0], -1, 0) for key in ("ct", "mask"))
    hu, lesion = _cropped(hu, lesion, size, mask) if fit == "crop" else _resized(hu, lesion, size)
    return np.clip(np.rint(hu), AIR, 32767).astype(np.int16), np.ascontiguousarray(lesion > 0, np.uint8)


def read_pair(ct: Path, mask: Path) -> dict[str, Any]:
    """``{"ct": MetaTensor (1, i, j, k), "mask": ...}``, checked: HU, one grid, integer labels."""
    volume, labels = _read(ct), _read(mask)
    values, marks = np.asarray(volume), np.asarray(labels)
    if float(values.max()) - float(values.min()) < 200:
        raise DataError(
            f"values from {values.min():g} to {values.max():g} are no HU",
            place=str(ct),
            hint="give HU (air -1000, water 0), not windowed images",
        )
    if marks.shape != values.shape:
        raise DataError(
            f"the mask has {'x'.join(map(str, marks.shape[1:]))} voxels, the CT {'x'.join(map(str, values.shape[1:]))}",
            place=str(mask),
            hint=f"export the mask on the grid of {ct.name}",
        )
    if not np.allclose(labels.affine, volume.affine, atol=0.05):
        raise DataError(
            "the mask lies elsewhere: its affine is not the CT's", place=str(mask), hint=f"export the mask with the affine of {ct.name}"
        )
    if marks.min() < 0 or not np.array_equal(marks, np.rint(marks)):
        raise DataError("the mask's values are no labels 0, 1, ...", place=str(mask), hint="threshold the mask and save it as integers")
    return {"ct": volume, "mask": labels}


def turned(volumes: dict[str, Any], axis: str, spacing: tuple[float, float, float]) -> dict[str, Any]:
    """MetaTensors ``(1, rows, columns, slices)`` with voxels of ``spacing`` mm; a value of 0 keeps that axis as it is."""
    from monai.transforms import Compose, Orientationd, Spacingd

    keys = list(volumes)
    steps = Compose(
        [
            Orientationd(keys, axcodes=AXES[axis], labels=DIRECTIONS),
            Spacingd(keys, pixdim=spacing, mode=["bilinear", "nearest"][: len(keys)], padding_mode="border"),
        ]
    )
    out: dict[str, Any] = steps(volumes)
    return out


def tensor(array: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> Any:
    """MONAI's MetaTensor of a volume ``(1, i, j, k)``."""
    import torch
    from monai.data.meta_tensor import MetaTensor

    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=torch.from_numpy(affine.copy()))


def _read(path: Path) -> Any:
    if path.is_dir():
        check_series(path)
    images = read_images(_READ, path)
    if len(images) != 1:
        raise DataError(f"{len(images)} DICOM series", place=str(path), hint="keep one series in the folder")
    array, info = images[0]
    if array.ndim != 4:
        raise DataError(
            f"an image of shape {array.shape[1:]}, not a volume", place=str(path), hint="give a 3-D volume, or all slices of a series"
        )
    return tensor(array, info["affine"])


def check_series(folder: Path) -> None:
    """Raise DataError where a folder is not evenly spaced slices of DICOM series, by their headers."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")
    if len(files) < 2:
        raise DataError(f"{len(files)} DICOM slices", place=str(folder), hint="put all slices of one series into the folder")
    heights: dict[str, list[float]] = {}
    for file in files:
        try:
            head = pydicom.dcmread(file, stop_before_pixels=True)
            row, column = np.array(head.ImageOrientationPatient, float).reshape(2, 3)
            height = float(np.array(head.ImagePositionPatient, float) @ np.cross(row, column))
            heights.setdefault(str(head.SeriesInstanceUID), []).append(height)
        except (InvalidDicomError, OSError, EOFError, AttributeError, ValueError, KeyError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"not a readable DICOM slice ({said})", place=str(file), hint="copy it again, or remove the file") from error
    for own in heights.values():
        gaps = np.diff(np.sort(own))
        if gaps.size and (gaps.min() <= 0 or gaps.max() > 1.1 * gaps.min() + 0.01):
            raise DataError(
                f"gaps between slices run from {gaps.min():.2f} to {gaps.max():.2f} mm",
                place=str(folder),
                hint="a slice is missing or there twice; export the whole series",
            )


def _cropped(hu: Any, lesion: Any, size: int, mask: Path) -> tuple[Any, Any]:
    from monai.transforms import ResizeWithPadOrCrop

    # Slices are MONAI's channels here, so that only rows and columns change.
    cut, labels = (
        np.asarray(ResizeWithPadOrCrop((size, size), mode="constant", value=value)(array)) for array, value in ((hu, AIR), (lesion, 0))
    )
    if np.count_nonzero(labels) < np.count_nonzero(lesion):
        rows, columns = np.nonzero(lesion.any(axis=0))
        centre = (np.array(lesion.shape[1:]) - 1) / 2
        need = int(2 * np.ceil(max(np.abs(rows - centre[0]).max(), np.abs(columns - centre[1]).max()) + 1))
        raise DataError(
            f"a centre crop to {size} x {size} would cut off lesion",
            place=str(mask),
            hint=f"set size to {-(-need // 16) * 16} or more, a larger spacing, or `fit: resize`",
        )
    return cut, labels


def _resized(hu: Any, lesion: Any, size: int) -> tuple[Any, Any]:
    from monai.transforms import Resize

    return (
        np.asarray(Resize((size, size), mode="bilinear", anti_aliasing=True)(hu)),
        np.asarray(Resize((size, size), mode="nearest-exact")(lesion)),
    )
