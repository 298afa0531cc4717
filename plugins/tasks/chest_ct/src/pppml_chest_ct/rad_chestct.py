"""Source ``rad-chestct``: npz volumes of RAD-ChestCT, sites by scanner model, labels from the dataset's findings or a file of one's own."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pppml_chest_ct import tables
from pppml_chest_ct.config import ChestCTConfig
from pppml_chest_ct.volumes import as_image, lung_box, resized, thicken
from pppml_chest_ct.volumes import augment as change
from pppml_core.errors import DataError, nearest
from pppml_core.interfaces.task import DataCard, SiteData, SiteInfo, Split, unique_slugs
from pppml_core.learning.data.archive import headers, missing_array, read_npz
from pppml_core.learning.data.collection import Collection, SiteParts, assign
from pppml_core.learning.data.partitions import PartitionConfig
from pppml_core.randomness import Seeds

#: All published volumes are resampled to this spacing.
SPACING_MM = 0.8
#: What a scan's name begins with says to which part of the dataset it belongs.
OFFICIAL: dict[str, Split] = {"trn": "train", "val": "validation", "tst": "test"}
CLASSES = ("healthy", "patient")


@dataclass(frozen=True)
class Scan:
    """One volume that is used."""

    name: str
    path: Path
    patient: str
    site: int
    label: int


class Volumes:
    """Examples of one part; a volume is prepared when it is asked for."""

    def __init__(self, source: RadChestCT, scans: list[Scan], *, training: bool) -> None:
        self.source, self.scans, self.training = source, scans, training
        self.groups = np.array([scan.patient for scan in scans], np.str_)

    def __len__(self) -> int:
        return len(self.scans)

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Image float32 ``(1, size, size, size)`` in [-1, 1] and class int64 ``()``."""
        scan = self.scans[index]
        image, target = as_image(self.source.prepared(scan), *self.source.config.window), np.array(scan.label, np.int64)
        return change(image, target, augment) if augment is not None and self.training else (image, target)

    def labels(self) -> npt.NDArray[np.int64]:
        """Classes."""
        return np.array([scan.label for scan in self.scans], np.int64)


class RadChestCT:
    """The sites are ``groups`` of scanner models."""

    def __init__(self, config: ChestCTConfig) -> None:
        self.config, self.root, self.size = config, Path(str(config.path)), config.size or 70
        self.names = list(config.groups)
        self.slugs = unique_slugs(self.names)

    @cached_property
    def found(self) -> tuple[list[Scan], dict[str, int]]:
        """The scans that are used, by name, and how many volumes were left out for which reason. Raises DataError."""
        if not self.root.is_dir():
            near = nearest(self.root.name, (p.name for p in self.root.parent.iterdir())) if self.root.parent.is_dir() else None
            raise DataError(
                "no such folder", place=str(self.root), hint=f"is {near!r} meant?" if near else "give the folder of RAD-ChestCT"
            )
        files = {path.stem: path for path in sorted(self.root.rglob("*.npz"))}
        if not files:
            raise DataError("no npz volume", place=str(self.root), hint="the volumes are named like trn00001.npz")
        about = Path(self.config.metadata) if self.config.metadata else tables.find_one(self.root, tables.METADATA)
        if about is None:
            raise DataError(
                f"no metadata file {tables.METADATA[0]}",
                place=str(self.root),
                hint="copy it from the dataset, or set `metadata`: it names the scanners",
            )
        known = tables.scanners(about)
        labels = (
            tables.own_labels(self.config.labels) if self.config.labels else tables.findings(self.root, self.config.abnormalities, files)
        )
        left = {"not in the metadata": 0, "without a label": 0, "of another scanner": 0}
        scans = []
        for name, path in files.items():
            site = tables.site_of(known[name][1], self.config.groups) if name in known else None
            reason = "not in the metadata" if name not in known else "without a label" if name not in labels else "of another scanner"
            if site is None or name not in labels:
                left[reason] += 1
            else:
                scans.append(Scan(name, path, known[name][0], site, labels[name]))
        for index, site_name in enumerate(self.names):
            if not any(scan.site == index for scan in scans):
                models = sorted({known[name][1] for name in files if name in known})
                raise DataError(
                    f"site {site_name!r} has no labelled scan of {', '.join(self.config.groups[site_name])}",
                    place=str(about),
                    hint=f"scanner models in the folder: {', '.join(models[:12]) or 'none'}; set `groups`",
                )
        return self._limited(scans), left

    def _limited(self, scans: list[Scan]) -> list[Scan]:
        """At most ``per_class`` scans of each class and site, drawn with the split's seed."""
        if self.config.per_class is None:
            return scans
        kept: list[Scan] = []
        for site in range(len(self.names)):
            for label in range(len(CLASSES)):
                own = [scan for scan in scans if (scan.site, scan.label) == (site, label)]
                order = Seeds(self.config.split_seed).generator("per class", site, label).permutation(len(own))
                kept += [own[i] for i in order[: self.config.per_class]]
        return sorted(kept, key=lambda scan: scan.name)

    @cached_property
    def parts(self) -> tuple[SiteParts, ...]:
        """Sites with train, validation and test; no patient lies in two parts, not at two sites either."""
        scans, _ = self.found
        official = [OFFICIAL.get(scan.name[:3]) for scan in scans]
        own: dict[Split, npt.NDArray[np.int64]] | None = None
        if self.config.split == "official":
            if None in official:
                name = scans[official.index(None)].name
                raise DataError(f"scan {name!r} is of no official part", place=str(self.root), hint="use `split: patient`")
            own = {part: np.array([i for i, o in enumerate(official) if o == part], np.int64) for part in OFFICIAL.values()}
        collection = Collection(
            place=str(self.root),
            kind="classification",
            classes=CLASSES,
            channels=1,
            size=(self.size,) * 3,
            source=np.array([scan.site for scan in scans], np.int64),
            source_names=tuple(self.names),
            groups=np.array([scan.patient or scan.name for scan in scans], np.str_),
            known=np.array([bool(scan.patient) for scan in scans]),
            parts=own,
            labels=np.array([scan.label for scan in scans], np.int64),
            read=_never,
            about=tuple(self._about(index) for index in range(len(self.names))),
        )
        return assign(
            collection,
            PartitionConfig(seed=self.config.split_seed),
            test_fraction=self.config.test,
            validation_fraction=self.config.validation,
        )

    def _about(self, index: int) -> str:
        mm = self.config.thickness_mm(index)
        return ", ".join(self.config.groups[self.names[index]]) + (f"; slices of {mm:g} mm simulated" if mm else "")

    def sites(self) -> tuple[SiteInfo, ...]:
        """A site for each group, with its scanner models."""
        return tuple(site.info for site in self.parts)

    def load(self, site: str) -> SiteData:
        """A site's scans; headers are checked now, voxels read when they are needed."""
        parts = next(one.parts for one in self.parts if one.info.slug == site)
        scans, _ = self.found
        for indices in parts.values():
            for i in indices:
                check(scans[i].path)
        return SiteData(*(Volumes(self, [scans[i] for i in parts[p]], training=p == "train") for p in ("train", "validation", "test")))

    @cached_property
    def boxes(self) -> dict[str, tuple[int, ...]]:
        """Lung boxes of the dataset, where its Extrema CSV is there."""
        return tables.boxes(self.root)

    def prepared(self, scan: Scan) -> npt.NDArray[np.int16]:
        """HU of a scan, a cube of ``size`` voxels: cropped, thick slices simulated, resized; from the cache where there is one."""
        place = self._cached(scan)
        if place is not None and place.is_file():
            stored: npt.NDArray[np.int16] = np.load(place, allow_pickle=False)
            return stored
        volume = self.read(scan)
        mm = self.config.thickness_mm(scan.site)
        cube = resized(thicken(volume, SPACING_MM, mm) if mm else volume, self.size)
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_suffix(f".{os.getpid()}.npy")
            np.save(draft, cube, allow_pickle=False)
            draft.replace(place)  # whole or not at all, also with several processes
        return cube

    def read(self, scan: Scan) -> npt.NDArray[np.int16]:
        """The voxels of a scan, cropped to the lungs where asked for."""
        volume = read_volume(scan.path)
        if self.config.crop == "none":
            return volume
        if scan.name in self.boxes:
            a, b, c, d, e, f = self.boxes[scan.name]
            cut = volume[max(0, a) : b + 1, max(0, c) : d + 1, max(0, e) : f + 1]
            if 0 in cut.shape:
                raise DataError(
                    f"the lung box {self.boxes[scan.name]} lies outside {volume.shape}",
                    place=str(scan.path),
                    hint="correct the Extrema CSV",
                )
            return cut
        box = lung_box(volume)
        if box is None:
            raise DataError("no lungs found to crop to", place=str(scan.path), hint="check the volume, or set `crop: none`")
        return volume[box]

    def _cached(self, scan: Scan) -> Path | None:
        if self.config.cache is None:
            return None
        stat = scan.path.stat()
        key = [
            scan.name,
            stat.st_size,
            stat.st_mtime_ns,
            self.size,
            self.config.crop,
            self.boxes.get(scan.name),
            self.config.thickness_mm(scan.site),
        ]
        return Path(self.config.cache) / f"{scan.name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.npy"

    def misfits(self) -> list[str]:
        """None beyond the errors of reading."""
        return []

    def card(self) -> DataCard:
        """Dataset, labels, what was left out."""
        scans, left = self.found
        out = [f"{count} volumes {reason}" for reason, count in left.items() if count]
        made = (
            f"column {self.config.labels.column} of {self.config.labels.file} above {self.config.labels.threshold:g}"
            if self.config.labels
            else "any of " + ", ".join(self.config.abnormalities)
        )
        return DataCard(
            title="RAD-ChestCT",
            about=f"{len(scans)} chest CT volumes of {len({s.patient for s in scans})} patients from Duke University, {len(self.names)} "
            f"sites by scanner model. Patient: {made}; healthy: the rest.",
            licence="terms of zenodo.org/records/6406114 (access by request)",
            how_to_get="ask for access at https://zenodo.org/records/6406114 and put volumes and CSV files into one folder",
            files=(str(self.root),),
            cites=("Draelos et al. 2021, doi:10.1016/j.media.2020.101857",),
            cautions=(
                "Findings were extracted from radiology reports by rules, not marked in the images by radiologists.",
                "`healthy` means without the chosen findings, not without disease.",
                *((f"Left out: {'; '.join(out)}.",) if out else ()),
                *(f"{site.info.name}: {remark}." for site in self.parts for remark in site.remarks),
            ),
        )


def check(path: Path) -> None:
    """Raise DataError where a file is no volume, by its headers (a truncated file has none)."""
    arrays = headers(path)
    if "ct" not in arrays:
        raise missing_array("ct", tuple(arrays), path)
    shape, dtype = arrays["ct"]
    if len(shape) != 3 or not np.issubdtype(dtype, np.integer) or min(shape) < 2:
        raise DataError(f"`ct` is {dtype} of shape {shape}", place=str(path), hint="RAD-ChestCT volumes are int16 of 3 dimensions, in HU")


def read_volume(path: Path) -> npt.NDArray[np.int16]:
    """``ct`` of a volume: int16 HU, (head to feet, front to back, right to left), 0.8 mm."""
    check(path)
    return read_npz(path, need=("ct",), optional=())["ct"].astype(np.int16, copy=False)


def _never(indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    raise NotImplementedError("volumes are read one by one, by Volumes.example")
