"""The adversary's view of a run, from the transcript and the recorded secrets in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pppml_core.errors import ConfigError
from pppml_core.evidence.packing import decode_view, encode_view
from pppml_core.evidence.recording import Passage, Recording
from pppml_core.evidence.seen import Attempt, coalition, heard_by, seen_of
from pppml_core.federation import checkpoint
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.pipeline import Pipeline, levels_of, rounded_weight
from pppml_core.federation.rundir import RunDir
from pppml_core.federation.secret_record import SECRETS, SecretRecord
from pppml_core.interfaces.attack import AdversaryView, Arrays, Seen, Vantage
from pppml_core.wire.messages import SERVER

__all__ = ["Attempt", "coalition", "decode_view", "encode_view", "heard_by", "read_view", "seen_of"]


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
    if members and parts.config.run.transcript != SECRETS:
        raise _unrecorded(members[0])
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
        #: hashes of models that passed through the hands of whoever looks.
        self._told: set[bytes] = set()
        self._read = 0

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
        weights, after = self._weights(vantage, announced["sha256"]), self._after(vantage, round, passages)
        if not numbers:  # nothing was summed
            return Seen(round, weights, after, cohort, (), tuple(heard_by(vantage, members, passages)))
        asked = {p.message.recipient for p in passages if p.message.kind == "session"}
        for member in sorted(asked.intersection(members)):
            if not self._record(member).folder.is_dir():  # it lived on another machine
                raise _unrecorded(member)
        pipeline = self.parts.pipeline(round, tuple(terms["ranges"]), terms["max_weight"], self._privacy)
        attempts = [self._attempt(round, number, opened[number]["terms"]["cohort"], members, pipeline) for number in numbers]
        # Of the members alone: no other party's secrets are so much as read.
        contributions = {m: values for m in members if (values := self._record(m).contribution(round)) is not None}
        survivors = tuple(self._state["survivors"].get(str(round), ()))
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
            summed=None,
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
            self._told |= {bytes(m.body["sha256"]) for m in heard_by(vantage, members, spoken) if "sha256" in m.body}
        self._read = max(self._read, until)

    def _weights(self, vantage: Vantage, sha256: bytes) -> Arrays:
        """A model by its hash; empty where nobody told this adversary."""
        return self.recording.model(sha256) if vantage.public or bytes(sha256) in self._told else {}

    def _after(self, vantage: Vantage, round: int, passages: Sequence[Passage]) -> Arrays:
        """The model after a round: what the next one begins with, or what was scored after it, or of the last one the checkpoint's."""
        following = self.recording.passages(round=round + 1, kinds=("open",))
        scored = [p for p in passages if p.message.kind == "evaluate" and p.message.body["state"] == round]
        for passage in (*following, *scored):
            if "sha256" in passage.message.body:
                return self._weights(vantage, passage.message.body["sha256"])
        return self._state["weights"] if round == self.held and (vantage.public or vantage.server) else {}


def _unrecorded(member: str) -> ConfigError:
    text = f"what {member} held itself is not recorded here, and an adversary who is {member} has it"
    return ConfigError(text, place="vantage", hint="run with `run.transcript: secrets`")


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
