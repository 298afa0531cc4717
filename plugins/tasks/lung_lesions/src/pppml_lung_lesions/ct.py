"""Source ``ct``: NIfTI volumes or DICOM series with masks, in folders ``site/patient/``, cut into slices."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.task import DataCard, SiteData, SiteInfo, Split
from pppml_core.learning.scanner import window
from pppml_lung_lesions.augment import augment as turn
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.folders import Scan, find, split, thinned
from pppml_lung_lesions.volumes import prepare

#: Prepared volumes kept in memory; a 320 x 320 x 300 volume with its mask takes 92 MB.
KEPT = 8


class Slices:
    """Slices of some volumes as examples; groups are patients. Volumes are prepared when first needed, the last ``KEPT`` stay."""

    def __init__(self, scans: list[Scan], volumes: Any, config: LungLesionsConfig, *, thin: bool) -> None:
        self.volumes, self.config = volumes, config
        places: list[tuple[int, int]] = []
        present: list[bool] = []
        self.scans = scans
        for index, scan in enumerate(scans):
            lesion = volumes(scan)[1].any(axis=(1, 2))
            chosen = thinned(lesion, config.keep_empty) if thin else np.arange(len(lesion))
            places += [(index, int(i)) for i in chosen]
            present += lesion[chosen].tolist()
        self.places, self._labels = places, np.array(present, np.int64)
        self.groups = np.array([scans[index].group for index, _ in places], np.str_)
        self.augments = thin

    def __len__(self) -> int:
        return len(self.places)

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Image float32 ``(slices, size, size)`` in [-1, 1] and mask int64 ``(size, size)``."""
        volume, at = self.places[index]
        hu, masks = self.volumes(self.scans[volume])
        image, target = as_image(hu, at, self.config), masks[at].astype(np.int64)
        return turn(image, target, augment) if augment is not None and self.augments else (image, target)

    def labels(self) -> npt.NDArray[np.int64]:
        """1 where a slice has lesion."""
        return self._labels


def as_image(hu: npt.NDArray[np.int16], at: int, config: LungLesionsConfig) -> npt.NDArray[np.float32]:
    """Slice ``at`` of ``(slices, H, W)`` as channels: itself, or with its two neighbours (the outermost repeated)."""
    reach = np.arange(config.slices) - config.slices // 2
    return window(hu[np.clip(at + reach, 0, len(hu) - 1)], *(config.window or (-600.0, 1600.0)))


class CT:
    """The sites are the folders of ``path``."""

    classes = ("background", "lesion")

    def __init__(self, config: LungLesionsConfig) -> None:
        self.config, self.root = config, Path(str(config.path))
        self.channels = config.slices
        self.size = (config.size or 320,) * 2
        self.spacing_mm = (config.spacing,) * 2 if config.fit == "crop" else None

        def volume(scan: Scan) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
            return prepare(scan.ct, scan.mask, spacing=config.spacing, axis=config.axis, size=self.size[0], fit=config.fit)

        self.volumes = lru_cache(KEPT)(volume)

    @cached_property
    def found(self) -> tuple[tuple[SiteInfo, ...], dict[str, list[Scan]], list[Any]]:
        """Sites, scans and faults of the folder."""
        return find(self.root)

    @cached_property
    def parts(self) -> dict[str, dict[Split, list[Scan]]]:
        """Each site's scans by part. Raises the first fault of the folder."""
        infos, scans, faults = self.found
        if faults:
            raise faults[0]
        return split(self.root, scans, infos, self.config.split_seed, self.config.validation)

    def sites(self) -> tuple[SiteInfo, ...]:
        """A site for each folder, with its number of patients."""
        infos, scans, _ = self.found
        return tuple(SiteInfo(info.slug, info.name, f"{len(scans[info.slug])} patients") for info in infos)

    def load(self, site: str) -> SiteData:
        """Slices of a site: training slices thinned by ``keep_empty``, all validation and test slices."""
        parts = self.parts[site]
        return SiteData(*(Slices(parts[name], self.volumes, self.config, thin=name == "train") for name in ("train", "validation", "test")))

    def misfits(self) -> list[str]:
        """All faults of the folder at once."""
        _, _, faults = self.found
        return [str(fault) for fault in faults]

    def card(self) -> DataCard:
        """Where the volumes lie and how they are cut."""
        c = self.config
        centre, width = c.window or (-600.0, 1600.0)
        thinned = () if c.keep_empty == 1 else (f"every {c.keep_empty}-th slice" if c.keep_empty else "no slice",)
        return DataCard(
            title="Lung lesions in CT volumes",
            about=f"NIfTI or DICOM volumes of {len(self.found[0])} sites, {c.spacing:g} mm voxels, {c.axis} slices of "
            f"{self.size[0]} x {self.size[1]} ({c.fit}), {c.slices} as channels, window {centre:g}/{width:g} HU.",
            licence="not stated; the terms of the original data hold",
            how_to_get="given as a folder: site/patient/ct.nii.gz (or dicom/) and mask.nii.gz, optionally splits.csv",
            files=(str(self.root),),
            cautions=("Every value above 0 of a mask counts as lesion.", *(f"Training keeps {kept} without lesion." for kept in thinned)),
        )
