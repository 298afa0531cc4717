"""What updates of images have in common: along it one that was seen says little about a single image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
#: of the average public variance along a direction: far above it a direction counts little, far below it in full.
RIDGE = 0.1


class Usual:
    """Public images' updates ``(P, coordinates)``: their mean, and a metric in which directions along which they vary count less.

    The metric is ``r (X'X + r)^-1`` of the centred updates ``X``: the inverse covariance, shrunk to the identity, up to scale. A common
    label or scanner pulls many images the same way; only what is an image's own is left.
    """

    def __init__(self, updates: Numbers) -> None:
        self.mean = updates.mean(axis=0)
        self._centred = updates - self.mean
        gram = self._centred @ self._centred.T
        self._inner = gram + (RIDGE * float(np.trace(gram)) / len(gram) + 1e-30) * np.eye(len(gram))

    def metric(self, vector: Numbers) -> Numbers:
        """The metric times a vector ``(coordinates,)``, by the Woodbury identity: no ``d x d`` matrix is made."""
        return np.asarray(vector - np.linalg.solve(self._inner, self._centred @ vector) @ self._centred)

    def length(self, vector: Numbers) -> float:
        """Of a vector in the metric; 1 where it has none, to divide by."""
        squared = float(vector @ self.metric(vector))
        return float(np.sqrt(squared)) if squared > 0 else 1.0
