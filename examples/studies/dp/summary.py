"""The numbers of a study's folder, from the runs' records alone: means over seeds, intervals, differences in pairs.

Intervals are 95 % bootstrap intervals over the test groups (smears, patients, or single images where no group is known); the seeds' scores
are averaged group by group first. They say how far an accuracy would move with other smears from the same laboratory. How far it moves
with another seed, with fresh sampling and noise, is the standard deviation beside it, and for the difference of two rows a second interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jobs import DONE, read_job
from selection import Cell, Row, Selection, chosen, folder_of, label

from pppml_core.errors import ConfigError
from pppml_core.learning.stats import Interval, paired_difference, stratified_bootstrap
from pppml_core.randomness import Seeds

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
#: the smallest advantage of distributed over local noise that the study asks for.
ASKED = 0.10
Record = dict[str, Any]


def summarize(selection: Selection, tuned: Mapping[str, Any], out: Path, full: bool = False) -> dict[str, Any]:
    """All numbers: every cell of the selection with a finished row, and what the runs cost."""
    made = {cell.name: cell_summary(selection, tuned, cell, rows, out) for cell, rows in selection.variants(full).items()}
    cells = {name: found for name, found in made.items() if found}
    every = [read_job(path.parent) for path in sorted((out / "runs").rglob(DONE))]
    cost = {"runs": len(every), "cpu_seconds": sum(r["cpu_seconds"] for r in every), "seconds": sum(r["seconds"] for r in every)}
    about = {"devices": sorted({r["device"] for r in every}), "versions": every[0]["versions"] if every else {}}
    return {"cells": cells, "cost": cost, **about}


def cell_summary(
    selection: Selection, tuned: Mapping[str, Any], cell: Cell, variants: Sequence[tuple[Row, float | None]], out: Path
) -> dict[str, Any]:
    """One table. A row is taken with the seeds it has finished, a difference over the seeds that both rows have."""
    rows: dict[str, dict[int, Record]] = {}
    summaries: dict[str, Any] = {}
    for row, epsilon in variants:
        folders = {seed: folder_of(out, cell, row, epsilon, seed) for seed in selection.seeds}
        records = {seed: read_job(folder) for seed, folder in folders.items() if (folder / DONE).exists()}
        if records:
            rows[label(row, epsilon)] = records
            settings, where = chosen(tuned, cell, row)
            summaries[label(row, epsilon)] = {
                "row": row,
                **row_summary(cell, list(records.values())),
                "settings": settings,
                "tuned_in": where,
            }
    if not rows:
        return {}
    first = next(iter(next(iter(rows.values())).values()))
    same_units = {tuple(r["groups"]["names"]) for records in rows.values() for r in records.values()}
    if len(same_units) > 1:
        raise ConfigError("the runs were scored on different images", place=cell.name, hint="run all of it into another --out")
    found = {
        "cell": cell.model_dump(),
        **{name: first[name] for name in ("parameters", "images", "smallest_site", "sites")},
        "groups": len(first["groups"]["names"]),
        "rows": summaries,
        "differences": {},
    }
    for epsilon in dict.fromkeys(e for _, e in variants if e is not None):
        one, other = label("distributed", epsilon), label("local", epsilon)
        if one in rows and other in rows and (both := sorted({*rows[one]} & {*rows[other]})):
            pairs = [(rows[one][s], rows[other][s]) for s in both]
            found["differences"][f"{epsilon:g}"] = {"seeds": both, **difference(cell, pairs)}
    return found


def row_summary(cell: Cell, records: Sequence[Record]) -> dict[str, Any]:
    """Means over seeds, the interval of the accuracy, the claim, and what a run took."""
    found = {name: float(np.mean([r["test"][name] for r in records])) for name in METRICS}
    sd = {name: float(np.std([r["test"][name] for r in records], ddof=1)) if len(records) > 1 else None for name in METRICS}
    return {
        "seeds": [r["seed"] for r in records],
        "metrics": found,
        "seed_sd": sd,
        "interval": plain(bootstrap(records, lambda d: accuracy(records, d), cell.name, "accuracy")),
        "validation": float(np.mean([r["validation"]["accuracy"] for r in records])),
        "privacy": records[0]["privacy"],
        "cpu_seconds": float(np.mean([r["cpu_seconds"] for r in records])),
    }


def difference(cell: Cell, pairs: Sequence[tuple[Record, Record]]) -> dict[str, Any]:
    """Distributed minus local accuracy: paired over test groups (bootstrap), and paired over seeds (Student's t)."""
    ones, others = [a for a, _ in pairs], [b for _, b in pairs]
    over_groups = bootstrap(ones, lambda d: accuracy(ones, d) - accuracy(others, d), cell.name, "difference")
    over_seeds = paired_difference([a["test"]["accuracy"] for a in ones], [b["test"]["accuracy"] for b in others])
    return {"over_groups": plain(over_groups), "over_seeds": plain(over_seeds), "asked": ASKED}


Drawn = list[npt.NDArray[np.int64]]


def accuracy(records: Sequence[Record], drawn: Drawn) -> npt.NDArray[np.float64]:
    """``(...)``: share of right images of the groups drawn ``(..., groups)``, mean over the runs."""
    right = np.array([r["groups"]["right"] for r in records], np.float64).mean(axis=0)
    images = np.array(records[0]["groups"]["images"], np.float64)
    share: npt.NDArray[np.float64] = right[drawn[0]].sum(axis=-1) / images[drawn[0]].sum(axis=-1)
    return share


def bootstrap(records: Sequence[Record], statistic: Callable[[Drawn], Any], *name: str) -> Interval:
    """The bootstrap interval over the test groups; the same name, the same resamples."""
    return stratified_bootstrap([len(records[0]["groups"]["names"])], statistic, Seeds(0).generator("dp study", *name))


def plain(found: Interval) -> dict[str, Any]:
    """For JSON; the ends are None where the data do not determine them."""
    low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
    return {"estimate": found.estimate, "low": low, "high": high, "method": found.method}
