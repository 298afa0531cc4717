"""Rényi differential privacy of Skellam and Gaussian noise on sums over Poisson samples, for integer orders.

**One sum.** Agarwal, Kairouz and Liu, "The Skellam mechanism for differentially private federated learning" (NeurIPS 2021), bound the
Rényi divergence of integer order between Skellam noise of variance ``V`` and its shift by the sensitivity.

**Sampling.** Let Q be the output without the unit, P with it, r = P/Q. Sampling at rate q gives M = (1-q) Q + q P. For removal,
``E_Q[(M/Q)^a]`` is a binomial sum of ``E_Q[r^k] = exp((k-1) eps(k))`` (Mironov, Talwar and Zhang 2019 for Gaussian noise; Zhu and Wang
2019 and Steinke, arXiv 2210.00597, in general). For addition Zhu and Wang need a factor of 3 for arbitrary mechanisms. Noise that is
symmetric does without it: reflection exchanges P and Q, so ``E_Q[f(r)] = E_Q[r f(1/r)]`` for every f. With ``u = ln(1-q+qr)`` and
``w = -ln(1-q+q/r)``, r above 1, and b = a - 1/2, removal less addition is the mean of twice
``r^(-1/2) exp(u/2) sinh(b u) - r^(1/2) exp(-w/2) sinh(b w)`` (r below 1 gives the same terms). This is zero at a = 1; u >= w, because
``(1-q+qr)(1-q+q/r) >= 1``, makes ``sinh(b u)/sinh(b w)`` grow with b; so it is not negative for any order above 1: removal is the
worse of the two, and its sum bounds both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_dp.events import Event

Floats = npt.NDArray[np.float64]

ORDERS: npt.NDArray[np.int64] = np.array([*range(2, 65), *range(72, 257, 8), *range(288, 1025, 32)])


def skellam_rdp(orders: npt.ArrayLike, variance: float, d1: float, d2: float) -> Floats:
    """Bound of the Rényi divergence at integer ``orders`` above 1 of one integer sum with Skellam noise of this variance.

    ``d1``, ``d2``: its L1 and L2 sensitivity. Agarwal, Kairouz and Liu (2021), theorem on the RDP of the Skellam mechanism.
    """
    a = np.asarray(orders, dtype=np.float64)
    with np.errstate(over="ignore"):  # noise so weak that the first of the two bounds is infinite
        beyond_gaussian = np.minimum(((2 * a - 1) * d2**2 + 6 * d1) / variance / (4 * variance), 3 * d1 / (2 * variance))
    return np.asarray(a * d2**2 / (2 * variance) + beyond_gaussian)


def sampled_rdp(orders: npt.NDArray[np.int64], rdp: Floats, sample_rate: float) -> Floats:
    """Rényi divergence at ``orders`` after Poisson sampling, for a mechanism of symmetric additive noise.

    ``rdp``: of the mechanism itself at every order 2, 3, ..., up to the largest of ``orders`` or further.
    """
    from scipy.special import gammaln, logsumexp

    if sample_rate == 1:
        return rdp[orders - 2]
    k = np.arange(orders.max() + 1)
    log_moment = np.concatenate(([0.0, 0.0], (k[2:] - 1) * rdp[: len(k) - 2]))  # ln E_Q[r^k]; r has mean 1
    a = orders[:, None]
    inside = k[None, :] <= a
    rest = np.where(inside, a - k, 0)
    log_binomial = gammaln(a + 1) - gammaln(k + 1) - gammaln(rest + 1)
    terms = log_binomial + k * math.log(sample_rate) + rest * math.log1p(-sample_rate) + log_moment
    log_sum = logsumexp(np.where(inside, terms, -np.inf), axis=1)
    return np.asarray(np.maximum(log_sum, 0.0) / (orders - 1))


def integer_rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Epsilon at ``delta`` of Skellam and Gaussian events together, by Rényi divergences of integer orders up to 1,024."""
    from dp_accounting.rdp import rdp_privacy_accountant

    if any(event.noise_multiplier == 0 for event in events):
        return math.inf
    total: Any = np.zeros(len(ORDERS))
    every = np.arange(2, ORDERS.max() + 1)
    for event in events:
        if event.kind == "skellam":
            one = skellam_rdp(every, event.variance, event.d1, event.d2)
        else:
            one = every / (2 * event.noise_multiplier**2)
        total += event.count * sampled_rdp(ORDERS, one, event.sample_rate)
    return float(rdp_privacy_accountant.compute_epsilon(ORDERS, total, delta)[0])
