"""The parties of a :class:`~pppml_core.testing.harness.SessionHarness`: sites that answer frames, and what outlives an attempt at them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PolicyRefusal, PppmlError, WireError
from pppml_core.federation.identity import Identity
from pppml_core.federation.policy import Policy
from pppml_core.federation.session_side import SessionSide
from pppml_core.federation.site_context import Context
from pppml_core.interfaces.aggregation import Session
from pppml_core.interfaces.engine import Loss
from pppml_core.randomness import Secret
from pppml_core.wire.codec import decode, decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message

Contribution = npt.NDArray[np.generic]
#: of an attempt: run, round, number, cohort, binding, roster.
Header = tuple[bytes, int, int, tuple[str, ...], bytes, Mapping[str, bytes]]

_ACTING: ContextVar[str] = ContextVar("acting", default=SERVER)


def acting() -> str:
    """The party whose code runs now: a site's name while it answers a message, else ``server``. What it computes, that party knows."""
    return _ACTING.get()


@contextmanager
def acts(party: str) -> Iterator[None]:
    """Inside the block that party's code runs."""
    token = _ACTING.set(party)
    try:
        yield
    finally:
        _ACTING.reset(token)


@cache
def identity_of(party: str) -> Identity:
    """The same identity in every harness of this process: making one anew for each of thousands of sessions would only cost time."""
    return Identity(Secret(os.urandom(32)))


class ReleaseRecord:
    """What a site releases unmasking material for. It outlives attempts and amnesia, as the file a real site writes does."""

    def __init__(self, site: str, earlier: Iterable[tuple[int, tuple[str, ...]]] = ()) -> None:
        self._site, self.entries = site, list(earlier)

    def add(self, attempt: int, sites: Sequence[str], min_cohort: int) -> None:
        """Once a sum; the same set in the same attempt may be named again (another stage, another ring)."""
        named = tuple(sites)
        if len(set(named)) < min_cohort:
            raise PolicyRefusal(f"min_cohort: a sum over {len(set(named))} sites", place=self._site)
        if any((before, set(over)) != (attempt, set(named)) for before, over in self.entries):
            raise PolicyRefusal("this sum was released before", place=self._site)
        if not self.entries:
            self.entries.append((attempt, named))


@dataclass(frozen=True)
class HarnessContext(Context):
    """That of a site, and everything drawn in this attempt, in order."""

    drawn: list[bytes] = field(default_factory=list, repr=False)

    def entropy(self, length: int) -> bytes:
        """From the operating system, and noted down."""
        self.drawn.append(super().entropy(length))
        return self.drawn[-1]


def harness_context(
    site: str, header: Header, policy: Policy, identity: Identity, contribution: Contribution, releases: ReleaseRecord
) -> HarnessContext:
    """A context whose contribution is given. The array is read-only: a session that writes to it fails loudly.

    It releases as a real site: refused after another release, below the policy's ``min_cohort``, or for sites that are not of this attempt.
    """
    attempt, cohort = header[2], header[3]

    def note(sites: Sequence[str]) -> None:
        if len(set(sites)) != len(sites) or not set(sites) <= set(cohort):
            raise PolicyRefusal("a sum over sites that are not of this attempt", place=site)
        releases.add(attempt, sites, policy.min_cohort)

    return HarnessContext(site, *header, policy, identity, lambda: contribution, note)


class HarnessSite:
    """A site that answers frames of one attempt. With amnesia only bytes outlive a message."""

    def __init__(self, make_session: Callable[[], Session], context: HarnessContext, *, amnesia: bool, remember: bool) -> None:
        self._make_session, self.context, self._amnesia, self._remember = make_session, context, amnesia, remember
        self._side: SessionSide | None = None
        self._frozen: bytes | None = None
        self.crashes: list[tuple[str, str, Exception]] = []
        #: the state after each answered message, where they are remembered.
        self.history: list[Any] = []

    def receive(self, frame: bytes) -> bytes:
        """The reply to one frame; anything but a PppmlError is noted as a crash."""
        message = decode_message(frame)
        c = self.context
        with acts(c.site):
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
            if self._remember:
                self.history.append(decode(side.freeze())["state"])
            if self._amnesia:
                self._frozen, self._side = side.freeze(), None
        return reply

    def state(self) -> Any:
        """The last session state, as it looks after the codec."""
        if self._frozen is None and self._side is None:
            return {}
        with acts(self.context.site):
            return decode(self._wake().freeze())["state"]

    def _wake(self) -> SessionSide:
        if self._side is not None:
            return self._side
        side = SessionSide(self._make_session(), self.context)
        if self._frozen is not None:
            side.thaw(self._frozen)
        if not self._amnesia:
            self._side = side
        elif self._frozen is None:
            self._frozen = side.freeze()  # `open` runs once an attempt, its randomness is drawn once
        return side

    def _no(self, message: Message, kind: str, error: Exception) -> bytes:
        c = self.context
        return encode_message(Message(c.run, c.round, c.attempt, kind, message.stage, c.site, SERVER, {"reason": str(error)}))


class InProcess:
    """Delivers frames to the sites of the attempt that runs, one after another."""

    def __init__(self) -> None:
        self.sites: Mapping[str, HarnessSite] = {}

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Each reply at once; whoever is not in the cohort is not reached."""
        for site, frame in frames:
            yield site, self.sites[site].receive(frame) if site in self.sites else Loss("it takes no part", handed=False)

    def clock(self) -> Mapping[str, float]:
        """Nobody trains here."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""


class Door:
    """Where sites are asked to take part in an attempt: they accept; faults at stage ``open`` keep them away."""

    def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
        """Everybody accepts."""
        for site, frame in frames:
            m = decode_message(frame)
            yield site, encode_message(Message(m.run, m.round, m.attempt, "reply", m.stage, site, SERVER, {}))

    def clock(self) -> Mapping[str, float]:
        """Nobody trains here."""
        return {}

    def close(self) -> None:
        """Nothing to stop."""
