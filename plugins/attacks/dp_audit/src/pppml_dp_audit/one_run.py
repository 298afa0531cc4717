"""A lower bound of epsilon from one run (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, section 5).

Each of ``m`` canaries was in or out by an independent fair coin; ``r`` of the coins were guessed from what the mechanism released, and
``v`` guesses are right. If the mechanism is (epsilon, delta)-DP when a canary is added or removed, then so many are right with
probability at most ``beta + 2 m delta alpha``: ``beta`` is the chance that ``v`` of ``r`` independent guesses are right where each is with
probability ``q = e^epsilon / (1 + e^epsilon)``, and ``alpha`` is what delta can add. ``r`` must be fixed before the guesses are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

#: bisection stops at this width; below what anybody prints.
_WIDTH = 1e-9


def p_value(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Largest probability with which any (epsilon, delta)-DP mechanism lets at least ``right`` of ``guesses`` be right.

    ``0 <= right <= guesses <= canaries``, epsilon at least 0, delta in [0, 1). In [0, 1].
    """
    from scipy.stats import binom

    if right == 0:
        return 1.0
    q = 1.0 / (1.0 + math.exp(-epsilon))
    beta = float(binom.sf(right - 1, guesses, q))
    # P[v > Bin(r, q) >= v - i] for i = 1 ... v, summed downwards from v - 1.
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, q))
    alpha = float((below / np.arange(1, right + 1)).max())
    return min(1.0, beta + 2.0 * canaries * delta * alpha)


def combined(p_values: Sequence[float]) -> float:
    """One p-value of several independent ones (Fisher's method).

    With delta above 0 the p-value of one run is never far below ``2 m delta / v``: a mechanism may give many coins away at once, with a
    small probability. It will not do so in every one of several independent runs.
    """
    from scipy.stats import chi2

    if min(p_values) <= 0.0:
        return 0.0
    return float(chi2.sf(-2.0 * sum(math.log(p) for p in p_values), 2 * len(p_values)))


def epsilon_lower(right: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that is refuted with ``confidence``: a mechanism with these guesses is not (epsilon, delta)-DP. 0: none is."""
    return _largest(lambda epsilon: p_value(right, guesses, canaries, epsilon, delta) <= 1.0 - confidence)


def epsilon_ceiling(guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The most that ``guesses`` can ever refute: all of them right."""
    return epsilon_lower(guesses, guesses, canaries, delta, confidence)


def guesses_for(epsilon: float, canaries: int, delta: float, level: float, least: int) -> int:
    """The fewest guesses, at least ``least``, with which a mechanism without noise would be refuted at ``level``; ``least`` if none would.

    Depends on public numbers alone, so it is fixed before anything is released.
    """
    guesses = least
    while p_value(guesses, guesses, canaries, epsilon, delta) > level:
        if guesses == canaries:
            return least
        guesses = min(canaries, math.ceil(1.1 * guesses))
    return guesses


def _largest(refuted: Callable[[float], bool]) -> float:
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
    while high - low > _WIDTH:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
