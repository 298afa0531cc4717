"""The numbers of the study, from the runs' records alone: means, worst sites, differences, harm, hospitals that come later.

Every interval is a 95 % bootstrap interval over the test units (patients, smears, images) of each site, drawn within the site; the seeds'
scores are averaged unit by unit first. So an interval says how far the numbers would move with other patients of these sites. How far
they move with another seed is the standard deviation given beside it.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jobs import DONE, NEW_SITE, evaluations
from selection import Method, Selection
from units import Units, by_groups, by_images, ratio, read_units

from pppml_core.learning.stats import Interval, stratified_bootstrap
from pppml_core.randomness import Seeds

ALONE, REFERENCE = "local-only", "fedavg-finetune"
Drawn = list[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Stratum:
    """Units that are drawn together: of one site, or of one patient of a site. Numerators and denominators ``(runs, units)``."""

    site: str
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
            out.append(Stratum(site, tuple(first.names[i] for i in at), above, below))
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
    """For JSON; the ends are None where the data do not determine them."""
    low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
    return {"estimate": found.estimate, "low": low, "high": high, "method": found.method}


def summarize(selection: Selection, out: Path) -> dict[str, Any]:
    """All numbers of the runs in ``out``: tasks, sites that come later, and what it cost."""
    tasks = {task: found for task in selection.tasks if (found := task_summary(selection, task, out))}
    later = {task: found for task in selection.new_site.sites if (found := new_site_summary(selection, task, out))}
    every = [json.loads(path.read_text("utf-8")) for path in sorted(out.rglob(DONE)) if "tuning" not in path.relative_to(out).parts]
    cost = {"runs": len(every), "cpu_seconds": sum(r["cpu_seconds"] for r in every), "seconds": sum(r["seconds"] for r in every)}
    return {"tasks": tasks, "new_site": later, "cost": cost, "machine": machine(), "versions": versions(out)}


def task_summary(selection: Selection, task: str, out: Path) -> dict[str, Any]:
    """One task's table; only seeds that every selected method has finished."""
    folders = {m: {s: out / "runs" / task / m / f"seed-{s}" for s in selection.seeds} for m in selection.methods}
    started = {m: runs for m, runs in folders.items() if any((f / DONE).exists() for f in runs.values())}
    seeds = [s for s in selection.seeds if started and all((runs[s] / DONE).exists() for runs in started.values())]
    if not seeds:
        return {}
    rows: dict[str, list[Stratum]] = {}
    about: dict[str, dict[str, Any]] = {}
    metric = ""
    for method, runs in started.items():
        read = [read_units(runs[s]) for s in seeds]
        metric = read[0][0]
        for weights, row in selection.methods[method].rows.items():
            rows[row] = strata_of({site: [sites[site][weights] for _, sites in read] for site in read[0][1]})
            about[row] = {"weights": weights, **cost_of(selection.methods[method], weights, [runs[s] for s in seeds])}
    plan = json.loads((next(iter(started.values()))[seeds[0]] / "plan.json").read_text("utf-8"))
    names = {site["slug"]: {key: site[key] for key in ("name", "train", "validation", "test")} for site in plan["sites"]}
    found = {row: row_summary(task, row, strata, rows) | about[row] for row, strata in rows.items()}
    sites = list(dict.fromkeys(s.site for s in next(iter(rows.values()))))
    units = {site: sum(len(s.names) for s in next(iter(rows.values())) if s.site == site) for site in sites}
    return {
        "about": selection.tasks[task].about,
        "metric": metric,
        "seeds": seeds,
        "units": selection.tasks[task].units,
        "model": plan["model"],
        "sites": {site: {**names[site], "units": units[site]} for site in sites},
        "rows": found,
        "clearly_better_than_alone": clearly_better(found),
    }


def row_summary(task: str, row: str, strata: list[Stratum], rows: Mapping[str, list[Stratum]]) -> dict[str, Any]:
    """One row: every site, their mean, the worst, the difference to the reference, and the sites that would be better off alone."""
    sites = list(dict.fromkeys(s.site for s in strata))
    everything = [np.arange(len(s.names)) for s in strata]
    scores = site_scores(strata, everything)
    runs = [[Stratum(s.site, s.names, s.numerators[[i]], s.denominators[[i]]) for s in strata] for i in range(len(strata[0].numerators))]
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
        out["harmed"] = [site for site, d in out["against_alone"].items() if d["estimate"] < 0]
        out["clearly_harmed"] = [site for site, d in out["against_alone"].items() if d["high"] is not None and d["high"] < 0]
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


def cost_of(method: Method, weights: str, folders: Iterable[Path]) -> dict[str, Any]:
    """Gradient evaluations of a site over the run, adapting counted (the most of any site), and processor seconds of a run."""
    import yaml

    counts, seconds = [], []
    for folder in folders:
        plan = json.loads((folder / "plan.json").read_text("utf-8"))
        done = json.loads((folder / DONE).read_text("utf-8"))
        config = yaml.safe_load((folder / "config.resolved.yaml").read_text("utf-8"))
        adaptation = config["personalization"].get(method.adapts) or 0 if method.adapts and weights == "personalized" else 0
        counts.append(max(evaluations(plan, config["run"]["rounds"], adaptation).values()))
        seconds.append(done["cpu_seconds"])
    return {"evaluations": max(counts), "cpu_seconds": float(np.mean(seconds)), "settings": done["personalization"]}


def new_site_summary(selection: Selection, task: str, out: Path) -> dict[str, Any]:
    """Site left out -> number of images -> model -> score on its test part, mean over seeds and draws, with an interval."""
    found: dict[str, Any] = {}
    for site in selection.new_site.sites[task]:
        runs: dict[tuple[int, str], list[Units]] = {}
        seeds: list[int] = []
        metric = ""
        for seed in selection.seeds:
            files = {m: out / "new-site" / task / site / m / f"seed-{seed}" / NEW_SITE for m in selection.new_site.methods}
            if not all(file.exists() for file in files.values()):
                continue
            seeds.append(seed)
            for method, file in files.items():
                content = json.loads(file.read_text("utf-8"))
                metric = content["metric"]
                for row in content["rows"]:
                    units = by_images(row["units"]) if content["units"] == "images" else by_groups(metric, row["units"])
                    name = "from scratch" if row["model"] == "scratch" else method
                    runs.setdefault((row["examples"], name), []).append(units)
        if not seeds:
            continue
        strata = {key: strata_of({site: units}) for key, units in runs.items()}
        table: dict[str, dict[str, Any]] = {}
        for (count, name), own in strata.items():
            entry = plain(interval(own, lambda d, own=own: site_scores(own, d)[0], task, site, "new"))
            entry["draw_sd"] = spread(runs[count, name])
            if name not in (REFERENCE, "from scratch") and (count, REFERENCE) in strata:
                other = strata[count, REFERENCE]
                difference = interval(
                    own, lambda d, a=own, b=other: (site_scores(a, d) - site_scores(b, d))[0], task, site, "new difference"
                )
                entry["difference"] = plain(difference)
            table.setdefault(str(count), {})[name] = entry
        found[site] = {"metric": metric, "seeds": seeds, "draws": selection.new_site.draws, "examples": table}
    return found


def spread(runs: Sequence[Units]) -> float | None:
    """Standard deviation of the score over seeds and draws."""
    return float(np.std([u.score for u in runs], ddof=1)) if len(runs) > 1 else None


def machine() -> dict[str, Any]:
    """What the study ran on."""
    import os

    model = ""
    if (info := Path("/proc/cpuinfo")).exists():
        model = next((line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")), "")
    return {"processor": model or platform.processor(), "cores": os.cpu_count(), "system": platform.system()}


def versions(out: Path) -> dict[str, str]:
    """As the first plan has them."""
    for path in sorted((out / "runs").rglob("plan.json")):
        return dict(json.loads(path.read_text("utf-8"))["versions"])
    return {}
