"""How well an image's own update agrees with the one that was seen, beyond what updates of all images have in common."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Arrays, Knowledge
from pppml_core.learning.single import HELD, flat, of_each, spread
from pppml_core.learning.usual import Usual

Numbers = npt.NDArray[np.float64]
#: public images without which nothing is said.
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
    seen = flat(update, names)
    fits = max(FEWEST, min(count, HELD // max(1, len(seen)), len(ctx.public)))
    public = []
    for row in of_each(ctx, model, spread(ctx.public, fits), names):
        public.append(row)
        if len(public) >= FEWEST and time.perf_counter() > until:
            break
    usual = Usual(np.stack(public))
    direction = own(usual, seen)
    known = np.array([score(usual, row, direction) for row in public])
    asked = np.array([score(usual, row, direction) for row in of_each(ctx, model, queries, names)])
    deviation = float(known.std(ddof=1))
    return (asked - known.mean()) / (deviation if deviation > 0 else 1.0), len(public) + len(asked)


def own(usual: Usual, update: Numbers) -> Numbers:
    """The metric times what is left of a seen update without its part along the mean: the pull that any image makes, however often."""
    pull, seen = usual.metric(usual.mean), usual.metric(update)
    along = float(usual.mean @ pull)
    return np.asarray(seen - (float(usual.mean @ seen) / along if along > 0 else 0.0) * pull)


def score(usual: Usual, update: Numbers, direction: Numbers) -> float:
    """See :func:`agreement`."""
    rest = update - usual.mean
    return float(direction @ rest) / usual.length(rest)
