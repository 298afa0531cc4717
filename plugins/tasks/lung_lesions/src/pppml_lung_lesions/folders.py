"""Which volumes a folder ``site/patient/`` holds, and in which part each patient is. Reads names, no pixels.

::

    scans/
      splits.csv                     optional: columns patient, split (and site, where two sites have a patient of one name)
      hospital_a/
        p001/ct.nii.gz  mask.nii.gz
        p002/dicom/*    mask.nii.gz
      hospital_b/ ...
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError, nearest
from pppml_core.interfaces.task import SPLITS, SiteInfo, Split, unique_slugs
from pppml_core.learning.data.splits import SPLIT_NAMES
from pppml_core.randomness import Seeds

CT_NAMES, MASK_NAMES, DICOM = ("ct.nii.gz", "ct.nii"), ("mask.nii.gz", "mask.nii"), "dicom"
#: Shares of test and validation patients where no splits.csv names them; the rest trains.
TEST, VALIDATION = 0.25, 0.15


@dataclass(frozen=True)
class Scan:
    """One patient's CT (a NIfTI file or a folder of DICOM slices) and its mask."""

    site: str
    patient: str
    ct: Path
    mask: Path

    @property
    def group(self) -> str:
        """The patient, unique over sites."""
        return f"{self.site}/{self.patient}"


def find(root: Path) -> tuple[tuple[SiteInfo, ...], dict[str, list[Scan]], list[DataError]]:
    """``(sites, scans by slug, faults)``: every folder of ``root`` is a site, every folder of a site a patient.

    A patient without CT or mask is a fault. Raises DataError where there is no folder or no site.
    """
    if not root.is_dir():
        near = nearest(root.name, (p.name for p in root.parent.iterdir() if p.is_dir())) if root.parent.is_dir() else None
        raise DataError(
            "a file, not a folder of sites" if root.is_file() else "no such folder",
            place=str(root),
            hint=f"is {near!r} meant?" if near else "give the folder that holds one folder per site",
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
            "no site: the folder holds no folder", place=str(root), hint="lay volumes out as site/patient/ct.nii.gz and mask.nii.gz"
        )
    infos = tuple(SiteInfo(slug, folder.name) for slug, folder in zip(unique_slugs([f.name for f in folders]), folders, strict=True))
    scans: dict[str, list[Scan]] = {info.slug: [] for info in infos}
    faults: list[DataError] = []
    for info, folder in zip(infos, folders, strict=True):
        patients = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not patients:
            faults.append(
                DataError(f"site {folder.name!r} has no patient", place=str(folder), hint="add patient/ct.nii.gz and mask.nii.gz")
            )
        for patient in patients:
            try:
                scans[info.slug].append(_scan(info.slug, patient))
            except DataError as fault:
                faults.append(fault)
    return infos, scans, faults


def _scan(site: str, folder: Path) -> Scan:
    names = sorted(p.name for p in folder.iterdir())
    ct = next((folder / name for name in (*CT_NAMES, DICOM) if (folder / name).exists()), None)
    if ct is None:
        near = next((n for n in names if n not in MASK_NAMES and nearest(n, (*CT_NAMES, DICOM))), None)
        raise DataError(
            f"no CT: neither ct.nii.gz, ct.nii nor a folder dicom; there is {', '.join(names) or 'nothing'}",
            place=str(folder),
            hint=f"rename {near!r}" if near else "name the volume ct.nii.gz, or put the DICOM slices into a folder dicom",
        )
    mask = next((folder / name for name in MASK_NAMES if (folder / name).is_file()), None)
    if mask is None:
        raise DataError(
            f"no mask: neither mask.nii.gz nor mask.nii; there is {', '.join(names)}",
            place=str(folder),
            hint="add mask.nii.gz on the CT's grid (all zeros where there is no lesion), or remove the patient",
        )
    return Scan(site, folder.name, ct, mask)


def split(
    root: Path, scans: dict[str, list[Scan]], infos: tuple[SiteInfo, ...], seed: int, validation: float
) -> dict[str, dict[Split, list[Scan]]]:
    """Each site's scans by part: from ``splits.csv``, or 60/15/25 % of the patients (train, validation, test), seeded.

    Where ``splits.csv`` names no validation patient at a site, the share ``validation`` of its training patients is held out. Raises
    DataError: a patient in two parts, an unlisted or unknown one, too few patients.
    """
    listed = _read_splits(root / "splits.csv", scans, infos) if (root / "splits.csv").exists() else None
    return {site: _split_site(root, site, own, listed, seed, validation) for site, own in scans.items()}


def _split_site(
    root: Path, site: str, scans: list[Scan], listed: dict[str, Split] | None, seed: int, validation: float
) -> dict[Split, list[Scan]]:
    order = [scans[i] for i in Seeds(seed).generator("ct split", site).permutation(len(scans))]
    parts: dict[Split, list[Scan]]
    if listed is None:
        if len(scans) < 3:
            raise DataError(
                f"site {site!r} has {len(scans)} patients; train, validation and test need at least 3",
                place=str(root),
                hint="add patients, or merge the site with another",
            )
        test, held = max(1, round(TEST * len(order))), max(1, round(VALIDATION * len(order)))
        parts = {"test": order[:test], "validation": order[test : test + held], "train": order[test + held :]}
    else:
        parts = {name: [scan for scan in order if listed[scan.group] == name] for name in SPLITS}
        if not parts["validation"] and len(parts["train"]) > 1:
            held = max(1, round(validation * len(parts["train"])))
            parts["validation"], parts["train"] = parts["train"][:held], parts["train"][held:]
        for name in SPLITS:
            if not parts[name]:
                raise DataError(
                    f"site {site!r} has no {name} patient", place=str(root / "splits.csv"), hint="name at least one in splits.csv"
                )
    return {name: sorted(parts[name], key=lambda scan: scan.patient) for name in SPLITS}


def _read_splits(path: Path, scans: dict[str, list[Scan]], infos: tuple[SiteInfo, ...]) -> dict[str, Split]:
    by_name = {info.name: info.slug for info in infos} | {info.slug: info.slug for info in infos}
    known: dict[str, list[Scan]] = {}
    for own in scans.values():
        for scan in own:
            known.setdefault(scan.patient, []).append(scan)
    out: dict[str, Split] = {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        if not {"patient", "split"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"columns {', '.join(rows.fieldnames or ())}", place=str(path), hint="the columns must be patient,split (and site)"
            )
        for row in rows:
            place = f"{path}:{rows.line_num}"
            patient, word = (row["patient"] or "").strip(), (row["split"] or "").strip().lower()
            if word not in SPLIT_NAMES:
                raise DataError(f"unknown part {word!r}", place=place, hint="one of train, validation, test")
            found = known.get(patient, [])
            if row.get("site"):
                found = [scan for scan in found if scan.site == by_name.get(row["site"].strip())]
            if len(found) != 1:
                near = nearest(patient, known)
                raise DataError(
                    f"patient {patient!r} has {'no folder' if not found else 'folders at several sites'}",
                    place=place,
                    hint="add a column site" if found else f"is {near!r} meant?" if near else "remove the row",
                )
            if out.setdefault(found[0].group, SPLIT_NAMES[word]) != SPLIT_NAMES[word]:
                raise DataError(
                    f"patient {patient!r} lies in both {out[found[0].group]} and {SPLIT_NAMES[word]}", place=place, hint="keep one row"
                )
    missing = sorted(scan.group for own in scans.values() for scan in own if scan.group not in out)
    if missing:
        raise DataError(f"patient {missing[0]!r} is not listed", place=str(path), hint="list every patient, or remove splits.csv")
    return out


def thinned(lesion: npt.NDArray[np.bool_], keep_empty: int) -> npt.NDArray[np.int64]:
    """Indices of the slices to train on: all with lesion (``lesion`` is bool by slice), of the others every ``keep_empty``-th (0: none)."""
    empty = np.flatnonzero(~lesion)
    kept = empty[::keep_empty] if keep_empty else empty[:0]
    return np.union1d(np.flatnonzero(lesion), kept)
