"""Reading images people want predicted: NIfTI, DICOM, PNG and npz, through MONAI's readers.

Every image comes with an ``info`` that :mod:`pppml_core.learning.writing` needs to put the answer where the image was:

===================  ==============================================================================================================
``name``             unique among the images read; the base of file names
``format``           ``nifti``, ``dicom``, ``picture`` or ``npz``
``affine``           (4, 4) float64, voxel of the array given -> RAS+ mm; None where the format has none
``stack``            images with one stack belong to one output file, in their order (npz: along the first axis; else along the last)
``original_affine``  where a task has resampled or turned the image: the file's own affine
``original_shape``   and its own spatial shape; the answer is put back onto that grid
===================  ==============================================================================================================
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError, PluginError
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.data.npz import read_npz
from pppml_core.learning.data.pixels import windowed

Image = npt.NDArray[np.float32]
Info = dict[str, Any]
Found = tuple[npt.NDArray[Any], Info]

NIFTI = (".nii", ".nii.gz")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's mode L


def read_images(spec: TaskSpec, path: str | Path, window: tuple[float, float] | None = None) -> list[tuple[Image, Info]]:
    """The images of a file or folder, each float32 ``(spec.channels, *any size)`` with its info (see above).

    NIfTI and DICOM values are as stored (DICOM: rescaled, so HU for CT); integer pixels of pictures and npz are divided by their type's
    largest value, as in training. ``window`` (black, white) maps the stored values of every format to [0, 1] instead, clipped. A task
    with normalization or a spacing of its own overrides :meth:`Task.prepare`. Axes: pictures, npz and single DICOM files (rows, columns);
    NIfTI and DICOM series as in the file, slices along the last axis. A DICOM series (the files of one folder with one
    SeriesInstanceUID) is one volume. Grey is repeated to colour, colour weighted to grey.

    Raises DataError that names the file: missing, empty, unreadable, not finite, or of channels or dimensions that do not fit.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("no such file or folder", place=str(path), hint="give a NIfTI, DICOM, PNG or npz file, or a folder of them.")
    out = []
    names: set[str] = set()
    for array, info in _found(spec, path):
        scaled = _unit(array) if window is None else windowed(array, window)
        image = _with_channels(scaled, spec.channels, str(info["name"]))
        if not np.isfinite(image).all():
            raise DataError("NaN or infinite pixels", place=f"{path}: {info['name']}", hint="replace them before prediction.")
        info["name"] = _unique(info["name"], names)
        out.append((image, info))
    if not out:
        raise DataError("no NIfTI, DICOM, PNG, JPG or npz file in this folder", place=str(path), hint="check the path and the file names.")
    return out


def _found(spec: TaskSpec, path: Path) -> Iterator[Found]:
    """Arrays as stored, with their channels first, in a stable order; float32 where the format says what the values mean."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    root = path.parent if path.is_file() else path
    dicom: list[Path] = []
    for file in files:
        name = _stem(file.relative_to(root))
        lower = file.name.lower()
        if lower.endswith(NIFTI):
            yield _nifti(spec, file, name)
        elif lower.endswith(PICTURES):
            yield _picture(spec, file, name)
        elif lower.endswith(".npz"):
            yield from _npz(spec, file, name)
        elif lower.endswith((".dcm", ".ima")) or not file.suffix or file == path or file.suffix[1:].isdigit():
            dicom.append(file)
    yield from _dicom(dicom, root, only=path.is_file())


def _nifti(spec: TaskSpec, file: Path, name: str) -> Found:
    _need("nibabel", file)
    from monai.data.image_reader import NibabelReader
    from nibabel.filebasedimages import ImageFileError

    reader = NibabelReader()
    try:
        array, meta = reader.get_data(reader.read(file))
    except (ImageFileError, OSError, EOFError, ValueError, TypeError) as error:
        raise DataError(f"not a readable NIfTI file: {error}", place=str(file), hint="open it in a viewer, or convert it again.") from error
    array = np.asarray(array)
    if array.ndim == 4:  # (X, Y, Z, channels)
        array = np.moveaxis(array, -1, 0)
    elif array.ndim in (2, 3):
        array = array[None]
    else:
        raise DataError(f"a NIfTI of shape {array.shape} is neither an image nor a volume", place=str(file), hint="give one time point.")
    return array.astype(np.float32), {"name": name, "format": "nifti", "affine": np.asarray(meta["affine"], dtype=np.float64)}


def _picture(spec: TaskSpec, file: Path, name: str) -> Found:
    _need("PIL", file)
    from monai.data.image_reader import PILReader
    from PIL import Image as Pillow

    wanted = {1: "L", 3: "RGB", 4: "RGBA"}.get(spec.channels)

    def convert(picture: Any) -> Any:
        # Modes of more than 8 bits (I;16, F) must not pass through a conversion that clips them.
        return picture if wanted is None or picture.mode[0] in "IF" else picture.convert(wanted)

    reader = PILReader(converter=convert, reverse_indexing=False)
    try:
        array, _ = reader.get_data(reader.read(file))
    except (Pillow.UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"not a readable picture: {error}", place=str(file), hint="open it in a viewer, or save it again.") from error
    array = np.asarray(array)
    if array.dtype == np.int32:  # how Pillow hands out some 16-bit files
        array = array.astype(np.uint16)
    array = np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
    return array, {"name": name, "format": "picture", "affine": None}


def _npz(spec: TaskSpec, file: Path, name: str) -> Iterator[Found]:
    arrays = read_npz(file, optional=["images"]) or read_npz(file)
    if not arrays:
        raise DataError("an npz without arrays", place=str(file), hint="store the images as `images`.")
    key, array = next(iter(arrays.items()))
    dims = len(spec.size)
    if array.dtype.kind not in "uifb":
        raise DataError(f"`{key}` holds {array.dtype}, not numbers", place=str(file), hint="store the images as `images`.")
    if array.ndim == dims:
        array = array[None]
    if array.ndim == dims + 1:
        array = array[:, None]
    elif array.ndim == dims + 2 and array.shape[-1] in (1, 3, 4, spec.channels):
        array = np.moveaxis(array, -1, 1)
    elif array.ndim != dims + 2:
        raise DataError(
            f"`{key}` of shape {array.shape} is not a list of {dims}-D images",
            place=str(file),
            hint="store (N, *size[, channels]).",
        )
    digits = len(str(max(0, len(array) - 1)))
    for index in range(len(array)):
        yield array[index], {"name": f"{name}_{index:0{digits}}", "format": "npz", "affine": None, "stack": name}


def _dicom(files: list[Path], root: Path, *, only: bool) -> Iterator[Found]:
    """One array for each series of each folder; a series of one file is an image (rows, columns), of several a volume."""
    if not files:
        return
    _need("pydicom", files[0])
    import pydicom

    series: dict[tuple[Path, str], list[tuple[Path, Any]]] = {}
    for file in files:
        try:
            dataset = pydicom.dcmread(file)
        except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
            if only or file.suffix.lower() == ".dcm":
                raise DataError(f"not a readable DICOM file: {error}", place=str(file), hint="export it from the archive again.") from error
            continue  # a README in the folder
        if "PixelData" not in dataset:
            if only or not file.name.upper().startswith("DICOMDIR"):
                raise DataError("a DICOM file without pixels", place=str(file), hint="give image files, not reports or DICOMDIR.")
            continue
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise DataError("multi-frame DICOM is not supported", place=str(file), hint="convert it to NIfTI, e.g. with dcm2niix.")
        series.setdefault((file.parent, str(dataset.get("SeriesInstanceUID", file.name))), []).append((file, dataset))
    for (folder, _), members in series.items():
        alone = len(members) == 1
        named = members[0][0].relative_to(root) if alone else folder.relative_to(root)
        array, affine = _combined(members)
        yield array, {"name": _stem(named) if alone else (_flat(named) or root.name or "series"), "format": "dicom", "affine": affine}


def _combined(members: list[tuple[Path, Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """The slices of one series, with channels first, and their affine, by MONAI's reader."""
    from monai.data.image_reader import PydicomReader

    place = str(members[0][0].parent if len(members) > 1 else members[0][0])
    without = [file.name for file, dataset in members if len(members) > 1 and dataset.get("InstanceNumber") is None]
    if without:
        raise DataError(f"slices without InstanceNumber: {', '.join(without[:3])}", place=place, hint="export the series again.")
    shapes = {(dataset.get("Rows"), dataset.get("Columns")) for _, dataset in members}
    if len(shapes) > 1:
        raise DataError(f"slices of one series differ in size: {sorted(shapes)}", place=place, hint="remove the localizer images.")
    members = sorted(members, key=lambda m: m[1].get("InstanceNumber") or 0)
    reader = PydicomReader(swap_ij=len(members) > 1)
    # What PydicomReader.read does for a folder, for the files of one series only: archives often export several into one folder.
    files: Any = [file for file, _ in members]
    reader.has_series = len(members) > 1
    reader.filenames = [files] if reader.has_series else files
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="PydicomReader: ImageOrientationPatient")  # X-rays and photographs have none
            array, meta = reader.get_data([dataset for _, dataset in members] if len(members) > 1 else members[0][1])
    except (AttributeError, ValueError, NotImplementedError, RuntimeError, KeyError) as error:
        hint = "compressed DICOM needs `pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`; else export it again."
        raise DataError(f"DICOM pixels cannot be decoded: {error}", place=place, hint=hint) from error
    colour = int(members[0][1].get("SamplesPerPixel") or 1) > 1
    array = np.moveaxis(array, 2, 0) if colour else np.asarray(array)[None]
    return (array if colour else array.astype(np.float32)), np.asarray(meta["affine"], dtype=np.float64)


def _with_channels(array: npt.NDArray[Any], channels: int, place: str) -> Image:
    """``array`` (channels first) with the number of channels the network was trained with."""
    found = array.shape[0]
    if found == 4 and channels in (1, 3):  # drop opacity
        array, found = array[:3], 3
    if found == channels:
        return np.ascontiguousarray(array, dtype=np.float32)
    if found == 1:
        return np.ascontiguousarray(np.repeat(array, channels, axis=0), dtype=np.float32)
    if found == 3 and channels == 1:
        return np.ascontiguousarray(np.tensordot(LUMA, array.astype(np.float32), axes=1)[None])
    raise DataError(f"an image of {found} channels; the model takes {channels}", place=place, hint="give images like those of training.")


def _unit(array: npt.NDArray[Any]) -> Image:
    """Integers divided by the largest value of their type, floats as they are."""
    if array.dtype.kind in "ui":
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    return array.astype(np.float32)


def _stem(relative: Path) -> str:
    name = relative.name
    for ending in (".nii.gz", relative.suffix):
        if ending and name.lower().endswith(ending):
            return _flat(relative.with_name(name[: -len(ending)] or name))
    return _flat(relative.with_name(relative.stem))


def _flat(relative: Path) -> str:
    return "_".join(part for part in relative.parts if part not in (".", ".."))


def _unique(name: str, taken: set[str]) -> str:
    number, out = 2, name
    while out in taken:
        number, out = number + 1, f"{name}_{number}"
    taken.add(out)
    return out


def _need(module: str, file: Path) -> None:
    if importlib.util.find_spec(module) is None:
        package = {"PIL": "pillow"}.get(module, module)
        raise PluginError(f"reading this file needs {package}, not installed here.", place=str(file), hint=f"pip install {package}")
