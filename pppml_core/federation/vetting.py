"""What a site can see in the weights it is sent: layers that somebody made to read images with, not to learn.

A lying server that keeps to the agreed architecture still chooses the weights: rows that are all one query sort images into bins (Fowl
et al. 2022, arXiv:2110.13057), dead layers silence all sites but one (Pasquini et al. 2022, arXiv:2111.07380), huge logits single out an
image of a batch (Wen et al. 2022, arXiv:2202.00580). Each leaves a trace that neither initialization nor training does.

This is a smoke detector. It finds what is published and proves nothing: who knows its limits can stay below them. What the site's own
initial model shows as well is no finding, as a network may well begin with a head of zeros. Nothing but that model is compared with, so a
verdict depends on the weights alone, and a server gains nothing by going step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

#: cosine above which two rows (or columns) of a layer are one; and above which they are copies.
ALIKE, COPY = 0.999, 0.99999
#: how many wide rows may not be one, or of any width copies: bins for as many images, which nothing trains.
ALIKE_ROWS = 8
#: how many of those compared may not be, where they are columns, or too narrow to differ much.
ALIKE_SHARE = 0.25
#: numbers in a row from which on likeness says something, in a wide one, and in a column: those of a small head are alike when classes are.
ROW_WIDTH, WIDE, COLUMN_WIDTH = 8, 32, 32
#: rows are compared with each other in blocks of so many: copies that are one to a block are not found.
BLOCK = 256
#: a row is dead below this share of the initial tensor's root mean square; training shrinks nothing as far.
DEAD = 1e-6
#: a bias this many times its row's norm outweighs what the row says of any image.
SATURATED = 30.0
#: share of rows, dead, constant or saturated, from which on a layer is.
MOST = 0.5
#: growth of a row's root mean square over the initial tensor's, which counts as at least so much: of a matrix, and of a vector. Rounds of
#: heavy noise may make weights of 0.01 a hundred times as large.
MATRIX_GROWTH, LEAST_MATRIX = 1000.0, 0.01
VECTOR_GROWTH, LEAST_VECTOR = 100.0, 1.0
#: running statistics are measured, not learned: their size is that of the images.
_MEASURED = ("running_mean", "running_var")
#: kinds of traces, the plainest first.
_KINDS = ("infinite", "rows", "columns", "flat", "dead", "saturated", "huge")


def suspicious(weights: Arrays, initial: Arrays) -> list[str]:
    """Sentences about what does not look like a trained network, each beginning with the name of a tensor, the plainest first.

    Empty: nothing was found.

    Args:
        weights: name -> floating array. The first axis of a weight are its rows: outputs, or filters. ``X.bias`` belongs to ``X.weight``.
        initial: the model that this site's own configuration begins with, same names and shapes.
    """
    found = []
    for name in weights:
        for kind, said in _traces(name, weights, initial[name]).items():
            if kind not in _traces(name, initial, initial[name]):
                found.append((_KINDS.index(kind), f"{name} {said}"))
    return [said for _, said in sorted(found, key=lambda item: item[0])]


def _traces(name: str, weights: Arrays, begin: npt.NDArray[Any]) -> dict[str, str]:
    """What one tensor shows: kind of trace -> the rest of a sentence."""
    array = weights[name]
    if not np.isfinite(array).all():
        return {"infinite": "holds NaN or infinity"}
    if not array.size or name.endswith(_MEASURED):
        return {}
    rows = np.asarray(array, np.float32).reshape(len(array), -1) if array.ndim else np.asarray(array, np.float32).reshape(1, 1)
    sizes = _sizes(rows)
    usual = float(_sizes(np.asarray(begin, np.float32).reshape(1, -1))[0])
    found = {}
    most, least = (MATRIX_GROWTH, LEAST_MATRIX) if array.ndim > 1 else (VECTOR_GROWTH, LEAST_VECTOR)
    if (grown := float(sizes.max()) / max(usual, least)) > most:
        found["huge"] = f"is {grown:.3g} times as large as in the initial model: training diverged, or logits are to single out an image"
    if not name.endswith("bias") and (dead := int((sizes < DEAD * usual).sum())) >= MOST * len(rows):
        found["dead"] = f"is dead: {dead} of {len(rows)} rows are zero, so that other sites' updates could be silenced"
    if array.ndim > 1:
        found.update(_likeness(rows))
    if name.endswith("bias") and (weight := weights.get(name.removesuffix("bias") + "weight")) is not None:
        found.update(_saturation(rows, weight))
    return found


def _sizes(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Root mean square of each row; infinite where squares overflow."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows).astype(np.float64) / rows.shape[1]))


def _likeness(rows: npt.NDArray[np.float32]) -> dict[str, str]:
    """Rows that are one query, columns that are one pattern, rows that take a mean and nothing else."""
    found, (count, width) = {}, rows.shape
    if width >= ROW_WIDTH:
        share = 0.0 if width >= WIDE else ALIKE_SHARE
        if (alike := max(_alike(rows, ALIKE, share), _alike(rows, COPY))) > 0:
            found["rows"] = f"has {alike} of {count} rows in one direction, as a layer that sorts images into bins"
        spread, largest = rows.max(axis=1) - rows.min(axis=1), np.abs(rows).max(axis=1)
        if (flat := int(((spread <= 1e-5 * largest) & (largest > 0)).sum())) >= MOST * count:
            found["flat"] = f"has {flat} of {count} rows that take the mean of what they are given and nothing else"
    if count >= COLUMN_WIDTH and (alike := _alike(rows.T, ALIKE, ALIKE_SHARE)) > 0:
        found["columns"] = f"has {alike} of {width} columns in one direction, so that its inputs' gradients are copies"
    return found


def _alike(rows: npt.NDArray[np.float32], cosine: float, share: float = 0.0) -> int:
    """How many rows have another one of their block in their direction; 0 where they are fewer than 8, or than this share of all."""
    alike = 0
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        products = block @ block.T
        lengths = np.sqrt(np.diagonal(products))
        np.fill_diagonal(products, 0.0)
        alike += int((products > cosine * lengths * lengths[:, None]).any(axis=1).sum())
    return alike if alike >= max(ALIKE_ROWS, share * len(rows)) else 0


def _saturation(bias: npt.NDArray[np.float32], weight: npt.NDArray[Any]) -> dict[str, str]:
    """A layer whose outputs its biases decide, whatever it is shown."""
    if bias.shape[1] != 1 or weight.ndim == 0 or len(weight) != len(bias):
        return {}
    norms = np.linalg.norm(np.asarray(weight, np.float32).reshape(len(weight), -1), axis=1)
    decided = int((np.abs(bias[:, 0]) > SATURATED * norms).sum())
    if decided < MOST * len(bias):
        return {}
    return {"saturated": f"outweighs the weights of {decided} of {len(bias)} rows, which are on or off whatever image they are shown"}
