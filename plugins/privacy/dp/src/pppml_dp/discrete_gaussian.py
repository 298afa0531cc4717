"""The discrete Gaussian: an integer ``x`` has probability proportional to ``exp(-x**2 / (2 variance))`` (Canonne, Kamath, Steinke 2020)."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pppml_dp.noise import checked_variance
from pppml_dp.staircase import Staircase


class DiscreteGaussian:
    """Exact samples of N_Z(0, variance), cut at ``bound``, about 12 standard deviations (see :class:`.IntegerNoise`).

    Args:
        variance: the parameter sigma**2, from 0.25 to 1e18, else ConfigError. The variance of the samples is at most that, and from 4 on
            equal to it within 1e-15.

    The float64 value of ``exp(-x**2 / (2 variance))`` has ``x`` exact and three roundings in the exponent ``-t``, which change it by at
    most ``t exp(-t) 2**-51 < 2**-52``, and then the error of numpy's exponential, a few of ``2**-53``: far below what :mod:`.staircase`
    allows. The integer bounds come from Python's ``decimal``, whose division and exponential are correctly rounded at any precision.
    """

    def __init__(self, variance: float) -> None:
        self.variance = checked_variance(variance)
        self._exact = Fraction(self.variance)
        # P(|x| >= r) <= 2 exp(-r**2 / (2 variance)), as the distribution is subgaussian (Canonne, Kamath, Steinke 2020, on utility).
        self._stairs = Staircase(self._f, self._enclosed, math.sqrt(2 * self.variance * 102 * math.log(2)))
        self.bound = self._stairs.bound

    def sample(self, count: int) -> npt.NDArray[np.int64]:
        """``count`` independent samples from operating-system randomness, int64 ``(count,)``."""
        return self._stairs.sample(count)

    def _f(self, x: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        real = x.astype(np.float64)
        return np.exp(real * real * (-0.5 / self.variance))

    def _enclosed(self, x: int, bits: int) -> tuple[int, int]:
        """Integers around ``exp(-x**2 / (2 variance)) * 2**bits``."""
        precise = Context(prec=bits)  # decimal digits: more than three times as many bits as asked for
        exponent = precise.divide(Decimal(-x * x * self._exact.denominator), Decimal(2 * self._exact.numerator))
        value = int(Fraction(precise.exp(exponent)) * 2**bits)
        return value - 1, value + 2
