"""Epsilon where a formula gives it exactly: Gaussian noise on everything, and on one Poisson sample. The oracle of ``PrivacySuite``.

Add-remove adjacency, sensitivity 1. Both are hockey-stick divergences of one-dimensional normal distributions, whose likelihood ratio is
monotone, so that each is a difference of two normal probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

#: epsilon above this is not computed.
LARGEST = 500.0


def gaussian_epsilon(noise_multipliers: Sequence[float], delta: float) -> float:
    """Of these noisy sums together, each over all examples (Balle and Wang 2018, theorem 8; noise adds up as in Dong et al. 2022)."""
    if any(z == 0 for z in noise_multipliers):
        return math.inf
    mu = math.sqrt(sum(z**-2 for z in noise_multipliers))
    return least(lambda e: _below(mu / 2 - e / mu) - _scaled(e, -mu / 2 - e / mu), delta) if mu else 0.0


def sampled_epsilon(noise_multiplier: float, rate: float, delta: float) -> float:
    """Of one noisy sum over a sample in which each example is with probability ``rate``: the larger of adding and removing one."""
    if noise_multiplier == 0:
        return math.inf
    z = noise_multiplier

    def removed(e: float) -> float:
        # Above this point of the axis the data set with the example is e^e times likelier.
        x = z**2 * (math.log(math.expm1(e) + rate) - math.log(rate)) + 0.5
        return (1 - rate) * _below(-x / z) + rate * _below((1 - x) / z) - _scaled(e, -x / z)

    def added(e: float) -> float:
        inside = math.expm1(-e) + rate
        if inside <= 0:  # nothing is e^e times likelier without the example
            return 0.0
        x = z**2 * (math.log(inside) - math.log(rate)) + 0.5
        return _below(x / z) - (1 - rate) * _scaled(e, x / z) - rate * _scaled(e, (x - 1) / z)

    return least(lambda e: max(removed(e), added(e)), delta)


def least(delta_of: Callable[[float], float], delta: float) -> float:
    """The smallest epsilon at which the falling ``delta_of`` is at most ``delta``; infinite above 500."""
    low, high = 0.0, LARGEST
    if delta_of(high) > delta:
        return math.inf
    if delta_of(low) <= delta:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


def _below(x: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _scaled(epsilon: float, x: float) -> float:
    """``e^epsilon`` times it."""
    return math.exp(epsilon) * _below(x)
