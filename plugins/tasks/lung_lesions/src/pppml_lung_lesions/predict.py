"""Images that someone wants predicted, brought to what the network was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.reading import read_images
from pppml_core.learning.scanner import window
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.volumes import tensor, turned

#: Field of view in mm that the phantom's pixels are compared with (the mean of its scanners).
PHANTOM_FOV = 320.0


def read(config: LungLesionsConfig, spec: TaskSpec, path: str) -> list[tuple[npt.NDArray[np.float32], dict[str, Any]]]:
    """Images of a file or folder, float32 ``(channels, rows, columns[, slices])`` in [-1, 1], with where they came from.

    Volumes (NIfTI, DICOM series; HU) are turned, resampled and windowed as in training: to the voxels of source ``ct``, to the phantom's
    pixels in plane, or, for source ``npz``, whose spacing is unknown, not resampled. Pictures and npz must show a lung window already.
    """
    out: list[tuple[npt.NDArray[np.float32], dict[str, Any]]] = []
    for image, info in read_images(replace(spec, channels=1) if config.source == "ct" else spec, path):
        if info["format"] in ("picture", "npz"):
            out.append((2 * _channels(image, spec.channels) - 1, info))
        elif image.ndim == 4:
            out.append(_volume(config, spec, image[:1], info))
        else:
            out.append((_channels(window(image, *(config.window or (-600.0, 1600.0))), spec.channels), info))
    return out


def _channels(image: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    return image if len(image) == channels else np.repeat(image[:1], channels, axis=0)


def _volume(
    config: LungLesionsConfig, spec: TaskSpec, image: npt.NDArray[np.float32], info: dict[str, Any]
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    pixel = {"ct": config.spacing, "phantom": PHANTOM_FOV / spec.size[0], "npz": 0.0}[config.source]
    volume = turned({"ct": tensor(image, info["affine"])}, config.axis, (pixel, pixel, pixel if config.source == "ct" else 0.0))["ct"]
    if config.source == "ct" and config.fit == "resize":
        from monai.transforms import Resize

        volume = Resize((*spec.size, volume.shape[-1]), mode="trilinear", anti_aliasing=True)(volume)
    hu = np.asarray(volume, np.float32)[0]
    reach = np.arange(spec.channels) - spec.channels // 2 if config.source == "ct" else np.zeros(spec.channels, int)
    neighbours = [hu[..., np.clip(np.arange(hu.shape[-1]) + step, 0, hu.shape[-1] - 1)] for step in reach]
    info = {
        **info,
        "affine": np.asarray(volume.affine, np.float64),
        "original_affine": info["affine"],
        "original_shape": image.shape[1:],
    }
    return window(np.stack(neighbours), *(config.window or (-600.0, 1600.0))), info
