"""The numbers of sites that come later: left out of training, then given the result and a few training images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from records import DONE, NEW_SITE, adapting_gradients, config_of, job_of, refuse_mixed
from selection import Selection
from summary import REFERENCE, groups_in, interval, plain, site_scores, strata_of
from units import Units, by_groups, by_images

from pppml_core.errors import ConfigError
from pppml_core.report.personalization import FEWEST

SCRATCH = "from scratch"


def later_summary(selection: Selection, task: str, out: Path) -> dict[str, Any]:
    """Site left out -> its scores; only sites that every method has finished with some seed."""
    return {site: found for site in selection.new_site.sites[task] if (found := site_summary(selection, task, site, out))}


def finished_later(selection: Selection, task: str, site: str, out: Path) -> dict[str, dict[int, Path]]:
    """Method -> seed -> run folder of a site's table: the seeds that every method has finished."""
    folders = {m: {s: out / "new-site" / task / site / m / f"seed-{s}" for s in selection.seeds} for m in selection.new_site.methods}
    seeds = [s for s in selection.seeds if folders and all((runs[s] / DONE).exists() for runs in folders.values())]
    return {m: {s: runs[s] for s in seeds} for m, runs in folders.items()} if seeds else {}


def site_summary(selection: Selection, task: str, site: str, out: Path) -> dict[str, Any]:
    """Number of images -> model -> score on the site's test part, mean over seeds and draws, with an interval."""
    finished = finished_later(selection, task, site, out)
    if not finished:
        return {}
    seeds = list(next(iter(finished.values())))
    refuse_mixed(finished)
    runs, metric, draws = read_rows(finished)
    strata = {key: strata_of({site: units}) for key, units in runs.items()}
    table: dict[str, dict[str, Any]] = {}
    for (count, name), own in strata.items():
        entry = plain(interval(own, lambda d, own=own: site_scores(own, d)[0], task, site, "new"))
        entry["draw_sd"] = spread(runs[count, name])
        entry["adapting_gradients"] = steps_of(selection, finished, name, count)
        if name not in (REFERENCE, SCRATCH) and (count, REFERENCE) in strata:
            other = strata[count, REFERENCE]
            difference = interval(own, lambda d, a=own, b=other: (site_scores(a, d) - site_scores(b, d))[0], task, site, "new difference")
            entry["difference"] = plain(difference)
        table.setdefault(str(count), {})[name] = entry
    own = next(iter(strata.values()))
    return {
        "metric": metric,
        "seeds": seeds,
        "draws": draws,
        "units": sum(len(s.names) for s in own),
        "groups": groups_in(own),
        "fewest": FEWEST,
        "few": groups_in(own) < FEWEST,
        "resampled": "images" if own[0].label else "groups",
        "examples": table,
    }


def read_rows(folders: Mapping[str, Mapping[int, Path]]) -> tuple[dict[tuple[int, str], list[Units]], str, int]:
    """(images, model) -> its units with every seed and draw; the metric; the draws. Raises ConfigError where seeds differ in more."""
    runs: dict[tuple[int, str], list[Units]] = {}
    shapes: dict[str, Any] = {}
    metric, draws, alone = "", 0, ""
    for method, seeds in folders.items():
        for folder in seeds.values():
            content = json.loads((folder / NEW_SITE).read_text("utf-8"))
            metric, rows = content["metric"], content["rows"]
            shape = (metric, content["units"], sorted({(r["model"], r["examples"], r["draw"]) for r in rows}))
            if shapes.setdefault(method, shape) != shape:
                text = "scored by other units, or adapted to other numbers of images or draws, than with another seed"
                raise ConfigError(text, place=str(folder), hint="delete the folder and run it again")
            draws = max(draws, 1 + max(r["draw"] for r in rows))
            for row in rows:
                if row["model"] == "scratch":
                    alone = alone or method
                    if method != alone:  # one method's runs have it: not twice
                        continue
                units = by_images(row["units"]) if content["units"] == "images" else by_groups(metric, row["units"])
                runs.setdefault((row["examples"], SCRATCH if row["model"] == "scratch" else method), []).append(units)
    return runs, metric, draws


def steps_of(selection: Selection, folders: Mapping[str, Mapping[int, Path]], name: str, count: int) -> int:
    """Gradient evaluations on the site's images; of a network from scratch as its run says, else as the selection does."""
    if count == 0:
        return 0
    if name != SCRATCH:
        return adapting_gradients(config_of(next(iter(folders[name].values()))), selection.methods[name].adapts, count)
    told = [job_of(f).get("scoring", {}).get("scratch_steps") for runs in folders.values() for f in runs.values()]
    return next((steps for steps in told if steps is not None), selection.new_site.scratch_steps)


def spread(runs: Sequence[Units]) -> float | None:
    """Standard deviation of the score over seeds and draws."""
    return float(np.std([u.score for u in runs], ddof=1)) if len(runs) > 1 else None
