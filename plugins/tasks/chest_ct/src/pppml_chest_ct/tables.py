"""RAD-ChestCT's CSV files: which scans there are, whose they are, from which scanner, with which findings.

Read as published (zenodo.org/records/6406114): volumes ``trnXXXXX.npz``, ``valXXXXX.npz``, ``tstXXXXX.npz``, named by ``NoteAcc_DEID``;
the metadata CSV (``CT_Scan_Metadata_Complete_35747.csv``) with ``NoteAcc_DEID``, ``MRN_DEID`` (the patient) and ``ManufacturerModelName``;
label CSVs (``imgtrain_``, ``imgvalid_``, ``imgtest_Abnormality_and_Location_Labels.csv``) with ``NoteAcc_DEID`` and columns
``finding*location`` of 0 and 1; the lung boxes (``Extrema_*.csv``).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pppml_chest_ct.config import LabelFile
from pppml_core.errors import DataError, nearest

SCAN, PATIENT, MODEL = "NoteAcc_DEID", "MRN_DEID", "ManufacturerModelName"
LABELS = "img*_Abnormality_and_Location_Labels.csv"
METADATA = ("CT_Scan_Metadata_Complete_*.csv", "CT_Scan_Metadata_*.csv", "Summary_*.csv")
BOX = ("sup_axis0min", "inf_axis0max", "ant_axis1min", "pos_axis1max", "rig_axis2min", "lef_axis2max")


def rows(path: Path, need: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """``(place, row)`` of a CSV with a header. Raises DataError: no such file, not text, a needed column missing."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            names = reader.fieldnames or []
            for name in need:
                if name not in names:
                    near = nearest(name, names)
                    raise DataError(
                        f"there is no column {name!r}",
                        place=str(path),
                        hint=f"is {near!r} meant?" if near else f"the first columns are {', '.join(names[:6])}",
                    )
            for row in reader:
                yield f"{path}:{reader.line_num}", row
    except FileNotFoundError as error:
        raise DataError("no such file", place=str(path), hint="check the path; it is relative to the working directory") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read as CSV ({error})", place=str(path), hint="copy or download it again") from error


def find_one(root: Path, patterns: Sequence[str]) -> Path | None:
    """The first file below ``root`` whose name fits the first pattern that any fits."""
    for pattern in patterns:
        if found := sorted(root.rglob(pattern)):
            return found[0]
    return None


def scanners(path: Path) -> dict[str, tuple[str, str]]:
    """Scan -> (patient, scanner model)."""
    out: dict[str, tuple[str, str]] = {}
    for place, row in rows(path, (SCAN, PATIENT, MODEL)):
        scan, entry = row[SCAN].strip(), ((row[PATIENT] or "").strip(), (row[MODEL] or "").strip())
        if out.setdefault(scan, entry) != entry:
            raise DataError(f"scan {scan!r} has two rows that differ", place=place, hint="keep one")
    return out


def findings(root: Path, abnormalities: Sequence[str], wanted: Mapping[str, object]) -> dict[str, int]:
    """Scan -> 1 where any of the findings is marked, for the scans of ``wanted`` that the label files list."""
    files = sorted(root.rglob(LABELS))
    if not files:
        raise DataError(f"no label file {LABELS}", place=str(root), hint="copy the dataset's label CSVs into the folder, or set `labels`")
    out: dict[str, int] = {}
    for file in files:
        columns: list[str] | None = None
        for place, row in rows(file, (SCAN,)):
            if columns is None:
                columns = _columns(file, list(row), abnormalities)
            if row[SCAN].strip() in wanted:
                out[row[SCAN].strip()] = int(any(_number(row[name], name, place) > 0 for name in columns))
    return out


def _columns(file: Path, names: list[str], abnormalities: Sequence[str]) -> list[str]:
    known = sorted({name.split("*")[0] for name in names if "*" in name})
    out: list[str] = []
    for one in abnormalities:
        found = [name for name in names if one in (name, name.split("*")[0])]
        if not found:
            near = nearest(one, known)
            raise DataError(f"no finding {one!r}", place=str(file), hint=f"is {near!r} meant?" if near else f"e.g. {', '.join(known[:8])}")
        out += found
    return out


def own_labels(labels: LabelFile) -> dict[str, int]:
    """Scan -> 1 where the column's value is above the threshold."""
    out: dict[str, int] = {}
    for place, row in rows(Path(labels.file), (labels.id, labels.column)):
        label = int(_number(row[labels.column], labels.column, place) > labels.threshold)
        scan = row[labels.id].strip().removesuffix(".npz")
        if out.setdefault(scan, label) != label:
            raise DataError(f"scan {scan!r} has two labels", place=place, hint="keep one")
    return out


def boxes(root: Path) -> dict[str, tuple[int, ...]]:
    """Scan -> lung box ``(min0, max0, min1, max1, min2, max2)`` in voxels; empty where the dataset's Extrema CSV is not there."""
    path = find_one(root, ("Extrema_*.csv",))
    if path is None:
        return {}
    return {row[SCAN].strip(): tuple(int(_number(row[n], n, place)) for n in BOX) for place, row in rows(path, (SCAN, *BOX))}


def simplified(model: str) -> str:
    """A scanner model without case, spaces and signs.

    >>> simplified("SOMATOM Definition AS+") == simplified("somatom definition-as")
    True
    """
    return "".join(c for c in model.lower() if c.isalnum())


def site_of(model: str, groups: Mapping[str, Sequence[str]]) -> int | None:
    """Index of the group that names this scanner model; None where none does."""
    key = simplified(model)
    return next((index for index, models in enumerate(groups.values()) if key in {simplified(m) for m in models}), None)


def _number(text: str | None, column: str, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if value != value or abs(value) == float("inf"):
        raise DataError(f"{column!r} is {text!r}, not a number", place=place, hint="correct the value or remove the row")
    return value
