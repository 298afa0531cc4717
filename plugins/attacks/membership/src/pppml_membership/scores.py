"""The formulas of RMIA and offline LiRA, on log-probabilities alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


def rmia(asked: Numbers, asked_out: Numbers, public: Numbers, public_out: Numbers, *, a: float, gamma: float) -> Numbers:
    """RMIA of each query, in [0, 1]: the larger, the likelier a member (Zarifzadeh et al. 2024, section 3, offline).

    Args:
        asked: log p(x | target) of the queries, ``(n,)``.
        asked_out: of the same under each reference model, none of which was trained on them, ``(references, n)``.
        public: log p(z | target) of public images, ``(m,)``.
        public_out: of the same under the reference models, NaN where the model was trained on it, ``(references, m)``.
        a: of ``p_in = a p_out + 1 - a``.
        gamma: see ``MembershipConfig``.

    Public images that every reference model was trained on are left out. Equal shares are ordered by the ratio itself: where every public
    image is beaten, as where the site's scanner differs from all others, the share alone would order nothing.
    """
    known = ~np.isnan(public_out).all(axis=0)
    beaten = np.exp(log_ratio(asked, asked_out, a)), np.exp(log_ratio(public[known], public_out[:, known], a))
    return np.asarray((share(*beaten, gamma) * known.sum() + beaten[0] / (1 + beaten[0])) / (known.sum() + 1))


def log_ratio(target: Numbers, out: Numbers, a: float) -> Numbers:
    """Log of p(x | target) over p(x), where p(x) is the mean of p_out, the average over ``out`` without NaN, and ``p_in``; ``(n,)``."""
    stranger = np.nanmean(np.exp(out), axis=0)
    return np.asarray(target - np.log(0.5 * ((1 + a) * stranger + (1 - a)) + 1e-300))


def share(asked: Numbers, public: Numbers, gamma: float) -> Numbers:
    """Of each query, the share of public images z with ``ratio_x / ratio_z >= gamma``; ``(n,)``."""
    return np.asarray(np.searchsorted(np.sort(public * gamma), asked, side="right") / len(public))


def lira(asked: Numbers, asked_out: Numbers) -> Numbers:
    """Offline LiRA with one variance for all (Carlini et al. 2022, section 4): ``-log P[N(mean of out, variance) > score]``; ``(n,)``.

    The score is log p / (1 - p). The variance is that of a query's scores over reference models, averaged over queries.
    """
    from scipy.stats import norm

    scores = logit(asked_out)
    deviation = float(np.sqrt(scores.var(axis=0, ddof=1).mean()))
    return np.asarray(-norm.logsf(logit(asked), scores.mean(axis=0), deviation or 1.0))


def logit(log_p: Numbers) -> Numbers:
    """``log p - log(1 - p)`` of log-probabilities, finite: 1 - p is at least 1e-45."""
    return np.asarray(log_p - np.log(-np.expm1(np.minimum(log_p, 0.0)) + 1e-45))
