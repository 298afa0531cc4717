"""The rows of a first linear layer's update, with what is known of their error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.attack import Knowledge, Sight
from pppml_core.learning.rounding import error_variance
from pppml_imprint.first_layer import FirstLayer

Numbers = npt.NDArray[np.float64]
#: relative rounding error of float32 sums of a few dozen terms, of the largest value.
_FLOAT32 = 1e-6


@dataclass(frozen=True)
class Rows:
    """For one image ``x`` row ``i`` is ``c_i (x, 1)`` with an unknown factor ``c_i``; for several it is the sum over those that reach it.

    Args:
        weight: ``(rows, pixels)``.
        bias: ``(rows,)``.
        weight_error, bias_error: standard deviation of the error of one coordinate: noise, rounding, float32.
    """

    weight: Numbers
    bias: Numbers
    weight_error: float
    bias_error: float

    @classmethod
    def of(cls, sight: Sight, layer: FirstLayer, ctx: Knowledge) -> Rows:
        """Those of a sum. Its sign, rate and clip are common factors of a row and its bias, which every ratio is free of."""
        weight, bias = (np.asarray(sight.update[name]) for name in (layer.weight, layer.bias))
        exact = weight.dtype == np.float64
        errors = []
        for name, array in ((layer.weight, weight), (layer.bias, bias)):
            rounding = (1e-12 if exact else _FLOAT32) * float(np.abs(array).max(initial=0.0))
            # The bound: dark pixels are many coordinates of one value, rounded from one place; with the mean, steps would be found in them.
            errors.append(float(np.sqrt(rounding**2 + error_variance(sight, ctx, name, at_most=True))))
        return cls(weight.astype(np.float64), bias.astype(np.float64), max(errors[0], 1e-300), max(errors[1], 1e-300))

    @property
    def whitened(self) -> Numbers:
        """Weight and bias side by side, ``(rows, pixels + 1)``, each coordinate's error 1."""
        return np.concatenate([self.weight / self.weight_error, self.bias[:, None] / self.bias_error], axis=1)
