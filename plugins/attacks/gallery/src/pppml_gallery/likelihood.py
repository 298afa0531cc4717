"""The log-likelihood of an observed mean update for each candidate, when everything else in it is Gaussian.

``o = w U_v + w (U_1 + ... + U_k) + e``: the victim's update, those of ``k`` unknown images, and noise and rounding ``e`` of known
variance. The unknown images are like the public ones, so their sum has the mean ``k m`` and the covariance ``k C``; ``m`` itself is known
only from ``P`` public images, which adds ``k^2 C / P``. ``C`` is the public updates' covariance, shrunk to its diagonal as Schäfer and
Strimmer 2005 do (the intensity that minimizes the expected squared error, target "diagonal, unequal variance").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Others:
    """What one unknown image adds. ``mean``: ``(d,)``; its covariance is ``diag(diagonal) + factors^T factors``, ``(d,)`` and ``(P, d)``.

    ``count``: of how many images it was estimated.
    """

    mean: Numbers
    diagonal: Numbers
    factors: Numbers
    count: int


def others_like(public: Numbers, *, shrink: bool) -> Others:
    """Estimated of public images' updates, ``(P, d)`` with ``P >= 2``; without ``shrink`` the covariance is its diagonal alone."""
    count = len(public)
    mean = public.mean(axis=0)
    centred = public - mean
    variance = np.square(centred).sum(axis=0) / (count - 1)
    if not shrink:
        return Others(mean, variance, centred[:0], count)
    intensity = _intensity(centred)
    return Others(mean, intensity * variance, np.sqrt((1 - intensity) / (count - 1)) * centred, count)


class Likelihood:
    """Of what was seen, for each candidate.

    Args:
        observed: ``o``, ``(d,)``.
        weight: ``w``.
        variance: of noise and rounding by coordinate, ``(d,)``, above 0.
        others: what an unknown image adds; needed where there are any.
        unknown: ``k``, how many there are.
    """

    def __init__(self, observed: Numbers, weight: float, variance: Numbers, others: Others | None = None, unknown: int = 0) -> None:
        self._weight, self._rest, factors = weight, observed, np.zeros((0, len(observed)))
        if unknown:
            assert others is not None
            scale = weight**2 * (unknown + unknown**2 / others.count)
            self._rest = observed - weight * unknown * others.mean
            variance, factors = variance + scale * others.diagonal, np.sqrt(scale) * others.factors
        self._root = 1 / np.sqrt(variance)
        self._factors = factors * self._root
        # Woodbury: the covariance is a diagonal and a few outer products, so its inverse needs only a matrix as small as P x P.
        self._inner = np.eye(len(factors)) + self._factors @ self._factors.T

    def of(self, candidates: Numbers) -> Numbers:
        """``log p(observed | candidate)`` up to a shared constant, ``(M,)``; ``candidates``: their updates, ``(M, d)``."""
        rest = (self._rest - self._weight * candidates) * self._root
        seen = self._factors @ rest.T
        explained = np.einsum("pm,pm->m", seen, np.linalg.solve(self._inner, seen)) if len(seen) else 0.0
        return np.asarray(-0.5 * (np.einsum("md,md->m", rest, rest) - explained))


def _intensity(centred: Numbers) -> float:
    """How far the covariance is shrunk, in (0, 1]: summed variance of its off-diagonal entries over their summed squares.

    Everything follows from the Gram matrix and from sums over coordinates, so that no ``d x d`` matrix is made.
    """
    count = len(centred)
    gram = centred @ centred.T
    squares = np.square(centred)
    # Sums over all i, j with i != j, of the entries' mean over images, and of their squares, where w_kij = x_ki x_kj.
    squared_mean = (np.square(gram).sum() - np.square(squares.sum(axis=0)).sum()) / count**2
    mean_square = (np.square(np.diag(gram)).sum() - np.square(squares).sum()) / count
    covariances = squared_mean * (count / (count - 1)) ** 2
    variances = count**2 / (count - 1) ** 3 * (mean_square - squared_mean)
    return float(np.clip(variances / covariances, 1e-3, 1.0)) if covariances > 0 else 1.0
