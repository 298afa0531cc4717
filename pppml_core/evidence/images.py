"""How close a reconstruction comes to the patient's image, and whether it picks that patient out of look-alikes.

All images here are float64 ``(n, channels, *size)`` with 2 or 3 spatial axes and values in [0, 1]; :func:`to_unit` makes them so. PSNR
and SSIM say little by themselves: medical images are alike, and their mean is already a good picture of anyone (:mod:`.guesses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PppmlError
from pppml_core.learning.stats import Interval, wilson

Numbers = npt.NDArray[np.float64]
#: mean squared errors below which the literature counts an image as recovered (Zhao, Mopuri and Bilen 2020, figure 1).
THRESHOLDS = (1e-2, 1e-3, 1e-4)
#: of equal images the PSNR is infinite; it is given as this, which is above the error of 8-bit pictures and of float32 read-outs.
MOST_PSNR = 100.0
_WINDOW, _SIGMA = 11, 1.5  # Wang, Bovik, Sheikh and Simoncelli 2004, section III


def to_unit(images: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike) -> Numbers:
    """Images of a task's units in [0, 1], clamped; what is no number becomes mid-grey.

    Args:
        images: ``(n, channels, *size)``.
        low: smallest value in the task's units, broadcast against one image, e.g. ``(channels, 1, 1)``.
        high: largest; a channel in which both are equal becomes 0.
    """
    x, lowest = np.asarray(images, np.float64), np.asarray(low, np.float64)
    span = np.asarray(high, np.float64) - lowest
    with np.errstate(invalid="ignore"):  # infinity less infinity: no number
        unit = np.where(span > 0, (x - lowest) / np.where(span > 0, span, 1.0), 0.0)
    return np.asarray(np.clip(np.where(np.isnan(unit), 0.5, unit), 0.0, 1.0))


def mse(reconstructed: Numbers, true: Numbers) -> Numbers:
    """Mean squared error of each pair over all its pixels and channels, ``(n,)``, in [0, 1]."""
    return np.asarray(np.square(_flat(reconstructed) - _flat(true)).mean(axis=1))


def psnr(reconstructed: Numbers, true: Numbers) -> Numbers:
    """``-10 log10 MSE`` of each pair in decibel, ``(n,)``, in [0, 100]: the peak is 1."""
    return psnr_of(mse(reconstructed, true))


def psnr_of(error: npt.ArrayLike) -> Numbers:
    """The PSNR that belongs to a mean squared error in [0, 1], of any shape."""
    least = 10.0 ** (-MOST_PSNR / 10.0)
    return np.asarray(-10.0 * np.log10(np.maximum(np.asarray(error, np.float64), least)))


def ssim(reconstructed: Numbers, true: Numbers) -> Numbers:
    """Structural similarity of each pair, ``(n,)``, in [-1, 1] (Wang, Bovik, Sheikh and Simoncelli 2004), by MONAI.

    Gaussian window of 11 pixels and standard deviation 1.5, where it lies wholly inside; data range 1; the mean over channels. Images
    that are smaller get the largest odd window that fits.
    """
    import torch
    from monai.metrics.regression import compute_ssim_and_cs

    dims = true.ndim - 2
    window = [min(_WINDOW, side - 1 + side % 2) for side in true.shape[2:]]
    one, other = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (reconstructed, true))
    found, _ = compute_ssim_and_cs(one, other, spatial_dims=dims, kernel_size=window, kernel_sigma=[_SIGMA] * dims)
    return np.asarray(found.double().flatten(1).mean(1))


def success_rates(errors: npt.ArrayLike, level: float = 0.95) -> dict[float, Interval]:
    """Share of images whose mean squared error is below each of :data:`THRESHOLDS`, with Wilson's interval. At least one image."""
    values = np.asarray(errors, np.float64)
    return {threshold: wilson(int((values < threshold).sum()), len(values), level) for threshold in THRESHOLDS}


def matched(reconstructed: Numbers, true: Numbers) -> tuple[npt.NDArray[np.int64], Numbers]:
    """Which reconstruction is of which true image: the pairs of least total squared error (the Hungarian method, by scipy).

    Args:
        reconstructed: ``k`` images in any order; more than the true ones or fewer.
        true: ``n`` images.

    Returns:
        For each true image the place of its reconstruction, -1 where none is left, and the mean squared error, NaN there.

    Matching uses the truth: with ``k > n`` a true image gets the best of several tries, so a blind guess must have as many.
    """
    from scipy.optimize import linear_sum_assignment

    place, error = np.full(len(true), -1, np.int64), np.full(len(true), np.nan)
    if len(reconstructed) == 0:
        return place, error
    cost = np.stack([np.square(_flat(reconstructed) - x).mean(axis=1) for x in _flat(true)])
    rows, columns = linear_sum_assignment(cost)
    place[rows], error[rows] = columns, cost[rows, columns]
    return place, error


def identify(reconstructed: Numbers, gallery: Numbers) -> Numbers:
    """How well each image of a gallery fits the best of some reconstructions: the largest normalized cross-correlation, ``(M,)``.

    Args:
        reconstructed: ``k`` images, of one or several patients.
        gallery: ``M`` images.

    Both are centred and scaled over all pixels and channels; a flat image correlates with nothing (0). No truth is used: if the
    reconstructions say nothing of the victim and it is no different from the others of its gallery, its rank is uniform for any ``k``.
    """
    if len(reconstructed) == 0:
        return np.zeros(len(gallery))
    return np.asarray((_standard(gallery) @ _standard(reconstructed).T).max(axis=1))


def rank(scores: npt.ArrayLike, victim: int, leave_out: Sequence[int] = ()) -> int:
    """Place of the victim when a gallery is sorted by score, the largest first; 1 is identified. Ties count against the attack.

    ``leave_out``: places that do not compete: other victims of the same sum, copies of the same image. NaN is the lowest score.
    """
    values = np.asarray(scores, np.float64)
    values = np.where(np.isnan(values), -np.inf, values)
    others = np.delete(values, [victim, *leave_out])
    return 1 + int(np.count_nonzero(others >= values[victim]))


def copies(gallery: npt.NDArray[Any], victim: int) -> list[int]:
    """Other places of a gallery that hold exactly the victim's image."""
    same = (gallery == gallery[victim]).reshape(len(gallery), -1).all(axis=1)
    return [int(i) for i in np.flatnonzero(same) if i != victim]


def mask_dice(original: npt.NDArray[Any], reconstructed: npt.NDArray[Any]) -> float | None:
    """Dice of two lesion masks (anything above 0 is lesion), of one shape; None where the original's is empty.

    Both masks are to be *read by one model*, the run's own, from the original and from the reconstruction. This asks what an attacker
    with the published model could outline. Comparing with the drawn mask would mix in the model's own errors, and a threshold on
    brightness (Otsu's) parts air from tissue, not lesion from lung: it scores any picture of a chest well.
    """
    one, other = np.asarray(original) > 0, np.asarray(reconstructed) > 0
    if one.shape != other.shape:
        raise PppmlError(f"masks of shape {one.shape} and {other.shape} cannot be compared", place="lesion masks")
    if not one.any():
        return None
    return float(2.0 * (one & other).sum() / (one.sum() + other.sum()))


def _flat(images: npt.NDArray[Any]) -> Numbers:
    return np.asarray(images, np.float64).reshape(len(images), -1)


def _standard(images: Numbers) -> Numbers:
    centred = _flat(images) - _flat(images).mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.where(length > 1e-9, length, np.inf))
