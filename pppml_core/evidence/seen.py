"""What an adversary at a vantage saw of a round: whose hands a message passed, which sums follow from it, which models were sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from pppml_core.errors import ConfigError
from pppml_core.evidence.recording import Passage
from pppml_core.evidence.sums import Known, flat_of_step, flat_of_total, sights_of
from pppml_core.federation.pipeline import Pipeline
from pppml_core.interfaces.aggregation import Session, Sum
from pppml_core.interfaces.attack import Arrays, Seen, Vantage
from pppml_core.wire.messages import SERVER, Message


@dataclass(frozen=True)
class Attempt:
    """An attempt of a round.

    Args:
        number: counted from 1 within the round.
        session: of its cohort.
        states: party -> everything its session state ever held.
    """

    number: int
    session: Session
    states: Mapping[str, Mapping[str, Any]] = field(repr=False)


class NoSuchParty(ConfigError):
    """Nobody is at this vantage in this round."""


def coalition(vantage: Vantage, passages: Iterable[Passage]) -> tuple[str, ...]:
    """The parties that this vantage names: the server, the sites, and the neighbours of a site in the rings of these messages.

    Raises NoSuchParty where a site's neighbours are asked for and there is no ring.
    """
    members = {*vantage.sites, *([SERVER] if vantage.server else [])}
    rings = _rings(passages) if vantage.neighbours else []
    for site in sorted(vantage.neighbours):
        around = {other for ring in rings for other in _beside(site, ring)}
        if not around:
            text = f"{site} has no neighbours in this round: no sum went from site to site"
            raise NoSuchParty(text, place="vantage", hint="name the sites: site:A+site:B; rings are cyclic-he's")
        members |= around
    return tuple(sorted(members))


def _beside(site: str, ring: Sequence[str]) -> Iterator[str]:
    """The sites before and after one; the last is before the first."""
    if site in ring and len(ring) > 1:
        place = ring.index(site)
        yield ring[place - 1]
        yield ring[(place + 1) % len(ring)]


def _rings(passages: Iterable[Passage]) -> list[list[str]]:
    """The sites of each ring in the order in which they handed the running sum on; the last one is before the first.

    A site that was never handed the sum, and is bridged, hands nothing on and is in no ring.
    """
    rings: dict[tuple[int, str], list[str]] = {}
    relayed = set()
    for passage in passages:
        m = passage.message
        if m.sender != SERVER and m.kind in ("session", "reply"):
            rings.setdefault((m.attempt, m.stage), []).append(m.sender)
            if m.recipient != SERVER:
                relayed.add((m.attempt, m.stage))
    return [list(dict.fromkeys(ring)) for place, ring in rings.items() if place in relayed]


def seen_of(
    vantage: Vantage,
    passages: Sequence[Passage],
    session: Session,
    pipeline: Pipeline,
    *,
    round: int,
    weights: Arrays,
    after: Arrays,
    cohort: tuple[str, ...],
    states: Mapping[str, Mapping[str, Any]],
    contributions: Mapping[str, npt.NDArray[Any]],
    summed: Sum | None,
    averaged: tuple[tuple[str, ...], float] | None = None,
    adds: bool = True,
    earlier: Sequence[Attempt] = (),
) -> Seen:
    """What this adversary saw of a round.

    Args:
        vantage: who looks.
        passages: all messages of the round, with the parties through whose hands each went.
        session: of the (last) attempt.
        pipeline: the round's encoding, from its public terms.
        round: counted from 1.
        weights: shared weights before; empty where they were not sent to this adversary.
        after: and after.
        cohort: of the last attempt.
        states: party -> everything its session state of the last attempt ever held; only the members' are looked at.
        contributions: site -> what it put into the sum; only the members' are looked at.
        summed: the sum as the server had it, before any noise of the server's; None: unknown, or there was none.
        averaged: where ``summed`` is None: the sites of the published mean, and their summed weight in examples.
        adds: whether ``after`` is ``weights`` plus the mean, so that two models give the mean.
        earlier: attempts of this round before the last.

    That a site's number of examples is known to all is the worst case: two models give a mean, and a mean times its weight is a sum.

    Raises NoSuchParty for neighbours where there is no ring, ConfigError where a member's own contribution is needed and missing.
    """
    members = coalition(vantage, passages)
    heard = heard_by(vantage, members, passages)
    last = max((p.message.attempt for p in passages if p.message.kind == "session"), default=1)
    known: list[Known] = []
    for attempt in (*earlier, Attempt(last, session, states)):
        known += _exposed(attempt, members, heard, pipeline)
    if summed is not None:
        averaged = (summed.survivors, float(flat_of_total(pipeline, summed.total)[-1]) * pipeline.max_weight)
        if vantage.server and SERVER in (*session.guarantees.sees_sum, *session.guarantees.sees_update):
            known.append((frozenset(summed.survivors), flat_of_total(pipeline, summed.total)))
    step: Known | None = None
    modelled = vantage.public or bool(members) or any(SERVER in link for link in vantage.links)
    if modelled and adds and averaged is not None and averaged[0] and weights and after:
        step = (frozenset(averaged[0]), flat_of_step(pipeline, weights, after, averaged[1]))
    every = [site for sites, _ in (*known, *([step] if step else [])) for site in sorted(sites)]
    order = tuple(dict.fromkeys((*cohort, *every)))
    return Seen(
        round=round,
        weights=weights if modelled else {},
        after=after if modelled else {},
        cohort=cohort,
        sights=sights_of(pipeline, known, members, contributions, order, step),
        messages=tuple(heard),
        secrets={m: states[m] for m in members if states.get(m)},
        members=tuple(members),
    )


def heard_by(vantage: Vantage, members: Sequence[str], passages: Iterable[Passage]) -> list[Message]:
    """What went through the members' hands or over a link that is listened to. Frames are not encrypted here: a listener reads them."""
    listened = {frozenset(link) for link in vantage.links}
    return [p.message for p in passages if not set(p.parties).isdisjoint(members) or not p.links.isdisjoint(listened)]


def _exposed(attempt: Attempt, members: Sequence[str], heard: Sequence[Message], pipeline: Pipeline) -> list[Known]:
    """What the session itself says that this coalition decodes."""
    messages = [m for m in heard if m.attempt == attempt.number]
    asked = {m.stage for m in messages if m.kind == "session"}
    messages = [m for m in messages if m.kind in ("session", "reply") and m.stage in asked]
    if not messages:
        return []
    states = {m: attempt.states[m] for m in members if m in attempt.states}
    one = {"number": attempt.number, "cohort": attempt.session.cohort, "states": states, "history": {}}
    view = {"parties": tuple(members), "messages": messages, "states": states, "attempts": [one]}
    return [(frozenset(found.sites), flat_of_total(pipeline, found.value)) for found in attempt.session.exposed(view)]
