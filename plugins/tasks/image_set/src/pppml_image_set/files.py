"""One image or mask file as an array: PNG, JPEG, TIFF and BMP through Pillow, DICOM through pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from pppml_core.errors import DataError
from pppml_core.learning.data.archive import check_finite
from pppml_core.learning.data.pixels import windowed

Array = npt.NDArray[Any]
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")
#: What pydicom and its pixel handlers raise on damaged or unsupported files.
_BROKEN = (pydicom.errors.InvalidDicomError, AttributeError, KeyError, ValueError, TypeError, OSError, NotImplementedError, RuntimeError)


def is_image(path: Path) -> bool:
    """Whether a name is that of an image file, not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path, channels: int, window: tuple[float, float] | None) -> Array:
    """Grey ``(H, W)`` or colour ``(H, W, 3)``: uint8 where the file has 8 bits and no ``window`` is given, else float32 in [0, 1].

    DICOM: rescaled to its unit (HU for CT), then ``window``, else the file's own window, else from its smallest to its largest value.
    Raises DataError naming an unreadable file.
    """
    pixels = _dicom(path, window) if path.suffix.lower() == ".dcm" else _picture(path, channels, window)
    if channels == 3 and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if channels == 1 and pixels.ndim == 3:
        raise DataError("a colour image among grey ones", place=str(path), hint="convert all images to grey, or all to colour")
    return pixels


def read_mask(path: Path) -> Array:
    """Class indices ``(H, W)``; of a palette image the indices, of a grey image the values, of grey stored as colour its first channel."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise DataError("JPEG changes the values of a mask", place=str(path), hint="store masks as PNG")
    if path.suffix.lower() == ".dcm":
        mask = np.asarray(_pixel_array(_open_dicom(path), path))
    else:
        with _opened(path) as image:
            mask = np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)
    if mask.ndim == 3:
        if not (mask[..., :3] == mask[..., :1]).all():
            raise DataError("a mask in colours", place=str(path), hint="store class indices as a grey or palette PNG")
        mask = mask[..., 0]
    return mask


def shape_of(path: Path) -> tuple[int, tuple[int, int]]:
    """Channels (1 or 3), and height and width, from the file's header."""
    if path.suffix.lower() == ".dcm":
        header = _open_dicom(path, pixels=False)
        try:
            return int(header.get("SamplesPerPixel", 1)), (int(header.Rows), int(header.Columns))
        except (AttributeError, TypeError) as error:
            raise DataError(f"a DICOM file without an image ({error})", place=str(path), hint="remove it") from error
    with _opened(path) as image:
        return (1 if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I") else 3), (image.height, image.width)


def patient_id(path: Path) -> str:
    """The DICOM file's PatientID, empty where there is none."""
    return str(_open_dicom(path, pixels=False).get("PatientID", "") or "").strip()


def _opened(path: Path) -> Image.Image:
    try:
        with path.open("rb") as stream:
            image = Image.open(stream)
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be read as an image ({error})", place=str(path), hint="repair, replace or remove the file") from error
    return image


def _picture(path: Path, channels: int, window: tuple[float, float] | None) -> Array:
    with _opened(path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            pixels = np.asarray(image)
            check_finite(pixels[None], "pixels", path)
            if image.mode == "F" and window is None and (pixels.min() < 0 or pixels.max() > 1):
                raise DataError("floating-point pixels outside [0, 1]", place=str(path), hint="give `window: [black, white]`")
            return windowed(pixels, window or ((0, 1) if image.mode == "F" else (0, 65535)))
        pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return windowed(pixels, window) if window else pixels


def _open_dicom(path: Path, *, pixels: bool = True) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except _BROKEN as error:
        raise DataError(f"cannot be read as DICOM ({error})", place=str(path), hint="repair, replace or remove the file") from error


def _pixel_array(dataset: pydicom.Dataset, path: Path) -> Array:
    try:
        pixels: Array = dataset.pixel_array
    except _BROKEN as error:
        raise DataError(
            f"the DICOM pixels cannot be read ({error})",
            place=str(path),
            hint="repair or remove the file; for compressed pixels: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg",
        ) from error
    if pixels.ndim == 3 and pixels.shape[-1] != 3:
        raise DataError(f"{pixels.shape[0]} frames in one file", place=str(path), hint="store one image per file")
    return pixels


def _dicom(path: Path, window: tuple[float, float] | None) -> npt.NDArray[np.float32]:
    dataset = _open_dicom(path)
    stored = _pixel_array(dataset, path)
    if stored.ndim == 3:
        return windowed(stored, window or (0, 255))
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    check_finite(values[None], "pixels", path)
    if window is None and "WindowWidth" in dataset:
        values = np.asarray(apply_voi_lut(values, dataset), dtype=np.float64)
    scaled = windowed(values, window or (float(values.min()), max(float(values.max()), float(values.min()) + 1e-6)))
    return 1 - scaled if str(dataset.get("PhotometricInterpretation", "")) == "MONOCHROME1" else scaled
