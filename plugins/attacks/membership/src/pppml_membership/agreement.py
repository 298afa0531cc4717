"""How well an image's own update agrees with the one that was seen, beyond what updates of all images have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Arrays, Images, Knowledge

Numbers = npt.NDArray[np.float64]
#: of the average public variance along a direction: far above it a direction counts little, far below it in full.
RIDGE = 0.1
#: numbers that are held at a time of public images' updates: 160 MB.
HELD = 20_000_000
FEWEST = 8


def agreement(model: torch.nn.Module, ctx: Knowledge, update: Arrays, count: int, until: float) -> tuple[Numbers, int]:
    """A z-score of each query among public images, ``(n,)``, and how many updates were computed.

    For an image's update g, public updates of mean m and covariance S, and the seen update u less its part along m: the score is
    ``(g - m)' S^-1 u / sqrt((g - m)' S^-1 (g - m))``, which has the same spread for every stranger if u is a sum over many images.

    Args:
        model: at weights where the update's gradients were taken.
        ctx: with queries.
        update: what was seen.
        count: public images at most; fewer where memory or time is short, but ``FEWEST``.
        until: no public image beyond those few is begun after the clock showed this.
    """
    queries = ctx.queries
    assert queries is not None
    ctx = replace(ctx, training=replace(ctx.training, steps=1))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    names = tuple(n for n in update if n in trained)
    seen = _flat(update, names)
    fits = max(FEWEST, min(count, HELD // max(1, len(seen)), len(ctx.public)))
    public = []
    for row in updates_of(ctx, model, _spread(ctx.public, fits), names):
        public.append(row)
        if len(public) >= FEWEST and time.perf_counter() > until:
            break
    usual = Usual(np.stack(public))
    direction = usual.own(seen)
    known = np.array([usual.score(row, direction) for row in public])
    asked = np.array([usual.score(row, direction) for row in updates_of(ctx, model, queries, names)])
    deviation = float(known.std(ddof=1))
    return (asked - known.mean()) / (deviation if deviation > 0 else 1.0), len(public) + len(asked)


class Usual:
    """Public images' updates ``(P, coordinates)``: their mean, and the inverse covariance, shrunk to the identity, up to scale."""

    def __init__(self, updates: Numbers) -> None:
        self.mean = updates.mean(axis=0)
        self._centred = updates - self.mean
        gram = self._centred @ self._centred.T
        self._inner = gram + (RIDGE * float(np.trace(gram)) / len(gram) + 1e-30) * np.eye(len(gram))

    def metric(self, vector: Numbers) -> Numbers:
        """``r (X'X + r)^-1`` of the centred updates ``X`` times a vector, by the Woodbury identity."""
        return np.asarray(vector - np.linalg.solve(self._inner, self._centred @ vector) @ self._centred)

    def own(self, update: Numbers) -> Numbers:
        """The metric times what is left of a seen update without its part along the mean: the pull that any image makes, however often."""
        pull, seen = self.metric(self.mean), self.metric(update)
        along = float(self.mean @ pull)
        return np.asarray(seen - (float(self.mean @ seen) / along if along > 0 else 0.0) * pull)

    def score(self, update: Numbers, direction: Numbers) -> float:
        """See :func:`agreement`."""
        rest = update - self.mean
        length = float(rest @ self.metric(rest))
        return float(direction @ rest) / (np.sqrt(length) if length > 0 else 1.0)


def updates_of(ctx: Knowledge, model: torch.nn.Module, images: Images, names: tuple[str, ...]) -> Iterator[Numbers]:
    """The update of each image as a batch of one, its tensors ``names`` one after another: ``(coordinates,)``."""
    for image, target in zip(torch.from_numpy(images.images), torch.from_numpy(images.targets), strict=True):
        made = ctx.expected(model, image[None], target[None])
        yield _flat({n: made[n].detach().numpy() for n in names}, names)


def _flat(update: Arrays, names: tuple[str, ...]) -> Numbers:
    return np.concatenate([np.asarray(update[n], np.float64).ravel() for n in names])


def _spread(images: Images, count: int) -> Images:
    """At most ``count``, evenly spread over the list, which may be sorted by site."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return Images(images.images[chosen], images.targets[chosen])
