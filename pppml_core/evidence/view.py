"""What an adversary at a vantage saw of a round: whose hands a message passed, which sums follow from it, which models were sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.errors import ConfigError
from pppml_core.evidence.packing import decode_view, encode_view
from pppml_core.evidence.recording import Passage, Recording
from pppml_core.evidence.sums import Known, flat_of_step, flat_of_total, sights_of
from pppml_core.federation import checkpoint
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.pipeline import Pipeline, levels_of, rounded_weight
from pppml_core.federation.rundir import RunDir
from pppml_core.federation.secret_record import SECRETS, SecretRecord
from pppml_core.interfaces.aggregation import Session, Sum
from pppml_core.interfaces.attack import AdversaryView, Arrays, Seen, Vantage
from pppml_core.wire.messages import SERVER, Message

__all__ = ["Attempt", "coalition", "decode_view", "encode_view", "read_view", "seen_of"]


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


def coalition(vantage: Vantage, passages: Iterable[Passage]) -> tuple[str, ...]:
    """The parties that this vantage names: the server, the sites, and the neighbours of a site in the rings of these messages.

    Raises ConfigError where a site's neighbours are asked for and there is no ring.
    """
    members = {*vantage.sites, *([SERVER] if vantage.server else [])}
    if vantage.neighbours:
        rings = _rings(passages)
        for site in sorted(vantage.neighbours):
            around = {ring[place + step] for ring in rings if site in ring for place in [ring.index(site)] for step in (-1, 1 - len(ring))}
            if not around - {site}:
                text = f"{site} has no neighbours in this round: no sum went from site to site"
                raise ConfigError(text, place="vantage", hint="name the sites: site:A+site:B; rings are cyclic-he's")
            members |= around - {site}
    return tuple(sorted(members))


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

    Raises ConfigError for neighbours where there is no ring, and where a member's own contribution is needed and missing.
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
    modelled = vantage.public or bool(members) or any(SERVER in link for link in vantage.links)
    if modelled and adds and averaged is not None and averaged[0] and weights and after:
        known.append((frozenset(averaged[0]), flat_of_step(pipeline, weights, after, averaged[1])))
    order = tuple(dict.fromkeys((*cohort, *(site for sites, _ in known for site in sorted(sites)))))
    return Seen(
        round=round,
        weights=weights if modelled else {},
        after=after if modelled else {},
        cohort=cohort,
        sights=sights_of(pipeline, known, members, contributions, order),
        messages=tuple(heard),
        secrets={m: states[m] for m in members if states.get(m)},
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


def read_view(folder: Path, parts: Assembly, vantage: Vantage, round: int, *, first: int = 1) -> AdversaryView:
    """What an adversary saw of a run that is finished or under way, in all rounds up to ``round``.

    Args:
        folder: of a run with ``run.transcript: secrets``; for who is no party and only listens or reads models, ``payloads`` will do.
        parts: its components, built from its resolved config.
        vantage: who looks. Who is a neighbour is as in the last of these rounds.
        round: counted from 1.
        first: the first round of the view, where earlier ones are not wanted.

    Raises ConfigError where the run has not held this round, or did not record what this adversary holds, and for neighbours where there
    is no ring; DataError where the recording is damaged.
    """
    run = _Run(folder, parts)
    if not 1 <= first <= round <= run.held:
        raise ConfigError(f"there is no round {round} to look at", place="round", hint=f"this run has held rounds 1 to {run.held}")
    members = coalition(vantage, run.recording.passages(round=round))
    run.check_secrets(members)
    fixed = replace(vantage, server=SERVER in members, sites=frozenset(members) - {SERVER}, neighbours=frozenset())
    return AdversaryView(vantage, tuple(run.seen(fixed, members, r) for r in range(first, round + 1)))


class _Run:
    """The folder of a run, as far as views need it. Ask for rounds in their order."""

    def __init__(self, folder: Path, parts: Assembly) -> None:
        self.parts, self.recording, self._directory = parts, Recording(folder), RunDir(folder)
        told = (self._directory.read_json("fingerprint.json") or {}).get("training examples")
        sites = [s.slug for s in parts.task.sites()]
        self._sizes = {s: int(told[s]) if told else len(parts.load(s).train) for s in sites}
        self._privacy = parts.mechanism.plan(parts.privacy_setting(self._sizes))
        found = checkpoint.load(self._directory.checkpoints)
        self.held: int = 0 if found is None else found[0]
        self._state: Mapping[str, Any] = {} if found is None else found[1]["server"]
        self._adds = adds_plainly(parts)
        #: hash -> model; and the hashes of models that passed through the hands of whoever looks.
        self._models: dict[bytes, Arrays] = {}
        self._told: set[bytes] = set()
        self._read = 0

    def check_secrets(self, members: Sequence[str]) -> None:
        """Raise ConfigError unless these parties' secrets were recorded."""
        for member in members:
            recorded = self.parts.config.run.transcript == SECRETS
            if not recorded or (member != SERVER and not self._record(member).folder.is_dir()):
                text = f"what {member} held itself is not recorded here, and an adversary who is {member} has it"
                raise ConfigError(text, place="vantage", hint="run with `run.transcript: secrets`")

    def seen(self, vantage: Vantage, members: Sequence[str], round: int) -> Seen:
        """Of one round."""
        self._hear_of_models(vantage, members, round + 1)
        passages = self.recording.passages(round=round)
        opened = {p.message.attempt: p.message.body for p in passages if p.message.kind == "open"}
        numbers = sorted({p.message.attempt for p in passages if p.message.kind == "session"})
        if not opened:
            text = f"the messages of round {round} are not in the transcript: its sum was kept while the server was killed and resumed"
            raise ConfigError(text, place="round", hint="look at another round")
        announced = opened[max(numbers or opened)]
        terms, cohort = announced["terms"], tuple(announced["terms"]["cohort"])
        weights, after = self._weights(vantage, members, announced["sha256"]), self._after(vantage, members, round, passages)
        if not numbers:  # nothing was summed
            return Seen(round, weights, after, cohort, (), tuple(heard_by(vantage, members, passages)))
        pipeline = self.parts.pipeline(round, tuple(terms["ranges"]), terms["max_weight"], self._privacy)
        attempts = [self._attempt(round, number, opened[number]["terms"]["cohort"], members, pipeline) for number in numbers]
        contributions = {s: values for s in self._sizes if (values := self._record(s).contribution(round)) is not None}
        survivors = tuple(self._state["survivors"].get(str(round), ()))
        summed = None
        if survivors and set(survivors) <= set(contributions):
            wide = np.float64 if pipeline.real else np.int64
            summed = Sum(np.sum([contributions[s] for s in survivors], axis=0, dtype=wide), survivors)
        return seen_of(
            vantage,
            passages,
            attempts[-1].session,
            pipeline,
            round=round,
            weights=weights,
            after=after,
            cohort=cohort,
            states=attempts[-1].states,
            contributions=contributions,
            summed=summed,
            averaged=(survivors, sum(self._weight(pipeline, site) for site in survivors)),
            adds=self._adds,
            earlier=attempts[:-1],
        )

    def _record(self, party: str) -> SecretRecord:
        return SecretRecord(self._directory.sites / party)

    def _attempt(self, round: int, number: int, cohort: Sequence[str], members: Sequence[str], pipeline: Pipeline) -> Attempt:
        states = {member: self._record(member).states(round, number) for member in members}
        return Attempt(number, self.parts.aggregator.plan(pipeline.spec, tuple(cohort)), states)

    def _weight(self, pipeline: Pipeline, site: str) -> float:
        """A site's weight in the mean, from its public number of examples."""
        weight = self._privacy.constant_weight or self.parts.personalization.weight(self._sizes[site])
        if pipeline.real:
            return float(weight)
        return rounded_weight(weight, pipeline.max_weight, pipeline.bits) / levels_of(pipeline.bits) * pipeline.max_weight

    def _hear_of_models(self, vantage: Vantage, members: Sequence[str], until: int) -> None:
        """Take in the messages up to that round that speak of a model; it is sent but once to each site."""
        for round in range(self._read + 1, until + 1):
            spoken = self.recording.passages(round=round, kinds=("open", "evaluate"))
            for passage in spoken:
                if "weights" in passage.message.body:
                    self._models.setdefault(bytes(passage.message.body["sha256"]), passage.message.body["weights"])
            self._told |= {bytes(m.body["sha256"]) for m in heard_by(vantage, members, spoken) if "sha256" in m.body}
        self._read = max(self._read, until)

    def _weights(self, vantage: Vantage, members: Sequence[str], sha256: bytes) -> Arrays:
        """A model by its hash; empty where nobody told this adversary."""
        return self._models.get(bytes(sha256), {}) if vantage.public or bytes(sha256) in self._told else {}

    def _after(self, vantage: Vantage, members: Sequence[str], round: int, passages: Sequence[Passage]) -> Arrays:
        """The model after a round: what the next one begins with, or what was scored after it, or of the last one the checkpoint's."""
        following = self.recording.passages(round=round + 1, kinds=("open",))
        scored = [p for p in passages if p.message.kind == "evaluate" and p.message.body["state"] == round]
        for passage in (*following, *scored):
            if "sha256" in passage.message.body:
                return self._weights(vantage, members, passage.message.body["sha256"])
        return self._state["weights"] if round == self.held and (vantage.public or vantage.server) else {}


def adds_plainly(parts: Assembly) -> bool:
    """Whether the run's rule makes the new weights as the old ones plus the mean: tried on two rounds, as moments show in the second."""
    rule, weights = parts.personalization, parts.initial_weights
    if not rule.shares:
        return False
    state = rule.server_init(weights)
    for step in (2.0**-10, -(2.0**-11)):
        mean = {n: torch.full_like(w, step) for n, w in weights.items()}
        moved, state = rule.server_update(weights, mean, state)
        if not all(torch.allclose(moved[n], w + mean[n], rtol=1e-6, atol=1e-6) for n, w in weights.items()):
            return False
        weights = dict(moved)
    return True
