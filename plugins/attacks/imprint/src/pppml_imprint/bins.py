"""What sorts images into bins, and how many of a sum are expected to be alone in theirs (Fowl et al. 2022, section 3.1)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

Numbers = npt.NDArray[np.float64]
#: below every image: the first row is always active, or what lies below the public images would be lost. In standard deviations.
_BELOW = 30.0


def query_of(images: npt.NDArray[np.floating], kind: Literal["brightness", "random"], seed: int) -> Numbers:
    """A direction ``h``, ``(pixels,)``, with ``<h, x>`` of standard deviation 1 over ``images``, ``(n, channels, *size)``.

    Where all images are equally bright (each was standardized by itself) a random direction takes the place of brightness.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    query = np.ones(flat.shape[1]) / flat.shape[1]
    if kind == "random" or (flat @ query).std() < 1e-4 * np.sqrt(np.square(flat).mean()):
        query = np.random.default_rng([seed, 1]).normal(size=flat.shape[1])
    spread = float((flat @ query).std())
    return query / spread if spread > 0 else query


def thresholds_of(values: Numbers, bins: int, kind: Literal["empirical", "normal"]) -> Numbers:
    """``bins`` ascending thresholds that split the values of the query into parts of equal probability; the first is below all.

    An image whose value is in ``(threshold[i], threshold[i + 1]]`` is in bin ``i``; the last bin has no upper end.
    """
    shares = np.arange(1, bins) / bins
    mean, spread = float(values.mean()), float(values.std()) or 1.0
    inner = np.quantile(values, shares) if kind == "empirical" else norm.ppf(shares, mean, spread)
    # Equal thresholds would make rows that no image tells apart.
    inner = np.maximum.accumulate(inner + np.arange(bins - 1) * 1e-9 * spread)
    return np.concatenate([[min(float(values.min()), mean) - _BELOW * spread], inner])


def bin_probabilities(values: Numbers, thresholds: Numbers) -> Numbers:
    """Share of ``values`` in each bin, ``(bins,)``; what is below the first threshold is in none."""
    edges = np.concatenate([np.asarray(thresholds, np.float64), [np.inf]])
    counts = np.diff(np.searchsorted(np.sort(np.asarray(values, np.float64)), edges, side="right"))
    return np.asarray(counts / len(values), np.float64)


def expected_share(probabilities: npt.ArrayLike, n: int) -> float:
    """Expected share of ``n`` images that are alone in their bin, and so are recovered: the sum over bins of p (1 - p)^(n - 1).

    ``probabilities``: of the bins; for k equal ones it is (1 - 1/k)^(n - 1).
    """
    p = np.asarray(probabilities, np.float64)
    return float((p * (1.0 - p) ** (n - 1)).sum())
