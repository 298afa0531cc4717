"""Noise of integers: what a mechanism needs to know of it, and the two distributions there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError

#: variances that can be sampled: below, a sample is nearly always 0; above, values and proposals outgrow 64-bit words.
LEAST_VARIANCE, LARGEST_VARIANCE = 0.25, 1e18


class IntegerNoise(Protocol):
    """A symmetric distribution on the integers, sampled exactly."""

    variance: float
    #: samples are from ``-bound`` to ``bound - 1``; an uncut one is outside with probability below 2**-100.
    bound: int

    def sample(self, count: int) -> npt.NDArray[np.int64]:
        """``count`` independent samples from operating-system randomness, int64 ``(count,)``."""
        ...


def integer_noise(kind: str, variance: float) -> IntegerNoise:
    """Noise of a kind, ``discrete-gaussian`` or ``skellam``, and variance, from 0.25 to 1e18; else ConfigError."""
    from pppml_dp.discrete_gaussian import DiscreteGaussian
    from pppml_dp.skellam import Skellam

    kinds: dict[str, Callable[[float], IntegerNoise]] = {"discrete-gaussian": DiscreteGaussian, "skellam": Skellam}
    if kind not in kinds:
        raise ConfigError(f"there is no noise {kind!r}", place="privacy.noise", hint=f"use one of {', '.join(kinds)}")
    return kinds[kind](variance)


def checked_variance(variance: float) -> float:
    """The variance as float, if it can be sampled. Raises ConfigError."""
    if not LEAST_VARIANCE <= variance <= LARGEST_VARIANCE:
        text = f"noise of variance {variance:g} cannot be sampled exactly here"
        raise ConfigError(text, place="privacy", hint=f"a variance is from {LEAST_VARIANCE} to {LARGEST_VARIANCE:g}")
    return float(variance)
