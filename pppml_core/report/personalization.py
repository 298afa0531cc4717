"""Does personalization pay? Each site's score with every method, alone, and with one model for all, and their paired differences.

Where the sites' files hold the scores of single patients, intervals are bootstrap intervals over patients; where they do not and there
are several seeds, Student intervals over seeds; else there are none. Which it was is kept with every number.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from pppml_core.report.columns import Column, comparable, differences, shared_sites
from pppml_core.report.patients import METRICS, Scores
from pppml_core.report.records import RunRecords, flat

Role = Literal["alone", "global", "own"]
Over = Literal["patients", "seeds", "nothing"]
#: with fewer patients no difference is called clear: that five of five agree happens by chance one time in sixteen.
FEWEST = 6
#: differences below half a thousandth are level, as the three decimals show them.
LEVEL = 0.0005


@dataclass(frozen=True)
class Measured:
    """A score or a difference of scores with its 95 % interval: over what, and over how many."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    over: Over = "nothing"
    n: int = 0

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return self.over != "nothing" and math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def sign(self) -> int:
        """-1, 0 or 1; 0 within :data:`LEVEL`."""
        return 0 if math.isnan(self.mean) or abs(self.mean) < LEVEL else 1 if self.mean > 0 else -1

    @property
    def clear(self) -> bool:
        """Whether a difference's interval excludes zero, and rests on enough patients to do so."""
        return self.has_interval and bool(self.sign) and (self.low > 0 or self.high < 0) and (self.over == "seeds" or self.n >= FEWEST)


@dataclass(frozen=True, eq=False)
class Model:
    """Weights of a column: a site's ``alone``, the one ``global`` for all, or each site's ``own`` from a federated method."""

    label: str
    role: Role
    column: Column
    weights: str

    def value(self, run: RunRecords, site: str | None, metric: str) -> float:
        """What a run's result says."""
        return run.final.value(self.weights, site, metric)

    @property
    def name(self) -> str:
        """How a sentence calls it."""
        return self.label if self.used else f"the global model of {self.label}"

    @property
    def used(self) -> bool:
        """Whether a patient would meet it: not the global model of a method that makes each site its own."""
        return self.role != "global" or not self.column.has("personalized")

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites with a score of these weights."""
        return tuple(dict.fromkeys(s for run in self.column.runs for s in run.final.sites.get(self.weights, {})))


@dataclass(frozen=True)
class Against:
    """A model against another one, site by site, where both have a score: paired differences."""

    model: Model
    base: Model
    sites: Mapping[str, Measured]

    def having(self, sign: int) -> list[str]:
        """Sites that gain (1), stay level (0) or lose (-1)."""
        return [site for site, found in self.sites.items() if found.sign == sign]

    def clearly(self, sign: int) -> list[str]:
        """Those of :meth:`having` whose interval excludes zero."""
        return [site for site in self.having(sign) if self.sites[site].clear]


@dataclass(frozen=True)
class Method:
    """A row of the table of methods; ``mean`` and ``worst`` are over the sites that all rows have.

    ``alone`` and ``one`` are None where there is nothing to set it against.
    """

    model: Model
    mean: float
    worst: float
    worst_site: str
    alone: Against | None = None
    one: Against | None = None


class Gains:
    """One task's comparison: ``models`` in the order of the table, alone first, then global, then each site's own.

    Only finished runs scored on the same kind of data are compared; ``left_out`` names the other columns and says why.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        kept, self.left_out = comparable([c for c in columns if c.role != "centralized"])
        self.columns = [c for c in kept if c.weights]
        first = next((c for c in self.columns if c.role == "federated"), columns[0]).first
        self.task = str(first.part("config", "task").get("use") or first.name)
        self.metric = _metric(self.columns)
        #: why intervals are not over patients, said once each: reason -> labels of columns.
        self.reasons: dict[str, list[str]] = {}
        self._levels: dict[tuple[str, str, str], Measured] = {}
        alone = [Model(c.label, "alone", c, c.weights[-1]) for c in self.columns if c.role == "local-only"]
        federated = [c for c in self.columns if c.role == "federated"]
        shared = [Model(c.label, "global", c, "global") for c in federated if c.has("global")]
        self._alone, self._global = alone, sorted(shared, key=lambda m: m.column.method != "fedavg")
        self._plain = [m for m in self._global if m.column.is_fedavg]
        self._own = [Model(c.label, "own", c, "personalized") for c in federated if c.has("personalized")]

    @cached_property
    def methods(self) -> list[Method]:
        """Every federated method by what a patient would meet: each site's own model, else the global one; FedAvg's global one too."""
        return [self._method(model) for model in self.models if model.role != "alone"]

    @cached_property
    def rows(self) -> list[Method]:
        """The table of methods: local-only, then the methods."""
        return [*(self._row(model) for model in self._alone), *self.methods]

    @cached_property
    def models(self) -> list[Model]:
        """What the table of sites shows."""
        return [*self._alone, *(m for m in self._global if m.used or m in self._references), *self._own]

    @cached_property
    def names(self) -> dict[str, str]:
        """Sites of any model: slug -> name that people read."""
        named = {slug: name for c in reversed(self.columns) for slug, name in c.first.site_names.items()}
        return {site: named.get(site, site) for model in self.models for site in model.sites}

    @cached_property
    def levels(self) -> dict[str, list[Measured]]:
        """Site -> score of each of ``models``."""
        return {site: [self.level(model, site) for model in self.models] for site in self.names}

    @cached_property
    def scored(self) -> dict[str, list[str]]:
        """Name of a model -> the sites with a score of it."""
        return {m.name: [s for s in self.names if math.isfinite(self.level(m, s).mean)] for m in self.models}

    @cached_property
    def shared(self) -> tuple[list[str], int]:
        """The sites that all models are scored at, over which they are ranked, and at how many any is."""
        return shared_sites(self.scored.values())

    @cached_property
    def _references(self) -> list[Model]:
        return [model for own in self._own if (model := self._one(own)) is not None]

    def _one(self, model: Model) -> Model | None:
        """The global model to set it against: FedAvg's of the most similar settings, else the method's own."""
        if model.role == "global":
            return None if model in self._plain else nearest(self._plain, model)
        mine = next((m for m in self._global if m.column is model.column), None)
        if mine is not None and mine in self._plain:
            # Runs of the same settings have the same weights: one column is enough.
            return next(m for m in self._plain if same(m, mine))
        return nearest(self._plain, model) or mine

    def _method(self, model: Model) -> Method:
        alone, one = nearest(self._alone, model), self._one(model)
        row = self._row(model)
        return replace(row, alone=self._against(model, alone), one=self._against(model, one))

    def _row(self, model: Model) -> Method:
        values = {site: self.level(model, site).mean for site in self.shared[0] if site in self.scored[model.name]}
        worst = min(values, key=lambda s: values[s], default="")
        mean = sum(values.values()) / len(values) if values else math.nan
        return Method(model, mean, values.get(worst, math.nan), worst)

    def _against(self, model: Model, base: Model | None) -> Against | None:
        if base is None:
            return None
        found = {site: self.difference(model, base, site) for site in model.sites if site in base.sites}
        return Against(model, base, {site: d for site, d in found.items() if math.isfinite(d.mean)})

    def level(self, model: Model, site: str) -> Measured:
        """A model's score at a site."""
        key = (model.label, model.weights, site)
        if key not in self._levels:
            self._levels[key] = self._level(model, site)
        return self._levels[key]

    def _level(self, model: Model, site: str) -> Measured:
        scores = self._patients(model, model.column.runs, site)
        if scores is not None:
            return over_patients(scores.values, scores.weights(self.metric))
        found = model.column.estimate(model.weights, site, self.metric)
        return Measured(found.mean, found.low, found.high, "seeds" if found.has_interval else "nothing", found.seeds)

    def difference(self, model: Model, base: Model, site: str) -> Measured:
        """``model`` minus ``base`` at a site: over the same patients, each averaged over seeds; else over the same seeds.

        Where no seed is common to both, all runs of each stand in, which then also differ by their seeds.
        """
        pairs = seed_pairs(model.column, base.column)
        mine, theirs = [a for a, _ in pairs] or model.column.runs, [b for _, b in pairs] or base.column.runs
        here, there = self._patients(model, mine, site), self._patients(base, theirs, site)
        if here is not None and there is not None:
            if (here.patients, here.counts) == (there.patients, there.counts):
                values = [a - b for a, b in zip(here.values, there.values, strict=True)]
                return over_patients(values, here.weights(self.metric))
            self._say(f"{model.label} and {base.label} were tested on different patients", model.column)
        by_seed = [model.value(a, site, self.metric) - base.value(b, site, self.metric) for a, b in pairs]
        by_seed = [d for d in by_seed if math.isfinite(d)]
        if len(by_seed) > 1:
            from pppml_core.learning.stats import mean_interval

            found = mean_interval(by_seed)
            return Measured(found.estimate, found.low, found.high, "seeds", found.n)
        if pairs:
            return Measured(by_seed[0] if by_seed else math.nan)
        means = [m.column.estimate(m.weights, site, self.metric).mean for m in (model, base)]
        return Measured(means[0] - means[1])

    def _patients(self, model: Model, runs: Sequence[RunRecords], site: str) -> Scores | None:
        """Each patient's score, averaged over the seeds; None, with the reason kept, where the files do not tell."""
        found: list[Scores] = []
        for run in runs:
            if reason := self._unfit(model, run, site):
                self._say(reason, model.column)
                return None
            found.append(run.patients.kept[site, model.weights])
        if len({(s.patients, s.counts) for s in found}) != 1:
            self._say("the seeds were tested on different patients", model.column)
            return None
        values = tuple(float(v) for v in np.mean([s.values for s in found], axis=0))
        return Scores(found[0].patients, values, found[0].counts)

    def _unfit(self, model: Model, run: RunRecords, site: str) -> str:
        """Why a run's scores of single patients cannot stand behind its score of a site; empty where they can."""
        held, scores, name = run.patients, run.patients.kept.get((site, model.weights)), run.site_names.get(site, site)
        if held.withheld:
            return held.withheld
        if not held.kept and not held.damaged:
            return "its run folders hold no scores of single patients (those lie at the sites)"
        if scores is None:
            return f"no scores of single patients of {name} can be read"
        if held.metrics[site] != self.metric:
            return f"its scores of single patients are {held.metrics[site]}"
        if not abs(scores.score(self.metric) - model.value(run, site, self.metric)) <= 1e-6:
            return f"the scores of single patients of {name} do not give the site's {self.metric} of the result"
        return ""

    def _say(self, reason: str, column: Column) -> None:
        labels = self.reasons.setdefault(reason, [])
        if column.label not in labels:
            labels.append(column.label)


def gains(found: Sequence[Column]) -> list[Gains]:
    """The comparisons of a page, one for each task and data: those in which a method personalizes or has a local-only run beside it."""
    tasks: dict[str, list[Column]] = {}
    for column in found:
        if column.role != "centralized":
            tasks.setdefault(_data(column.first), []).append(column)
    return [
        Gains(columns)
        for columns in tasks.values()
        if {"federated"} < {c.role for c in columns} or any(c.role == "federated" and c.has("personalized") for c in columns)
    ]


def over_patients(values: Sequence[float], weights: Sequence[float]) -> Measured:
    """A weighted mean over patients with its bootstrap interval; the resamples are named by the numbers, so a page is made alike twice."""
    from pppml_core.learning.stats import bootstrap_interval

    rows = np.column_stack([values, weights])
    if np.ptp(rows[:, 0]) < 1e-9:  # resamples of equal values are all alike, which is no certainty
        return Measured(float(rows[:, 0].mean()), n=len(rows))
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(rows.tobytes()).digest()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy tells of resamples that hardly differ; percentiles are taken then
        found = bootstrap_interval(rows, lambda drawn: float(drawn[:, 0] @ drawn[:, 1] / drawn[:, 1].sum()), generator)
    return Measured(found.estimate, found.low, found.high, "patients" if math.isfinite(found.low) else "nothing", found.n)


def seed_pairs(one: Column, other: Column) -> list[tuple[RunRecords, RunRecords]]:
    """The runs of the seeds that both columns have."""
    return [(a, b) for a in one.runs for b in other.runs if a.seed == b.seed and a.seed is not None]


def nearest(models: Sequence[Model], model: Model) -> Model | None:
    """The one whose run differs from the model's in the fewest settings, the personalization's own left aside; the first of equals."""

    def distance(other: Model) -> int:
        paths = [path for path, _ in differences([model.column, other.column])]
        return sum(not path.startswith("personalization") for path in paths)

    return min(models, key=distance, default=None)


def same(one: Model, other: Model) -> bool:
    """Whether two global models are one: the same weights, by hash, and the same scores with every seed."""
    mine, theirs = ({r.seed: (r.result.get("model_sha256"), r.final.sites.get("global")) for r in m.column.runs} for m in (one, other))
    return one is other or (mine == theirs and all(digest for digest, _ in mine.values()))


def _metric(columns: Sequence[Column]) -> str:
    """The metric of the patients' scores where every column has it, else the task's own."""
    kept = {metric for c in columns for run in c.runs for metric in run.patients.metrics.values()}
    for metric in METRICS:
        if metric in kept and all(metric in c.first.final.metrics for c in columns):
            return metric
    return next((str(c.first.primary_metric) for c in columns if c.first.primary_metric), "")


def _data(run: RunRecords) -> str:
    """Runs of one task and one set of data can be compared; without a configuration nothing says so."""
    task = run.part("config", "task")
    if not task:
        return str(run.folder.resolve())
    return json.dumps({k: v for k, v in flat(task).items() if k.split(".")[0] not in ("pool", "leave_out")}, sort_keys=True, default=str)
