"""The Gaussian mechanism in closed form, and the classical formula that is often used in its place.

Gaussian noise of noise multipliers ``z_1, z_2, ...`` on the same data, without sampling, is one Gaussian mechanism whose two
distributions lie ``mu = sqrt(sum 1 / z_i^2)`` standard deviations apart. Its exact privacy profile is Balle and Wang, "Improving the
Gaussian mechanism for differential privacy" (ICML 2018), theorem on the analytic Gaussian mechanism::

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)
"""

from __future__ import annotations

import math


def delta_at(epsilon: float, mu: float) -> float:
    """The exact delta of one Gaussian mechanism. ``epsilon`` at least 0, ``mu`` above 0: sensitivity in standard deviations."""
    from scipy.special import erfcx, ndtr

    # exp(epsilon) phi(b) = phi(a) for the two arguments a and b: the exponential, which overflows, cancels in terms of erfcx.
    a, b = mu / 2 - epsilon / mu, mu / 2 + epsilon / mu
    root = math.sqrt(2)
    if a > 0:
        return float(ndtr(a) - math.exp(-a * a / 2) * erfcx(b / root) / 2)
    return float(math.exp(-a * a / 2) * (erfcx(-a / root) - erfcx(b / root)) / 2)


def epsilon_at(delta: float, mu: float) -> float:
    """The smallest epsilon at ``delta`` in (0, 1), to about 1e-12 of its value (``mu`` up to 10,000) and never below it."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    if mu == 0 or delta_at(0.0, mu) <= delta:
        return 0.0
    enough = mu * mu / 2 - mu * float(ndtri(delta))  # the first term of delta(epsilon) alone is delta there
    if mu > 1e4:
        return enough  # by less than one part in a million too large; the difference of two nearly equal terms would lose more
    root = brentq(lambda epsilon: delta_at(epsilon, mu) - delta, 0.0, enough, xtol=1e-13 * enough, rtol=1e-14)
    return min(enough, float(root) * (1 + 1e-13) + 2e-13 * enough)


def mu_at(epsilon: float, delta: float) -> float:
    """The inverse in ``mu``: how far apart the two distributions may lie, to about 1e-9 of its value."""
    from scipy.optimize import brentq

    far = 1.0
    while delta_at(epsilon, far) < delta:
        far *= 2
    near = far
    while delta_at(epsilon, near) > delta:
        near /= 2
    return near if near == far else float(brentq(lambda mu: delta_at(epsilon, mu) - delta, near, far, rtol=1e-9, xtol=1e-9 * near))


def classical_sd(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """The textbook formula ``sensitivity * sqrt(2 ln(1.25 / delta)) / epsilon`` for the noise of ONE release.

    Dwork and Roth, "The algorithmic foundations of differential privacy" (2014), appendix A, prove it for epsilon below 1 only. It is
    here for comparison: the releases the DPResNet authors could use compute their noise with it, with epsilon 6.
    """
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon
