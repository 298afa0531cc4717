"""Reads a linear layer as it is: rows that one image alone reaches hold it (Phong et al. 2017 for one image)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pppml_imprint.rows import Numbers, Rows

#: rows whose image would have a larger error than this share of the images' spread are left out.
_WORST = 0.1
#: least distance of two readings, relative to their size, that counts as different.
_SAME = 1e-4


def read_rows(rows: Rows, *, alone: bool) -> Numbers:
    """Images, ``(k, pixels)``.

    Args:
        rows: of the update.
        alone: the update is known to be of a single image; then all rows are read together.

    An image that several rows hold alone is found by their agreement: weights / bias of a row is a mixture of all images that reach it,
    and no two mixtures are alike. Where no rows agree, the one direction that explains most of all rows is given.
    """
    if alone:
        return together(rows, np.ones(len(rows.bias), bool))
    sure = np.abs(rows.bias) > 10.0 * rows.bias_error
    if sure.any():
        ratios = rows.weight[sure] / rows.bias[sure, None]
        errors = np.sqrt(rows.weight_error**2 + np.square(ratios).mean(axis=1) * rows.bias_error**2) / np.abs(rows.bias[sure])
        size = float(np.sqrt(np.median(np.square(ratios).mean(axis=1))))
        good = errors < _WORST * size
        if groups := _agreeing(ratios[good], errors[good] * 4.0 + _SAME * size):
            places = np.flatnonzero(sure)[good]
            found = []
            for group in groups:
                chosen = np.zeros(len(rows.bias), bool)
                chosen[places[group]] = True
                found.append(together(rows, chosen)[0])
            return np.stack(found)
    return together(rows, np.ones(len(rows.bias), bool))


def together(rows: Rows, chosen: npt.NDArray[np.bool_]) -> Numbers:
    """The one image of which all chosen rows are multiples, ``(1, pixels)``: total least squares, by the largest singular vector.

    Its mean squared error a pixel is about ``s^2 (|x|^2 + 1) / C^2`` where the chosen rows have a norm of ``C`` in all and ``s`` is the
    error of one coordinate. Empty where the rows are zero.
    """
    values = rows.whitened[chosen]
    if not values.any():
        return np.zeros((0, values.shape[1] - 1))
    _, vectors = np.linalg.eigh(values @ values.T)
    direction = vectors[:, -1] @ values
    scale = direction[-1] * rows.bias_error
    if scale == 0.0:
        return np.zeros((0, values.shape[1] - 1))
    return np.asarray(direction[:-1] * rows.weight_error / scale)[None]


def _agreeing(ratios: Numbers, tolerance: Numbers) -> list[npt.NDArray[np.int64]]:
    """Groups of two or more rows whose readings agree within their tolerances (root mean square a pixel), the largest first."""
    if len(ratios) < 2:
        return []
    centred = ratios - ratios.mean(axis=0)
    squares = np.square(centred).mean(axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2.0 * centred @ centred.T / ratios.shape[1], 0.0))
    near = distance < np.hypot(tolerance[:, None], tolerance)
    left, groups = np.ones(len(ratios), bool), []
    while left.any():
        # The row with most neighbours is the middle of its group.
        counts = np.where(left, (near & left).sum(axis=1), 0)
        middle = int(counts.argmax())
        if counts[middle] < 2:
            break
        group = np.flatnonzero(near[middle] & left)
        groups.append(group)
        left[group] = False
    return groups
