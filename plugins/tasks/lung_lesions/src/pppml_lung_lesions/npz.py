"""Source ``npz``: slices of several sources in one file, masks with them."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from pppml_core.interfaces.task import DataCard, SiteData, SiteInfo
from pppml_core.learning.data.collection import Collection, SiteParts, assign, site_data
from pppml_core.learning.data.examples import centred
from pppml_core.learning.data.npz import read_multisite
from pppml_core.learning.data.partitions import PartitionConfig
from pppml_lung_lesions.augment import augment
from pppml_lung_lesions.config import LungLesionsConfig


class Npz:
    """The sites are the file's sources; pixels are read by the first :meth:`load`."""

    spacing_mm = None

    def __init__(self, config: LungLesionsConfig) -> None:
        self.config = config
        self.path = str(config.path)

    @cached_property
    def collection(self) -> Collection:
        """What the file holds. Raises DataError naming file, array and remedy."""
        size = None if self.config.size is None else (self.config.size,) * 2
        return read_multisite(self.path, "segmentation", size=size)

    @cached_property
    def parts(self) -> tuple[SiteParts, ...]:
        """Sites with train, validation and test: the file's own, what is missing held out by patient or in contiguous runs."""
        return assign(self.collection, PartitionConfig(seed=self.config.split_seed), validation_fraction=self.config.validation)

    @property
    def channels(self) -> int:
        """Channels of the stored images."""
        return self.collection.channels

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width."""
        return self.collection.size

    @property
    def classes(self) -> tuple[str, ...]:
        """``mask_names`` of the file."""
        return self.collection.classes

    def sites(self) -> tuple[SiteInfo, ...]:
        """The sources, with who made the masks where the file says so."""
        return tuple(site.info for site in self.parts)

    def load(self, site: str) -> SiteData:
        """Slices as float32 in [-1, 1] and masks; groups are patients where they are known."""
        parts = next(one.parts for one in self.parts if one.info.slug == site)
        data = site_data(self.collection, parts, centred, augment)
        for split, indices in parts.items():
            # Slices of unknown patients are one slice set in each part: their common placeholder is nobody's id.
            part = data.part(split)
            part.groups = np.where(self.collection.known[indices], part.groups, np.char.add(part.groups, f", {split} slices"))
        return data

    def misfits(self) -> list[str]:
        """None beyond the errors of reading."""
        return []

    def card(self) -> DataCard:
        """File, who made the masks, and what was held out."""
        made = [f"{site.info.name}: {site.info.about}" for site in self.parts if site.info.about]
        mixed = len({site.info.about for site in self.parts}) > 1
        unknown = [
            site.info.name for site in self.parts if not all(self.collection.known[indices].all() for indices in site.parts.values())
        ]
        return DataCard(
            title="Lung lesions from an npz file",
            about=f"{len(self.collection)} slices of {len(self.parts)} sites with masks ({', '.join(self.classes)})."
            + (f" {'; '.join(made)}." if made else ""),
            licence="not stated in the file; the terms of the original data hold",
            how_to_get="given as a file",
            files=(self.path,),
            cautions=(
                *(
                    ("The sites' masks were not made in the same way: a score against a model's pseudo-labels measures agreement with "
                     "that model, not quality.",) if mixed else ()
                ),
                *(
                    (f"Patients are unknown at {', '.join(unknown)}: parts may share a patient, and Dice is taken over all slices "
                     "of a part together.",) if unknown else ()
                ),
                *(f"{site.info.name}: {remark}." for site in self.parts for remark in site.remarks),
                "Images are used as windowed by whoever made the file; sizes in mm are unknown, so hd95 is in pixels.",
            ),
        )  # fmt: skip
