"""Images that someone wants predicted, brought to what the network was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.task import Reading, TaskSpec
from pppml_core.learning.bundle.readings import apply, centred, dicom, nifti, picture, repeated, step, windowed
from pppml_core.learning.reading import read_images
from pppml_core.learning.scanner import window
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.volumes import AXES, DIRECTIONS, tensor, turned

#: Centre and width in HU where none is set.
WINDOW = (-600.0, 1600.0)
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
            out.append((_channels(window(image, *(config.window or WINDOW)), spec.channels), info))
    return out


def readings(config: LungLesionsConfig, spec: TaskSpec) -> tuple[Reading, ...]:
    """``read`` in MONAI's config form: NIfTI and DICOM volumes, and pictures where the network takes a single slice."""
    pixel = _pixel(config, spec)
    spacing = [pixel, pixel, pixel if config.source == "ct" else 0.0]
    steps = [
        step("Orientationd", axcodes=AXES[config.axis], labels=[list(ends) for ends in DIRECTIONS]),
        step("Spacingd", pixdim=spacing, mode="bilinear", padding_mode="border"),
    ]
    if config.source == "ct" and config.fit == "resize":
        steps.append(step("Resized", spatial_size=[*spec.size, -1], mode="trilinear", anti_aliasing=True))
    if spec.channels > 1:
        # channels: the slice with those before and after it, the outermost repeated; of other sources the slice itself
        reach = [at - spec.channels // 2 if config.source == "ct" else 0 for at in range(spec.channels)]
        steps.append(apply(f"torch.cat([x[..., (torch.arange(x.shape[-1]) + at).clamp(0, x.shape[-1] - 1)] for at in {reach}])"))
    steps.append(windowed(*(config.window or WINDOW)))
    shared: dict[str, Any] = {"grid": "affine", "value_range": (-1.0, 1.0)}
    volumes = (nifti(1, steps, "a CT volume in HU", **shared), dicom(1, steps, "a CT series in HU", **shared))
    shown = picture(1, (centred(), *repeated(spec.channels)), value_range=(-1.0, 1.0))
    about = f"{shown.about} of one axial slice in a lung window, {spec.size[0]} x {spec.size[1]} pixels or of that pixel size"
    return (*volumes, replace(shown, about=about))


def _pixel(config: LungLesionsConfig, spec: TaskSpec) -> float:
    """Pixels in mm; 0: the spacing is unknown and stays as it is."""
    return {"ct": config.spacing, "phantom": PHANTOM_FOV / spec.size[0], "npz": 0.0}[config.source]


def _channels(image: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    return image if len(image) == channels else np.repeat(image[:1], channels, axis=0)


def _volume(
    config: LungLesionsConfig, spec: TaskSpec, image: npt.NDArray[np.float32], info: dict[str, Any]
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    pixel = _pixel(config, spec)
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
    return window(np.stack(neighbours), *(config.window or WINDOW)), info
