"""What is matched: an update that was seen, and the update that candidate images would have made in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from pppml_core.interfaces.attack import AdversaryView, Arrays, Knowledge, Sight
from pppml_core.learning.rounding import error_variance
from pppml_idlg.labels import Head, head_of

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Evidence:
    """One sight, the network it was made at, and the forward model.

    Candidates are on the unit scale: 0 is the darkest value of a channel, 1 the brightest. A sum over n sites is the mean of their
    updates, all of equal weight, so ``n`` times as many images are behind it, and each site's part of the candidates makes an update of
    its own. Which images are the watched site's cannot be told from a sum; all are returned.

    Args:
        sight: what was seen.
        seen: name -> tensor to match: the update, or the gradient.
        model: at the weights that the round began with.
        ctx: knowledge; its ``expected`` is the forward model.
        parts: updates that the sight is the mean of.
        each: images behind each of them.
        own: images behind the watched site's own update.
        noise: name -> variance of one coordinate of ``seen`` that images do not explain: noise and rounding. Zeros: none.
    """

    sight: Sight
    seen: Tensors
    model: torch.nn.Module
    ctx: Knowledge
    parts: int
    each: int
    own: int
    noise: Mapping[str, float]

    @property
    def count(self) -> int:
        """Images behind the sight."""
        return self.parts * self.each

    @property
    def noisy(self) -> bool:
        """Whether anything but images is in it."""
        return any(v > 0 for v in self.noise.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """``(count, channels, *size)``."""
        return (self.count, self.ctx.spec.channels, *self.ctx.spec.size)

    @property
    def dtype(self) -> torch.dtype:
        """Of all computation."""
        return next(self.model.parameters()).dtype

    @property
    def head(self) -> Head | None:
        """The last layer, where its weight is in the sight."""
        return head_of(self.model, len(self.ctx.spec.classes), self.seen)

    def images(self, unit: torch.Tensor) -> torch.Tensor:
        """From the unit scale to the task's units."""
        low, high = (torch.from_numpy(np.asarray(x)).to(unit) for x in (self.ctx.low, self.ctx.high))
        return low + (high - low) * unit

    def made(self, unit: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """What these candidates would have made in the place of ``seen``: the mean of the parts' updates. Differentiable."""
        images, total = self.images(unit), dict[str, torch.Tensor]()
        for first in range(0, self.count, self.each):
            chosen = slice(first, first + self.each)
            own = self.ctx.expected(self.model, images[chosen], targets[chosen])
            total = {n: total[n] + own[n] if total else own[n] for n in self.seen}
        return {n: t / self.parts for n, t in total.items()}


def behind(ctx: Knowledge, images: int | None) -> int:
    """How many images are behind one site's update: as told, or a batch a step."""
    return images or ctx.training.steps * ctx.training.batch


def misfit(view: AdversaryView, ctx: Knowledge, images: int | None, most: int, labels: bool) -> str:
    """Why no sight of this view can be matched, or, if ``labels`` are to be read first, none can be read; empty: it can."""
    sight = view.of(ctx.site)
    if sight is None:
        return "this adversary decodes no sum that the watched site is in"
    if ctx.spec.kind != "classification":
        return "gradient matching here is for one label an image; the targets of this task are masks"
    if not view.last.weights:
        return "this adversary does not hold the model that the round began with"
    count = behind(ctx, images) * len(sight.sites)
    if count > most:
        return f"{count} images are behind this sum, and matching is tried for at most {most}"
    if labels and head_of(ctx.model(view.last), len(ctx.spec.classes), sight.update) is None:
        return "the last layer is not in the sum: it stays at the site, or is not linear"
    return ""


def update_evidence(view: AdversaryView, ctx: Knowledge, images: int | None, dtype: torch.dtype) -> Evidence:
    """The update as it was seen, to be compared with what the sites' whole rule would make: steps, clip, mean over the sites."""
    sight = view.of(ctx.site)
    assert sight is not None
    model = ctx.model(view.last, dtype)
    names, sites = _matched(model, sight.update), len(sight.sites)
    seen = {n: torch.from_numpy(np.array(sight.update[n])).to(dtype) for n in names}
    noise = {n: error_variance(sight, ctx, n) for n in names}
    own = behind(ctx, images)
    return Evidence(sight, seen, model, ctx, sites, own, own, noise)


def gradient_evidence(view: AdversaryView, ctx: Knowledge, images: int | None, dtype: torch.dtype) -> Evidence:
    """The gradient that one step of plain descent on all images at once would have had: what the published recipes match.

    Clip, noise and further steps are not modelled, as in these papers.
    """
    sight = view.of(ctx.site)
    assert sight is not None
    model = ctx.model(view.last, dtype)
    own = behind(ctx, images)
    count = own * len(sight.sites)
    one_step = replace(ctx.training, learning_rate=1.0, steps=1, batch=count)
    # A step at rate 1 changes the weights by minus the gradient.
    seen = {n: -torch.from_numpy(np.array(g)).to(dtype) for n, g in ctx.gradient(sight).items() if n in _matched(model, sight.update)}
    return Evidence(sight, seen, model, replace(ctx, adaptive=False, training=one_step), 1, count, own, dict.fromkeys(seen, 0.0))


def _matched(model: torch.nn.Module, update: Arrays) -> list[str]:
    """Trained parameters that were seen; running statistics are no gradient."""
    return [n for n, p in model.named_parameters() if p.requires_grad and n in update]
