"""What sorts images into bins, and how many of a sum are expected to be alone in theirs (Fowl et al. 2022, section 3.1)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom, norm

Numbers = npt.NDArray[np.float64]
Query = Literal["whitened", "random", "brightness"]
#: principal components with less than this share of the first one's spread are left out: they are noise, to which rounding adds.
_FINEST = 0.02
#: below every image: the first row is always active, or what lies below the public images would be lost. In standard deviations.
_BELOW = 30.0


def query_of(images: npt.NDArray[np.floating], kind: Query, seed: int) -> Numbers:
    """A direction ``h``, ``(pixels,)``, with ``<h, x>`` of standard deviation 1 over ``images``, ``(n, channels, *size)``.

    ``brightness``: the mean of all pixels (the paper's). ``random``: normal entries of mean zero, so that a scanner's brightness does not
    put all images of a site into one bin. ``whitened``: a sum of the images' principal components with normal factors, each divided by
    its spread, so that no property by which sites differ decides alone. Where all images are equally bright, or are copies of one, a
    random direction takes the place of the others.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    rng = np.random.default_rng([seed, 1])
    usual = float(np.sqrt(np.square(flat).mean())) or 1.0
    query = np.zeros(flat.shape[1])
    if kind == "brightness":
        query = np.ones(flat.shape[1]) / flat.shape[1]
    elif kind == "whitened":
        _, spreads, components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        kept = spreads > max(_FINEST * spreads[0], 1e-9 * usual)
        query = (rng.normal(size=int(kept.sum())) / spreads[kept]) @ components[kept]
    if (flat @ query).std() <= 1e-4 * usual * float(np.abs(query).sum()):
        query = rng.normal(size=flat.shape[1])
        query -= query.mean()
    spread = float((flat @ query).std())
    return np.asarray(query / spread if spread > 0 else query)


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
    return np.asarray(_counts(values, thresholds) / len(values), np.float64)


def expected_share(probabilities: npt.ArrayLike, n: int) -> float:
    """Expected share of ``n`` images that are alone in their bin, and so are recovered: the sum over bins of p (1 - p)^(n - 1).

    ``probabilities``: of the bins; for k equal ones it is (1 - 1/k)^(n - 1).
    """
    p = np.asarray(probabilities, np.float64)
    return float((p * (1.0 - p) ** (n - 1)).sum())


def sampled_share(values: Numbers, thresholds: Numbers, n: int) -> float:
    """The same from a sample of images: the share of ``n`` of them, drawn without replacement, that are alone in their bin.

    Without bias for images like these, which :func:`expected_share` of their counts is not: with few images a bin it counts an image among
    its own rivals. Thresholds that were counted from the same ``values`` (``empirical``) make it too large. For more images than there are
    ``values`` it is the biased one all the same.
    """
    counts, size = _counts(values, thresholds), len(values)
    if n > size:
        return expected_share(counts / size, n)
    return float((counts / size * hypergeom.pmf(0, size - 1, np.maximum(counts - 1, 0), n - 1)).sum())


def _counts(values: Numbers, thresholds: Numbers) -> npt.NDArray[np.int64]:
    edges = np.concatenate([np.asarray(thresholds, np.float64), [np.inf]])
    return np.diff(np.searchsorted(np.sort(np.asarray(values, np.float64)), edges, side="right"))
