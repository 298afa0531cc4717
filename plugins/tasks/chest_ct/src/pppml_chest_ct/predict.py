"""Volumes that someone wants predicted, brought to what the network was trained on. Nothing is made thicker than it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_chest_ct.config import ChestCTConfig
from pppml_chest_ct.rad_chestct import SPACING_MM, read_volume
from pppml_chest_ct.volumes import as_image, lung_box, resized
from pppml_core.errors import DataError
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.reading import read_images


def read(config: ChestCTConfig, spec: TaskSpec, path: str) -> list[tuple[npt.NDArray[np.float32], dict[str, Any]]]:
    """Images ``(1, size, size, size)`` in [-1, 1]: npz files with an array ``ct`` as RAD-ChestCT has them, else NIfTI or DICOM in HU.

    Volumes are turned (head to feet, front to back, right to left), resampled to 0.8 mm and cropped to the lungs where training did so.
    Raises DataError naming the file.
    """
    root = Path(path)
    archives = sorted(root.rglob("*.npz")) if root.is_dir() else [root] if root.suffix == ".npz" else []
    found = [(read_volume(file), {"name": file.stem, "format": "npz", "affine": None}) for file in archives]
    if not archives:
        found = [(_turned(array, info, path), info) for array, info in read_images(spec, path)]
    return [(as_image(resized(_cropped(volume, config, path, info), spec.size[0]), *config.window), info) for volume, info in found]


def _turned(array: npt.NDArray[np.float32], info: dict[str, Any], path: str) -> npt.NDArray[np.int16]:
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import Compose, Orientation, Spacing

    if array.ndim != 4 or info["affine"] is None:
        raise DataError(f"{info['name']} is no volume", place=path, hint="give NIfTI, a DICOM series, or npz with an array `ct`")
    steps = Compose(
        [Orientation(axcodes="IPL", labels=(("L", "R"), ("P", "A"), ("I", "S"))), Spacing(pixdim=(SPACING_MM,) * 3, mode="bilinear")]
    )
    volume = steps(MetaTensor(torch.from_numpy(array[:1].copy()), affine=torch.from_numpy(np.asarray(info["affine"], np.float64))))
    out: npt.NDArray[np.int16] = np.rint(np.clip(np.asarray(volume)[0], -1024, 3071)).astype(np.int16)
    return out


def _cropped(volume: npt.NDArray[np.int16], config: ChestCTConfig, path: str, info: dict[str, Any]) -> npt.NDArray[np.int16]:
    if config.source == "rad-chestct" and config.crop == "none":
        return volume
    box = lung_box(volume)
    if box is None:
        raise DataError(f"no lungs found in {info['name']}", place=path, hint="give a chest CT in HU")
    return volume[box]
