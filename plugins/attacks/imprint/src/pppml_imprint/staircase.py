"""Reads a planted layer: its rows, in order of their thresholds, are a staircase that steps down by one image at a time.

Row ``i`` is the sum of ``c (x, 1)`` over the images ``x`` above its threshold. Where no image lies between two thresholds the rows are
equal but for their errors, and are averaged; where they differ, the difference is ``c (x, 1)`` of the one image between (or of several,
which are then lost). Fowl et al. 2022 take neighbouring rows alone, which is the same without noise.

With an error of standard deviation ``s`` on each coordinate, an image with the factor ``c`` between steps of ``a`` and ``b`` rows is read
with a mean squared error of ``s^2 (1/a + 1/b) / c^2`` a pixel. One image alone, whose gradient of norm ``C`` (the clip) lies in ``a``
rows of this layer, has ``a c^2 (|x|^2 + 1) = C^2``: ``s^2 (|x|^2 + 1) / C^2``, whatever the number of rows. The error of its factor adds
up to ``mean(x^2)`` times as much, along ``x``.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.stats import chi2

from pppml_imprint.rows import Numbers, Rows

#: chance that a staircase without a step is given one, over all its rows.
_FALSE_STEP = 1e-3
#: an image's factor is at least so many of its standard errors, or its scale would be a guess.
_SURE = 3.0


def read_staircase(rows: Rows, weights: Numbers, biases: Numbers) -> Numbers:
    """Images, ``(k, pixels)``, one for each step that is seen; those of steps with several images in them are mixtures.

    Args:
        rows: of the update.
        weights: of the planted layer, ``(rows, pixels)``, all one query.
        biases: ``(rows,)``.
    """
    order = np.argsort(-biases, kind="stable")
    query, thresholds = weights.mean(axis=0), -biases[order]
    values = rows.whitened[order]
    edges = steps(values)
    levels = [values[a:b].mean(axis=0) for a, b in pairwise(edges)]
    lengths = np.diff(edges).astype(np.float64)
    # Above its last step the staircase is exactly zero; where its last level is, there is no image in the last bin.
    if lengths[-1] * np.square(levels[-1]).sum() < chi2.isf(_FALSE_STEP, values.shape[1]):
        levels[-1] = np.zeros(values.shape[1])
        lengths[-1] = np.inf
    levels, lengths = [*levels, np.zeros(values.shape[1])], np.append(lengths, np.inf)
    found = []
    for i, end in enumerate(edges[1:]):
        difference, error = levels[i] - levels[i + 1], float(np.sqrt(1 / lengths[i] + 1 / lengths[i + 1]))
        if error == 0.0:
            continue
        between = (thresholds[end - 1], thresholds[end] if end < len(thresholds) else np.inf)
        image = difference[:-1] * rows.weight_error
        factor = _factor(image, difference[-1] * rows.bias_error, query, between, (rows.weight_error * error, rows.bias_error * error))
        if factor:
            found.append(image / factor)
    return np.stack(found) if found else np.zeros((0, rows.weight.shape[1]))


def steps(values: Numbers) -> list[int]:
    """Where levels of ``values`` (rows with errors of 1) begin, 0 first and the number of rows last.

    Rows next to each other that differ by more than their error are split first; then each stretch, again and again, where the means of
    its two sides differ most (binary segmentation by the CUSUM statistic), as long as that is significant.
    """
    count, width = values.shape
    limit = float(chi2.isf(_FALSE_STEP / count, width))
    near = np.square(np.diff(values, axis=0)).sum(axis=1) / 2.0
    edges = [0, *(int(i) + 1 for i in np.flatnonzero(near > limit)), count]
    sums = np.concatenate([np.zeros((1, width)), np.cumsum(values, axis=0)])
    todo, done = list(pairwise(edges)), []
    while todo:
        a, b = todo.pop()
        if b - a > 1:
            left = np.arange(1, b - a, dtype=np.float64)
            off = sums[a + 1 : b] - sums[a] - left[:, None] / (b - a) * (sums[b] - sums[a])
            statistic = np.square(off).sum(axis=1) * (b - a) / (left * (b - a - left))
            if statistic.max() > limit:
                at = a + 1 + int(statistic.argmax())
                todo += [(a, at), (at, b)]
                continue
        done.append(a)
    return [*sorted(done), count]


def _factor(image: Numbers, bias: float, query: Numbers, between: tuple[float, float], errors: tuple[float, float]) -> float:
    """The factor of a step: from its bias, and from the bin, which tells the image's value of the query. 0: neither says it well enough.

    The two are weighed by their relative variances: the bias has the error of one coordinate, the bin that of its width.
    """
    estimates = []
    if abs(bias) > 0:
        estimates.append((bias, (errors[1] / bias) ** 2))
    middle, value = (between[0] + between[1]) / 2.0, float(query @ image)
    if np.isfinite(middle) and middle and value:
        width = (between[1] - between[0]) / np.sqrt(12.0) / middle
        estimates.append((value / middle, width**2 + (errors[0] * float(np.linalg.norm(query)) / value) ** 2))
    sure = [(factor, 1.0 / variance) for factor, variance in estimates if variance < _SURE**-2]
    if not sure:
        return 0.0
    return sum(f * w for f, w in sure) / sum(w for _, w in sure)
