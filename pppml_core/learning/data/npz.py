"""npz files of several sources: the arrays ``images``, ``labels`` or ``masks``, ``source``, ``split``, ``patient`` and their names.

=====================  ==========================================  ===============================================================
array                  shape, dtype                                meaning
=====================  ==========================================  ===============================================================
``images``             (N, H, W) or (N, H, W, C)                   grey or colour; uint8, uint16, or others with a window
``labels``             (N,) or (N, 1) integers                     classification: class of each image
``class_names``        (classes,) str                              optional
``masks``              (N, H, W) integers                          segmentation: class of each pixel, 0 is background
``mask_names``         (classes,) str                              optional
``source``             (N,) integers or str                        optional: where an image comes from; default one source
``source_names``       (sources,) str                              optional
``split``              (N,) integers or str                        optional: 0 train, 1 val, 2 test, or ``split_names``
``patient``            (N,) integers or str                        optional; else ``smear_id``, else ``item_id``: what must not be
                                                                   divided. An id that is empty or contains "unknown" is none
``label_kind``         (N,) integers, with ``label_kind_names``    optional: who made the labels; shown with the sources
=====================  ==========================================  ===============================================================
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import Kind
from pppml_core.learning.data.archive import Arrays, headers, missing_array, read_npz
from pppml_core.learning.data.collection import Collection
from pppml_core.learning.data.pixels import check_images, check_labels, check_range, class_masks, resize, windowed
from pppml_core.learning.data.splits import by_split_column

__all__ = ["groups_of", "headers", "read_multisite", "read_npz"]

_SMALL = (
    "labels", "class_names", "mask_names", "source", "source_names", "split", "split_names",
    "patient", "smear_id", "item_id", "label_kind", "label_kind_names",
)  # fmt: skip
_UNKNOWN = re.compile(r"^$|^nan$|unknown", re.IGNORECASE)


def read_multisite(
    path: str | Path,
    kind: Kind | None = None,
    *,
    size: tuple[int, ...] | None = None,
    window: tuple[float, float] | None = None,
) -> Collection:
    """Describe an npz file with the arrays of this module's table; pixels are read, once, by the first ``collection.read``.

    Args:
        path: the file.
        kind: default: segmentation where the file has ``masks``, else classification.
        size: height and width to resize to; default: as stored.
        window: black and white for images that are not uint8, uint16 or floats in [0, 1].

    Raises DataError: all faults of :func:`pppml_core.learning.data.archive.read_npz`; lengths that differ; labels, sources or splits out of
    range; and, from ``read``, masks that do not fit, NaN or infinite pixels, pixels that need a window.

    """
    place, shapes = str(path), headers(path)
    if "images" not in shapes:
        raise missing_array("images", tuple(shapes), path)
    if kind is None:
        if "masks" not in shapes and "labels" not in shapes:
            raise missing_array("labels", tuple(shapes), path)
        kind = "segmentation" if "masks" in shapes else "classification"
    target = "masks" if kind == "segmentation" else "labels"
    if target not in shapes:
        raise missing_array(target, tuple(shapes), path)
    shape, dtype = shapes["images"]
    channels, stored = check_images(shape, dtype, place)
    n = shape[0]
    if kind == "segmentation" and shapes["masks"][0] != (n, *stored):
        raise DataError(
            f"`masks` of shape {shapes[target][0]} do not fit `images` of shape {shape}",
            place=place,
            hint=f"give one mask of {stored[0]} x {stored[1]} pixels for every image",
        )
    small = read_npz(path, optional=_SMALL)
    for name in ("labels", "source", "split", "patient", "smear_id", "item_id", "label_kind"):
        if name in small and len(small[name]) != n:
            raise DataError(f"`{name}` has {len(small[name])} entries for {n} images", place=place, hint="give one entry for every image")
    source, source_names = _sources(small, n, place)
    groups, known = groups_of(small, n)
    names = _names(small, "class_names" if kind == "classification" else "mask_names")
    labels = None
    if kind == "classification":
        labels = check_labels(small["labels"], len(names) if names else None, place)
        names = names or tuple(f"class_{i}" for i in range(int(labels.max(initial=0)) + 1))
    else:
        names = names or _names_of_masks(path)
    parts = by_split_column(small["split"], _names(small, "split_names") or None, place=place) if "split" in small else None
    pixels = _Pixels(path, target, len(names), window, size)
    return Collection(
        place, kind, names, channels, size or stored, source, source_names, groups, known, parts, labels, pixels, _about(small, source)
    )


class _Pixels:
    """Images and targets of a file, read on the first call and kept in the size asked for."""

    def __init__(
        self, path: str | Path, target: str, classes: int, window: tuple[float, float] | None, size: tuple[int, ...] | None
    ) -> None:
        self.path, self.target, self.classes, self.window, self.size = path, target, classes, window, size
        self.kept: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None

    def __call__(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if self.kept is None:
            arrays, place = read_npz(self.path, need=("images", self.target), optional=()), str(self.path)
            images, targets = arrays["images"], arrays[self.target]
            check_range(images, place, self.window)
            images = windowed(images, self.window) if self.window is not None else images
            if targets.ndim > 2:
                targets = class_masks(targets, self.classes, place, self.target)
            else:
                targets = check_labels(targets, self.classes, place, self.target)
            if self.size is not None:
                images = resize(images, self.size)
                targets = resize(targets, self.size, masks=True) if targets.ndim > 2 else targets
            self.kept = images, targets
        return self.kept[0][indices], self.kept[1][indices]


def groups_of(arrays: Arrays, n: int) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.bool_]]:
    """``(groups, known)`` of ``n`` examples: ``patient``, else ``smear_id``, else ``item_id``; without any, each example by itself."""
    for name in ("patient", "smear_id", "item_id"):
        if name in arrays:
            groups = arrays[name].astype(np.str_)
            return groups, np.array([_UNKNOWN.search(g) is None for g in groups.tolist()], dtype=bool)
    return np.array([f"{i:06d}" for i in range(n)], dtype=np.str_), np.zeros(n, dtype=bool)


def _sources(arrays: Arrays, n: int, place: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    names = _names(arrays, "source_names")
    if "source" not in arrays:
        return np.zeros(n, np.int64), names[:1] or ("all",)
    source = arrays["source"]
    if not np.issubdtype(source.dtype, np.integer):
        found, inverse = np.unique(source.astype(np.str_), return_inverse=True)
        return inverse.astype(np.int64), tuple(found.tolist())
    names = names or tuple(f"source_{i}" for i in range(int(source.max(initial=0)) + 1))
    wrong = np.flatnonzero((source < 0) | (source >= len(names)))
    if len(wrong):
        raise DataError(
            f"`source` of example {wrong[0]} is {source[wrong[0]]}, but there are {len(names)} source names, 0 to {len(names) - 1}",
            place=place,
            hint="correct `source` or add to `source_names`",
        )
    return source.astype(np.int64), names


def _names(arrays: Arrays, name: str) -> tuple[str, ...]:
    return tuple(str(v) for v in arrays[name].tolist()) if name in arrays else ()


def _names_of_masks(path: str | Path) -> tuple[str, ...]:
    """Names for masks without ``mask_names``: this once, the masks must be read to be counted."""
    values = read_npz(path, need=("masks",), optional=())["masks"]
    highest = int(values.max(initial=0))
    if highest <= 1 or (highest == 255 and set(np.unique(values).tolist()) <= {0, 255}):
        return ("background", "foreground")
    return ("background", *(f"class_{i}" for i in range(1, highest + 1)))


def _about(arrays: Arrays, source: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """``labels by ...`` for each source, where the file says who made them."""
    kinds = _names(arrays, "label_kind_names")
    if not kinds or "label_kind" not in arrays:
        return ()
    made = [np.unique(arrays["label_kind"][source == i]).tolist() for i in range(int(source.max(initial=0)) + 1)]
    return tuple("labels by " + " and ".join(kinds[k].replace("_", " ") for k in by) for by in made)
