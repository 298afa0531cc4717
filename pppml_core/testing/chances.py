"""What chance may do to correct code: bounds for statistical tests, each exceeded with probability :data:`FALSE_ALARM` at most.

All are proven bounds for finite samples, not approximations, so that a test which fails has found something. ``share`` divides the
probability where one test makes several comparisons.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

#: probability with which correct code fails one comparison; a whole suite, and each broken mechanism in the tests of it, make some twenty.
FALSE_ALARM = 1e-9

Numbers = npt.NDArray[np.floating]


def variance_interval(count: int, share: int = 1) -> tuple[float, float]:
    """Where the mean square of ``count`` normal numbers of variance 1 and mean 0 lies (Laurent and Massart 2000, lemma 1)."""
    x = math.log(2 * share / FALSE_ALARM)
    return 1 - 2 * math.sqrt(x / count), 1 + 2 * math.sqrt(x / count) + 2 * x / count


def normal_distance(values: Numbers, variance: float) -> float:
    """Largest distance between the distribution of integers and that of rounded normal numbers (Kolmogorov and Smirnov)."""
    places, counts = np.unique(values, return_counts=True)
    reached = np.cumsum(counts) / len(values)
    scale = math.sqrt(2 * variance)
    expected = np.array([0.5 * math.erfc(-(place + 0.5) / scale) for place in places])
    before = np.array([0.5 * math.erfc(-(place - 0.5) / scale) for place in places])
    return float(max(np.abs(reached - expected).max(), np.abs(reached - counts / len(values) - before).max()))


def distance_limit(count: int, share: int = 1) -> float:
    """How far ``count`` independent values may be from their distribution (Massart 1990)."""
    return math.sqrt(math.log(2 * share / FALSE_ALARM) / (2 * count))


def cosine(one: Numbers, other: Numbers) -> float:
    """Of the angle between two vectors: the correlation, where both have mean 0. 1 where one of them is zero: nothing is random then."""
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 1.0


def cosine_limit(count: int, share: int = 1) -> float:
    """For independent vectors of ``count`` numbers, one of which is normal (measure of a spherical cap)."""
    return math.sqrt(2 * math.log(2 * share / FALSE_ALARM) / count)


def as_often(seen: int, trials: int, probability: float, share: int = 1) -> bool:
    """Whether ``seen`` successes of independent ``trials`` fit the probability (Chernoff's bound with the exact divergence)."""
    if probability in (0.0, 1.0):
        return seen == probability * trials
    rate, divergence = seen / trials, 0.0
    for part, whole in ((rate, probability), (1 - rate, 1 - probability)):
        divergence += part * math.log(part / whole) if part else 0.0
    return trials * divergence <= math.log(2 * share / FALSE_ALARM)


def binomial_distance(sizes: npt.NDArray[np.integer], trials: int, probability: float) -> float:
    """Largest distance between the distribution of ``sizes`` and the binomial one (limit: :func:`distance_limit`)."""
    if probability in (0.0, 1.0):
        return float(np.mean(sizes != probability * trials))
    counts = np.bincount(sizes, minlength=trials + 1)
    logs = [
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * math.log(probability)
        + (trials - k) * math.log1p(-probability)
        for k in range(trials + 1)
    ]  # fmt: skip
    return float(np.abs(np.cumsum(counts) / len(sizes) - np.cumsum(np.exp(logs))).max())
