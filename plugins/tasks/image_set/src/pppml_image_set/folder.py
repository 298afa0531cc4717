"""Folders of image files as a collection. Three layouts, told apart by the names of the subfolders::

    site/class/*.png          classification
    class/*.png               classification, one site
    site/images/* site/masks/*    segmentation; an image and its mask have one stem
    images/* masks/*          segmentation, one site

The patient of an image, so that no patient lies in two parts: ``patients.csv`` in the folder (header ``file,patient``; file names relative
to the folder), else the DICOM's PatientID, else the part of the file name before ``__`` (``p07__slice3.png``); else unknown.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError, nearest
from pppml_core.learning.data.collection import Collection
from pppml_core.learning.data.pixels import class_masks, resize
from pppml_image_set.files import is_image, patient_id, read_image, read_mask, shape_of

Kind = Literal["classification", "segmentation"]
_ANONYMOUS = re.compile(r"^$|unknown|anonym|^anon$|^none$", re.IGNORECASE)
_LAYOUT = "lay files out as site/class/*.png, or site/images/* with site/masks/*"


@dataclass(frozen=True)
class _Item:
    """One image file, where it belongs, and its mask."""

    path: Path
    site: str
    label: str = ""
    mask: Path | None = None


def is_segmentation(root: Path) -> bool:
    """Whether the folder, or one of its subfolders, has a folder ``masks``."""
    return (root / "masks").is_dir() or any((sub / "masks").is_dir() for sub in _folders(root))


def read_folder(
    root: Path,
    kind: Kind | None,
    classes: list[str] | None,
    size: tuple[int, int] | None,
    window: tuple[float, float] | None,
    channels: int | None = None,
) -> Collection:
    """Describe a folder of images; pixels are read by ``collection.read``, only those asked for.

    Raises DataError: no folder or no image, an image without mask or a mask without image, an unknown class folder, and, from ``read``,
    unreadable files, images that differ in size where no ``size`` is given, masks that do not fit.
    """
    if not root.is_dir():
        raise DataError("no such folder", place=str(root), hint="check the path; it is relative to the working directory")
    if kind is None:
        kind = "segmentation" if is_segmentation(root) else "classification"
    items = _pairs(root) if kind == "segmentation" else _labelled(root)
    if not items:
        loose = bool(_images(root))
        raise DataError("images, but no class folder with images" if loose else "there is no image file", place=str(root), hint=_LAYOUT)
    sites = sorted({item.site for item in items})
    groups, known = _patients(root, items)
    found, stored = shape_of(items[0].path)
    channels = channels or found
    labels = None
    if kind == "classification":
        names = tuple(classes) if classes else tuple(sorted({item.label for item in items}))
        labels = np.array([_class(item, names) for item in items], dtype=np.int64)
    else:
        names = tuple(classes) if classes else ("background", "foreground")

    def read(indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        chosen = [items[i] for i in indices]
        images = [_fitted(read_image(item.path, channels, window), item.path, stored, size) for item in chosen]
        if labels is not None:
            return _stacked(images, channels, size or stored), labels[indices]
        masks = [_mask(item, len(names), stored, size) for item in chosen]
        return _stacked(images, channels, size or stored), np.stack(masks) if masks else np.zeros((0, *(size or stored)), np.uint8)

    source = np.array([sites.index(item.site) for item in items], dtype=np.int64)
    return Collection(str(root), kind, names, channels, size or stored, source, tuple(sites), groups, known, None, labels, read)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and is_image(p))


def _labelled(root: Path) -> list[_Item]:
    tops = _folders(root)
    if any(_images(top) for top in tops):
        mixed = [top for top in tops if _folders(top)]
        if mixed:
            raise DataError(f"{mixed[0].name!r} holds folders, others hold images", place=str(root), hint=_LAYOUT)
        return [_Item(path, root.name, top.name) for top in tops for path in _images(top)]
    return [_Item(path, top.name, sub.name) for top in tops for sub in _folders(top) for path in _images(sub)]


def _pairs(root: Path) -> list[_Item]:
    homes = [root] if (root / "images").is_dir() else _folders(root)
    items: list[_Item] = []
    for home in homes:
        for name in ("images", "masks"):
            if not (home / name).is_dir():
                raise DataError(f"there is no folder {name!r}", place=str(home), hint=_LAYOUT)
        masks: dict[str, Path] = {}
        for path in _images(home / "masks"):
            if path.stem in masks:
                raise DataError(f"two masks for {path.stem!r}", place=str(path), hint="keep one of them")
            masks[path.stem] = path
        images = _images(home / "images")
        for path in images:
            if path.stem not in masks:
                near = nearest(path.stem, masks)
                hint = f"is masks/{masks[near].name} meant? Give both one name" if near else "add the mask, or remove the image"
                raise DataError("an image without a mask of the same name", place=str(path), hint=hint)
            items.append(_Item(path, home.name, mask=masks.pop(path.stem)))
        if masks:
            alone = next(iter(masks.values()))
            raise DataError("a mask without an image of the same name", place=str(alone), hint="add the image, or remove the mask")
    return items


def _class(item: _Item, names: tuple[str, ...]) -> int:
    if item.label not in names:
        near = nearest(item.label, names)
        raise DataError(
            f"the folder {item.label!r} is none of the classes {', '.join(names)}",
            place=str(item.path.parent),
            hint=f"is {near!r} meant?" if near else "add it to `classes`, or remove the folder",
        )
    return names.index(item.label)


def _patients(root: Path, items: list[_Item]) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.bool_]]:
    table = _table(root, items) if (root / "patients.csv").is_file() else {}
    groups = []
    for item in items:
        patient = table.get(item.path, "")
        if not patient:
            prefix, sign, _ = item.path.stem.partition("__")
            local = (patient_id(item.path) if item.path.suffix.lower() == ".dcm" else "") or (prefix if sign else "")
            # Such an id is a site's own: patient 1 here is not patient 1 elsewhere.
            patient = f"{item.site}/{local}" if not _ANONYMOUS.search(local) else ""
        groups.append(patient)
    known = np.array([bool(group) for group in groups], dtype=bool)
    names = [group or item.path.relative_to(root).as_posix() for group, item in zip(groups, items, strict=True)]
    return np.array(names, dtype=np.str_), known


def _table(root: Path, items: list[_Item]) -> dict[Path, str]:
    """``patients.csv``: file -> patient."""
    place = root / "patients.csv"
    try:
        with place.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read ({error})", place=str(place), hint="save it as UTF-8 with the header file,patient") from error
    there = {item.path.relative_to(root).as_posix(): item.path for item in items}
    table: dict[Path, str] = {}
    for line, row in enumerate(rows, start=2):
        if not {"file", "patient"} <= row.keys():
            raise DataError(f"the header is {','.join(map(str, row))}", place=f"{place}:1", hint="the header must be file,patient")
        name, patient = (row["file"] or "").strip(), (row["patient"] or "").strip()
        if name not in there:
            near = nearest(name, there)
            raise DataError(
                f"there is no image {name!r}",
                place=f"{place}:{line}",
                hint=f"is {near!r} meant?" if near else "names are relative to the folder",
            )
        patient = "" if _ANONYMOUS.search(patient) else patient
        if table.setdefault(there[name], patient) != patient:
            twice = f"{name!r} has two patients, {table[there[name]]!r} and {patient!r}"
            raise DataError(twice, place=f"{place}:{line}", hint="keep one row of each file")
    return table


def _fitted(image: npt.NDArray[Any], path: Path, stored: tuple[int, int], size: tuple[int, int] | None) -> npt.NDArray[Any]:
    if size is not None:
        resized: npt.NDArray[Any] = resize(image[None], size)[0]
        return resized
    if image.shape[:2] != stored:
        raise DataError(
            f"the image has {image.shape[0]} x {image.shape[1]} pixels, others {stored[0]} x {stored[1]}",
            place=str(path),
            hint=f"give `size: [{stored[0]}, {stored[1]}]` to resize all",
        )
    return image


def _mask(item: _Item, classes: int, stored: tuple[int, int], size: tuple[int, int] | None) -> npt.NDArray[Any]:
    assert item.mask is not None
    mask = class_masks(read_mask(item.mask), classes, str(item.mask), "mask")
    _, expected = shape_of(item.path)
    if mask.shape != expected:
        raise DataError(
            f"the mask has {mask.shape[0]} x {mask.shape[1]} pixels, its image {expected[0]} x {expected[1]}",
            place=str(item.mask),
            hint="draw the mask on the image's own pixel grid",
        )
    resized: npt.NDArray[Any] = resize(mask[None], size or stored, masks=True)[0]
    return resized


def _stacked(images: list[npt.NDArray[Any]], channels: int, size: tuple[int, ...]) -> npt.NDArray[Any]:
    """One array: uint8 where all images are, else float32 in [0, 1]."""
    if not images:
        return np.zeros((0, *size, *((3,) if channels == 3 else ())), np.uint8)
    if all(image.dtype == np.uint8 for image in images):
        return np.stack(images)
    return np.stack([image / np.float32(255) if image.dtype == np.uint8 else image for image in images]).astype(np.float32)
