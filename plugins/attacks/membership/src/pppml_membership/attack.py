"""``membership``: which images did the watched site train on?"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.attack import AdversaryView, Arrays, Attack, Budget, Images, Knowledge, Reconstruction, Seen
from pppml_core.randomness import Seeds, seeded
from pppml_membership.agreement import FEWEST, agreement
from pppml_membership.config import MembershipConfig
from pppml_membership.models import fit, halves, log_p, reached, whole
from pppml_membership.scores import lira, rmia

Numbers = npt.NDArray[np.float64]


class Membership(Attack):
    """The attack of that name."""

    answers = "members"
    cheap = True
    config: MembershipConfig

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """It needs queries, public images, a model that was trained, and for ``gradient`` an update."""
        if ctx.queries is None or len(ctx.queries) == 0:
            return "there are no images to ask about"
        if len(ctx.public) < FEWEST and self.config.method != "loss":
            return f"there are {len(ctx.public)} public images to hold the answer against, and {FEWEST} are needed"
        if not reached(view.last, ctx):
            return "this adversary has no model that was trained on the images"
        if self.config.method == "gradient" and not moved(view.last, ctx):
            return "this adversary has no update: neither a decoded sum with the model that the round began with, nor two models"
        return ""

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """``members``: of ``gradient`` z-scores, of ``rmia`` in (0, 1), of ``lira`` minus a log-probability, of ``loss`` minus the loss."""
        began = time.perf_counter()
        assert ctx.queries is not None
        method, effort = self.config.method, dict[str, float]()
        steps = self.config.steps or max(1, ctx.training.steps) * view.last.round
        with seeded(Seeds(ctx.seed).integer("membership")):
            if method == "gradient":
                update = moved(view.last, ctx)
                model = whole(ctx, midway(view.last.weights, update, ctx), steps, began + 0.2 * budget.seconds)
                until = began + 0.5 * budget.seconds
                scores, effort["evaluations"] = agreement(model, ctx, update, self.config.public, until)
            else:
                model = whole(ctx, reached(view.last, ctx), steps, began + 0.2 * budget.seconds)
                scores = log_p(model, ctx, ctx.queries)
            if method in ("rmia", "lira"):
                public, inside = log_p(model, ctx, ctx.public), self._halves(ctx)
                out, public_out, effort = self._references(ctx, ctx.queries, inside, steps, began, budget.seconds)
                public_out = np.where(inside, np.nan, public_out)
                if method == "lira":
                    scores = lira(scores, out)
                else:
                    scores = rmia(scores, out, public, public_out, a=self.config.a, gamma=self.config.gamma)
        return Reconstruction({"members": scores}, {**effort, "seconds": time.perf_counter() - began})

    def _halves(self, ctx: Knowledge) -> npt.NDArray[np.bool_]:
        return halves(len(ctx.public), self.config.references, Seeds(ctx.seed).generator("membership", "halves"))

    def _references(
        self, ctx: Knowledge, queries: Images, inside: npt.NDArray[np.bool_], steps: int, began: float, seconds: float
    ) -> tuple[Numbers, Numbers, dict[str, float]]:
        """Log-probabilities of the queries and of the public images under each reference model, and the effort."""
        asked, public, made = [], [], []
        for number, half in enumerate(inside):
            with seeded(Seeds(ctx.seed).integer("membership", "reference", number)):
                model = ctx.network()
                until = began + seconds * (0.2 + 0.7 * (number + 1) / len(inside))
                made.append(fit(model, ctx, Images(ctx.public.images[half], ctx.public.targets[half]), steps, until))
            asked.append(log_p(model, ctx, queries))
            public.append(log_p(model, ctx, ctx.public))
        stopped = float(sum(m < steps for m in made))
        effort = {"evaluations": float(sum(made)), "references": float(len(made)), "steps": float(min(made)), "stopped_early": stopped}
        return np.stack(asked), np.stack(public), effort


def moved(seen: Seen, ctx: Knowledge) -> Arrays:
    """What was seen of the watched site's step: the smallest decoded sum it is in, else how the model moved; empty: nothing."""
    if not seen.weights:
        return {}
    if (sight := seen.of(ctx.site)) is not None:
        return sight.update
    return {n: np.asarray(a, np.float64) - np.asarray(seen.weights[n]) for n, a in seen.after.items() if n in seen.weights}


def midway(weights: Arrays, update: Arrays, ctx: Knowledge) -> Arrays:
    """Where the update's gradients were taken, about: at ``weights`` in a single step, half-way along the update in many."""
    if ctx.training.steps == 1:
        return weights
    half = {n: np.asarray(weights[n]) + 0.5 * np.asarray(u) for n, u in update.items() if n in weights}
    return {n: half[n].astype(np.asarray(w).dtype) if n in half else w for n, w in weights.items()}
