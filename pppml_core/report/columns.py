"""Runs that differ only in seed as one column, and columns side by side: local-only, federated, centralized."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pppml_core.report.records import RunRecords, flat

Role = Literal["local-only", "federated", "centralized"]
ROLES: tuple[Role, ...] = ("local-only", "federated", "centralized")
#: settings that do not make another method: what a run is called, how it is seeded, where it is shown and how it is executed.
INCIDENTAL = ("run.name", "run.seed", "reporters", "engine", "extends", "attacks", "training.loader_workers", "training.cache")
#: methods that share, round by round, what FedAvg shares, bit for bit, whatever each site makes of it.
FEDAVG = ("fedavg", "fedavg-finetune", "ditto", "apfl")
#: of global weights whose round was chosen by the scores of personalized ones.
OWN_BEST = "at the round its own models were best"


@dataclass(frozen=True)
class Estimate:
    """A value, with its 95 % interval over seeds where there are at least two."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def has_interval(self) -> bool:
        """Whether two seeds or more give an interval."""
        return self.seeds > 1 and math.isfinite(self.low)


@dataclass(frozen=True)
class Column:
    """Runs of one method: equal in all but the seed."""

    label: str
    role: Role
    runs: tuple[RunRecords, ...]

    @property
    def first(self) -> RunRecords:
        """The run whose pictures, costs and guarantees stand for the column."""
        return self.runs[0]

    @property
    def finished(self) -> bool:
        """Whether every run has a result."""
        return all(run.finished for run in self.runs)

    @property
    def splits(self) -> tuple[str, ...]:
        """Which data the final scores are of; ``unknown`` where no file tells."""
        return tuple(dict.fromkeys(str(run.final.split or "unknown") for run in self.runs))

    @property
    def method(self) -> str:
        """Name of the personalization; empty where no configuration tells."""
        return str(self.first.part("config", "personalization").get("use") or "")

    def has(self, weights: str) -> bool:
        """Whether these weights were scored, however they compare."""
        return any(weights in run.final.weights for run in self.runs)

    @property
    def weights(self) -> tuple[str, ...]:
        """Which weights are shown. Of ``local-only`` the personalized ones alone: nobody trains its global weights."""
        found = tuple(w for w in ("global", "personalized") if self.has(w))
        if self.role == "local-only" and "personalized" in found:
            return ("personalized",)
        return found[:1] if len(found) == 2 and self.same_weights else found

    @property
    def same_weights(self) -> bool:
        """Whether global and personalized values are equal throughout: one column of figures tells both."""
        return all(run.final.one_model for run in self.runs)

    def told(self, weights: str) -> str:
        """What these weights are, as the head of a column of figures."""
        if self.same_weights and self.role != "local-only":
            return "one model"
        if weights != "global":
            return weights
        if self.is_fedavg:
            return "global" if self.method == "fedavg" else "global (FedAvg)"
        shared = "global (before adapting)" if self.method == "per-fedavg" else "global"
        return f"{shared}, {OWN_BEST}" if self.chosen_by_own else shared

    @property
    def is_fedavg(self) -> bool:
        """Whether the global weights are FedAvg's. The scores of a method's own models choose and end rounds as FedAvg's would not."""
        run = self.first.part("config", "run")
        chosen = run.get("select", "last") != "last" or run.get("stop") is not None
        return self.method == "fedavg" or (self.method in FEDAVG and not chosen)

    @property
    def chosen_by_own(self) -> bool:
        """Whether the global weights are of the round at which each site's own models scored best on validation data."""
        return self.finished and self.has("personalized") and self.first.part("config", "run").get("select") == "best-validation"

    @property
    def best_weights(self) -> str | None:
        """What a patient of a site would meet: the personalized weights where there are any."""
        return self.weights[-1] if self.weights else None

    def estimate(self, weights: str, site: str | None, metric: str) -> Estimate:
        """One cell of the table, ``site`` None for the mean over sites."""
        return interval([run.final.value(weights, site, metric) for run in self.runs])


def interval(values: Sequence[float]) -> Estimate:
    """Mean and two-sided 95 % Student interval of the finite values, one a seed.

    >>> interval([0.5, 0.6, 0.7]).seeds
    3
    """
    from pppml_core.learning.stats import mean_interval

    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return Estimate(math.nan, math.nan, math.nan, 0)
    found = mean_interval(finite)
    return Estimate(found.estimate, found.low, found.high, found.n)


def columns(runs: Sequence[RunRecords]) -> tuple[list[Column], list[str]]:
    """The runs as columns, the local-only bracket first and the centralized one last, and remarks on what was left out."""
    grouped: dict[str, dict[Any, RunRecords]] = {}
    remarks = []
    for run in runs:
        same = grouped.setdefault(_key(run), {})
        if run.seed in same:
            remarks.append(
                f"{run.folder.name} repeats {same[run.seed].folder.name}: same configuration and seed, so it is not counted again."
            )
        else:
            same[run.seed] = run
    found = [Column(_label(next(iter(g.values()))), _role(next(iter(g.values()))), tuple(g.values())) for g in grouped.values()]
    found.sort(key=lambda column: ROLES.index(column.role))
    return _distinct(found), remarks


def by_run_name(found: list[Column]) -> list[Column]:
    """Columns called by their runs' names, where these differ and the method alone tells none from another: runs of one method with
    several defences.
    """
    names, plain = [c.first.name for c in found], [_label(c.first) for c in found]
    if len(set(names)) < len(names) or len(set(plain)) == len(plain):
        return found
    return [replace(c, label=c.first.name if c.finished else f"{c.first.name} (unfinished)") for c in found]


def main_column(found: Sequence[Column]) -> Column:
    """The column the page is about: the first federated one."""
    return next((c for c in found if c.role == "federated"), found[0])


def comparable(found: Sequence[Column]) -> tuple[list[Column], list[tuple[Column, str]]]:
    """The finished columns whose scores are of one kind of data, test data where any are, and the others with the reason.

    Scores of validation data, or of a run that goes on, stand beside no test scores.
    """
    splits = [split for c in found if c.finished and c.weights for split in c.splits]
    split = "test" if "test" in splits else next(iter(splits), "")
    kept, left_out = [], []
    for column in found:
        if not column.finished:
            left_out.append((column, "no result yet"))
        elif column.weights and column.splits != (split,):
            left_out.append((column, f"scores of {' and '.join(column.splits)} data, the others' of {split} data"))
        else:
            kept.append(column)
    return kept, left_out


def shared_sites(scored: Iterable[Collection[str]]) -> tuple[list[str], int]:
    """The sites that all models have scores of, and how many any has. Models without any score have no say.

    Means over different sites are no comparison: who leaves out a hard site would look better.

    >>> shared_sites([["a", "b", "c"], ["b", "c"], []])
    (['b', 'c'], 3)
    """
    sets = [found for found in scored if found]
    union = dict.fromkeys(site for found in sets for site in found)
    return [site for site in union if all(site in found for found in sets)], len(union)


def differences(found: Sequence[Column]) -> list[tuple[str, list[str]]]:
    """Settings in which the columns differ: path, value in each column."""
    settings = [_settings(column.first) for column in found]
    paths = dict.fromkeys(path for s in settings for path in s)
    rows = [(path, [_text(s.get(path, "not set")) for s in settings]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1]


def _settings(run: RunRecords) -> dict[str, Any]:
    return {path: value for path, value in flat(run.config).items() if not any(path == i or path.startswith(i + ".") for i in INCIDENTAL)}


def _key(run: RunRecords) -> str:
    # Without a configuration nothing says that two runs belong together; an unfinished run never joins an interval.
    if not run.config or not run.finished:
        return str(run.folder.resolve())
    return json.dumps(_settings(run), sort_keys=True, default=str)


def _role(run: RunRecords) -> Role:
    if run.pooled:
        return "centralized"
    return "local-only" if run.part("config", "personalization").get("use") == "local-only" else "federated"


def _label(run: RunRecords) -> str:
    label = "centralized" if run.pooled else str(run.part("config", "personalization").get("use") or run.name)
    privacy = run.part("config", "privacy").get("use") or "none"
    label += "" if privacy == "none" else f" + {privacy}"
    return label if run.finished else f"{label} (unfinished)"


def _distinct(found: list[Column]) -> list[Column]:
    """Columns of one label are told apart by the settings in which they differ, else by the name of their folder."""
    out = []
    for column in found:
        twins = [c for c in found if c.label == column.label]
        if len(twins) > 1:
            mine, changed = flat(column.first.config), [path for path, _ in differences(twins)]
            extra = ", ".join(f"{path.removesuffix('.use')} {_text(mine.get(path, 'not set'))}" for path in changed[:2])
            column = replace(column, label=f"{column.label} ({extra or column.first.folder.name})")
        out.append(column)
    if len({c.label for c in out}) == len(out):
        return out
    return [replace(c, label=f"{c.label} [{c.first.folder.name}]") for c in out]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
