"""``SessionHarness``: one secure sum in one process, without training.

Everything between the session and its sites is what a run uses: encoded frames, the courier, the manifest, the site's session side. Only
the contributions are given instead of trained, so an exact oracle knows what the sum must be.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pppml_core.engines.courier import Address, Courier
from pppml_core.engines.faults import Fault, FaultyTransport
from pppml_core.errors import PolicyRefusal, PppmlError, RoundAborted, WireError
from pppml_core.federation.identity import Identity, roster_hash
from pppml_core.federation.policy import Policy
from pppml_core.federation.session_side import SessionSide
from pppml_core.interfaces.aggregation import Aggregator, ServerContext, Session, Sum
from pppml_core.interfaces.engine import Loss, Topology
from pppml_core.randomness import Secret, Seeds
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import decode, decode_message, encode_message, sha256_of
from pppml_core.wire.manifest import Manifest
from pppml_core.wire.messages import SERVER, Message
from pppml_core.wire.transcript import Transcript

SessionFactory = Callable[[ValueSpec, Sequence[str]], Session]
Contribution = npt.NDArray[np.generic]


def site_names(count: int) -> tuple[str, ...]:
    """``a``, ``b``, ... for up to 26 sites, ``s000``, ``s001``, ... for more."""
    return tuple("abcdefghijklmnopqrstuvwxyz"[:count]) if count <= 26 else tuple(f"s{i:03d}" for i in range(count))


def exact_sum(vectors: Iterable[Contribution], length: int) -> npt.NDArray[np.object_]:
    """The oracle: the coordinate-wise sum in Python's unbounded integers (or floats, for real contributions)."""
    total = np.zeros(length, dtype=object)
    for vector in vectors:
        total = total + vector.astype(object)
    return total


@dataclass(frozen=True)
class Passage:
    """A message that went through the hands of ``parties``, in order; ``size`` is its frame's length in bytes."""

    message: Message
    parties: tuple[str, ...]
    size: int


class Recording:
    """A transcript in memory, with the messages themselves."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []

    def append(self, message: Message, frame: bytes | memoryview, *, carrier: tuple[str, ...] = ()) -> None:
        """As :meth:`pppml_core.wire.transcript.Transcript.append`."""
        whole = decode_message(frame)
        self.passages.append(Passage(whole, (message.sender, *carrier, message.recipient), len(frame)))

    def sent_by_sites(self) -> list[Passage]:
        """What left a site as an answer: replies, and hops of a relay from site to site."""
        return [p for p in self.passages if p.message.sender != SERVER and p.message.kind not in ("refused", "failed")]

    def stages(self) -> tuple[str, ...]:
        """Stages in the order in which they began."""
        return tuple(dict.fromkeys(p.message.stage for p in self.passages))


@dataclass(frozen=True)
class HarnessResult:
    """What came of one session.

    Args:
        sum: the total, shape ``(length,)``; None where the session aborted.
        survivors: the sites it is the sum of; empty where it aborted.
        aborted: the RoundAborted that ended it, else None.
        transcript: every message, with the parties whose hands it went through.
        contributions: what each site gave.
        losses: ``(stage, site, reason)`` for each site that did not answer.
        crashes: errors at a site that were no refusal (no PppmlError): bugs, unless the site was sent something malformed.
        states: each site's last session state.
        unused: faults that never struck.
        released: the sets over which each site released unmasking material.

    """

    sum: Contribution | None
    survivors: tuple[str, ...]
    aborted: RoundAborted | None
    transcript: Recording
    contributions: Mapping[str, Contribution]
    losses: tuple[tuple[str, str, str], ...]
    crashes: tuple[tuple[str, str, Exception], ...]
    states: Mapping[str, Any]
    unused: tuple[Fault, ...]
    released: Mapping[str, tuple[tuple[str, ...], ...]]

    @property
    def expected_sum_over_survivors(self) -> npt.NDArray[np.object_]:
        """The exact sum of the survivors' contributions, in Python integers, shape ``(length,)``."""
        length = len(next(iter(self.contributions.values())))
        return exact_sum((self.contributions[site] for site in self.survivors), length)

    @property
    def correct(self) -> bool:
        """Whether there is a sum and it is that of the survivors: exactly for integers, within 1e-6 of the largest term for reals."""
        if self.sum is None or not self.survivors or len(set(self.survivors)) != len(self.survivors):
            return False
        expected = self.expected_sum_over_survivors
        if self.sum.shape != expected.shape:
            return False
        if np.issubdtype(self.sum.dtype, np.integer):
            return bool((self.sum.astype(object) == expected).all())
        scale = max(float(np.abs(vector).max()) for vector in self.contributions.values()) or 1.0
        return bool(np.allclose(self.sum.astype(float), expected.astype(float), rtol=0, atol=1e-6 * scale))

    def view(self, parties: Iterable[str]) -> dict[str, Any]:
        """What a coalition holds: messages through its hands and its members' states, as :meth:`Session.exposed` takes it."""
        members = set(parties)
        messages = [p.message for p in self.transcript.passages if members.intersection(p.parties)]
        states = {site: state for site, state in self.states.items() if site in members}
        return {"parties": tuple(sorted(members)), "messages": messages, "states": states}


@dataclass
class _Context:
    """A ``SiteContext`` whose contribution is given. The array is read-only: a session that writes to it fails loudly."""

    site: str
    run: bytes
    round: int
    attempt: int
    cohort: tuple[str, ...]
    binding: bytes
    roster: Mapping[str, bytes]
    policy: Policy
    _identity: Identity = field(repr=False)
    _contribution: Contribution = field(repr=False)
    #: the sets this site released a sum over, in order.
    released: list[tuple[str, ...]] = field(default_factory=list)

    def contribution(self) -> Contribution:
        return self._contribution

    def sign(self, statement: bytes) -> bytes:
        return self._identity.sign(statement)

    def release(self, sites: Sequence[str]) -> None:
        if self.released:
            raise PolicyRefusal("this sum was released before", place=self.site)
        if len(set(sites)) < self.policy.min_cohort:
            raise PolicyRefusal(f"min_cohort: a sum over {len(set(sites))} sites", place=self.site)
        self.released.append(tuple(sites))

    def entropy(self, length: int) -> bytes:
        return os.urandom(length)


@cache
def _identity(party: str) -> Identity:
    """The same identity in every harness of this process: making one anew for each of thousands of sessions would only cost time."""
    return Identity(Secret(os.urandom(32)))


class _Site:
    """A site that answers frames of one attempt. With amnesia only bytes outlive a message."""

    def __init__(self, make_session: Callable[[], Session], context: _Context, amnesia: bool) -> None:
        self._make_session, self._context, self._amnesia = make_session, context, amnesia
        self._side: SessionSide | None = None
        self._frozen: bytes | None = None
        self.crashes: list[tuple[str, str, Exception]] = []

    def receive(self, frame: bytes) -> bytes:
        message = decode_message(frame)
        c = self._context
        try:
            if (message.run, message.round, message.attempt, message.recipient) != (c.run, c.round, c.attempt, c.site):
                raise WireError("this request is of another run, round or attempt, or for another site", place=c.site)
            side = self._wake()
            reply = side.answer(message, frame)
        except PppmlError as error:
            return self._no(message, "refused", error)
        except Exception as error:
            self.crashes.append((message.stage, c.site, error))
            return self._no(message, "failed", error)
        if self._amnesia:
            self._frozen, self._side = side.freeze(), None
        return reply

    @property
    def released(self) -> list[tuple[str, ...]]:
        return self._context.released

    def state(self) -> Any:
        """The last session state, as it looks after the codec."""
        if self._frozen is None and self._side is None:
            return {}
        return decode(self._wake().freeze())["state"]

    def _wake(self) -> SessionSide:
        if self._side is not None:
            return self._side
        side = SessionSide(self._make_session(), self._context)
        if self._frozen is not None:
            side.thaw(self._frozen)
        if not self._amnesia:
            self._side = side
        elif self._frozen is None:
            self._frozen = side.freeze()  # `open` runs once an attempt, its randomness is drawn once
        return side

    def _no(self, message: Message, kind: str, error: Exception) -> bytes:
        c = self._context
        return encode_message(Message(c.run, c.round, c.attempt, kind, message.stage, c.site, SERVER, {"reason": str(error)}))


class _InProcess:
    """Delivers frames to sites one after another."""

    def __init__(self, sites: Mapping[str, _Site]) -> None:
        self._sites = sites

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        for site, frame in frames:
            yield site, self._sites[site].receive(frame)

    def clock(self) -> Mapping[str, float]:
        """Nobody trains here."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""


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
        faults: what goes wrong on the way, :class:`~pppml_core.engines.faults.Fault` or its settings.
        seed: of the contributions.
        contributions: site -> vector, instead of drawn ones.
        policies: site -> its own policy, where it is not the default one.

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
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        self.sites = site_names(sites) if isinstance(sites, int) else tuple(sites)
        self.value = ValueSpec(length, "real" if kind == "real" else "integer", None if kind == "real" else bound)
        self.contributions = dict(contributions) if contributions is not None else draw(self.value, self.sites, seed)
        for vector in self.contributions.values():
            vector.flags.writeable = False
        # A pristine copy: whatever a session stores in its aggregator is gone when the next one is made.
        self._make = copy.deepcopy(make) if isinstance(make, Aggregator) else make
        self._topology, self._amnesia = topology, amnesia
        self._faults = [fault if isinstance(fault, Fault) else Fault(**fault) for fault in faults]
        self._address = Address(run, round, attempt)
        self._policies = dict(policies or {})

    def session(self) -> Session:
        """A fresh session for this value and cohort."""
        if isinstance(self._make, Aggregator):
            return copy.deepcopy(self._make).plan(self.value, self.sites)
        return self._make(self.value, self.sites)

    def run(self) -> HarnessResult:
        """The session, from first message to sum or abort. Other errors of the server side are bugs and are raised."""
        address = self._address
        identities = {party: _identity(party) for party in (*self.sites, SERVER)}
        roster = {party: identity.public for party, identity in identities.items()}
        binding = sha256_of([address.run, address.round, address.attempt, roster_hash(roster, roster)])
        header = (address.run, address.round, address.attempt, self.sites, binding, roster)
        sites = {
            s: _Site(
                self.session,
                _Context(s, *header, self._policies.get(s, Policy()), identities[s], self.contributions[s]),
                self._amnesia,
            )
            for s in self.sites
        }
        transport = FaultyTransport(_InProcess(sites), self._faults)
        recording, losses = Recording(), []

        def emit(event: Mapping[str, Any]) -> None:
            if event["event"] == "site-lost":
                losses.append((event["stage"], event["site"], event["reason"]))

        session = self.session()
        courier = Courier(transport, self._topology, cast("Transcript", recording), emit)
        outcome: Sum | None = None
        aborted: RoundAborted | None = None
        try:
            context = ServerContext(*header, identities[SERVER].sign)
            outcome = _drive(session, context, courier, address, Manifest(session.fields))
        except RoundAborted as error:
            aborted = error
        return HarnessResult(
            sum=None if outcome is None else outcome.total,
            survivors=() if outcome is None else tuple(outcome.survivors),
            aborted=aborted,
            transcript=recording,
            contributions=self.contributions,
            losses=tuple(losses),
            crashes=tuple(crash for site in sites.values() for crash in site.crashes),
            states={name: site.state() for name, site in sites.items()},
            unused=transport.unused,
            released={name: tuple(site.released) for name, site in sites.items()},
        )


def _drive(session: Session, context: ServerContext, courier: Courier, address: Address, manifest: Manifest) -> Sum:
    coordinator = session.coordinate(context)
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
