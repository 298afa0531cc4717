"""The integers of a mechanism: how finely the clip is divided, what rounding does to the sensitivity, how large a share of noise is.

A real vector is divided by a step gamma, rounded stochastically to integers (``floor(a + u)`` with ``u`` independent of the data) and
noised. The clip is ``K = clip / gamma`` steps. Rounding moves each coordinate by less than one step, in two neighbouring data sets in
different ways, so an example moves the integers by at most ``K + sqrt(d)`` in L2 norm, whatever ``u`` is. ``K`` is chosen so that this
costs at most one percent. A further thousandth is for the floating-point error of the real vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pppml_core.errors import ConfigError

#: bits of a coordinate before noise.
BITS = 24
LEVELS = 2 ** (BITS - 1) - 1
#: a share of noise is at least this wide, so that a sum of shares is as good as one discrete Gaussian.
LEAST_SHARE = 100.0
#: what a sum of discrete Gaussians of such shares may lose against a continuous Gaussian (protocol: variance V counts as V - 16).
DISCRETE = 16.0


@dataclass(frozen=True)
class Grid:
    """``clip_steps`` steps of the grid make up the clip, in a vector of ``coordinates``."""

    clip_steps: int
    coordinates: int

    @property
    def l2(self) -> float:
        """Largest L2 distance that one protected unit makes between two integer vectors."""
        return (1 + 1e-3) * self.clip_steps + math.sqrt(self.coordinates)

    @property
    def l1(self) -> float:
        """The same in L1."""
        return math.sqrt(self.coordinates) * self.l2

    @property
    def range_in_clips(self) -> float:
        """Largest absolute value of a coordinate, in clips; what is beyond it saturates, before the noise."""
        return LEVELS / self.clip_steps


def make_grid(coordinates: int, expected: float, noise_multiplier: float) -> Grid:
    """The grid for ``coordinates`` numbers, each a sum over about ``expected`` clipped vectors, with noise of that multiplier.

    As fine as 24 bits allow without saturating at twice the expected sum, and not so fine that noise would leave 31 bits; at least
    ``100 sqrt(d)`` steps make a clip. Raises ConfigError where both cannot be had.
    """
    least = math.ceil(100 * math.sqrt(coordinates))
    wanted = LEVELS / max(1.0, 2 * expected)
    if noise_multiplier > 0:
        wanted = min(wanted, 2**26 / noise_multiplier)
    steps = max(least, int(wanted))
    if steps > LEVELS or noise_multiplier * steps > 2**26:
        text = f"noise of {noise_multiplier:.4g} sensitivities for {coordinates:,} coordinates does not fit integers of 31 bits"
        raise ConfigError(text, place="privacy", hint="use a smaller model, more epsilon or less noise_multiplier, or fewer noised sums")
    return Grid(steps, coordinates)


def variance_for(grid: Grid, noise_multiplier: float) -> float:
    """Variance, in steps squared, that a sum must have so that it is charged as a continuous Gaussian of ``noise_multiplier``."""
    return (noise_multiplier * grid.l2) ** 2 + DISCRETE


def share_variance(total: float, honest: int) -> float:
    """Variance of one site's share where at least ``honest`` shares are sure to be in the sum and unknown to the adversary."""
    return max(LEAST_SHARE, total / honest)
