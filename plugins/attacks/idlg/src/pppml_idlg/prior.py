"""What images of this kind look like, learned from public ones: what a candidate costs beside its misfit, where noise hides the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dct, dctn

from pppml_core.interfaces.attack import Knowledge

Numbers = npt.NDArray[np.float64]
#: minus the logarithm of the density of images on the unit scale ``(n, channels, *size)``, summed over them, but for a constant.
Cost = Callable[[torch.Tensor], torch.Tensor]

#: public images below which only the roughness of images is learned; principal components at most.
FEWEST, COMPONENTS = 20, 60
#: mean difference of neighbouring pixels where there are no public images to take it from; a variance of a pixel is at least `LEAST`.
ROUGH, LEAST = 0.05, 1e-6


def unit_public(ctx: Knowledge) -> Numbers:
    """Public images on the unit scale, ``(n, channels, *size)``."""
    low = np.asarray(ctx.low, np.float64)
    span = np.maximum(np.asarray(ctx.high, np.float64) - low, 1e-12)
    return np.clip((np.asarray(ctx.public.images, np.float64) - low) / span, 0.0, 1.0)


def learned(ctx: Knowledge, dtype: torch.dtype) -> Cost:
    """The richest prior that the public images allow."""
    public = unit_public(ctx)
    return gaussian(public, dtype) if len(public) >= FEWEST else laplace(public, len(ctx.spec.size))


def gaussian(public: Numbers, dtype: torch.dtype) -> Cost:
    """A normal distribution: principal components, and independent cosine waves in all that they leave.

    The components (Tipping and Bishop 1999) are those of every second image and tell what aligned images share; the waves tell that what
    is left is smooth. Both variances are measured on the other half, on which nothing was fitted.
    """
    shape, flat = public.shape[1:], public.reshape(len(public), -1)
    fitted, held = flat[::2], flat[1::2]
    centre = fitted.mean(axis=0)
    axes = np.linalg.svd(fitted - centre, full_matrices=False)[2][: min(COMPONENTS, len(fitted) - 1)]
    moved = held - centre
    along = moved @ axes.T
    spread = np.maximum(np.square(along).mean(axis=0), LEAST)
    left = dctn((moved - along @ axes).reshape(-1, *shape), axes=range(2, public.ndim), norm="ortho")
    powers = np.maximum(np.square(left).mean(axis=0), LEAST)
    mean, basis, variances, power = (torch.from_numpy(x).to(dtype) for x in (flat.mean(axis=0), axes, spread, powers))
    waves = [torch.from_numpy(dct(np.eye(side), axis=0, norm="ortho")).to(dtype) for side in shape[1:]]

    def cost(unit: torch.Tensor) -> torch.Tensor:
        away = unit.flatten(1) - mean
        parts = away @ basis.T
        rest = (away - parts @ basis).reshape(-1, *shape)
        for wave in waves:
            rest = torch.tensordot(rest, wave, dims=([2], [1]))  # takes the first spatial axis, and puts its waves last
        return (parts.square() / variances).sum() / 2 + (rest.square() / power).sum() / 2

    return cost


def laplace(public: Numbers, axes: int) -> Cost:
    """Independent differences of neighbours along each axis, of the mean size that public images have: total variation.

    Rounded at 0, for L-BFGS; halved, for a pixel has neighbours along every axis and these differences are not independent.
    """
    scales = [max(float(np.abs(np.diff(public, axis=2 + a)).mean()), 1e-3) if len(public) else ROUGH for a in range(axes)]

    def cost(unit: torch.Tensor) -> torch.Tensor:
        total = unit.sum() * 0.0
        for axis, scale in enumerate(scales):
            soft = scale / 10
            total = total + (torch.sqrt(unit.diff(dim=2 + axis).square() + soft**2) - soft).sum() / scale
        return total / 2

    return cost
