"""Intervals: how far a number measured on few seeds, few patients or few trials can be trusted.

Every function returns an :class:`Interval`, which prints as ``0.612 [0.580, 0.644]``. scipy does the computing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PppmlError


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval; ``low`` and ``high`` are NaN where the data do not determine them.

    Args:
        n: independent units behind it: seeds, groups, trials.
        method: name of the method, for tables and footnotes.
        p_value: of the hypothesis that the estimate is zero, where the method gives one.

    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    method: str
    p_value: float | None = None

    def __format__(self, spec: str) -> str:
        digits = spec or ".3f"
        if not isfinite(self.estimate):
            return "n/a"
        if not (isfinite(self.low) and isfinite(self.high)):
            return format(self.estimate, digits)
        return f"{self.estimate:{digits}} [{self.low:{digits}}, {self.high:{digits}}]"

    def __str__(self) -> str:
        return format(self)


def mean_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """The mean of a few runs that differ in their seed, with Student's t interval over them.

    It says how the mean would vary with other seeds on the same patients, and nothing about other patients. One value has no
    interval. Assumes that seeds give roughly normal values. Raises PppmlError on an empty, non-finite or nested input.
    """
    from scipy import stats

    x = _finite(values, "mean interval")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, nan, nan, _level(level), 1, "student-t")
    half = float(stats.t.ppf((1 + _level(level)) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half, level, len(x), "student-t")


def bootstrap_interval(
    values: npt.NDArray[Any] | Sequence[Any],
    statistic: Callable[[npt.NDArray[Any]], float],
    generator: np.random.Generator,
    level: float = 0.95,
    *,
    resamples: int = 2000,
) -> Interval:
    """A statistic of patients, with the bias-corrected and accelerated (BCa) bootstrap interval over patients (Efron 1987).

    Args:
        values: an array, resampled along its first axis; or a list with the scores of each group (patient, volume), of which whole
            groups are resampled, so that slices of one patient do not count as independent.
        statistic: of one array (the groups drawn, put together); a NaN it returns for a resample makes the interval NaN.
        generator: decides the resamples.
        level: probability that such intervals cover the truth, 0 to 1.
        resamples: bootstrap samples; the ends of the interval are their quantiles.

    BCa is undefined where resampling hardly changes the statistic (all values equal, one group). Then ``method`` reads
    ``bootstrap-percentile`` and the interval is the percentiles' one, or NaN for a single unit.

    """
    groups = [unit[None] for unit in values] if isinstance(values, np.ndarray) else [np.atleast_1d(unit) for unit in values]
    if not groups:
        raise PppmlError("an interval needs at least one value", place="bootstrap interval")

    def of_drawn(drawn: npt.NDArray[np.int64]) -> float:
        # Rows are taken in one go: the same array, several times as fast.
        return float(statistic(values[drawn] if isinstance(values, np.ndarray) else np.concatenate([groups[i] for i in drawn])))

    everything = np.arange(len(groups))
    estimate = of_drawn(everything)
    if len(groups) == 1:
        return Interval(estimate, nan, nan, _level(level), 1, "bootstrap-percentile")
    return _bootstrapped((everything,), of_drawn, estimate, len(groups), generator, level, resamples, vectorized=False)


def stratified_bootstrap(
    sizes: Sequence[int],
    statistic: Callable[[list[npt.NDArray[np.int64]]], Any],
    generator: np.random.Generator,
    level: float = 0.95,
    *,
    resamples: int = 2000,
) -> Interval:
    """A statistic of several sites, with the bootstrap interval over the patients (or images) of each.

    Each resample draws every site's patients anew from that site's own, as many as it has, so that no site gains or loses weight by
    chance (Davison and Hinkley 1997, section 3.2: several samples). The interval is bias-corrected and accelerated (BCa), as in
    :func:`bootstrap_interval`, with the same fall-back to percentiles.

    Args:
        sizes: units of each stratum (patients of each site). One with a single unit cannot be resampled: it is kept as it is, and what it
            would add to the width is missing.
        statistic: gets for each stratum the indices drawn, ``(..., size)``, and returns ``(...)`` values, one for each resample. What is
            compared in pairs (two methods, several seeds) is indexed with the same draw, and so stays paired.
        generator: decides the resamples.
        level: probability that such intervals cover the truth, 0 to 1.
        resamples: bootstrap samples.

    Raises PppmlError where there is no stratum or an empty one.

    """
    if not sizes or min(sizes) < 1:
        raise PppmlError(f"every stratum needs at least one unit, not {list(sizes)}", place="stratified bootstrap")
    everything = [np.arange(size) for size in sizes]
    estimate = float(statistic(everything))
    drawn = [i for i, size in enumerate(sizes) if size > 1]
    if not drawn:
        return Interval(estimate, nan, nan, _level(level), len(sizes), "bootstrap-percentile")

    def of_drawn(*samples: npt.NDArray[np.int64], axis: int = -1) -> Any:
        whole = [np.broadcast_to(units, (*samples[0].shape[:-1], len(units))) for units in everything]
        for i, sample in zip(drawn, samples, strict=True):
            whole[i] = sample
        return statistic(whole)

    data = tuple(everything[i] for i in drawn)
    return _bootstrapped(data, of_drawn, estimate, sum(sizes), generator, level, resamples, vectorized=True)


def _bootstrapped(
    data: tuple[npt.NDArray[np.int64], ...],
    statistic: Callable[..., Any],
    estimate: float,
    n: int,
    generator: np.random.Generator,
    level: float,
    resamples: int,
    *,
    vectorized: bool,
) -> Interval:
    """BCa where it is defined, else percentiles, of one or several samples resampled independently."""
    from scipy import stats

    found = stats.bootstrap(
        data, statistic, vectorized=vectorized, n_resamples=resamples, confidence_level=_level(level), method="percentile", rng=generator
    )
    drawn = found.bootstrap_distribution
    accelerated = None
    if np.isfinite(drawn).all() and np.ptp(drawn) > 0 and (drawn < estimate).any() and (drawn > estimate).any():
        accelerated = stats.bootstrap(
            data, statistic, vectorized=vectorized, n_resamples=0, confidence_level=level, method="BCa", bootstrap_result=found
        ).confidence_interval
    if accelerated is not None and isfinite(accelerated.low) and isfinite(accelerated.high):
        return Interval(estimate, float(accelerated.low), float(accelerated.high), level, n, "bootstrap-bca")
    low, high = found.confidence_interval
    return Interval(estimate, float(low), float(high), level, n, "bootstrap-percentile")


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Mean of ``a - b`` over pairs (same seed, same site or same patient), with Student's t interval and the paired t-test's p value.

    One pair has neither interval nor p value. Raises PppmlError where the two are not of one length.
    """
    from scipy import stats

    x, y = _finite(a, "paired difference"), _finite(b, "paired difference")
    if len(x) != len(y):
        raise PppmlError(f"{len(x)} values cannot be paired with {len(y)}", place="paired difference")
    difference = mean_interval(x - y, level)
    if len(x) == 1:
        p_value = None
    elif np.ptp(x - y) == 0:
        # Without spread the t statistic is 0/0 or infinite; equal pairs are no evidence, a constant shift is all the evidence.
        p_value = 1.0 if difference.estimate == 0 else 0.0
    else:
        p_value = float(stats.ttest_rel(x, y).pvalue)
    return Interval(difference.estimate, difference.low, difference.high, level, len(x), "paired-t", p_value)


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (1927): close to its level on average, also for small ``n``."""
    return _proportion(successes, n, level, "wilson", "wilson")


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """A proportion with the exact interval of Clopper and Pearson (1934): never below its level. Use it for claims of privacy."""
    return _proportion(successes, n, level, "exact", "clopper-pearson")


def _proportion(successes: int, n: int, level: float, method: str, name: str) -> Interval:
    from scipy import stats

    if not 0 <= successes <= n or n < 1:
        raise PppmlError(f"{successes} successes of {n} trials is not a proportion", place=name)
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(_level(level), method=method)
    return Interval(successes / n, float(low), float(high), level, int(n), name)


def _finite(values: npt.ArrayLike, place: str) -> npt.NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not x.size:
        raise PppmlError(f"an interval needs a flat list of at least one value, not shape {x.shape}", place=place)
    if not np.isfinite(x).all():
        raise PppmlError("NaN or infinity among the values", place=place, hint="leave undefined values out and say how many there were.")
    return x


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise PppmlError(f"the level must lie between 0 and 1, not {level}", place="interval")
    return level
