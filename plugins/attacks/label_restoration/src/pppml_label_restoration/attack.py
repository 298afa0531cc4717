"""``label-restoration`` and ``lesion-area``: what the update of the last layer says without any search.

For cross-entropy the gradient of the last bias is the mean of prediction less truth, so it counts labels, or pixels of the foreground.
What an image of each label adds is not taken from that formula but computed for public images (:meth:`Knowledge.expected`), so that class
weights, other losses and the defence's clip are in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Images, Knowledge, Reconstruction, Sight
from pppml_core.learning.forward import Mixture
from pppml_core.learning.single import spread
from pppml_label_restoration.config import LabelRestorationConfig, LesionAreaConfig
from pppml_label_restoration.counts import Numbers, classes_of, posterior_counts, two_stages, whole
from pppml_label_restoration.head import Head, Reading, learn, unit, updates_of

#: steps on public images by which is measured what a batch adds up to.
BATCHES = 4


@dataclass(frozen=True)
class _Read:
    """What was seen and what public images would make, in readings of the last layer."""

    sight: Sight
    model: torch.nn.Module
    reading: Reading
    observed: Numbers
    public: Images
    readings: Numbers
    updates: list[Any]
    mixture: Mixture

    @classmethod
    def of(cls, view: AdversaryView, ctx: Knowledge, public: int) -> _Read:
        sight = view.of(ctx.site)
        assert sight is not None
        model, images = ctx.model(view.last), spread(ctx.public, public)
        head = Head.of(model, torch.from_numpy(images.images[:1]), len(ctx.spec.classes), sight.update)
        updates = updates_of(unit(ctx), model, images, head)
        reading = learn(head, updates)
        readings = np.stack([reading.of(update) for update in updates])
        mixture = Mixture.of(sight, ctx)
        mixture = replace(mixture, weight=mixture.weight * _together(ctx, model, images, reading, readings, mixture))
        return cls(sight, model, reading, reading.of(sight.update), images, readings, updates, mixture)

    def scope(self) -> str:
        """Of whom the answer speaks."""
        sites = len(self.sight.sites)
        return "the watched site" if sites == 1 else f"all {sites} sites of the sum together; of the watched one, their mean"


def _together(ctx: Knowledge, model: torch.nn.Module, images: Images, reading: Reading, readings: Numbers, mixture: Mixture) -> float:
    """How much a site's images add up to, of what each would add alone: below 1 where the whole update is clipped, or after many steps.

    From steps on batches of public images; 1 for recorded rounds, whose steps are too many to try.
    """
    size, alone = mixture.own, mixture.weight * mixture.count / mixture.own
    if size == 1 or not ctx.training.exact:
        return 1.0
    generator, made, added = np.random.default_rng(ctx.seed), 0.0, 0.0
    for _ in range(BATCHES):
        chosen = generator.choice(len(images), size, replace=size > len(images))
        step = ctx.expected(model, torch.from_numpy(images.images[chosen]), torch.from_numpy(images.targets[chosen]))
        together = reading.of({name: step[name].detach().numpy() for name in (reading.head.weight, reading.head.bias) if name})
        apart = alone * readings[chosen].sum(axis=0)
        made, added = made + float(together @ apart), added + float(apart @ apart)
    return made / added if made > 0 else 1.0


def _misfit(attack: Attack, view: AdversaryView, ctx: Knowledge) -> str:
    sight = view.of(ctx.site)
    if sight is None:
        return Attack.misfit(attack, view, ctx)
    if not view.last.weights:
        return "this adversary does not have the model that the round began with"
    if len(ctx.public) < 2:
        return "there are no public images to learn from what the last layer's update says"
    image = torch.from_numpy(ctx.public.images[:1])
    if not Head.of(ctx.model(view.last), image, len(ctx.spec.classes), sight.update).shared:
        return "the last layer is not in the sum, or has other outputs than one for each class"
    return ""


class LabelRestoration(Attack):
    """The attack of that name."""

    answers = "labels"
    batch = 8
    cheap = True
    config: LabelRestorationConfig

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """It needs a sum with the last layer, the model, and public images; the methods of LLG need the tensor they read."""
        if ctx.spec.kind != "classification":
            return "images of this task have masks instead of labels; lesion-area reads those"
        if (reason := _misfit(self, view, ctx)) or self.config.method == "least-squares":
            return reason
        sight = view.of(ctx.site)
        assert sight is not None
        head = Head.of(ctx.model(view.last), torch.from_numpy(ctx.public.images[:1]), len(ctx.spec.classes), sight.update)
        needed = head.bias if self.config.method == "bias-corrected" else head.weight
        return "" if needed else f"the method {self.config.method} reads a tensor that the last layer does not share"

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """``counts`` of the watched batch; of one site alone ``labels`` too, of several ``cohort_counts``; ``scope``: of whom."""
        began = time.perf_counter()
        read = _Read.of(view, ctx, self.config.public)
        classes, mixture, used = len(ctx.spec.classes), read.mixture, len(read.public)
        labels = read.public.targets.astype(np.int64)
        if self.config.method == "least-squares":
            missing = sorted(set(range(classes)) - set(labels.tolist()))
            relabelled, more = _relabelled(read, ctx, missing, classes)
            known = classes_of(read.readings, labels, relabelled)
            error = read.reading.error(read.sight, ctx)
            counts, used = posterior_counts(read.observed, mixture.weight, mixture.count, error, known), used + more
        else:
            counts = self._published(read, labels, classes)
        own = counts * (mixture.own / mixture.count)
        guess: dict[str, Any] = {"counts": own, "scope": read.scope()}
        if len(read.sight.sites) == 1:
            guess["labels"] = np.repeat(np.arange(classes), whole(own))
        else:
            guess["cohort_counts"] = counts
        return Reconstruction(guess, {"evaluations": used, "seconds": time.perf_counter() - began})

    def _published(self, read: _Read, labels: Any, classes: int) -> Numbers:
        """Counts by the two stages of LLG, on gradients up to their scale; the public prevalence where nothing is negative."""
        count, head, on_bias = read.mixture.count, read.reading.head, self.config.method == "bias-corrected"

        def gradient(update: Any) -> Numbers:
            weight, bias = head.rows(update)
            return np.asarray(-bias if on_bias else -weight.sum(axis=1))

        seen, offset, factor = gradient(read.sight.update), np.zeros(classes), 1.0
        if not on_bias:
            public = np.stack([gradient(update) for update in read.updates])
            others = [public[labels != c, c].mean() if (labels != c).any() else 0.0 for c in range(classes)]
            offset, factor = read.mixture.weight * count * np.array(others), 1 + 1 / classes
        impact = float(seen[seen < 0].sum()) / count * factor
        found = two_stages(seen, count, impact, offset)
        return np.asarray(np.bincount(labels, minlength=classes) * (count / len(labels)) if found is None else found)


def _relabelled(read: _Read, ctx: Knowledge, missing: list[int], classes: int) -> tuple[Numbers, int]:
    """Mean readings of public images under each of the ``missing`` labels, ``(classes, readings)``, and how many updates that took."""
    found, few = np.zeros((classes, read.readings.shape[1])), spread(read.public, 16)
    for c in missing:
        images = Images(few.images, np.full_like(few.targets, c))
        found[c] = np.mean([read.reading.of(u) for u in updates_of(unit(ctx), read.model, images, read.reading.head)], axis=0)
    return found, len(missing) * len(few)


class LesionArea(Attack):
    """The attack of that name."""

    answers = "area"
    cheap = True
    config: LesionAreaConfig

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """It needs a segmentation, a sum with the last layer, the model, and public images with masks."""
        if ctx.spec.kind != "segmentation":
            return "images of this task have labels instead of masks; label-restoration reads those"
        return _misfit(self, view, ctx)

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """``area``, the mean share of foreground in the watched batch: the best linear guess from the readings, given public images.

        Its weight falls with noise and with the number of unknown images in the sum; with much of either it is the public mean.
        """
        began = time.perf_counter()
        read = _Read.of(view, ctx, self.config.public)
        targets, weight, count = read.public.targets, read.mixture.weight, read.mixture.count
        areas = (targets.reshape(len(targets), -1) > 0).mean(axis=1)
        mean = read.readings.mean(axis=0)
        centred = read.readings - mean
        freedom = len(areas) - 1
        seen = weight**2 * count * (centred.T @ centred) / freedom + np.diag(read.reading.error(read.sight, ctx))
        gain = np.linalg.solve(seen, weight * centred.T @ (areas - areas.mean()) / freedom)
        area = float(np.clip(areas.mean() + gain @ (read.observed - weight * count * mean), 0.0, 1.0))
        effort = {"evaluations": len(areas), "seconds": time.perf_counter() - began}
        return Reconstruction({"area": area, "scope": read.scope()}, effort)
