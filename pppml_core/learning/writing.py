"""Writing predictions where the images came from: NIfTI on the input's grid, PNG beside a PNG, npz for npz, a table for classes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import TaskSpec

Probabilities = npt.NDArray[np.float32]
#: colours of the classes 1, 2, ... in PNG masks; background is black.
COLOURS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (60, 84, 136), (243, 155, 127), (132, 145, 180), (145, 209, 194), (126, 97, 72))


def write_outputs(
    spec: TaskSpec, predicted: Sequence[Probabilities], infos: Sequence[Mapping[str, Any]], out: str | Path, *, probabilities: bool = False
) -> list[Path]:
    """Write predictions into the folder ``out`` (made where needed) and return the files.

    Segmentation: a mask of class indices for each image or stack, ``NAME_mask.nii.gz`` (uint8, the file's own affine) for NIfTI and
    DICOM, ``NAME_mask.png`` (a colour table of class indices) for pictures, ``STACK_masks.npz`` (``masks``, ``names``) for npz. With
    ``probabilities`` also ``NAME_probabilities.nii.gz`` (float32, classes last) or ``.npz`` (``probabilities``, classes first).
    Classification: ``predictions.csv`` with name, class and, with ``probabilities``, one column a class (``.npz`` too, for all).

    Args:
        spec: of the task.
        predicted: ``(classes, *size)`` or ``(classes,)`` float32 each, as :func:`pppml_core.learning.predict.predict` gives them.
        infos: as :func:`pppml_core.learning.reading.read_images` gives them, in the same order.
        out: folder.
        probabilities: whether to write them.

    Raises DataError where ``out`` cannot be written.

    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if spec.kind == "classification":
            return _table(spec, predicted, infos, folder, probabilities)
        files: list[Path] = []
        pairs = list(zip(predicted, infos, strict=True))
        for _, members in groupby(pairs, key=lambda pair: pair[1].get("stack") or pair[1]["name"]):
            files += _stack(list(members), folder, probabilities)
        return files
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", place=str(folder), hint="choose another folder.") from error


def _table(
    spec: TaskSpec, predicted: Sequence[Probabilities], infos: Sequence[Mapping[str, Any]], folder: Path, probabilities: bool
) -> list[Path]:
    file = folder / "predictions.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "class", "probability", *(f"p_{name}" for name in spec.classes if probabilities)])
        for p, info in zip(predicted, infos, strict=True):
            best = int(p.argmax())
            writer.writerow([info["name"], spec.classes[best], f"{p[best]:.6f}", *(f"{value:.6f}" for value in p if probabilities)])
    return [file]


def _stack(members: list[tuple[Probabilities, Mapping[str, Any]]], folder: Path, probabilities: bool) -> list[Path]:
    """One image, or the slices of one volume, or the images of one npz."""
    info = members[0][1]
    name = str(info.get("stack") or info["name"]).replace("/", "_")
    if info["format"] == "npz":
        return _npz(name, members, folder, probabilities)
    if len(members) > 1 or (info.get("stack") and info["format"] != "picture"):
        together = np.stack([p for p, _ in members], axis=-1)
    else:
        together = members[0][0]
    together = onto_the_file(together, info)
    return (_picture if info["format"] == "picture" else _nifti)(name, together, info, folder, probabilities)


def onto_the_file(predicted: Probabilities, info: Mapping[str, Any]) -> Probabilities:
    """Probabilities ``(classes, *size)`` on the grid of the file they belong to, where the task has resampled the image.

    With affines: linear interpolation in mm, zero for every class outside what was predicted (background wins there). Without: resized.
    """
    import torch

    shape = info.get("original_shape")
    if shape is None:
        return predicted
    shape = tuple(int(n) for n in shape)
    if info.get("original_affine") is not None and info.get("affine") is not None:
        from monai.data.meta_tensor import MetaTensor
        from monai.transforms.spatial.array import SpatialResample

        image = MetaTensor(torch.from_numpy(np.ascontiguousarray(predicted)), affine=torch.from_numpy(np.asarray(info["affine"])))
        resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True)
        moved = resample(image, dst_affine=torch.from_numpy(np.asarray(info["original_affine"])), spatial_size=shape)
        return np.asarray(moved, dtype=np.float32)
    if tuple(predicted.shape[1:]) == shape:
        return predicted
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    resized = torch.nn.functional.interpolate(torch.from_numpy(predicted)[None], size=shape, mode=mode, align_corners=False)
    return np.asarray(resized[0].numpy(), dtype=np.float32)


def as_mask(predicted: Probabilities) -> npt.NDArray[np.uint8]:
    """The most probable class of each pixel, uint8."""
    return np.asarray(predicted.argmax(axis=0), dtype=np.uint8)


def _npz(name: str, members: list[tuple[Probabilities, Mapping[str, Any]]], folder: Path, probabilities: bool) -> list[Path]:
    fields = [onto_the_file(p, info) for p, info in members]
    arrays: dict[str, npt.NDArray[Any]] = {
        "masks": np.stack([as_mask(p) for p in fields]),
        "names": np.array([str(info["name"]) for _, info in members], dtype=np.str_),
    }
    if probabilities:
        arrays["probabilities"] = np.stack(fields)
    file = folder / f"{name}_masks.npz"
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return [file]


def _picture(name: str, predicted: Probabilities, info: Mapping[str, Any], folder: Path, probabilities: bool) -> list[Path]:
    from PIL import Image

    mask = Image.fromarray(as_mask(predicted)).convert("P")
    mask.putpalette([0, 0, 0, *(value for index in range(255) for value in COLOURS[index % len(COLOURS)])])
    files = [folder / f"{name}_mask.png"]
    mask.save(files[0])
    if probabilities:
        files.append(folder / f"{name}_probabilities.npz")
        np.savez_compressed(files[1], allow_pickle=False, probabilities=predicted)
    return files


def _nifti(name: str, predicted: Probabilities, info: Mapping[str, Any], folder: Path, probabilities: bool) -> list[Path]:
    import nibabel

    affine = info.get("original_affine") if info.get("original_affine") is not None else info.get("affine")
    if predicted.ndim == 3:  # one slice: NIfTI viewers expect three axes
        predicted = predicted[..., None]

    def save(array: npt.NDArray[Any], kind: str) -> Path:
        image = nibabel.Nifti1Image(array, affine if affine is not None else np.eye(4))
        image.header.set_xyzt_units("mm")
        file = folder / f"{name}_{kind}.nii.gz"
        nibabel.save(image, file)
        return file

    files = [save(as_mask(predicted), "mask")]
    if probabilities:
        files.append(save(np.moveaxis(predicted, 0, -1), "probabilities"))
    return files
