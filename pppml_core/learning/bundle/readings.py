"""What :mod:`pppml_core.learning.reading` does with a file, in MONAI's config form: for a program that has MONAI and not pppml.

Tasks put their own steps after these. Every step works on the key ``image``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pppml_core.interfaces.task import Reading, TaskSpec

Step = dict[str, Any]

#: Pillow's mode for so many channels; pictures of more than 8 bits are never converted, which would clip them.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def as_stored(spec: TaskSpec) -> tuple[Reading, ...]:
    """What the default of ``Task.prepare`` reads and MONAI can read the same way: pictures scaled to [0, 1], NIfTI with values as stored.

    Not among them: npz, which is no list of files, and DICOM, whose series have to be told apart first.
    """
    if len(spec.size) == 3:
        return (nifti(spec.channels, (), "a volume with values as in training"),)
    pictures = (picture(spec.channels, ()),) if spec.channels in MODES else ()
    dims = 2 if spec.kind == "classification" else 3
    what = "an image" if dims == 2 else "a volume, predicted slice by slice along its last axis,"
    return (*pictures, nifti(spec.channels, (), f"{what} with values as in training", dims))


def step(target: str, **args: Any) -> Step:
    """A MONAI dictionary transform on the image."""
    return {"_target_": target, "keys": "image", **args}


def apply(expression: str) -> Step:
    """A function of the image, ``x``, as a MONAI transform."""
    return step("Lambdad", func=f"$lambda x: {expression}")


def nifti(channels: int, steps: Sequence[Step], about: str, dims: int = 3, **more: Any) -> Reading:
    """NIfTI files, then ``steps``. One channel is repeated where the network takes more."""
    load = step("LoadImaged", reader="NibabelReader", ensure_channel_first=True)
    return Reading("nifti", "*.nii.gz", about, dims, (load, *_shaped(channels, dims), *steps), packages=("nibabel",), **more)


def dicom(channels: int, steps: Sequence[Step], about: str, **more: Any) -> Reading:
    """Folders with the slices of one DICOM series each, as volumes in their unit (CT: HU), then ``steps``."""
    load = step("LoadImaged", reader="PydicomReader", ensure_channel_first=True)
    return Reading("dicom", "*/", about, 3, (load, *_shaped(channels, 3), *steps), packages=("pydicom", "nibabel"), **more)


def picture(channels: int, steps: Sequence[Step], window: tuple[float, float] | None = None, **more: Any) -> Reading:
    """PNG files, as float32 in [0, 1]: integers divided by their type's largest value, or mapped by ``window`` (black, white).

    Then ``steps``. ``channels``: 1, 3 or 4.
    """
    load = step(
        "LoadImaged",
        reader="PILReader",
        converter=f"$lambda picture: picture if picture.mode[0] in 'IF' else picture.convert('{MODES[channels]}')",
        reverse_indexing=False,  # rows first, as in training
        ensure_channel_first=True,
        dtype=None,  # as stored: what is white depends on it
    )
    # (16-bit pictures arrive as int32)
    scale = (
        apply("x.float() / {torch.uint8: 255, torch.int32: 65535}.get(x.dtype, 1)")
        if window is None
        else step("ScaleIntensityRanged", a_min=window[0], a_max=window[1], b_min=0.0, b_max=1.0, clip=True)
    )
    white = "" if window is None else f", values from {window[0]:g} (black) to {window[1]:g} (white)"
    about = {1: "a grey picture", 3: "a colour picture", 4: "a colour picture with opacity"}[channels] + white
    return Reading("picture", "*.png", about, 2, (load, scale, *repeated(channels), *steps), packages=("pillow",), **more)


def windowed(centre: float, width: float) -> Step:
    """HU to [-1, 1], clipped, as :func:`pppml_core.learning.scanner.window`."""
    return step("ScaleIntensityRanged", a_min=centre - width / 2, a_max=centre + width / 2, b_min=-1.0, b_max=1.0, clip=True)


def centred() -> Step:
    """[0, 1] to [-1, 1], as :func:`pppml_core.learning.data.examples.centred`."""
    return step("ScaleIntensityRanged", a_min=0.0, a_max=1.0, b_min=-1.0, b_max=1.0)


def _shaped(channels: int, dims: int) -> tuple[Step, ...]:
    # A single slice is a volume of one slice.
    return (*repeated(channels), *((apply("x if x.ndim == 4 else x[..., None]"),) if dims == 3 else ()))


def repeated(channels: int) -> tuple[Step, ...]:
    """One channel as many times as the network takes channels."""
    return () if channels == 1 else (apply(f"x if x.shape[0] == {channels} else torch.cat([x] * {channels})"),)
