"""Settings of the lung-lesions task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pppml_core import ComponentConfig

#: Settings that only one source reads; setting them for another is a mistake worth an error.
ONLY = {
    "phantom": ("sites", "patients", "slices_per_patient", "equal_sites", "phantom_seed"),
    "ct": ("axis", "slices", "spacing", "fit", "keep_empty"),
}


class LungLesionsConfig(ComponentConfig):
    """Where the slices come from and how they are cut. With no setting at all: the phantom, five scanners, 64 x 64."""

    source: Literal["phantom", "npz", "ct"] = Field(
        "phantom", description="phantom: simulated scanners, no file needed; npz: arrays in one file; ct: folders of NIfTI or DICOM volumes"
    )
    target: Literal["mask", "lesion"] = Field(
        "mask", description="what is asked of a slice: mask: where its lesions are; lesion: whether it has any (classification)"
    )
    path: str | None = Field(None, description="the npz file, or the folder `site/patient/` of volumes")
    dims: Literal[2] = Field(2, description="2-D slices (2.5-D with `slices: 3`); whole volumes are not offered by this task")
    size: Annotated[int, Field(ge=32, le=512)] | None = Field(
        None, description="pixels along each side; default: 64 (phantom), the file's own (npz), 320 (ct)"
    )
    window: tuple[float, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="centre and width in HU; default: -600 and 1600 (ct), each scanner's own export window (phantom); not for npz"
    )
    validation: float = Field(
        0.15, gt=0, lt=0.5, description="share of the training patients held out where the data name no validation part"
    )
    split_seed: int = Field(0, ge=0, description="seed of splits that the data do not name")

    sites: int = Field(5, ge=2, le=20, description="phantom: simulated scanners; the first five are the documented table")
    patients: int = Field(30, ge=2, le=2000, description="phantom: training patients of a site of average size")
    slices_per_patient: int = Field(4, ge=1, le=64, description="phantom: slices of each patient")
    equal_sites: bool = Field(False, description="phantom: the same number of patients at every site")
    phantom_seed: int = Field(0, ge=0, description="phantom: seed of all patients, and of the scanners beyond the fifth")

    axis: Literal["axial", "coronal", "sagittal"] = Field("axial", description="ct: plane of the slices")
    slices: Literal[1, 3] = Field(1, description="ct: 1 slice, or 3 neighbouring slices (one step before and after) as channels")
    spacing: float = Field(1.0, gt=0.2, le=10, description="ct: voxel size in mm after resampling, along all axes")
    fit: Literal["crop", "resize"] = Field(
        "crop", description="ct: centre crop or air padding to `size` (keeps mm, so hd95 is in mm), or resize the whole slice to `size`"
    )
    keep_empty: int = Field(
        10, ge=0, description="ct: of the training slices without lesion keep every k-th; 0 keeps none, 1 all. Validation and test keep all"
    )

    @model_validator(mode="after")
    def _fits_the_source(self) -> LungLesionsConfig:
        if self.source == "phantom" and self.path is not None:
            raise ValueError("path is read by source npz and ct only; add `source: npz` or `source: ct`")
        if self.source != "phantom" and self.path is None:
            raise ValueError(f"source {self.source} needs a path: {'an npz file' if self.source == 'npz' else 'a folder site/patient/'}")
        for source, names in ONLY.items():
            # A resolved config spells out every default; only other values are somebody's mistake.
            given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if given and source != self.source:
                raise ValueError(f"{', '.join(given)}: read by source {source} only, but the source is {self.source}")
        if self.source == "npz" and self.window is not None:
            raise ValueError("window: the images of an npz file are windowed already; remove it")
        return self
