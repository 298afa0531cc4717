"""Volumes that someone wants predicted, brought to what the network was trained on. Nothing is made thicker than it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_chest_ct.config import ChestCTConfig
from pppml_chest_ct.rad_chestct import SPACING_MM, read_volume
from pppml_chest_ct.volumes import MARGIN, as_image, lung_box, resized
from pppml_core.errors import DataError
from pppml_core.interfaces.task import Reading, TaskSpec
from pppml_core.learning.bundle.readings import apply, dicom, nifti, step, windowed
from pppml_core.learning.reading import read_images

#: Where slices, rows and columns point to: head to feet, front to back, right to left; and the ends of the world's axes.
AXES = "IPL"
DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))


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


def readings(config: ChestCTConfig, spec: TaskSpec) -> tuple[Reading, ...]:
    """``read`` in MONAI's config form, for NIfTI and DICOM series; RAD-ChestCT's npz are no format that MONAI reads."""
    size = list(spec.size)
    steps = [
        step("Orientationd", axcodes=AXES, labels=[list(ends) for ends in DIRECTIONS]),
        step("Spacingd", pixdim=[SPACING_MM] * 3, mode="bilinear"),
        apply("x.clamp(-1024, 3071).round()"),
        *([] if _whole(config) else [step("CropForegroundd", source_key="image", select_fn=LUNGS, margin=MARGIN, allow_smaller=True)]),
        step("Resized", spatial_size=size, mode="trilinear", anti_aliasing=True),
        apply("x.round()"),
        windowed(*config.window),
    ]
    kinds = (nifti(1, steps, "a chest CT in HU"), dicom(1, steps, "a chest CT series in HU"))
    # (classes need no way back to the file's grid)
    return tuple(replace(kind, value_range=(-1.0, 1.0), packages=(*kind.packages, "scipy")) for kind in kinds)


#: :func:`pppml_chest_ct.volumes.lung_box` up to its margin, for MONAI: a mask ``(1, slices, rows, columns)`` with the lungs' box.
LUNGS = (
    "$lambda x: ("
    "step := max(1, min(x.shape[1:]) // 100), "
    "coarse := numpy.asarray(x[0, ::step, ::step, ::step]) < -400, "
    "parts := monai.utils.optional_import('scipy.ndimage')[0].label(coarse)[0], "
    "sides := {0, *parts[:, [0, -1]].ravel().tolist(), *parts[:, :, [0, -1]].ravel().tolist()}, "
    "sizes := numpy.bincount(parts.ravel()), "
    "lungs := numpy.isin(parts, [i for i, size in enumerate(sizes) if i not in sides and size >= 0.005 * coarse.size]), "
    "fine := lungs.repeat(step, 0).repeat(step, 1).repeat(step, 2), "
    "torch.as_tensor(fine[:x.shape[1], :x.shape[2], :x.shape[3]])[None])[-1]"
)


def _whole(config: ChestCTConfig) -> bool:
    """Whether training looks at whole volumes, not at the lungs' box."""
    return config.source == "rad-chestct" and config.crop == "none"


def _turned(array: npt.NDArray[np.float32], info: dict[str, Any], path: str) -> npt.NDArray[np.int16]:
    import torch
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import Compose, Orientation, Spacing

    if array.ndim != 4 or info["affine"] is None:
        raise DataError(f"{info['name']} is no volume", place=path, hint="give NIfTI, a DICOM series, or npz with an array `ct`")
    steps = Compose([Orientation(axcodes=AXES, labels=DIRECTIONS), Spacing(pixdim=(SPACING_MM,) * 3, mode="bilinear")])
    volume = steps(MetaTensor(torch.from_numpy(array[:1].copy()), affine=torch.from_numpy(np.asarray(info["affine"], np.float64))))
    out: npt.NDArray[np.int16] = np.rint(np.clip(np.asarray(volume)[0], -1024, 3071)).astype(np.int16)
    return out


def _cropped(volume: npt.NDArray[np.int16], config: ChestCTConfig, path: str, info: dict[str, Any]) -> npt.NDArray[np.int16]:
    if _whole(config):
        return volume
    box = lung_box(volume)
    if box is None:
        raise DataError(f"no lungs found in {info['name']}", place=path, hint="give a chest CT in HU")
    return volume[box]
