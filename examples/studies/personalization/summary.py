"""The numbers of a task, from the runs' records alone: means, worst sites, differences, harm, cost.

Every interval is a 95 % bootstrap interval over the test units of each site, drawn within the site; the seeds' scores are averaged unit by
unit first. Where the units are groups (patients, smears or images that stand alone), it says how far the numbers would move with others of
these sites; where they are images within few patients, how far with other images of these patients, and nothing of other patients. How far
the numbers move with another seed is the standard deviation given beside it.

A difference is clear by the report's definition (:mod:`pppml_core.report.personalization`): its interval excludes zero, and it rests on
enough groups. Images of one patient are not independent, so it is the patients that are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from records import DONE, adapting_gradients, config_of, job_of, plan_of, refuse_mixed, training_gradients
from selection import Method, Selection
from units import Units, ratio, read_units, units_of

from pppml_core.errors import ConfigError
from pppml_core.learning.stats import Interval, stratified_bootstrap
from pppml_core.randomness import Seeds
from pppml_core.report.personalization import FEWEST, Measured

ALONE, REFERENCE = "local-only", "fedavg-finetune"
Drawn = list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Stratum:
    """Units that are drawn together: of one site, or of one patient of a site, then with a label.

    Numerators and denominators are ``(runs, units)``.
    """

    site: str
    label: str
    names: tuple[str, ...]
    numerators: npt.NDArray[np.float64]
    denominators: npt.NDArray[np.float64]


def strata_of(sites: Mapping[str, Sequence[Units]]) -> list[Stratum]:
    """From each site's units of several runs (seeds, draws). Raises ValueError where the runs were not scored on the same units."""
    out = []
    for site, runs in sites.items():
        first = runs[0]
        if any((u.names, u.strata) != (first.names, first.strata) for u in runs):
            raise ValueError(f"{site}: the runs were scored on different patients or images")
        labels = np.array(first.strata)
        for label in np.unique(labels):
            at = np.flatnonzero(labels == label)
            above, below = (
                np.stack([part[at] for part in parts]) for parts in zip(*((u.numerators, u.denominators) for u in runs), strict=True)
            )
            out.append(Stratum(site, str(label), tuple(first.names[i] for i in at), above, below))
    return out


def site_scores(strata: Sequence[Stratum], drawn: Drawn) -> npt.NDArray[np.float64]:
    """``(sites, ...)``: the mean over the runs, then over a site's strata, of the units drawn, ``(..., units)`` of each stratum."""
    scores = [ratio(s.numerators[:, at], s.denominators[:, at]).mean(axis=0) for s, at in zip(strata, drawn, strict=True)]
    pairs = groupby(zip(strata, scores, strict=True), key=lambda pair: pair[0].site)
    return np.stack([np.mean([score for _, score in found], axis=0) for _, found in pairs])


def interval(strata: Sequence[Stratum], statistic: Callable[[Drawn], Any], *name: str) -> Interval:
    """The bootstrap interval of a statistic of the units drawn; the same name, the same resamples."""
    return stratified_bootstrap([len(s.names) for s in strata], statistic, Seeds(0).generator("personalization study", *name))


def plain(found: Interval) -> dict[str, Any]:
    """For JSON; the ends are None where the data do not determine them: resamples that are all alike are no certainty."""
    low, high = (end if math.isfinite(end) and found.high - found.low > 1e-9 else None for end in (found.low, found.high))
    return {"estimate": found.estimate, "low": low, "high": high, "method": found.method}


def groups_in(strata: Sequence[Stratum]) -> int:
    """What is independent of one another at a site: its units, or its patients where images are drawn within them."""
    return len(strata[0].names) if len(strata) == 1 and not strata[0].label else len(strata)


def measured(difference: Mapping[str, Any], groups: int) -> Measured:
    """A site's difference as the report judges it: with a sign, clear or not."""
    low, high = (math.nan if difference[end] is None else difference[end] for end in ("low", "high"))
    return Measured(difference["estimate"], low, high, "patients", groups)


def finished_runs(selection: Selection, task: str, out: Path) -> dict[str, dict[int, Path]]:
    """Method -> seed -> run folder of a task's table: methods that were begun, with the seeds that all of them have finished."""
    folders = {m: {s: out / "runs" / task / m / f"seed-{s}" for s in selection.seeds} for m in selection.methods}
    started = {m: runs for m, runs in folders.items() if any((f / DONE).exists() for f in runs.values())}
    seeds = [s for s in selection.seeds if started and all((runs[s] / DONE).exists() for runs in started.values())]
    return {m: {s: runs[s] for s in seeds} for m, runs in started.items()} if seeds else {}


def task_summary(selection: Selection, task: str, out: Path) -> dict[str, Any]:
    """One task's table, of its :func:`finished_runs`."""
    finished = finished_runs(selection, task, out)
    if not finished:
        return {}
    seeds = list(next(iter(finished.values())))
    refuse_mixed(finished)
    wanted = selection.tasks[task].units
    for folder in (f for runs in finished.values() for f in runs.values() if units_of(f) != wanted):
        hint = "delete the folder and run it again, or change the selection"
        raise ConfigError(f"this run was scored by {units_of(folder)}, and {task} asks for {wanted}", place=str(folder), hint=hint)
    rows: dict[str, list[Stratum]] = {}
    about: dict[str, dict[str, Any]] = {}
    metric = ""
    for method, runs in finished.items():
        read = [read_units(runs[s]) for s in seeds]
        metric = read[0][0]
        for weights, row in selection.methods[method].rows.items():
            rows[row] = strata_of({site: [sites[site][weights] for _, sites in read] for site in read[0][1]})
            about[row] = {"weights": weights, **cost_of(selection.methods[method], weights, [runs[s] for s in seeds])}
    plan = plan_of(next(iter(finished.values()))[seeds[0]])
    names = {site["slug"]: {key: site[key] for key in ("name", "train", "validation", "test")} for site in plan["sites"]}
    found = {row: row_summary(task, row, strata, rows) | about[row] for row, strata in rows.items()}
    by_site = {site: list(own) for site, own in groupby(next(iter(rows.values())), key=lambda s: s.site)}
    tested = {site: {"units": sum(len(s.names) for s in own), "groups": groups_in(own)} for site, own in by_site.items()}
    return {
        "about": selection.tasks[task].about,
        "metric": metric,
        "seeds": seeds,
        "units": selection.tasks[task].units,
        "model": plan["model"],
        "sites": {site: names[site] | tested[site] for site in by_site},
        "rows": found,
        "fewest": FEWEST,
        "few": [site for site, count in tested.items() if count["groups"] < FEWEST],
        "clearly_better_than_alone": clearly_better(found) if all(c["groups"] >= FEWEST for c in tested.values()) else [],
    }


def row_summary(task: str, row: str, strata: list[Stratum], rows: Mapping[str, list[Stratum]]) -> dict[str, Any]:
    """One row: every site, their mean, the worst, the difference to the reference, and the sites that would be better off alone."""
    sites = list(dict.fromkeys(s.site for s in strata))
    everything = [np.arange(len(s.names)) for s in strata]
    scores = site_scores(strata, everything)
    runs = [
        [replace(s, numerators=s.numerators[[i]], denominators=s.denominators[[i]]) for s in strata]
        for i in range(len(strata[0].numerators))
    ]
    by_seed = [float(site_scores(one, everything).mean()) for one in runs]
    out: dict[str, Any] = {
        "mean": plain(interval(strata, lambda d: site_scores(strata, d).mean(axis=0), task, "mean")),
        "worst": plain(interval(strata, lambda d: site_scores(strata, d).min(axis=0), task, "worst")),
        "worst_site": sites[int(scores.argmin())],
        "seed_sd": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        "by_seed": by_seed,
        "sites": {},
    }
    for i, site in enumerate(sites):
        own = [s for s in strata if s.site == site]
        out["sites"][site] = plain(interval(own, lambda d, own=own: site_scores(own, d)[0], task, "site", sites[i]))
    for name, against in (("difference", REFERENCE), ("difference_alone", ALONE)):
        if against in rows and row != against:
            other = rows[against]
            found = interval(strata, lambda d, b=other: (site_scores(strata, d) - site_scores(b, d)).mean(axis=0), task, name)
            out[name] = plain(found)
    if ALONE in rows and row != ALONE:
        out["against_alone"] = {}
        for site in sites:
            own, alone = ([s for s in both if s.site == site] for both in (strata, rows[ALONE]))
            difference = interval(own, lambda d, a=own, b=alone: (site_scores(a, d) - site_scores(b, d))[0], task, "alone", site)
            out["against_alone"][site] = plain(difference)
        groups = {site: groups_in([s for s in strata if s.site == site]) for site in sites}
        judged = {site: measured(d, groups[site]) for site, d in out["against_alone"].items()}
        out["harmed"] = [site for site, d in judged.items() if d.sign < 0]
        out["clearly_harmed"] = [site for site in out["harmed"] if judged[site].clear]
    return out


def clearly_better(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Rows whose intervals of the mean and of the worst site both lie above local-only's."""
    if ALONE not in rows:
        return []
    alone = rows[ALONE]

    def above(found: Mapping[str, Any], key: str) -> bool:
        low, high = found[key]["low"], alone[key]["high"]
        return low is not None and high is not None and low > high

    return [row for row, found in rows.items() if row != ALONE and all(above(found, key) for key in ("mean", "worst"))]


def cost_of(method: Method, weights: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Gradient evaluations of each site over the run, in training and in adapting; processor seconds of a run; the method's settings."""
    config = config_of(folders[0])
    setting = method.adapts if weights == "personalized" else None
    return {
        "training_gradients": training_gradients(folders[0]),
        "adapting_gradients": {site["slug"]: adapting_gradients(config, setting, site["train"]) for site in plan_of(folders[0])["sites"]},
        "cpu_seconds": float(np.mean([job_of(folder)["cpu_seconds"] for folder in folders])),
        "settings": job_of(folders[0])["personalization"],
    }
