"""The symmetric Skellam distribution: the difference of two Poisson numbers of the same mean (Skellam 1946; Agarwal, Kairouz, Liu 2021).

A sum of independent Skellams is a Skellam, and its variance is the sum of theirs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pppml_dp.noise import checked_variance
from pppml_dp.staircase import Staircase


class Skellam:
    """Exact samples of Poisson(variance / 2) - Poisson(variance / 2), cut at ``bound`` (see :class:`.IntegerNoise`).

    Args:
        variance: from 0.25 to 1e18, else ConfigError.

    The characteristic function at ``t`` is ``exp(-2 variance sin(t / 2)**2)``. Averaging ``period`` values of it, for an odd period,

        (1 + 2 sum over j from 1 to (period - 1) / 2 of exp(-2 variance sin(pi j / period)**2) cos(2 pi j x / period)) / period,

    gives exactly the probability of ``x`` plus those of all integers that differ from ``x`` by a multiple of the period. With a long
    period these others are so far out that they are less than any wanted error. The exponentials fall so fast that a few dozen terms
    are left at any variance. Samples are decided on their sum in float64, where each term's error is a few ``2**-50`` of its
    exponential and :mod:`.staircase` allows 64 times that; integer bounds come from interval arithmetic at any precision.
    """

    def __init__(self, variance: float) -> None:
        self.variance = checked_variance(variance)
        #: times a probability it is ``f``, with ``f(0)`` about 1. Any factor will do: this float64 is meant exactly.
        self._factor = math.sqrt(2 * math.pi * self.variance)
        reach = _reach(self.variance, 102)
        # The bound is the reach and at most one bin more, which is less than a 256th of it.
        self._period, terms = self._series(math.ceil(1.01 * reach), 48)
        angles = np.pi / self._period * np.arange(1, terms + 1)
        self._heights = self._factor * 2 / self._period * np.exp(-2 * self.variance * np.sin(angles) ** 2)
        self._stairs = Staircase(self._f, self._enclosed, reach)
        self.bound = self._stairs.bound

    def sample(self, count: int) -> npt.NDArray[np.int64]:
        """``count`` independent samples from operating-system randomness, int64 ``(count,)``."""
        return self._stairs.sample(count)

    def _f(self, x: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        total = np.full(x.shape, self._factor / self._period)
        for j, height in enumerate(self._heights, start=1):
            # Whole turns are taken off in integers, so that an angle is rounded once and not j times.
            total += height * np.cos(2 * np.pi / self._period * (j * x % self._period))
        return total

    def _enclosed(self, x: int, bits: int) -> tuple[int, int]:
        """Integers around ``f(x) * 2**bits``."""
        from mpmath.ctx_iv import MPIntervalContext
        from mpmath.libmp import to_rational

        period, terms = self._series(x, bits)
        interval = MPIntervalContext()
        interval.prec = bits + 80
        turn = interval.pi / period
        total = interval.mpf(1)
        for j in range(1, terms + 1):
            decay = interval.exp(-2 * interval.mpf(self.variance) * interval.sin(j * turn) ** 2)
            total += 2 * decay * interval.cos(2 * turn * (j * x % period))
        (low, below), (high, above) = map(to_rational, (total * self._factor / period)._mpi_)
        # One on either side for the other integers in the average and for the terms left out, half of one each.
        return (low << bits) // below - 1, -((-high << bits) // above) + 1

    def _series(self, x: int, bits: int) -> tuple[int, int]:
        """Period and number of terms for which what is left out changes ``f`` from ``-x`` to ``x`` by at most ``2**-bits``."""
        bits += math.ceil(math.log2(self._factor)) + 2
        # The others are all at least the period less |x| from 0, which is the reach at which tails are below 2**-bits.
        period = 2 * max(abs(x), math.ceil(_reach(self.variance, bits))) + 1
        # No exponential beyond these terms is above 2**-bits, and there are less than period / 2, each counted 2 / period times.
        sine = math.sqrt(bits * math.log(2) / (2 * self.variance))
        last = math.ceil(period / math.pi * math.asin(min(1.0, sine))) + 1
        return period, min(last, (period - 1) // 2)


def _reach(variance: float, bits: int) -> float:
    """``r`` with P(|x| >= r) <= 2**-bits.

    By Bernstein's inequality ``2 exp(-r**2 / (2 (variance + r / 3)))``: a Skellam is a sum of Poisson many steps of +1 or -1.
    """
    exponent = (bits + 1) * math.log(2)
    return exponent / 3 + math.sqrt(exponent**2 / 9 + 2 * exponent * variance)
