"""What is reported of an attack over all its victims: plain data for a record's ``metrics`` and ``best_guess``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pppml_core.evidence.deciding import at_most
from pppml_core.evidence.guesses import gain
from pppml_core.evidence.images import success_rates
from pppml_core.evidence.measures import FALSE_POSITIVE_RATES
from pppml_core.evidence.tallies import of_victims, one_each
from pppml_core.interfaces.attack import Answer
from pppml_core.learning.stats import Interval, clopper_pearson, wilson

Scores = Sequence[Mapping[str, Any]]
_LOWER = frozenset({"area_error", "relative_error", "max_error", "prevalence_error", "mse"})


def summarize(scores: Scores, level: float = 0.95) -> dict[str, Any]:
    """The scores of all victims, summarized. Of a batch the first image is the victim.

    A metric is ``{"median", "worst"}`` over the victims where it is a degree (``worst``: of the victim about whom most was learned).

    A rate is ``{"rate", "low", "high", "n", "at_most"}``: over ``n`` independent trials, one image of a batch and one of a patient, with
    its interval at ``level`` and the one-sided upper limit at 95 %; and ``chance`` where that is known. Where more images were scored,
    ``share`` is that of all ``images``: it has no interval, as several of them are of one patient or of one batch.

    By kind, where it was answered:

    ``images``: ``psnr``, ``ssim``, ``psnr_gain`` and ``ssim_gain`` (over the best blind guess for each victim), ``mse<0.01``,
    ``mse<0.001``, ``mse<0.0001``, ``redrawn``, ``reid@1``, ``reid@5``, ``dice``. ``candidate``: ``candidate@1``, ``candidate@5``.
    ``labels``: ``label_accuracy`` and ``prevalence_error`` as means, ``labels_right``. ``area``: ``area_error``. ``members``: ``auc``
    (mean), ``tpr@0.01``, ``tpr@0.05`` with the exact interval of Clopper and Pearson, or ``{"undefined": why}``. ``site``:
    ``site_accuracy``. ``update``: ``correlation``, ``max_error``, ``relative_error``, ``decoded``.
    """
    made: dict[str, Any] = {"victims": len(scores)}
    trials = one_each(scores)
    if errors := _values(scores, "mse"):
        for threshold, found in success_rates(of_victims(trials, "mse"), level).items():
            made[f"mse<{threshold:g}"] = _rate(found, [error < threshold for error in errors])
    for metric in ("psnr", "ssim", "dice", "correlation", "max_error", "relative_error", "area_error"):
        if values := [v for v in of_victims(scores, metric) if v is not None]:
            made[metric] = _degree(values, metric in _LOWER)
    for metric in ("psnr", "ssim"):
        if gains := [g for s in scores if (g := gain(_victim(s, metric), metric)) is not None]:
            made[f"{metric}_gain"] = _degree(gains)
    for metric in ("redrawn", "labels_right", "decoded"):
        if every := _values(scores, metric):
            right = of_victims(trials, metric)
            made[metric] = _rate(wilson(int(sum(right)), len(right), level), every)
    if placed := _values(trials, "site_right"):  # a list of queries, each a trial
        made["site_accuracy"] = _rate(wilson(int(sum(placed)), len(placed), level))
    for metric in ("label_accuracy", "prevalence_error", "auc"):
        if values := _values(scores, metric):
            made[metric] = float(np.mean(values))
    for prefix, name in (("", "reid"), ("candidate_", "candidate")):
        if every := _values(scores, f"{prefix}rank"):
            ranks, galleries = of_victims(trials, f"{prefix}rank"), of_victims(trials, f"{prefix}gallery")
            for most in (1, 5):
                found = wilson(sum(r <= most for r in ranks), len(ranks), level)
                chance = float(np.mean([min(1.0, most / m) for m in galleries]))
                made[f"{name}@{most}"] = {**_rate(found, [r <= most for r in every]), "chance": chance}
    if _values(scores, "members"):
        made |= {f"tpr@{rate:g}": _told(scores, rate, level) for rate in FALSE_POSITIVE_RATES}
    return made


def best_guess(answers: Answer, scores: Scores, level: float = 0.95) -> dict[str, Any]:
    """The blind rule that is best over these victims, with hindsight: ``{"rule": its name}`` and its metrics as :func:`summarize` has them.

    Pictures are compared by their mean PSNR; picking, by rate, and not below ``chance``.
    """
    metric = {"images": "psnr", "labels": "label_accuracy", "area": "area_error", "candidate": "candidate_picked", "site": "site_right",
              "members": "auc", "update": "relative_error"}[answers]  # fmt: skip
    kinds = [s["blind"].get(answers, {}) for s in scores]
    rules = [rule for rule in (kinds[0] if kinds else {}) if all(_values([k.get(rule, {})], metric) for k in kinds)]
    if not rules:
        return {}
    sign = -1.0 if metric in _LOWER else 1.0
    best = max(rules, key=lambda rule: sign * float(np.mean(_values([k[rule] for k in kinds], metric))))
    told = [{**k[best], "blind": {}, "person": s.get("person")} for k, s in zip(kinds, scores, strict=True)]
    return {"rule": best, **summarize(told, level)}


def total_effort(efforts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums over the victims of everything that was told (means of ``loss`` and of shares), and ``victims``, how many there were."""
    told = {name: [e[name] for e in efforts if name in e] for name in dict.fromkeys(name for e in efforts for name in e)}
    sums = {name: float(np.mean(values) if name == "loss" or name.endswith("_share") else np.sum(values)) for name, values in told.items()}
    return {**sums, "victims": float(len(efforts))}


def _values(scores: Sequence[Mapping[str, Any]], metric: str) -> list[Any]:
    """Over victims and their images, undefined ones left out."""
    listed = [v if isinstance(v := s.get(metric), list) else [v] for s in scores]
    return [v for values in listed for v in values if v is not None]


def _victim(score: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """The score of a batch, of its first image alone, in this metric."""

    def first(values: Mapping[str, Any]) -> dict[str, Any]:
        return {metric: of_victims([values], metric)} if metric in values else {}

    rules = {kind: {rule: first(values) for rule, values in made.items()} for kind, made in score["blind"].items()}
    return {**first(score), "blind": rules}


def _degree(values: Sequence[float], lower: bool = False) -> dict[str, float]:
    return {"median": float(np.median(values)), "worst": float(min(values) if lower else max(values))}


def _rate(found: Interval, every: Sequence[bool] = ()) -> dict[str, float]:
    """``every``: of all images, more than the trials that were counted."""
    made = {"rate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
    made["at_most"] = at_most(round(found.estimate * found.n), found.n)
    return {**made, "share": float(np.mean(every)), "images": len(every)} if len(every) > found.n else made


def _told(scores: Scores, rate: float, level: float) -> dict[str, Any]:
    counted = [s for s in scores if s.get(f"found@{rate:g}") is not None]
    members = sum(s["members"] for s in counted)
    if not members:
        most = max(s["others"] for s in scores if "others" in s)
        return {"undefined": f"{most} others are too few to measure {rate:.0%} false positives: at least {3 / rate:.0f} are needed"}
    return _rate(clopper_pearson(sum(s[f"found@{rate:g}"] for s in counted), members, level))
