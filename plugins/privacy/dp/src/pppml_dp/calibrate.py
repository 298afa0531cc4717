"""Searches over whole numbers: the first noise multiplier of four digits, or number of steps, that meets a target.

Numbers of four significant digits are counted, 9,000 to a decade, so that the answer of a search is the same number, bit for bit, for
every party that searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pppml_core.errors import PppmlError


def four_digits(index: int) -> float:
    """The ``index``-th number of four significant digits: 0 is 1.000, 1 is 1.001, 9000 is 10.00, -1 is 0.9999."""
    decade, digits = divmod(index, 9000)
    return float(f"{1000 + digits}e{decade - 3}")


def index_of(value: float) -> int:
    """The index of the smallest number of four digits that is at least ``value``, which is above 0."""
    decade = math.floor(math.log10(value))
    index = 9000 * decade + math.ceil(value / 10.0**decade * 1000) - 1000
    while four_digits(index) < value:  # the logarithm may be off by its last bit
        index += 1
    while four_digits(index - 1) >= value:
        index -= 1
    return index


def first_within(gap: Callable[[int], float], start: int, lowest: int, highest: int, step: int = 1) -> int:
    """The smallest whole number of ``lowest`` to ``highest`` with ``gap`` at or below 0, for a ``gap`` that falls.

    A bracket is grown from ``start``, first by ``step``; then its chord is followed, and it is halved wherever the chord did not do as
    much. Raises PppmlError where ``gap(highest)`` is above 0.
    """
    high = low = min(max(start, lowest), highest)
    high_gap = low_gap = gap(high)
    while high_gap > 0:
        if high == highest:
            text, hint = "no noise that the accountant can compute meets the target", "ask for more epsilon, a larger delta or fewer steps"
            raise PppmlError(text, place="privacy accounting", hint=hint)
        low, low_gap = high, high_gap
        high, step = min(high + step, highest), 4 * step
        high_gap = gap(high)
    while low_gap <= 0:
        if low == lowest:
            return lowest
        high, high_gap = low, low_gap
        low, step = max(low - step, lowest), 4 * step
        low_gap = gap(low)
    follow = True
    while (width := high - low) > 1:
        chord = width * low_gap / (low_gap - high_gap) if follow and math.isfinite(low_gap - high_gap) else width / 2
        at = min(low + max(math.ceil(chord), 1), high - 1)
        if (value := gap(at)) > 0:
            low, low_gap = at, value
        else:
            high, high_gap = at, value
        follow = not follow or 2 * (high - low) <= width
    return high
