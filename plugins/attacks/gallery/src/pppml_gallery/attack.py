"""``gallery``: which of these images was in the step? The answer of the highest likelihood, for candidates that are equally likely.

No attacker who has this view, this gallery and the same model of the rest picks the victim more often, so no search could have failed.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Images, Knowledge, Reconstruction, Seen, Sight
from pppml_core.learning.forward import Mixture
from pppml_core.learning.rounding import error_variance
from pppml_core.learning.single import flat, remembered
from pppml_gallery.config import GalleryConfig
from pppml_gallery.likelihood import Likelihood, Numbers, others_like
from pppml_gallery.updates import in_batches, of_model, spread

#: difference of two correct float32 computations of an update, of its root mean square.
NUMERICS = 1e-4


class Gallery(Attack):
    """The attack of that name."""

    answers = "candidate"
    cheap = True
    config: GalleryConfig

    def __init__(self, config: GalleryConfig) -> None:
        super().__init__(config)
        self.rounds = config.history

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """It needs a sum with the watched site, the model, a gallery, and for sums of several images public ones."""
        sight = view.of(ctx.site)
        if sight is None:
            return super().misfit(view, ctx)
        if not view.last.weights:
            return "this adversary does not have the model that the round began with"
        if ctx.candidates is None or len(ctx.candidates) == 0:
            return "there are no candidates to pick the patient from"
        if len(ctx.public) < 2 and (not ctx.training.exact or Mixture.of(sight, ctx).count > 1):
            return "other images are in the sum too, and there are no public ones to tell what they add"
        return ""

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """A score of each candidate: a log-likelihood up to a constant; of recorded rounds a z-score. The last round comes first."""
        began, evaluations, rounds = time.perf_counter(), 0, 0
        assert ctx.candidates is not None
        scores = np.zeros(len(ctx.candidates))
        for seen in reversed(view.rounds if self.config.history == "all" else view.rounds[-1:]):
            sight = seen.of(ctx.site)
            if sight is None or not seen.weights or (rounds and time.perf_counter() - began > budget.seconds):
                continue
            found, used = self._round(seen, sight, ctx, ctx.candidates)
            scores, evaluations, rounds = scores + found, evaluations + used, rounds + 1
        effort = {"evaluations": evaluations, "rounds": rounds, "seconds": time.perf_counter() - began, "loss": float(-scores.max())}
        return Reconstruction({"candidate": scores}, effort)

    def _round(self, seen: Seen, sight: Sight, ctx: Knowledge, candidates: Images) -> tuple[Numbers, int]:
        """Scores of one round, and how many updates were computed for it."""
        model = ctx.model(seen)
        if not ctx.training.exact:
            # Many steps on one image are not what a recorded round did with it.
            ctx = replace(ctx, training=replace(ctx.training, steps=1))
        names = of_model(model, sight)
        observed = flat(sight.update, names)
        mixture = Mixture.of(sight, ctx)
        unknown = mixture.count - 1
        known = unknown or not ctx.training.exact
        held = remembered(ctx, model, spread(ctx.public, self.config.public, len(observed)), names) if known else None
        if not ctx.training.exact:
            assert held is not None
            found = [batch @ observed for batch in in_batches(ctx, model, candidates, names)]
            return against(held @ observed, np.concatenate(found)), len(candidates) + len(held)
        others = None if held is None else others_like(held, shrink=self.config.others == "shrunk")
        likelihood = Likelihood(observed, mixture.weight, variances_of(sight, ctx, names), others, unknown)
        found = [likelihood.of(batch) for batch in in_batches(ctx, model, candidates, names)]
        return np.concatenate(found), len(candidates) + (0 if held is None else len(held))


def variances_of(sight: Sight, ctx: Knowledge, names: tuple[str, ...]) -> Numbers:
    """Variance of noise, rounding and numerics in each coordinate of the sight's mean, ``(d,)``, above 0."""
    squares = {name: float(np.square(sight.update[name], dtype=np.float64).mean()) for name in names}
    least = NUMERICS**2 * (max(squares.values(), default=0.0) or 1.0)

    def of(name: str) -> float:
        return error_variance(sight, ctx, name) + NUMERICS**2 * (squares[name] + least)

    return np.concatenate([np.full(np.size(sight.update[name]), of(name)) for name in names])


def against(public: Numbers, scores: Numbers) -> Numbers:
    """Z-scores of ``scores`` among those of public images."""
    deviation = float(public.std(ddof=1))
    return np.asarray((scores - public.mean()) / (deviation if deviation > 0 else 1.0))
