"""What is measured of one answer of each kind, given the truth; :mod:`.scoring` puts them together with the blind guesses.

Every function returns metric -> number, or list with a number for each image or query: plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PppmlError
from pppml_core.evidence import images as picture
from pppml_core.evidence.images import Numbers

Metrics = dict[str, Any]
#: false positive rates at which members are counted ...
FALSE_POSITIVE_RATES = (0.01, 0.05)
#: ... where the non-members allow at least so many false positives: with fewer, the rate is not known to be that low ("rule of three").
_FEWEST = 3
_NO_NUMBER = -np.inf


def drawn(pictures: Numbers, true: Numbers) -> Metrics:
    """Of ``k`` pictures and ``n`` true images, all in [0, 1]: ``tries`` (``k``), and for each true image ``mse``, ``psnr`` and ``ssim``.

    Each true image is compared with the picture that the matching gives it; one that gets none with mid-grey.
    """
    best = paired(pictures, true)
    error = picture.mse(best, true)
    return {
        "tries": len(pictures),
        "mse": error.tolist(),
        "psnr": picture.psnr_of(error).tolist(),
        "ssim": picture.ssim(best, true).tolist(),
    }


def paired(pictures: Numbers, true: Numbers) -> Numbers:
    """For each true image its picture, in order; mid-grey where the attack gave fewer."""
    place, _ = picture.matched(pictures, true)
    return np.stack([pictures[p] if p >= 0 else np.full(true.shape[1:], 0.5) for p in place])


def ranked(scores: npt.ArrayLike, gallery: npt.NDArray[Any], places: Sequence[int]) -> Metrics:
    """Where the victims come in a gallery: for each ``rank``, ``picked`` (rank 1) and ``gallery``, how many it competed with and itself.

    ``scores``: of the ``M`` images, the largest is the guess. A victim does not compete with other victims of the same step, which an
    attack may rightly score higher, nor with copies of its own image.
    """
    values = _flat(scores, len(gallery), "gallery")
    found: Metrics = {"rank": [], "picked": [], "gallery": []}
    for place in places:
        out = sorted({*places, *picture.copies(gallery, place)} - {place})
        found["rank"].append(picture.rank(values, place, out))
        found["gallery"].append(len(gallery) - len(out))
    found["picked"] = [r == 1 for r in found["rank"]]
    return found


def outlined(pictures: Numbers, true: Numbers, read: Callable[[Numbers], npt.NDArray[Any]]) -> Metrics:
    """``dice`` of the lesion masks that ``read`` reads from each true image and its picture; None where it reads none from the true one.

    ``read``: images in [0, 1] to masks, ``(n, channels, *size)`` to ``(n, *size)``; see :func:`.images.mask_dice` for why a model reads
    both.
    """
    one, other = read(true), read(paired(pictures, true))
    return {"dice": [picture.mask_dice(a, b) for a, b in zip(one, other, strict=True)]}


def named(labels: npt.ArrayLike | None, counts: npt.ArrayLike | None, true: npt.NDArray[np.int64], classes: int) -> Metrics:
    """Of a batch of ``n`` labels in any order.

    ``label_accuracy``: the share that is named, ``1 - sum |counts - true counts| / (2 n)`` for ``n`` labels, and for fewer or more their
    overlap with the true ones over the larger number; ``prevalence_error``: error of the share of the class that is most off, in [0, 1];
    ``labels_right``: whether every label is right. From ``labels``, or from ``counts`` where those are not given; labels that are no class
    count as wrong. ``counts`` need not be whole.
    """
    wanted = np.bincount(true, minlength=classes).astype(np.float64)
    if labels is not None:
        given = np.asarray(labels).astype(np.int64).ravel()
        got, said = np.bincount(given[(given >= 0) & (given < classes)], minlength=classes).astype(np.float64), float(len(given))
    else:
        finite = _flat([] if counts is None else counts, classes, "counts")
        got = np.where(np.isfinite(finite), np.maximum(finite, 0.0), 0.0)
        said = float(got.sum())
    n = len(true)
    return {
        "label_accuracy": float(np.minimum(got, wanted).sum()) / max(n, said),
        "labels_right": said == n and bool(np.array_equal(got, wanted)),
        "prevalence_error": float(np.abs(got / max(said, 1e-12) - wanted / n).max()),
    }


def told_members(scores: npt.ArrayLike, members: npt.NDArray[np.bool_]) -> Metrics:
    """Of queries of which some are members, by descending score; ties count against the attack.

    ``members``, ``others``: how many; ``auc``: area under the ROC curve (None without both); ``found@RATE``: members before the first
    ``RATE * others + 1`` non-members, None with fewer than ``3 / RATE`` non-members. ``member_ranks``, ``other_ranks``: place of each among
    all, from 1 for the lowest score, in the order of the queries.
    """
    from sklearn.metrics import roc_auc_score

    values, true = _flat(scores, len(members), "members"), np.asarray(members, bool)
    inside, outside = int(true.sum()), int((~true).sum())
    order = np.lexsort((true, -values))  # of equal scores, non-members come first
    ordered, ranks = true[order], np.empty(len(true), np.int64)
    ranks[order] = np.arange(len(true), 0, -1)
    before = np.cumsum(ordered)
    found: Metrics = {"members": inside, "others": outside, "auc": None}
    if inside and outside:
        # Minus infinity is beyond what the library takes; ranks order alike.
        found["auc"] = float(roc_auc_score(true, np.unique(values, return_inverse=True)[1]))
    for rate in FALSE_POSITIVE_RATES:
        allowed, last = int(rate * outside + 1e-9), np.flatnonzero(~ordered)
        enough = outside * rate >= _FEWEST - 1e-9
        found[f"found@{rate:g}"] = int(before[last[allowed]]) if enough else None
    return {**found, "member_ranks": ranks[true].tolist(), "other_ranks": ranks[~true].tolist()}


def placed_sites(scores: npt.ArrayLike, true: npt.NDArray[np.int64]) -> Metrics:
    """``site_right`` for each query: its own site has the highest score, alone. ``scores``: ``(n, sites)``; ``true``: ``(n,)`` indices."""
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or len(values) != len(true):
        raise PppmlError(f"scores of shape {values.shape} for {len(true)} queries", place="scoring of sites")
    return {"site_right": [picture.rank(row, int(site)) == 1 for row, site in zip(values, true, strict=True)]}


def decoded(update: npt.ArrayLike, true: npt.NDArray[Any]) -> Metrics:
    """``correlation`` (Pearson's; 0 where one of both is constant), ``max_error`` of a coordinate, ``relative_error`` (L2).

    An update of 0 has relative error 1. What is no finite number is taken as 0.
    """
    right = np.asarray(true, np.float64).ravel()
    guess = np.nan_to_num(_flat(update, len(right), "update"), posinf=0.0, neginf=0.0)
    centred = [x - x.mean() for x in (guess, right)]
    lengths = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    size = float(np.linalg.norm(right))
    return {
        "correlation": float(centred[0] @ centred[1]) / lengths if lengths else 0.0,
        "max_error": float(np.abs(guess - right).max()),
        "relative_error": float(np.linalg.norm(guess - right)) / size if size else float(np.abs(guess).max() > 0),
    }


def _flat(values: npt.ArrayLike, length: int, kind: str) -> Numbers:
    x = np.asarray(values, np.float64).ravel()
    if len(x) != length:
        raise PppmlError(f"{len(x)} numbers where {length} are expected", place=f"scoring of {kind}")
    return np.where(np.isnan(x), _NO_NUMBER, x)
