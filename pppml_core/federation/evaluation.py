"""How evaluation results leave a site: one by one, only summed over sites, or not at all. The same page serves both sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pppml_core.federation.reason import here_only
from pppml_core.interfaces.personalization import Personalization
from pppml_core.interfaces.task import SPLITS, TaskSpec
from pppml_core.learning.pool import held_out
from pppml_core.values import FixedPoint, Layout, TensorSpec, ValueSpec
from pppml_core.wire.manifest import WireField

if TYPE_CHECKING:
    from pppml_core.federation.assembly import Assembly

#: A site slug that stands for the mean over sites in metrics.jsonl when only sums leave.
ALL_SITES = "all"

#: (site, split, weights) -> metric -> value; the site is another than one's own only where training is pooled.
Scores = dict[tuple[str, str, str], dict[str, float]]


def weight_kinds(method: Personalization) -> list[str]:
    """Which weights are scored: the shared ones where they make a model, each site's own where they differ."""
    return [kind for kind, on in (("global", method.has_global_model), ("personalized", method.personalizes)) if on]


def to_wire(scores: Scores) -> dict[str, Any]:
    """``site/split/weights/metric`` -> number."""
    return {"/".join((*key, metric)): float(value) for key, values in scores.items() for metric, value in values.items()}


def from_wire(body: Mapping[str, Any], spec: TaskSpec, sites: Iterable[str], splits: Iterable[str], kinds: Iterable[str]) -> Scores:
    """The inverse of :func:`to_wire`. What was not asked for is dropped; a metric that is missing or out of its range is NaN."""
    asked = {"/".join(path): path for path in itertools.product(sites, splits, kinds, spec.metrics)}
    scores: Scores = {}
    for name, (*key, metric) in asked.items():  # in the order asked, whatever the order of the answer
        if name in body:
            value = body[name]
            low, high = spec.metrics[metric]
            values = scores.setdefault((key[0], key[1], key[2]), dict.fromkeys(spec.metrics, math.nan))
            values[metric] = float(value) if low <= value <= high else math.nan
    return scores


def evaluation_fields(spec: TaskSpec, sites: Sequence[str], share: str) -> tuple[WireField, ...]:
    """What the evaluation exchange may carry."""
    if share != "per-site":
        return ()
    says = f"held-out scores of this site: {', '.join(spec.metrics)}; global and personalized weights, validation and test"
    return (WireField("evaluate", "scores.*", "float", (), 8, "in the clear: the server reads it", says),)


#: what is announced of scores that are summed by an aggregator which shows each site's own to somebody.
SUM_IN_CLEAR = "sum-in-clear"


def announced_share(parts: Assembly, sites: Sequence[str]) -> str:
    """What really leaves of a run's scores: ``run.metrics``, but where they are summed in the clear, :data:`SUM_IN_CLEAR`."""
    asked, sites = parts.config.run.metrics, tuple(sites)
    if asked != "sum" or parts.aggregator.misfits(one := ValueSpec(1, "integer", 1), sites):
        return asked
    # Who sees a summand does not depend on the value that is summed.
    return SUM_IN_CLEAR if parts.aggregator.plan(one, sites).guarantees.sees_update else asked


def too_few_patients(parts: Assembly, site: str, sites: Sequence[str], fewest: int) -> str | None:
    """Why this site's own scores may not leave: a set they are of has fewer patients (groups) than its policy wants. None: they may."""
    if fewest < 2 or announced_share(parts, sites) not in ("per-site", SUM_IN_CLEAR):
        return None
    for _, data in held_out(parts.task, site, parts.load(site)):
        for split in SPLITS[1:]:
            groups = len(np.unique(np.asarray(data.part(split).groups))) if len(data.part(split)) else 0
            if 0 < groups < fewest:
                text = f"scores of fewer than {fewest} {split} patients would leave this site by themselves"
                return here_only(f"{text} (run.metrics: sum, by a secure aggregator; or none)", f"{groups} patients")
    return None


def sum_layout(spec: TaskSpec, splits: Sequence[str], kinds: Sequence[str]) -> tuple[Layout, FixedPoint]:
    """The vector in which scores are summed: each value, and whether it is defined at this site."""
    names = [f"{split}/{kind}/{metric}" for split in splits for kind in kinds for metric in spec.metrics]
    layout = Layout(tuple(TensorSpec(n, (), "metric") for n in names) + tuple(TensorSpec(f"{n}#defined", (), "metric") for n in names))
    ranges = [max(abs(bound) for bound in spec.metrics[n.rsplit("/", 1)[1]]) or 1.0 for n in names]
    ranges = [r if math.isfinite(r) else 1e4 for r in ranges]
    return layout, FixedPoint(layout, (*ranges, *[1.0] * len(names)), bits=24)


def to_sum(scores: Scores, spec: TaskSpec, splits: Sequence[str], kinds: Sequence[str], generator: np.random.Generator) -> npt.NDArray[Any]:
    """One site's scores as the integers of :func:`sum_layout`; the mean over the parts it evaluates. Undefined values count as absent."""
    layout, fixed = sum_layout(spec, splits, kinds)
    values = np.zeros(layout.length)
    half = layout.length // 2
    for i, tensor in enumerate(layout.tensors[:half]):
        split, kind, metric = tensor.name.split("/")
        found = [v[metric] for (_, s, k), v in scores.items() if (s, k) == (split, kind) and math.isfinite(v.get(metric, math.nan))]
        if found:
            values[i], values[half + i] = float(np.mean(found)), 1.0
    integers, _ = fixed.encode(values, generator)
    integers[half:] = np.where(values[half:] > 0, fixed.levels, 0)
    return integers


def from_sum(total: npt.NDArray[Any], spec: TaskSpec, splits: Sequence[str], kinds: Sequence[str]) -> Scores:
    """Means over the sites where each score is defined, under the site name ``all``."""
    layout, fixed = sum_layout(spec, splits, kinds)
    values = fixed.decode(total)
    half = layout.length // 2
    scores: Scores = {}
    for i, tensor in enumerate(layout.tensors[:half]):
        split, kind, metric = tensor.name.split("/")
        count = values[half + i]
        scores.setdefault((ALL_SITES, split, kind), {})[metric] = float(values[i] / count) if count > 0.5 else math.nan
    return scores


def rows(round: int, scores: Scores) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [
        {"round": round, "site": site, "split": split, "weights": kind, **{m: (v if math.isfinite(v) else None) for m, v in values.items()}}
        for (site, split, kind), values in scores.items()
    ]


def mean_of(scores: Scores, split: str, metric: str) -> float:
    """Mean over sites of a metric, of the personalized weights where there are any, else of the global ones; NaN where none is defined."""
    for kind in ("personalized", "global"):
        found = [v[metric] for (_, s, k), v in scores.items() if (s, k) == (split, kind)]
        if found:
            defined = [v for v in found if math.isfinite(v)]
            return float(np.mean(defined)) if defined else math.nan
    return math.nan
