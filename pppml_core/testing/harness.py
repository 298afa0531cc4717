"""``SessionHarness``: one secure sum in one process, without training.

Everything between the session and its sites is what a run uses: encoded frames, the courier, the manifest, the site's session side. Only
the contributions are given instead of trained, so an exact oracle knows what the sum must be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import numpy as np

from pppml_core.engines.courier import Address, Courier
from pppml_core.engines.faults import Fault, FaultyTransport
from pppml_core.errors import PlanRefused, RoundAborted, RoundLost, TooFewSurvivors
from pppml_core.federation.identity import roster_hash
from pppml_core.federation.policy import Policy
from pppml_core.interfaces.aggregation import Aggregator, Coordinator, ServerContext, Session, Sum
from pppml_core.interfaces.engine import Loss, Topology, Transport
from pppml_core.randomness import Seeds
from pppml_core.testing.parties import Contribution, Door, HarnessSite, Header, InProcess, ReleaseRecord, harness_context, identity_of
from pppml_core.testing.recording import Attempt, HarnessResult, Passage, Recording, exact_sum
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import encode_message, sha256_of
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER, Message
from pppml_core.wire.transcript import Transcript

__all__ = ["Attempt", "HarnessResult", "Passage", "Recording", "SessionHarness", "coalitions", "draw", "exact_sum", "site_names"]

SessionFactory = Callable[[ValueSpec, Sequence[str]], Session]
#: the server's side: ``(session, ctx) -> generator``.
Coordinate = Callable[[Session, ServerContext], Coordinator]

_NONE: Mapping[str, Any] = {}


def site_names(count: int) -> tuple[str, ...]:
    """``a``, ``b``, ... for up to 26 sites, ``s000``, ``s001``, ... for more."""
    return tuple("abcdefghijklmnopqrstuvwxyz"[:count]) if count <= 26 else tuple(f"s{i:03d}" for i in range(count))


class SessionHarness:
    """Runs one session over sites with given contributions.

    Args:
        make: an aggregator, or a function ``(value, cohort) -> session``. Each party gets a session of its own; nothing is shared.
        sites: how many, or their names.
        length: coordinates of a contribution.
        bound: largest absolute value of a coordinate.
        kind: ``integer`` or ``real``.
        topology: ``p2p`` or ``star``.
        amnesia: each site is rebuilt from bytes before every message.
        faults: what goes wrong on the way, :class:`~pppml_core.engines.faults.Fault` or its settings. A fault at stage ``open`` keeps
            the site out of that attempt.
        seed: of the contributions.
        contributions: site -> vector, instead of drawn ones.
        policies: site -> its own policy, where it is not the default one.
        attempts: how many attempts there may be. After RoundAborted, never after RoundLost, another one starts: attempt number + 1, a new
            binding, fresh sessions, the same contributions, over all sites that accept.
        min_cohort: fewest sites that must accept.
        coordinate: ``(session, ctx) -> generator`` that takes the place of the honest server; see :func:`.lying.edited`.
        transport: wraps the transport, faults included: ``Transport -> Transport``, for a network of the test's own.
        models: party -> hash of model and terms as that party has them, where they are not the common ones.
        impostors: sites that sign with another identity than the one everybody has pinned for them.
        rosters: site -> the identities it has pinned, where they are not the true ones.
        released: site -> the sets it released the sum over before this run, as found on its disk.
        remember: keep every site's state after each message (``Attempt.history``).

    """

    def __init__(
        self,
        make: Aggregator | SessionFactory,
        sites: int | Sequence[str] = 5,
        length: int = 100,
        bound: int = 32_767,
        *,
        kind: str = "integer",
        topology: Topology = "p2p",
        amnesia: bool = False,
        faults: Sequence[Fault | Mapping[str, Any]] = (),
        seed: int = 0,
        contributions: Mapping[str, Contribution] | None = None,
        run: bytes = b"session-harness!",
        round: int = 1,
        attempt: int = 1,
        policies: Mapping[str, Policy] = _NONE,
        attempts: int = 1,
        min_cohort: int = 1,
        coordinate: Coordinate | None = None,
        transport: Callable[[Transport], Transport] = lambda inner: inner,
        models: Mapping[str, bytes] = _NONE,
        impostors: Sequence[str] = (),
        rosters: Mapping[str, Mapping[str, bytes]] = _NONE,
        released: Mapping[str, Sequence[tuple[str, ...]]] = _NONE,
        remember: bool = False,
    ) -> None:
        self.sites = site_names(sites) if isinstance(sites, int) else tuple(sites)
        self.value = ValueSpec(length, "real" if kind == "real" else "integer", None if kind == "real" else bound)
        self.contributions = dict(contributions) if contributions is not None else draw(self.value, self.sites, seed)
        for vector in self.contributions.values():
            vector.flags.writeable = False
        # A pristine copy: whatever a session stores in its aggregator is gone when the next one is made.
        self._make = copy.deepcopy(make) if isinstance(make, Aggregator) else make
        self._topology, self._amnesia, self._remember = topology, amnesia, remember
        self._faults = [fault if isinstance(fault, Fault) else Fault(**fault) for fault in faults]
        self._run, self._round, self._first, self._attempts, self._min_cohort = run, round, attempt, attempts, min_cohort
        self._policies, self._models, self._impostors, self._rosters = policies or {}, models, impostors, rosters
        self._coordinate = coordinate or (lambda session, ctx: session.coordinate(ctx))
        self._wrap, self._released = transport, released

    def roster(self, cohort: Sequence[str] | None = None) -> dict[str, bytes]:
        """The true public identities of the cohort and of ``server``."""
        return {party: identity_of(party).public for party in (*(self.sites if cohort is None else cohort), SERVER)}

    def session(self, cohort: Sequence[str] | None = None) -> Session:
        """A fresh session for this value and this cohort (default: all sites)."""
        named = self.sites if cohort is None else tuple(cohort)
        if isinstance(self._make, Aggregator):
            return copy.deepcopy(self._make).plan(self.value, named)
        return self._make(self.value, named)

    def run(self) -> HarnessResult:
        """The session, from first message to sum or abort. Other errors of the server side are bugs and are raised."""
        self._recording, self._losses = Recording(), list[tuple[str, str, str]]()
        self._crashes: list[tuple[str, str, Exception]] = []
        self._records = {s: ReleaseRecord(s, [(0, tuple(over)) for over in self._released.get(s, ())]) for s in self.sites}
        self._inner = InProcess()
        door = FaultyTransport(Door(), [f for f in self._faults if f.stage == "open"])
        faulty = FaultyTransport(self._inner, [f for f in self._faults if f.stage != "open"])
        courier = Courier(self._wrap(faulty), self._topology, cast("Transcript", self._recording), self._note)
        attempts: list[Attempt] = []
        outcome: Sum | None = None
        aborted: RoundAborted | None = None
        for number in range(self._first, self._first + self._attempts):
            try:
                cohort = self._opened(door, number)
            except RoundAborted as error:
                aborted = error
                continue
            outcome, attempt = self._attempt(courier, number, cohort)
            attempts.append(attempt)
            aborted = attempt.aborted
            if aborted is None or isinstance(aborted, RoundLost):
                break
        return HarnessResult(
            sum=None if outcome is None else outcome.total,
            survivors=() if outcome is None else tuple(outcome.survivors),
            aborted=aborted,
            transcript=self._recording,
            contributions=self.contributions,
            losses=tuple(self._losses),
            crashes=tuple(self._crashes),
            states=attempts[-1].states if attempts else {},
            unused=(*door.unused, *faulty.unused),
            released={name: tuple(over for _, over in record.entries) for name, record in self._records.items()},
            attempts=tuple(attempts),
        )

    def _note(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "site-lost":
            self._losses.append((event["stage"], event["site"], event["reason"]))

    def _opened(self, door: FaultyTransport, number: int) -> tuple[str, ...]:
        """Ask all sites to take part in an attempt; those that accept, if they are enough for the run and for the aggregator."""

        def asked() -> Iterator[tuple[str, bytes]]:
            for site in self.sites:
                yield site, encode_message(Message(self._run, self._round, number, "open", "open", SERVER, site, {}))

        answers = dict(door.deliver(asked()))
        accepted = tuple(s for s in self.sites if not isinstance(answers[s], Loss))
        self._losses += [("open", s, "it did not take part") for s in self.sites if s not in accepted]
        if len(accepted) < self._min_cohort:
            raise TooFewSurvivors(f"{len(accepted)} sites accepted, at least {self._min_cohort} are needed", place="harness")
        if len(accepted) < len(self.sites):
            try:
                self.session(accepted)
            except PlanRefused as error:
                raise TooFewSurvivors(f"{len(accepted)} sites accepted: {error}", place="harness") from error
        return accepted

    def _attempt(self, courier: Courier, number: int, cohort: tuple[str, ...]) -> tuple[Sum | None, Attempt]:
        address, roster = Address(self._run, self._round, number), self.roster(cohort)

        def header(party: str) -> Header:
            pinned = self._rosters.get(party, roster)
            bound = [self._run, self._round, number, list(cohort), self._models.get(party, b"model"), roster_hash(pinned, pinned)]
            return self._run, self._round, number, cohort, sha256_of(bound), pinned

        def site(s: str) -> HarnessSite:
            own = identity_of(f"not {s}" if s in self._impostors else s)
            context = harness_context(s, header(s), self._policies.get(s, Policy()), own, self.contributions[s], self._records[s])
            return HarnessSite(lambda: self.session(cohort), context, amnesia=self._amnesia, remember=self._remember)

        self._inner.sites = sites = {s: site(s) for s in cohort}
        session, context = self.session(cohort), ServerContext(*header(SERVER), identity_of(SERVER).sign)
        outcome: Sum | None = None
        aborted: RoundAborted | None = None
        try:
            outcome = _drive(self._coordinate(session, context), courier, address, Manifest(session.fields))
        except RoundAborted as error:
            aborted = error
        self._crashes += [crash for s in sites.values() for crash in s.crashes]
        return outcome, Attempt(
            number,
            cohort,
            context.binding,
            aborted,
            {name: s.state() for name, s in sites.items()},
            {name: tuple(s.history) for name, s in sites.items()},
            {name: tuple(s.context.drawn) for name, s in sites.items()},
        )


def _drive(coordinator: Coordinator, courier: Courier, address: Address, manifest: Manifest) -> Sum:
    try:
        operations = next(coordinator)
        while True:
            operations = coordinator.send(courier.perform(operations, address, manifest))
    except StopIteration as stop:
        return cast("Sum", stop.value)
    finally:
        coordinator.close()


def draw(value: ValueSpec, sites: Sequence[str], seed: int) -> dict[str, Contribution]:
    """Contributions: uniform int32 in ``[-bound, bound]``, or standard normal float32."""
    seeds = Seeds(seed)
    if value.kind == "real":
        return {s: seeds.generator("contribution", s).standard_normal(value.length, np.float32) for s in sites}
    bound = value.bound or 0
    return {s: seeds.generator("contribution", s).integers(-bound, bound, value.length, np.int32, endpoint=True) for s in sites}


def coalitions(sites: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """All sets of ``size`` sites."""
    return combinations(sites, size)
