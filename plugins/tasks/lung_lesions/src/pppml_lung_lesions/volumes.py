"""One CT volume with its mask: read, checked, turned, resampled, cut into slices. MONAI does the work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pppml_core.errors import DataError

AIR = -1024
#: Slicing of a volume whose axes point to the patient's left, back and head: images have rows top to bottom as a viewer shows them.
PLANES = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


def prepare(
    ct: Path, mask: Path | None, *, spacing: float, axis: str, size: int | None, fit: str
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """HU ``(slices, H, W)`` and masks of that shape (0 or 1; zeros without a mask file).

    Orientation and spacing by MONAI (bilinear for the CT, nearest for the mask), then slices along ``axis`` from feet to head (axial),
    front to back (coronal), right to left (sagittal), centre-cropped or padded with air to ``size``, or resized. ``size`` None keeps
    the slice's own size. Raises DataError naming the file.
    """
    volumes = read_pair(ct, mask)
    hu, lesion = (_slices(array, axis) for array in _resample(volumes, spacing))
    if size is not None:
        hu, lesion = (_crop if fit == "crop" else _resize)(hu, lesion, size, mask)
    return np.clip(np.rint(hu), AIR, 32767).astype(np.int16), (lesion > 0).astype(np.uint8)


def read_pair(ct: Path, mask: Path | None) -> dict[str, Any]:
    """``{"ct": MetaTensor (1, x, y, z), "mask": ...}`` on one grid, checked."""
    volumes = {"ct": _read(ct)}
    values = np.asarray(volumes["ct"])
    if not np.isfinite(values).all():
        raise DataError("the CT holds NaN or infinite values", place=str(ct), hint="export the volume again, in HU")
    if float(values.max()) - float(values.min()) < 200:
        raise DataError(
            f"values from {values.min():g} to {values.max():g} are no HU", place=str(ct), hint="give the CT in HU: air -1000, water 0; do not window it"
        )
    if mask is not None:
        volumes["mask"] = _read(mask)
        labels = np.asarray(volumes["mask"])
        if labels.shape != values.shape:
            raise DataError(
                f"the mask has {'x'.join(map(str, labels.shape[1:]))} voxels, the CT {'x'.join(map(str, values.shape[1:]))}",
                place=str(mask),
                hint=f"export the mask on the grid of {ct.name}",
            )
        if not np.allclose(volumes["mask"].affine, volumes["ct"].affine, atol=0.05):
            raise DataError(
                "the mask lies elsewhere: its affine differs from the CT's", place=str(mask), hint=f"export the mask with the affine of {ct.name}"
            )
        if not np.isfinite(labels).all() or labels.min() < 0 or not np.array_equal(labels, np.rint(labels)):
            raise DataError("the mask's values are no labels 0, 1, ...", place=str(mask), hint="threshold the mask and save it as integers")
    return volumes


def _read(path: Path) -> Any:
    """One volume ``(1, x, y, z)`` as MONAI's MetaTensor with its affine; all that can go wrong becomes a DataError with the file."""
    from monai.data import NibabelReader, PydicomReader
    from monai.transforms import EnsureChannelFirst, LoadImage
    from nibabel.filebasedimages import ImageFileError

    dicom = path.is_dir()
    if dicom:
        check_series(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # readers warn of optional header fields; what matters is checked here
            volume = LoadImage(reader=PydicomReader() if dicom else NibabelReader(), image_only=True)(str(path))
            volume = EnsureChannelFirst(channel_dim="no_channel" if volume.ndim == 3 else -1)(volume)
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, AttributeError, ImageFileError) as error:
        raise DataError(f"cannot be read as {'DICOM' if dicom else 'NIfTI'} ({_first(error)})", place=str(path), hint="copy it again, or export it again") from error
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise DataError(f"{volume.ndim - 1} dimensions, {volume.shape[0]} channels", place=str(path), hint="give one 3-D volume")
    return volume


def check_series(folder: Path) -> None:
    """Raise DataError where a folder is not one whole DICOM series of evenly spaced slices."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")
    if len(files) < 2:
        raise DataError(f"{len(files)} DICOM slices", place=str(folder), hint="put all slices of one series into the folder")
    series: dict[str, Path] = {}
    heights = []
    for file in files:
        try:
            head = pydicom.dcmread(file, stop_before_pixels=False)
            series.setdefault(str(head.SeriesInstanceUID), file)
            position, (row, column) = np.array(head.ImagePositionPatient, float), np.array(head.ImageOrientationPatient, float).reshape(2, 3)
            expected = int(head.Rows) * int(head.Columns) * int(head.BitsAllocated) // 8
            if not head.file_meta.TransferSyntaxUID.is_compressed and len(head.PixelData) < expected:
                raise DataError("the DICOM slice is truncated", place=str(file), hint="copy it again")
        except (InvalidDicomError, OSError, EOFError, AttributeError, ValueError, KeyError) as error:
            raise DataError(f"not a readable DICOM slice ({_first(error)})", place=str(file), hint="copy it again, or remove the file") from error
        heights.append(float(position @ np.cross(row, column)))
    if len(series) > 1:
        raise DataError(
            f"slices of {len(series)} DICOM series, e.g. {', '.join(p.name for p in list(series.values())[:2])}",
            place=str(folder),
            hint="keep one series in the folder",
        )
    gaps = np.diff(np.sort(heights))
    if gaps.min() <= 0 or gaps.max() > 1.1 * gaps.min() + 0.01:
        raise DataError(
            f"gaps between slices run from {gaps.min():.2f} to {gaps.max():.2f} mm", place=str(folder), hint="a slice is missing or there twice; export the whole series"
        )


def _resample(volumes: dict[str, Any], spacing: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    from monai.transforms import Compose, Orientationd, Spacingd

    keys = list(volumes)
    turn = Compose(
        [
            Orientationd(keys, axcodes="LPS", labels=(("R", "L"), ("A", "P"), ("I", "S"))),
            Spacingd(keys, pixdim=(spacing,) * 3, mode=["bilinear", "nearest"][: len(keys)], padding_mode="border"),
        ]
    )
    out: dict[str, Any] = turn(volumes)  # type: ignore[assignment]
    hu = np.asarray(out["ct"], np.float32)[0]
    return hu, np.asarray(out["mask"], np.float32)[0] if "mask" in out else np.zeros_like(hu)


def _slices(volume: npt.NDArray[np.float32], axis: str) -> npt.NDArray[np.float32]:
    """``(slices, rows, columns)``; in coronal and sagittal images the head is at the top."""
    turned = np.transpose(volume, PLANES[axis])
    return np.ascontiguousarray(turned if axis == "axial" else turned[:, ::-1])


def _crop(hu: Any, lesion: Any, size: int, mask: Path | None) -> tuple[Any, Any]:
    from monai.transforms import ResizeWithPadOrCrop

    before = float(lesion.sum())
    # Slices are MONAI's channels here, so that only rows and columns change.
    cut, labels = (
        np.asarray(ResizeWithPadOrCrop((size, size), mode="constant", value=value)(array)) for array, value in ((hu, AIR), (lesion, 0))
    )
    if float(labels.sum()) < before:
        rows, columns = np.nonzero(lesion.any(axis=0))
        centre = (np.array(lesion.shape[1:]) - 1) / 2
        need = int(2 * np.ceil(max(np.abs(rows - centre[0]).max(), np.abs(columns - centre[1]).max()) + 1))
        raise DataError(
            f"a centre crop to {size} x {size} would cut off lesion", place=str(mask), hint=f"set size to at least {-(-need // 16) * 16}, or `fit: resize`"
        )
    return cut, labels


def _resize(hu: Any, lesion: Any, size: int, mask: Path | None) -> tuple[Any, Any]:
    from monai.transforms import Resize

    return (
        np.asarray(Resize((size, size), mode="bilinear", anti_aliasing=True)(hu)),
        np.asarray(Resize((size, size), mode="nearest-exact")(lesion)),
    )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
