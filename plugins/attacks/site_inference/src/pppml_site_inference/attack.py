"""``site-inference``: which hospital is an image from? The one whose update agrees best with the gradient of the image.

A site's update points where its own images pull. What all images have in common, such as the pull of a label, is taken off first
(:mod:`pppml_core.learning.usual`), and how much an image agrees is held against public images. What is read from an image alone, such as
the look of a scanner, is no attack on a run and is not used.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Images, Knowledge, Reconstruction, Seen
from pppml_core.learning.single import HELD, of_each, remembered
from pppml_core.learning.usual import Usual
from pppml_site_inference.config import SiteInferenceConfig
from pppml_site_inference.parts import groups_of, parts_of
from pppml_site_inference.public import Numbers, agreement, own, pool


class SiteInference(Attack):
    """The attack of that name."""

    answers = "site"
    cheap = True
    config: SiteInferenceConfig

    def __init__(self, config: SiteInferenceConfig) -> None:
        super().__init__(config)
        self.rounds = config.history

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """It needs queries, the model, public images, and a round in which two sites can be told apart."""
        if ctx.queries is None or len(ctx.queries) == 0:
            return "there are no images to ask about"
        if len(pool(ctx, self.config.public)) < 2:
            return "there are no public images to hold the answer against"
        if not view.last.weights:
            return "this adversary does not have the model that the round began with"
        if not any(len(distinct(seen, ctx)) > 1 for seen in self._rounds(view)):
            return "no sum that this adversary decodes tells one site from another"
        return ""

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """``site``: z-scores among public images, averaged over rounds; sites whose sum is never decoded get 0, as public images have."""
        began, used = time.perf_counter(), 0
        assert ctx.queries is not None
        total, rounds = np.zeros((len(ctx.queries), len(ctx.sites))), np.zeros(len(ctx.sites))
        for seen in reversed(self._rounds(view)):
            if not seen.weights or len(distinct(seen, ctx)) < 2 or (used and time.perf_counter() - began > budget.seconds):
                continue
            scores, known, evaluations = self._round(seen, ctx, ctx.queries)
            total, rounds, used = total + scores, rounds + known, used + evaluations
        effort = {"evaluations": used, "rounds": int(rounds.max(initial=0)), "seconds": time.perf_counter() - began}
        return Reconstruction({"site": total / np.maximum(rounds, 1)}, effort)

    def _rounds(self, view: AdversaryView) -> tuple[Seen, ...]:
        return view.rounds if self.config.history == "all" else view.rounds[-1:]

    def _round(self, seen: Seen, ctx: Knowledge, queries: Images) -> tuple[Numbers, Numbers, int]:
        """Scores ``(queries, sites)``, which sites were seen ``(sites,)``, and how many updates were computed."""
        # Many steps on one image are not what a round did with it.
        model, ctx = ctx.model(seen), replace(ctx, training=replace(ctx.training, steps=1))
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        names = tuple(n for n in seen.sights[0].update if n in trained)
        parts = parts_of(seen, names)
        fits = max(2, min(self.config.public, HELD // max(1, len(next(iter(parts.values()))))))
        public = remembered(ctx, model, pool(ctx, fits), names)
        usual = Usual(public)
        directions = np.stack([own(usual, part) for part in parts.values()])
        known = np.stack([agreement(usual, update, directions) for update in public])
        asked = np.stack([agreement(usual, update, directions) for update in of_each(ctx, model, queries, names)])
        deviation = known.std(axis=0, ddof=1)
        z = (asked - known.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
        place = {site: i for i, group in enumerate(parts) for site in group}
        scores = np.stack([z[:, place[s]] if s in place else np.zeros(len(z)) for s in ctx.sites], axis=1)
        return scores, np.array([float(s in place) for s in ctx.sites]), len(public) + len(queries)


def distinct(seen: Seen, ctx: Knowledge) -> set[frozenset[str]]:
    """Groups of sites that this round tells apart; sites that it says nothing of are one."""
    groups = groups_of(seen)
    rest = frozenset(ctx.sites).difference(*groups)
    return groups | {rest} if rest else groups
