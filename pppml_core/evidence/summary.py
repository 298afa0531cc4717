"""What is reported of an attack over all its victims: plain data for a record's ``metrics`` and ``best_guess``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pppml_core.evidence.guesses import gain
from pppml_core.evidence.images import success_rates
from pppml_core.evidence.measures import FALSE_POSITIVE_RATES
from pppml_core.interfaces.attack import Answer
from pppml_core.learning.stats import Interval, clopper_pearson, wilson

Scores = Sequence[Mapping[str, Any]]
_LOWER = frozenset({"area_error", "relative_error", "max_error", "prevalence_error", "mse"})


def summarize(scores: Scores, level: float = 0.95) -> dict[str, Any]:
    """The scores of all victims, summarized.

    A metric is ``{"median", "worst"}`` where it is a degree (``worst``: of the victim about whom most was learned); a rate is ``{"rate",
    "low", "high", "n"}`` with its interval at ``level``, and ``chance`` where that is known. By kind, where it was answered:

    ``images``: ``psnr``, ``ssim``, ``psnr_gain`` and ``ssim_gain`` (over the best blind guess for each victim), ``mse<0.01``,
    ``mse<0.001``,
    ``mse<0.0001``, ``redrawn``, ``reid@1``, ``reid@5``, ``dice``. ``candidate``: ``candidate@1``, ``candidate@5``. ``labels``:
    ``label_accuracy`` and
    ``prevalence_error`` as means, ``labels_right``. ``area``: ``area_error``. ``members``: ``auc`` (mean), ``tpr@0.01``, ``tpr@0.05`` with
    the exact interval of Clopper and Pearson, or ``{"undefined": why}``. ``site``: ``site_accuracy``. ``update``: ``correlation``,
    ``max_error``,
    ``relative_error``, ``decoded``.
    """
    made: dict[str, Any] = {"victims": len(scores)}
    if errors := _values(scores, "mse"):
        made |= {f"mse<{threshold:g}": _rate(found) for threshold, found in success_rates(errors, level).items()}
    for metric in ("psnr", "ssim", "dice", "correlation", "max_error", "relative_error", "area_error"):
        if values := _values(scores, metric):
            made[metric] = _degree(values, metric in _LOWER)
    for metric in ("psnr", "ssim"):
        if gains := [g for s in scores if (g := gain(s, metric)) is not None]:
            made[f"{metric}_gain"] = _degree(gains)
    for metric, name in (("redrawn", "redrawn"), ("labels_right", "labels_right"), ("site_right", "site_accuracy"), ("decoded", "decoded")):
        if values := _values(scores, metric):
            made[name] = _rate(wilson(int(sum(values)), len(values), level))
    for metric in ("label_accuracy", "prevalence_error", "auc"):
        if values := _values(scores, metric):
            made[metric] = float(np.mean(values))
    for prefix, name in (("", "reid"), ("candidate_", "candidate")):
        if ranks := _values(scores, f"{prefix}rank"):
            galleries = _values(scores, f"{prefix}gallery")
            for most in (1, 5):
                found = _rate(wilson(sum(r <= most for r in ranks), len(ranks), level))
                made[f"{name}@{most}"] = {**found, "chance": float(np.mean([min(1.0, most / m) for m in galleries]))}
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
    return {"rule": best, **summarize([{**k[best], "blind": {}} for k in kinds], level)}


def total_effort(efforts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums over the victims of everything that was told (of ``loss`` the mean), and ``victims``, how many there were."""
    told = {name: [e[name] for e in efforts if name in e] for name in dict.fromkeys(name for e in efforts for name in e)}
    sums = {name: float(np.mean(values) if name == "loss" else np.sum(values)) for name, values in told.items()}
    return {**sums, "victims": float(len(efforts))}


def _values(scores: Sequence[Mapping[str, Any]], metric: str) -> list[Any]:
    """Over victims and their images, undefined ones left out."""
    listed = [v if isinstance(v := s.get(metric), list) else [v] for s in scores]
    return [v for values in listed for v in values if v is not None]


def _degree(values: Sequence[float], lower: bool = False) -> dict[str, float]:
    return {"median": float(np.median(values)), "worst": float(min(values) if lower else max(values))}


def _rate(found: Interval) -> dict[str, float]:
    return {"rate": found.estimate, "low": found.low, "high": found.high, "n": found.n}


def _told(scores: Scores, rate: float, level: float) -> dict[str, Any]:
    counted = [s for s in scores if s.get(f"found@{rate:g}") is not None]
    members = sum(s["members"] for s in counted)
    if not members:
        most = max(s["others"] for s in scores if "others" in s)
        return {"undefined": f"{most} others are too few to measure {rate:.0%} false positives: at least {3 / rate:.0f} are needed"}
    return _rate(clopper_pearson(sum(s[f"found@{rate:g}"] for s in counted), members, level))
