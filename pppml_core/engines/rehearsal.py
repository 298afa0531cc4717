"""A secure sum in this process over given numbers, with a clock for every party and stage.

What ``pppml plan --measure``, ``pppml bench`` and the benchmarks time. The session, the frames, the manifest and the courier are those of a
run; contributions are given instead of trained, nothing is written to disk, and identities live as long as the rehearsal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from pppml_core.engines.courier import Address, Courier
from pppml_core.federation.identity import KEY_BYTES, Identity, roster_hash
from pppml_core.federation.policy import Policy
from pppml_core.federation.secret_record import merged
from pppml_core.federation.session_side import SessionSide
from pppml_core.interfaces.aggregation import ServerContext, Session, Sum
from pppml_core.interfaces.engine import Loss, Topology
from pppml_core.randomness import Secret, entropy
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import decode_message, sha256_of
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER, Message, Operation
from pppml_core.wire.transcript import Transcript

Numbers = npt.NDArray[Any]


class Recorder(Protocol):
    """Takes frames as a :class:`~pppml_core.wire.transcript.Transcript` does."""

    def append(self, message: Message, frame: bytes | memoryview, *, carrier: tuple[str, ...] = ()) -> None:
        """One message, over ``carrier``."""


ADDRESS = Address(bytes(16), 1, 1)


@dataclass(frozen=True)
class Site:
    """A ``SiteContext`` that contributes what it is given."""

    site: str
    cohort: tuple[str, ...]
    binding: bytes
    roster: Mapping[str, bytes]
    policy: Policy
    sign: Callable[[bytes], bytes]
    contribution: Callable[[], Numbers]
    run: bytes = ADDRESS.run
    round: int = ADDRESS.round
    attempt: int = ADDRESS.attempt

    def entropy(self, length: int) -> bytes:
        """From the operating system."""
        return entropy(length)

    def release(self, sites: Sequence[str]) -> None:
        """There is only this one sum."""


@dataclass
class Rehearsed:
    """What came of it.

    Args:
        sum: the total and the sites it is over.
        seconds: party -> stage -> seconds of work; of a site from decoding a request to its encoded reply, of ``server`` all the rest.
        sent: party -> stage -> bytes it sent.
    """

    sum: Sum
    seconds: Mapping[str, Mapping[str, float]]
    sent: Mapping[str, Mapping[str, int]]

    def of_a_site(self) -> float:
        """Seconds of one site over all stages, the median of the survivors'."""
        return float(np.median([sum(self.seconds[site].values()) for site in self.sum.survivors]))

    def of_the_server(self) -> float:
        """Seconds of the server over all stages."""
        return sum(self.seconds[SERVER].values())

    def sent_by_a_site(self) -> float:
        """Bytes one site sent, the median of the survivors'."""
        return float(np.median([sum(self.sent[site].values()) for site in self.sum.survivors]))


def numbers_for(value: ValueSpec, seed: int) -> Numbers:
    """A contribution of that length and bound: uniform int32, or standard normal float32."""
    generator = np.random.default_rng(seed)
    if value.bound is None:
        return generator.standard_normal(value.length, np.float32)
    return generator.integers(-value.bound, value.bound, value.length, dtype=np.int32, endpoint=True)


class Rehearsal:
    """One session over sites with given contributions, in this process.

    Args:
        session: the session; all parties share the object, which holds no state.
        contributions: site -> what it calls for its numbers, within the time that is measured; default: ready-made ones.
        vanish: site -> the stage from which on it does not answer any more.
        policy: of all sites; default: the default one.
        keep_sites: whose requests and states are kept, for :meth:`again_at_site`.
        keep_replies: whether all replies are kept, for :meth:`again_at_server`.
        transcript: takes every frame; default: nothing does.
        topology: ``p2p``, or ``star``: the server carries what goes from site to site.
        remember: whether all parties' secrets are kept, for :meth:`remembered`.
    """

    def __init__(
        self,
        session: Session,
        contributions: Mapping[str, Callable[[], Numbers]] | None = None,
        *,
        vanish: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        keep_sites: Collection[str] = (),
        keep_replies: bool = False,
        transcript: Recorder | None = None,
        topology: Topology = "p2p",
        remember: bool = False,
    ) -> None:
        self.session, self.vanish = session, dict(vanish or {})
        self.keep_sites, self.keep_replies = keep_sites, keep_replies
        self.transcript, self.topology, self.remember = transcript or _Unwritten(), topology, remember
        if contributions is None:
            contributions = {site: _ready(numbers_for(session.value, seed)) for seed, site in enumerate(session.cohort)}
        identities = {party: Identity(Secret(entropy(KEY_BYTES))) for party in (*session.cohort, SERVER)}
        roster = {party: identity.public for party, identity in identities.items()}
        binding = sha256_of([ADDRESS.run, ADDRESS.round, ADDRESS.attempt, roster_hash(roster, roster)])
        #: party -> all that its state ever held anew.
        self._held: dict[str, list[Mapping[str, Any]]] = {party: [] for party in identities}
        self.context = ServerContext(ADDRESS.run, 1, 1, session.cohort, binding, roster, identities[SERVER].sign)
        if remember:
            self.context = replace(self.context, remember=self._held[SERVER].append)
        self.sites = {
            s: Site(s, session.cohort, binding, roster, policy or Policy(), identities[s].sign, contributions[s]) for s in session.cohort
        }
        #: (stage, site) -> the site's state before the request, and the request.
        self.moments: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        #: (stage, site) -> reply.
        self.replies: dict[tuple[str, str], bytes] = {}

    def run(self) -> Rehearsed:
        """From the first message to the sum. Raises RoundAborted where there is none."""
        room = _Room(self)
        coordinator = self.session.coordinate(self.context)
        courier = Courier(room, self.topology, cast("Transcript", self.transcript))
        manifest = Manifest(self.session.fields)
        stage, began = "begin", time.perf_counter()
        try:
            operations = next(coordinator)
            while True:
                room.at_server(stage, began)
                stage, began = _stage(operations), time.perf_counter()
                operations = coordinator.send(courier.perform(operations, ADDRESS, manifest))
        except StopIteration as stop:
            room.at_server(stage, began)
            return Rehearsed(cast("Sum", stop.value), room.seconds, room.sent)
        finally:
            coordinator.close()

    def remembered(self) -> dict[str, dict[str, Any]]:
        """Party -> everything its state ever held, as if nothing had been forgotten; of the server the secrets it made."""
        return {party: merged(held) for party, held in self._held.items()}

    def side(self, site: str) -> SessionSide:
        """A site's part in the session, from the beginning."""
        return SessionSide(self.session, self.sites[site], remember=self._held[site].append if self.remember else None)

    def again_at_site(self, stage: str, site: str) -> Callable[[], bytes]:
        """A function that answers the request of that stage once more, as the site did in the run: encoded reply, fresh randomness.

        Call it once; each call here gives another one.
        """
        state, request = self.moments[stage, site]
        side = SessionSide(self.session, self.sites[site])
        side.thaw(state)
        return lambda: side.answer(decode_message(request), request)

    def again_at_server(self, stage: str) -> Callable[[], Sum]:
        """A function that does once more what the server did from that stage on, all replies as they were. Call it once."""
        coordinator = self.session.coordinate(self.context)
        courier, manifest = _courier(_Replies(self.replies)), Manifest(self.session.fields)
        operations = next(coordinator)
        while _stage(operations) != stage:
            operations = coordinator.send(courier.perform(operations, ADDRESS, manifest))

        def rest() -> Sum:
            following = operations
            try:
                while True:
                    following = coordinator.send(courier.perform(following, ADDRESS, manifest))
            except StopIteration as stop:
                return cast("Sum", stop.value)

        return rest


@dataclass
class _Room:
    """A transport to session sides in this process, with a clock."""

    rehearsal: Rehearsal
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    sent: dict[str, dict[str, int]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    outside: float = 0.0  # spent since the server's last turn began, but not by the server

    def __post_init__(self) -> None:
        self.sides: dict[str, SessionSide] = {}
        for party in (*self.rehearsal.sites, SERVER):
            self.seconds[party], self.sent[party] = {}, {}
        for name in self.rehearsal.sites:
            began = time.perf_counter()
            self.sides[name] = self.rehearsal.side(name)
            self.seconds[name]["open"] = time.perf_counter() - began

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Each side answers."""
        for site, frame in frames:
            arrived = time.perf_counter()
            stage = decode_message(frame).stage
            if self.rehearsal.vanish.get(site) == stage:
                self.gone.add(site)
            if site in self.gone:
                yield site, Loss("it vanished", handed=False)
                continue
            side = self.sides[site]
            if site in self.rehearsal.keep_sites:
                self.rehearsal.moments[stage, site] = side.freeze(), frame
            began = time.perf_counter()
            message = decode_message(frame)
            reply = side.answer(message, frame)
            done = time.perf_counter()
            self.seconds[site][stage] = self.seconds[site].get(stage, 0.0) + done - began
            for sender, data in ((message.sender, frame), (site, reply)):
                # On a relay the reply of one site is the request of the next: it is counted where it is sent.
                if (sender == SERVER) == (data is frame):
                    self.sent[sender][stage] = self.sent[sender].get(stage, 0) + len(data)
            if self.rehearsal.keep_replies:
                self.rehearsal.replies[stage, site] = reply
            self.outside += time.perf_counter() - arrived
            yield site, reply

    def at_server(self, stage: str, began: float) -> None:
        """The server's turn ends: what was not spent at sites was its own."""
        now = time.perf_counter()
        self.seconds[SERVER][stage] = self.seconds[SERVER].get(stage, 0.0) + now - began - self.outside
        self.outside = 0.0

    def clock(self) -> Mapping[str, float]:
        """Nothing is trained."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""


class _Replies:
    """A transport that answers with what was kept."""

    def __init__(self, replies: Mapping[tuple[str, str], bytes]) -> None:
        self._replies = replies

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """The reply of that stage and site; a loss where it had vanished."""
        for site, frame in frames:
            reply = self._replies.get((decode_message(frame).stage, site))
            yield site, Loss("it vanished", handed=False) if reply is None else reply

    def clock(self) -> Mapping[str, float]:
        """Nothing is trained."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""


class _Unwritten:
    """A transcript that is not written."""

    def append(self, message: Message, frame: bytes | memoryview, *, carrier: tuple[str, ...] = ()) -> None:
        """Nothing."""


def _courier(transport: _Replies) -> Courier:
    return Courier(transport, "p2p", cast("Transcript", _Unwritten()))


def _stage(operations: Operation | Sequence[Operation]) -> str:
    return operations[0].stage if isinstance(operations, Sequence) else operations.stage


def _ready(numbers: Numbers) -> Callable[[], Numbers]:
    return lambda: numbers
