"""Scores of a model, asked of the sites: what they choose (selection, early stopping), and the final ones.

``run.metrics: sum``: scores leave in a sum over all sites of the run, or there are none. A site gives out no other sum
(:mod:`.releases`): from two sums over other sites a server could learn a single site's scores. So a round in which a site is missing has no
scores, and the run goes on without them, to its very end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pppml_core.errors import RoundAborted, RoundLost, RunFailed
from pppml_core.federation import checkpoint, evaluation
from pppml_core.federation.evaluation import Scores, weight_kinds
from pppml_core.federation.round import hold_session, open_attempt, refuse_missing
from pppml_core.federation.rundir import RunDir
from pppml_core.federation.server import Server
from pppml_core.federation.terms import about_scores
from pppml_core.learning.arrays import to_numpy

Emit = Callable[[Mapping[str, Any]], None]


class Scoring:
    """The scores of one run, as the server has them.

    Args:
        metric: the one that selection and early stopping look at.
    """

    def __init__(self, server: Server, folder: RunDir, metric: str, emit: Emit) -> None:
        self._server, self._folder, self._metric, self._emit = server, folder, metric, emit
        self._run, self._spec = server.parts.config.run, server.parts.spec
        self._kinds = weight_kinds(server.parts.personalization)
        #: how often scores are asked for before it is gone on without them.
        self._tries = 1 + (self._run.retries if self._run.on_abort == "retry" else 0)

    def validate(self, round: int) -> None:
        """Validation scores of the weights after this round; selection and early stopping look at nothing else."""
        state, run = self._server.state, self._run
        scores, missing, why = self._ask(round, round, state.weights, ("validation",), final=False)
        value = evaluation.mean_of(scores, "validation", self._metric)
        state.validation[str(round)] = float(value) if math.isfinite(value) else None
        if missing:
            # A mean over other sites is no comparison: such a round is neither the best nor one without improvement.
            self._warn(round, f"{why}; the round is left out of selection and early stopping")
            return
        better = -1.0 if self._metric in self._spec.lower_is_better else 1.0
        if not math.isnan(value) and (state.best_value is None or better * value > better * state.best_value):
            state.best_round, state.best_value, state.stale = round, value, 0
            if run.select == "best-validation":
                checkpoint.save_best(self._folder.checkpoints, round, to_numpy(state.weights))
        else:
            state.stale += 1
        if run.stop is not None and state.stale >= run.stop.patience:
            state.stopped = f"{self._metric} on validation data did not improve for {state.stale} evaluations"

    def final(self, round: int, chosen: int, weights: Mapping[str, torch.Tensor]) -> tuple[Scores, list[str]]:
        """Test scores of the weights after round ``chosen``, asked for in round ``round``; also the sites whose scores are not in them.

        Raises RunFailed where each site sends its own and none did: a resumed run asks again. No run ends for want of a sum.
        """
        scores, missing, why = self._ask(round, chosen, weights, ("test",), final=True)
        there = len(self._server.sites) - len(missing)
        if missing:
            self._warn(round, f"{why}; the {f'means are over {there} sites' if there else 'result has no final scores'}")
        if self._run.metrics == "per-site" and not there:
            hint = f"the model is written; resume with --resume {self._folder.path} to score it"
            raise RunFailed("no site sent final scores", place=f"round {round}", hint=hint)
        return scores, missing

    def _warn(self, round: int, text: str) -> None:
        self._emit({"event": "warning", "round": round, "text": f"round {round}: {text}"})

    def _ask(
        self, round: int, of: int, weights: Mapping[str, torch.Tensor], splits: tuple[str, ...], *, final: bool
    ) -> tuple[Scores, list[str], str]:
        """Scores of the weights after round ``of``, written down; the sites whose scores are not in them; and, where any is, why."""
        body = {"state": of, "splits": list(splits), "final": final}
        scores, missing, why = (self._summed if self._run.metrics == "sum" else self._single)(round, body, weights)
        if scores:
            rows = evaluation.rows(of, scores)
            self._folder.append("metrics.jsonl", rows)
            self._emit({"event": "metrics", "round": of, "rows": rows})
        return scores, missing, why

    def _single(self, round: int, body: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> tuple[Scores, list[str], str]:
        """Each site's own scores, where they may leave; a site whose scores were lost is asked again."""
        server, scores, replies = self._server, dict[Any, Any](), dict[str, Any]()
        missing = list(server.sites)
        for _ in range(self._tries):
            replies |= server.broadcast("evaluate", missing, round, server.attempts.get(round, 1), body, weights)[0]
            missing = [s for s in server.sites if s not in replies]
            if not missing:
                break
        for site in server.sites if self._run.metrics == "per-site" else ():
            # A site speaks for itself; only where training is pooled for others too.
            own = server.evaluated if server.parts.config.pool else [site]
            scores |= evaluation.from_wire(replies.get(site, {}).get("scores", {}), self._spec, own, body["splits"], self._kinds)
        return scores, missing, f"{', '.join(missing)} did not send{' final' if body['final'] else ''} scores"

    def _summed(self, round: int, body: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> tuple[Scores, list[str], str]:
        """The mean over all sites, or none. Tried again where nothing was opened yet."""
        first: RoundAborted | None = None
        for _ in range(self._tries):
            try:
                return self._sum(round, body, weights), [], ""
            except RoundAborted as error:
                first = first or error
                if isinstance(error, RoundLost):
                    break
        why = "" if first is None else first.message
        return {}, list(self._server.sites), f"no scores: they leave in a sum over all sites, and {why}"

    def _sum(self, round: int, body: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Scores:
        """The sum over all sites, in an attempt of its own, since a site answers each stage once an attempt."""
        server, splits = self._server, body["splits"]
        which = "-".join(("metrics", *splits))
        summed = server.kept_sum(which, round, weights)
        if summed is None:
            ctx, lost = open_attempt(server, round, server.new_attempt(round), server.sites, weights)
            if body["final"] or not lost:  # with its final scores a site writes down its model, whatever becomes of the sum
                asked = [s for s in ctx.cohort if s not in lost]
                lost |= server.broadcast("evaluate", asked, round, ctx.attempt, body, weights)[1]
            refuse_missing(lost, round)
            _, fixed = evaluation.sum_layout(self._spec, splits, self._kinds)
            session = server.parts.aggregator.plan(fixed.spec, ctx.cohort)
            summed = hold_session(server, session, "metrics", ctx, about_scores({**body, "sha256": server.sha256(weights)}))
            if not session.repeatable:
                server.keep_sum(which, round, weights, summed)
        return evaluation.from_sum(summed.total, self._spec, splits, self._kinds)
