"""The server's state between rounds, and its two ways of speaking to sites: perform an operation, broadcast with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from pppml_core.errors import ConfigError, PlanRefused
from pppml_core.federation import checkpoint, evaluation
from pppml_core.federation.assembly import Assembly, fewest_survivors
from pppml_core.federation.identity import load_identity, load_roster, roster_hash
from pppml_core.federation.pipeline import Pipeline, contribution_ranges
from pppml_core.federation.secret_record import SecretRecord
from pppml_core.federation.terms import ROUND_FIELDS, round_terms
from pppml_core.federation.trainer import plain_state, tensor_state
from pppml_core.interfaces.aggregation import Guarantees, Sum
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.learning.arrays import to_numpy, to_torch
from pppml_core.learning.pool import evaluated_sites
from pppml_core.values import rms
from pppml_core.wire.codec import Encoded, sha256_of
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER, Body, Exchange, Operation

#: perform(operations, round, attempt, manifest)
Perform = Callable[[Operation | Sequence[Operation], int, int, Manifest], Any]
Emit = Callable[[Mapping[str, Any]], None]


@dataclass
class ServerState:
    """What a checkpoint holds."""

    weights: Mapping[str, torch.Tensor]
    method: Mapping[str, Any]
    #: RMS of each shared tensor in the last public aggregate: the automatic range of the next round.
    previous: dict[str, float] | None = None
    survivors: dict[str, list[str]] = field(default_factory=dict)
    best_round: int | None = None
    best_value: float | None = None
    #: the best rounds that the last two checkpoints name: what belongs to them is kept.
    bests: list[int] = field(default_factory=list)
    #: validation evaluations since the best one.
    stale: int = 0
    #: round -> mean validation value of the watched metric (None where it was undefined).
    validation: dict[str, float | None] = field(default_factory=dict)
    stopped: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """As the codec carries it."""
        plain = {k: v for k, v in vars(self).items() if k not in ("weights", "method")}
        return {**plain, "weights": to_numpy(self.weights), "method": plain_state(self.method)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ServerState:
        """The inverse of :meth:`to_plain`."""
        rest = {k: v for k, v in plain.items() if k not in ("weights", "method")}
        return cls(weights=to_torch(plain["weights"]), method=tensor_state(plain["method"]), **rest)


class Server:
    """Coordinates one run. Holds no site's data; what it learns of a site is what arrives in a message."""

    def __init__(
        self,
        assembly: Assembly,
        run: bytes,
        sites: Sequence[str],
        max_weight: int,
        privacy: PrivacyPlan,
        home: Path,
        checkpoints: Path,
        perform: Perform,
        emit: Emit,
        record: SecretRecord | None = None,
    ) -> None:
        self.parts, self.run, self.sites, self.max_weight = assembly, run, tuple(sites), max_weight
        self.privacy, self.perform, self.emit = privacy, perform, emit
        self.identity, self.roster = load_identity(home), load_roster(home)
        if unknown := [party for party in (*self.sites, SERVER) if party not in self.roster]:
            raise ConfigError(f"the server has pinned no identity for {', '.join(unknown)}", place=str(home), hint="pppml site trust")
        self._checkpoints = checkpoints
        self._record = record
        weights = assembly.initial_weights
        self.state = ServerState(weights, assembly.personalization.server_init(weights))
        self._initial_rms = rms(to_numpy(weights), list(weights))
        self.evaluated = [s.slug for s in evaluated_sites(assembly.task)]
        config = assembly.config
        self.manifest = Manifest((*ROUND_FIELDS, *evaluation.evaluation_fields(assembly.spec, self.sites, config.run.metrics)))
        self._holders: dict[bytes, set[str]] = {}
        self._spoken: tuple[Mapping[str, torch.Tensor], Encoded, bytes] | None = None
        #: round -> the last attempt that any site may have taken part in.
        self.attempts: dict[int, int] = {}

    def new_attempt(self, round: int) -> int:
        """A number no site has seen in this round."""
        self.attempts[round] = self.attempts.get(round, 0) + 1
        return self.attempts[round]

    def note_attempts(self, told: Mapping[str, Any]) -> None:
        """Take in what a site said of the attempts it took part in; what is no such thing is passed over."""
        for round, attempt in told.items():
            if round.isdecimal() and len(round) < 10 and type(attempt) is int and 0 < attempt < 2**30:
                self.attempts[int(round)] = max(attempt, self.attempts.get(int(round), 0))

    def ranges(self) -> tuple[float, ...]:
        """Fixed-point ranges of the coming round, from public knowledge. A privacy mechanism may have a grid of its own instead."""
        if self.parts.config.encoding.use == "float" or not self.parts.personalization.shares:
            return ()
        return contribution_ranges(self.parts.shared, self.parts.config.encoding, self.state.previous, self._initial_rms)

    def pipeline(self, round: int) -> Pipeline:
        """The coming round's encoding."""
        return self.parts.pipeline(round, self.ranges(), self.max_weight, self.privacy)

    def terms(self, round: int, cohort: Sequence[str]) -> dict[str, Any]:
        """What is announced for a round over these sites."""
        return round_terms(
            round=round,
            cohort=cohort,
            ranges=self.ranges(),
            max_weight=self.max_weight,
            guarantees=self.guarantees(round, cohort),
            privacy=self.privacy.statement,
            metrics=evaluation.announced_share(self.parts, self.sites),
            keep=self.state.bests,
            roster=roster_hash(self.roster, (*cohort, SERVER)),
        )

    def remember(self, round: int, attempt: int, secrets: Mapping[str, Any]) -> None:
        """Keep what the server side of a session must not keep: for experiments only, where ``run.transcript`` is ``secrets``."""
        if self._record is not None:
            self._record.note(round, attempt, secrets)

    def keep_sum(self, which: str, round: int, weights: Mapping[str, torch.Tensor], summed: Sum) -> None:
        """Write a sum to the disk: its sites have released it, and give no second one to a server that was killed before its checkpoint."""
        checkpoint.save_sum(self._checkpoints, round, which, self._sum_key(which, round, weights), summed)

    def kept_sum(self, which: str, round: int, weights: Mapping[str, torch.Tensor]) -> Sum | None:
        """The sum of this round as it was before the server was killed; None where there is none over this model and these terms."""
        summed = checkpoint.load_sum(self._checkpoints, round, which, self._sum_key(which, round, weights))
        if summed is not None:
            self.emit({"event": "sum-kept", "round": round, "kind": which, "survivors": list(summed.survivors)})
        return summed

    def _sum_key(self, which: str, round: int, weights: Mapping[str, torch.Tensor]) -> bytes:
        terms = {"ranges": list(self.ranges()), "max_weight": self.max_weight, "privacy": self.privacy.statement.to_dict()}
        return sha256_of({"run": self.run, "round": round, "which": which, "weights": self.sha256(weights), "terms": terms})

    def guarantees(self, round: int, cohort: Sequence[str]) -> Guarantees | None:
        """Of the session over this cohort; None where nothing is summed. Raises PlanRefused where its sum may be over too few sites."""
        if not self.parts.personalization.shares:
            return None
        found = self.parts.aggregator.plan(self.pipeline(round).spec, tuple(cohort)).guarantees
        if (fewest := fewest_survivors(found, len(cohort))) < self.privacy.min_survivors:
            needed = self.privacy.min_survivors
            raise PlanRefused([f"privacy: a sum may be over {fewest} of {len(cohort)} sites, and its noise is sized for at least {needed}"])
        return found

    def sha256(self, weights: Mapping[str, torch.Tensor]) -> bytes:
        """The hash by which messages name these weights."""
        return self._encoded(weights)[1]

    def _encoded(self, weights: Mapping[str, torch.Tensor]) -> tuple[Encoded, bytes]:
        """Encoded once, however often they are spoken of: weights are replaced as a whole, never changed."""
        if self._spoken is None or self._spoken[0] is not weights:
            arrays: dict[str, npt.NDArray[Any]] = to_numpy(weights)
            self._spoken = (weights, Encoded(arrays), sha256_of(arrays))
        return self._spoken[1:]

    def broadcast(
        self,
        kind: str,
        sites: Iterable[str],
        round: int,
        attempt: int,
        body: Body,
        weights: Mapping[str, torch.Tensor],
        stage: str | None = None,
    ) -> tuple[dict[str, Body], dict[str, str]]:
        """Send a message that speaks of a model; the model itself goes along, encoded once, only to sites that do not hold it yet.

        Returns replies and losses.
        """
        encoded, sha256 = self._encoded(weights)
        holders = self._holders.setdefault(sha256, set())
        for old in list(self._holders)[:-2]:
            del self._holders[old]
        replies: dict[str, Body] = {}
        lost: dict[str, str] = {}
        sites = list(sites)
        asked = [s for s in sites if s in holders]
        sent = [s for s in sites if s not in holders]
        for with_weights in (False, True):
            targets = sent if with_weights else asked
            if not targets:
                continue
            common = {**body, "sha256": sha256, **({"weights": encoded} if with_weights else {})}
            outcome = self.perform(
                Exchange(stage or kind, {s: {} for s in targets}, kind=kind, common=common), round, attempt, self.manifest
            )
            for site, reply in outcome.replies.items():
                if reply.get("needs_weights") and not with_weights:
                    sent.append(site)
                else:
                    replies[site] = reply
                    holders.add(site)
            lost.update(outcome.lost)
        return replies, lost
