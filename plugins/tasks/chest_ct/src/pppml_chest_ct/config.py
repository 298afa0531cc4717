"""Settings of the chest-ct task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pppml_core import ComponentConfig

Millimetres = Annotated[float, Field(gt=0, le=50)]

#: The three clients of PPPML-HMI's split c3, by scanner model, with the slice thickness its paper states for each.
C3 = {
    "client_a": ("SOMATOM Definition Flash", "LightSpeed VCT", "Revolution CT", "SOMATOM Definition Edge"),
    "client_b": ("SOMATOM Force", "Revolution HD", "SOMATOM Definition AS"),
    "client_c": ("Discovery CT750 HD", "Revolution GSI", "LightSpeed16", "LightSpeed Xtra"),
}
THICKNESS = (2.0, 5.0, 10.0)
#: Settings that only one source reads.
ONLY = {
    "phantom": ("patients", "phantom_seed"),
    "rad-chestct": ("groups", "abnormalities", "labels", "metadata", "split", "crop", "per_class", "cache"),
}


class LabelFile(BaseModel):
    """Labels of one's own: a CSV with one row per scan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="CSV file with a header")
    column: str = Field(description="column of numbers; a scan is a patient where its value is above the threshold")
    threshold: float = Field(0.5, allow_inf_nan=False, description="values above it are patients (PPPML-HMI: an infection ratio above 0.1)")
    id: str = Field("NoteAcc_DEID", description="column of the scan's name")


class ChestCTConfig(ComponentConfig):
    """Where the volumes come from, what makes a patient, which scanners make a site. With no setting at all: the phantom."""

    source: Literal["phantom", "rad-chestct"] = Field(
        "phantom", description="phantom: simulated volumes, no file needed; rad-chestct: npz volumes and CSV files of RAD-ChestCT"
    )
    path: str | None = Field(None, description="folder of RAD-ChestCT: the npz volumes and CSV files, in it or below it")
    size: Annotated[int, Field(ge=16, le=256)] | None = Field(
        None, description="voxels along each side; default: 32 (phantom), 70 (rad-chestct)"
    )
    window: tuple[float, Annotated[float, Field(gt=0)]] = Field((-600.0, 1600.0), description="centre and width in HU")
    thickness: tuple[Millimetres, ...] | Literal["as-is"] | None = Field(
        None,
        description="slice thickness in mm simulated at each site, in their order; as-is: none; default: 2, 5, 10 for three sites",
    )
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of the training patients held out for validation")
    test: float = Field(0.25, gt=0, lt=0.9, description="rad-chestct with `split: patient`: share of the patients held out for testing")
    split_seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the split")

    patients: int = Field(40, ge=4, le=5000, description="phantom: training patients of each of the three sites; half of them are healthy")
    phantom_seed: int = Field(0, ge=0, description="phantom: seed of all patients")

    groups: dict[str, tuple[str, ...]] = Field(
        default_factory=lambda: dict(C3),
        description="rad-chestct: site -> scanner models (ManufacturerModelName; case, spaces, signs do not count); scans of other models "
        "are left out. Default: the three clients of PPPML-HMI",
    )
    abnormalities: tuple[str, ...] = Field(
        ("groundglass", "consolidation"),
        min_length=1,
        description="rad-chestct: a scan with any of these findings is a patient: a finding at any location (`consolidation`) or at one "
        "(`consolidation*right_lower`)",
    )
    labels: LabelFile | None = Field(None, description="rad-chestct: labels of one's own instead of findings")
    metadata: str | None = Field(
        None, description="rad-chestct: CSV with NoteAcc_DEID, MRN_DEID, ManufacturerModelName; default: found by its name in the folder"
    )
    split: Literal["patient", "official"] = Field(
        "patient", description="rad-chestct: patient: by MRN_DEID, seeded; official: the dataset's own (trn, val, tst in the names)"
    )
    crop: Literal["lungs", "none"] = Field(
        "lungs",
        description="rad-chestct: crop to the lungs (the dataset's Extrema CSV where it is there, else by threshold) or not",
    )
    per_class: int | None = Field(None, ge=1, description="rad-chestct: at most so many scans of each class at each site, seeded")
    cache: str | None = Field(
        None, description="rad-chestct: folder where prepared volumes are kept (npy); reading an original takes seconds"
    )

    @model_validator(mode="after")
    def _fits_the_source(self) -> ChestCTConfig:
        if self.source == "phantom" and self.path is not None:
            raise ValueError("path is read by source rad-chestct only; add `source: rad-chestct`")
        if self.source == "rad-chestct" and self.path is None:
            raise ValueError("source rad-chestct needs a path: the folder with the npz volumes and the CSV files")
        fields = type(self).model_fields
        for source, names in ONLY.items():
            # A resolved config spells out every default; only other values are somebody's mistake.
            given = [n for n in names if getattr(self, n) != fields[n].get_default(call_default_factory=True)]
            if given and source != self.source:
                raise ValueError(f"{', '.join(given)}: read by source {source} only, but the source is {self.source}")
        if not self.groups or not all(self.groups.values()):
            raise ValueError("groups: every site needs at least one scanner model")
        if isinstance(self.thickness, tuple) and len(self.thickness) != self.sites:
            raise ValueError(f"thickness has {len(self.thickness)} values for {self.sites} sites; give one for each, or as-is")
        return self

    @property
    def sites(self) -> int:
        """Number of sites."""
        return 3 if self.source == "phantom" else len(self.groups)

    def thickness_mm(self, site: int) -> float | None:
        """Slice thickness simulated at the site of this index; None: none."""
        if self.thickness == "as-is":
            return None
        if self.thickness is None:
            return THICKNESS[site] if self.sites == len(THICKNESS) else None
        return self.thickness[site]
