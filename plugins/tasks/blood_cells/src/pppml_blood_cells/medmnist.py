"""The MedMNIST file format: ``train_images``, ``train_labels``, the same with ``val_`` and ``test_``; grey or colour, any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import SPLITS, Split
from pppml_core.learning.data.collection import Collection
from pppml_core.learning.data.npz import headers, read_npz
from pppml_core.learning.data.pixels import check_images, check_labels, check_range, resize

#: The classes of BloodMNIST in the order of its labels.
BLOODMNIST = (
    "basophil", "eosinophil", "erythroblast", "immature_granulocyte", "lymphocyte", "monocyte", "neutrophil", "platelet",
)  # fmt: skip
_PREFIX: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}


def is_medmnist(path: str | Path) -> bool:
    """Whether a file has the arrays of MedMNIST. Raises DataError where it is no npz file."""
    return any(name.startswith(("train_", "test_", "val_")) for name in headers(path))


def read_medmnist(path: str | Path, size: int | None = None) -> Collection:
    """Describe a MedMNIST file as a collection of one source with the file's own three parts; no patient is known.

    Classes are named ``class_0``, ``class_1``, ... unless there are eight of colour images: then they are BloodMNIST's. ``val_`` may be
    absent. Raises DataError on faults of the file and on data sets with several labels per image or with volumes.
    """
    place = str(path)
    labels = read_npz(path, need=("train_labels", "test_labels"), optional=("val_labels",))
    shapes = headers(path)
    missing = [f"{prefix}_images" for prefix in _PREFIX.values() if f"{prefix}_labels" in labels and f"{prefix}_images" not in shapes]
    if missing:
        read_npz(path, need=missing, optional=())  # raises with the names that are there
    splits = [split for split in SPLITS if f"{_PREFIX[split]}_labels" in labels]
    channels, stored = check_images(*shapes["train_images"], place, "train_images")
    numbers, parts, start = [], {}, 0
    for split in splits:
        name = f"{_PREFIX[split]}_images"
        shape, _ = shapes[name]
        if shape[1:] != shapes["train_images"][0][1:]:
            raise DataError(f"`{name}` of shape {shape} do not fit `train_images`", place=place, hint="give all parts one image size")
        classes = check_labels(labels[f"{_PREFIX[split]}_labels"], None, place, f"{_PREFIX[split]}_labels")
        if len(classes) != shape[0]:
            raise DataError(f"{len(classes)} labels for {shape[0]} `{name}`", place=place, hint="give one label for every image")
        numbers.append(classes)
        parts[split] = np.arange(start, start + len(classes))
        start += len(classes)
    targets = np.concatenate(numbers)
    count = int(targets.max(initial=0)) + 1
    names = BLOODMNIST if count == len(BLOODMNIST) and channels == 3 else tuple(f"class_{i}" for i in range(count))
    kept: list[npt.NDArray[Any]] = []

    def read(indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        if not kept:
            arrays = read_npz(path, need=[f"{_PREFIX[split]}_images" for split in splits], optional=())
            images = np.concatenate(list(arrays.values()))
            check_range(images, place, None)
            kept.append(images if size is None else resize(images, (size, size)))
        return kept[0][indices], targets[indices]

    return Collection(
        place=place,
        kind="classification",
        classes=names,
        channels=channels,
        size=stored if size is None else (size, size),
        source=np.zeros(len(targets), np.int64),
        source_names=(Path(path).stem,),
        groups=np.array([f"{i:06d}" for i in range(len(targets))], dtype=np.str_),
        known=np.zeros(len(targets), dtype=bool),
        parts=parts,
        labels=targets,
        read=read,
    )
