"""One round, on one page: draw, announce, sum, update. What follows (evaluation, checkpoint) is the run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pppml_core.errors import InconsistentModel, PlanRefused, PluginError, RoundLost, TooFewSurvivors
from pppml_core.federation.server import Server
from pppml_core.federation.terms import RELEASED, binding, binding_of_sum
from pppml_core.interfaces.aggregation import Coordinator, ServerContext, Session, Sum
from pppml_core.learning.arrays import clamp_variances, to_torch
from pppml_core.values import rms
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER, Exchange, Relay


def hold_round(server: Server, round: int) -> dict[str, float]:
    """Hold one attempt of one round: the server's weights move, or RoundAborted is raised and they do not.

    Returns the public training metrics of the round (weighted means over the survivors).
    """
    weights = server.state.weights
    if not server.parts.personalization.shares:
        ctx = announce(server, round, draw_cohort(server, round), weights)
        outcome = server.perform(Exchange("train", {s: {} for s in ctx.cohort}, kind="train"), round, ctx.attempt, server.manifest)
        if not outcome.answered:
            reason = next(iter(outcome.lost.values()))
            raise TooFewSurvivors(f"no site could train; the first: {reason}", place=f"round {round}")
        server.state.survivors[str(round)] = list(outcome.answered)
        return {}

    pipeline = server.pipeline(round)
    summed = server.kept_sum("session", round, weights)
    if summed is None:
        ctx = announce(server, round, draw_cohort(server, round), weights)
        session = server.parts.aggregator.plan(pipeline.spec, ctx.cohort)
        summed = hold_session(server, session, "session", ctx)
        summed = replace(summed, total=pipeline.released(summed.total))
        # A server that was killed goes on with the same noise: the same sum with other noise would be a second release.
        if not session.repeatable or server.privacy.placement == "server":
            server.keep_sum("session", round, weights, summed)

    mean, metrics, _ = pipeline.decode(summed.total)
    update = to_torch(mean)
    moved, server.state.method = server.parts.personalization.server_update(weights, update, server.state.method)
    server.state.weights = clamp_variances(moved, moved)
    server.state.previous = rms(mean, list(mean))
    server.state.survivors[str(round)] = list(summed.survivors)
    return metrics


def draw_cohort(server: Server, round: int) -> tuple[str, ...]:
    """The sites of this round, in the task's order: all of them, or a seeded draw of ``run.cohort``."""
    wanted = server.parts.config.run.cohort
    if wanted is None or wanted >= len(server.sites):
        return server.sites
    picked = server.parts.seeds.generator("round", round, "cohort").choice(len(server.sites), wanted, replace=False)
    return tuple(server.sites[i] for i in sorted(picked))


def announce(server: Server, round: int, cohort: tuple[str, ...], weights: Mapping[str, torch.Tensor]) -> ServerContext:
    """Announce terms and model until every announced site has accepted: terms name the cohort, so a smaller one is announced anew."""
    config = server.parts.config
    lost: dict[str, str] = {}
    while True:
        told = "".join(f"; {site}: {reason}" for site, reason in list(lost.items())[:1])
        if len(cohort) < config.run.min_cohort or not cohort:
            text = f"{len(cohort)} sites accepted, at least {max(1, config.run.min_cohort)} are needed"
            raise TooFewSurvivors(text + told, place=f"round {round}")
        attempt = server.new_attempt(round)
        server.emit({"event": "round-started", "round": round, "attempt": attempt, "cohort": list(cohort)})
        try:
            ctx, lost = open_attempt(server, round, attempt, cohort, weights)
        except PlanRefused as error:
            # The whole cohort was planned for: what is left of it is too small for this sum.
            raise TooFewSurvivors(f"{error.misfits[0]}{told}", place=f"round {round}") from error
        if not lost:
            return ctx
        cohort = tuple(s for s in cohort if s not in lost)


def open_attempt(
    server: Server, round: int, attempt: int, cohort: tuple[str, ...], weights: Mapping[str, torch.Tensor]
) -> tuple[ServerContext, dict[str, str]]:
    """Announce terms and model to the cohort: what its sessions are held with, and why each site is lost that did not accept."""
    terms = server.terms(round, cohort)
    _, lost = server.broadcast("open", cohort, round, attempt, {"terms": terms}, weights)
    bound = binding(server.run, round, attempt, server.sha256(weights), terms)
    roster = {party: server.roster[party] for party in (*cohort, SERVER)}
    remember = partial(server.remember, round, attempt)
    return ServerContext(server.run, round, attempt, cohort, bound, roster, server.identity.sign, remember), lost


def hold_session(server: Server, session: Session, kind: str, ctx: ServerContext, about: Mapping[str, Any] | None = None) -> Sum:
    """Drive the session's coordinator to its sum. Whatever happens, the generator is closed and with it its secrets.

    ``about``: of a sum of scores, what was asked for. It is over the whole cohort, so it ends with the first site that is lost.

    Raises RoundLost as soon as a site says that it released this sum before: then no other one over other sites may be made of it.
    """
    manifest = Manifest(session.fields)
    coordinator: Coordinator = session.coordinate(replace(ctx, binding=binding_of_sum(ctx.binding, kind, about or {})))
    try:
        operation = next(coordinator)
        while True:
            _refuse_undeclared(operation, session)
            outcome = server.perform(_of_kind(operation, kind), ctx.round, ctx.attempt, manifest)
            _refuse_second_sum(outcome, ctx)
            for part in _parts(outcome) if kind == "metrics" else ():
                refuse_missing(part.lost, ctx.round)
            operation = coordinator.send(outcome)
    except StopIteration as stop:
        summed: Sum = stop.value
    finally:
        coordinator.close()
    if kind == "metrics":
        refuse_missing({site: "it is not in the sum" for site in ctx.cohort if site not in summed.survivors}, ctx.round)
    unknown = set(summed.survivors) - set(ctx.cohort)
    fewest = max(server.parts.config.run.min_cohort, server.privacy.min_survivors if kind == "session" else 1)
    if unknown or len(summed.survivors) < fewest:
        raise TooFewSurvivors(f"the sum is over {len(summed.survivors)} sites, too few of the cohort", place=f"round {ctx.round}")
    if summed.total.shape != (session.value.length,):
        raise InconsistentModel("the sum does not have the planned length", place=f"round {ctx.round}")
    return summed


def refuse_missing(lost: Mapping[str, str], round: int) -> None:
    """Raise TooFewSurvivors, with the first site that is missing, where any is."""
    for site, reason in lost.items():
        raise TooFewSurvivors(f"{site} is missing: {reason}", place=f"round {round}")


def _refuse_second_sum(outcome: Any, ctx: ServerContext) -> None:
    for part in _parts(outcome):
        for site, reason in part.lost.items():
            if RELEASED in reason:
                text = f"{site} gave out what opens this sum in an earlier attempt, of which nothing is left here; it cannot be held again"
                raise RoundLost(text, place=f"round {ctx.round}")


def _refuse_undeclared(operation: Any, session: Session) -> None:
    for part in _parts(operation):
        if isinstance(part, Relay) and part.stage not in session.relays:
            hint = f'relays = ("{part.stage}",) in {type(session).__name__}'
            raise PluginError(f"stage {part.stage!r} is a relay that its session does not declare, so no site takes it", hint=hint)


def _of_kind(operation: Any, kind: str) -> Any:
    return [replace(op, kind=kind) for op in operation] if isinstance(operation, Sequence) else replace(operation, kind=kind)


def _parts(given: Any) -> Sequence[Any]:
    """Operations, or outcomes, that are asked for side by side; or the one."""
    return given if isinstance(given, Sequence) else (given,)
