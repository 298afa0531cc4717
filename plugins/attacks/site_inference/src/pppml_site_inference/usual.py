"""What updates of images have in common, and how much of one agrees with another beyond that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Images, Knowledge

Numbers = npt.NDArray[np.float64]
#: of the average public variance along a direction: far above it a direction counts little, far below it in full.
RIDGE = 0.1
#: numbers that are held at a time of public images' updates: 160 MB.
HELD = 20_000_000


class Usual:
    """Public images' updates ``(P, coordinates)``: their mean, and a metric in which directions along which they vary count less.

    The metric is ``r (X'X + r)^-1`` of the centred updates ``X``: the inverse covariance, shrunk to the identity, up to scale.
    A common label or scanner pulls many images the same way; only what is an image's own is left.
    """

    def __init__(self, updates: Numbers) -> None:
        self.mean = updates.mean(axis=0)
        self._centred = updates - self.mean
        gram = self._centred @ self._centred.T
        self._inner = gram + (RIDGE * float(np.trace(gram)) / len(gram) + 1e-30) * np.eye(len(gram))

    def own(self, update: Numbers) -> Numbers:
        """The metric times the update less the mean, ``(coordinates,)``."""
        rest = update - self.mean
        return np.asarray(rest - np.linalg.solve(self._inner, self._centred @ rest) @ self._centred)

    def agreement(self, update: Numbers, directions: Numbers) -> Numbers:
        """Cosine, in the metric and up to a direction's length, of an update with ``directions`` (``own`` of each): ``(directions,)``."""
        rest = update - self.mean
        length = float(rest @ self.own(update))
        return np.asarray(directions @ rest / (np.sqrt(length) if length > 0 else 1.0))


def updates_of(ctx: Knowledge, model: torch.nn.Module, images: Images, names: tuple[str, ...]) -> Iterator[Numbers]:
    """The update of each image as a batch of one, its tensors ``names`` one after another: ``(coordinates,)``."""
    for image, target in zip(torch.from_numpy(images.images), torch.from_numpy(images.targets), strict=True):
        made = ctx.expected(model, image[None], target[None])
        yield np.concatenate([made[n].detach().numpy().ravel() for n in names]).astype(np.float64)


def pool(ctx: Knowledge, count: int) -> Images:
    """Public images that scores are held against: of all sites alike where these are known, at most ``count``, evenly spread."""
    of_sites = [ctx.sites_public[s] for s in ctx.sites if s in ctx.sites_public and len(ctx.sites_public[s])]
    if len(of_sites) < len(ctx.sites) or not of_sites:
        return _spread(ctx.public, count)
    each = min(max(1, count // len(of_sites)), *(len(images) for images in of_sites))
    chosen = [_spread(images, each) for images in of_sites]
    return Images(np.concatenate([c.images for c in chosen]), np.concatenate([c.targets for c in chosen]))


def _spread(images: Images, count: int) -> Images:
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return Images(images.images[chosen], images.targets[chosen])
