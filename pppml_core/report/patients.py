"""The scores of single patients that lie in the sites' own folders of a run, for intervals over patients.

They are read only where the run's configuration lets every site's scores leave it (``run.metrics: per-site``). With ``sum`` or ``none`` a
page made from the server's folder must not show what was meant to stay at the sites, even where all ran on one machine. Names of patients
serve to pair scores; no page and no message holds one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: what a site leaves in its own folder after the final scoring.
GROUP_SCORES = "group-scores.json"
METRICS = ("dice", "accuracy")
#: no patient has as many examples; a float holds every whole number up to here, so sums of them stay finite.
MOST = 2**53
WITHHELD = {
    "sum": "run.metrics is sum: what is known of single sites and patients was meant to stay at the sites, so it is not read",
    "none": "run.metrics is none: what is known of single sites and patients was meant to stay at the sites, so it is not read",
}
POOLED = "all images lay at one place, so there is no site to speak of"
UNKNOWN = "no configuration tells what may leave the sites (run.metrics), so scores of single patients are not read"


@dataclass(frozen=True)
class Scores:
    """One model's scores of one site's test patients (groups): ``values`` in [0, 1] and ``counts`` of examples, in one order."""

    patients: tuple[str, ...] = field(repr=False)
    values: tuple[float, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)

    def weights(self, metric: str) -> tuple[float, ...]:
        """What a patient counts in the site's score: one for Dice, the number of its examples for accuracy."""
        return tuple(1.0 if metric == "dice" else float(n) for n in self.counts)

    def score(self, metric: str) -> float:
        """The site's score, from its patients'."""
        weights = self.weights(metric)
        return sum(w * v for w, v in zip(weights, self.values, strict=True)) / sum(weights)


@dataclass(frozen=True)
class PatientScores:
    """What a run folder holds: ``metrics`` by site, ``kept`` by site and weights; ``withheld`` says why it was not looked at."""

    metrics: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[tuple[str, str], Scores] = field(default_factory=dict)
    withheld: str = ""
    damaged: tuple[str, ...] = ()


def read_patient_scores(folder: Path, config: Mapping[str, Any]) -> PatientScores:
    """All whole files ``sites/<site>/group-scores.json`` of a run folder, where its configuration allows. Never raises."""
    run = config.get("run")
    share = run.get("metrics") if isinstance(run, Mapping) else None
    if share != "per-site":
        return PatientScores(withheld=WITHHELD.get(str(share), UNKNOWN))
    task = config.get("task")
    if config.get("pool") or (isinstance(task, Mapping) and task.get("pool")):
        return PatientScores(withheld=POOLED)
    metrics: dict[str, str] = {}
    kept: dict[tuple[str, str], Scores] = {}
    damaged: list[str] = []
    for path in sorted((folder / "sites").glob(f"*/{GROUP_SCORES}")):
        site = path.parent.name
        try:
            metric, found = _parse(json.loads(path.read_text("utf-8")), site)
        except (OSError, ValueError, RecursionError) as error:
            # The errors of json and of _parse tell a place or a rule, never a patient.
            damaged.append(f"the file sites/{site}/{GROUP_SCORES} cannot be read: {str(error).splitlines()[0]}")
            continue
        metrics[site] = metric
        kept |= {(site, weights): scores for weights, scores in found.items()}
    return PatientScores(metrics, kept, damaged=tuple(damaged))


def _parse(record: Any, site: str) -> tuple[str, dict[str, Scores]]:
    """Metric and scores by weights. Raises ValueError, without the name of any patient."""
    if not isinstance(record, Mapping) or not isinstance(record.get("sites"), Mapping):
        raise ValueError("it holds no map of sites")
    if record.get("metric") not in METRICS:
        raise ValueError(f"its metric is none of {', '.join(METRICS)}")
    if set(record["sites"]) != {site}:
        raise ValueError("it is not of the site in whose folder it lies")
    parts = record["sites"][site]
    tested = parts.get("test", {}) if isinstance(parts, Mapping) else None
    if not isinstance(tested, Mapping):
        raise ValueError("its test scores are no map")
    return str(record["metric"]), {str(weights): _scores(value) for weights, value in tested.items()}


def _scores(value: Any) -> Scores:
    groups, values, counts = (_list(value, key) for key in ("groups", "values", "counts"))
    if not len(groups) == len(values) == len(counts) > 0:
        raise ValueError("groups, values and counts are not of one length")
    if len({str(g) for g in groups}) != len(groups):
        raise ValueError("it names a patient twice")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in values):
        raise ValueError("a value is no number between 0 and 1")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MOST for n in counts):
        raise ValueError("a count is no positive whole number or far too large")
    rows = sorted((str(g), float(v), n) for g, v, n in zip(groups, values, counts, strict=True))
    return Scores(tuple(g for g, _, _ in rows), tuple(v for _, v, _ in rows), tuple(n for _, _, n in rows))


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise ValueError(f"it holds no list of {key}")
    return found
