"""A message and the two operations a protocol is made of.

The server side of a protocol is a generator that yields operations and receives their outcomes; ``yield [op, op]`` performs several at
once. An engine performs them; it alone knows how bytes travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: What a message carries: str keys; values are None, bool, int, float, str, bytes, numpy arrays, lists and maps of these.
Body = Mapping[str, Any]

SERVER = "server"
#: kinds of the messages that are stages of a secure sum; its relays are the only thing that one site says to another.
SUMS = ("session", "metrics")
#: kinds of the messages that belong to an attempt which the process of the site must have opened itself.
WITHIN = (*SUMS, "train")


@dataclass(frozen=True)
class Message:
    """One message between two parties.

    Args:
        run: 16 bytes that name the run.
        round: counted from 1; 0 is before the first round.
        attempt: counted from 1 within a round.
        kind: ``hello``, ``open`` (terms and model of a round), ``train``, ``session`` and ``metrics`` (a stage of a secure sum),
            ``evaluate``; ``reply``, ``refused``, ``failed`` in answer.
        stage: the stage's name within the kind.
        sender, recipient: ``server`` or a site's slug.
    """

    run: bytes
    round: int
    attempt: int
    kind: str
    stage: str
    sender: str
    recipient: str
    body: Body = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """One to many and back: each named site gets its message and answers.

    Args:
        stage: name of the stage, unique within the session.
        bodies: site -> body. Give one shared object to all sites to have it encoded once.
        fold: called as ``fold(site, body)`` once for each reply as it arrives, in no fixed order; the reply is then dropped, so the
            server never holds all of them. Without it the outcome keeps the replies. A fold that raises WireError, before it has taken
            anything of the reply, makes the site a lost one.
        kind: ``session`` for protocols; the round uses the others.
        common: a body every site gets besides its own, encoded once for all of them.
    """

    stage: str
    bodies: Mapping[str, Body]
    fold: Callable[[str, Body], None] | None = None
    kind: str = "session"
    common: Body = field(default_factory=dict)


@dataclass(frozen=True)
class Relay:
    """A chain: the first site gets ``body``, each site's answer goes to the next, the last one's to the server.

    Args:
        path: sites in order, each at most once.
        bridge: a site that never received its message is left out and the message handed to the next. A site that was lost *after* the
            message was handed to it is never bridged: the relay ends there.
    """

    stage: str
    path: tuple[str, ...]
    body: Body = field(default_factory=dict)
    bridge: bool = False
    kind: str = "session"


Operation = Exchange | Relay


@dataclass(frozen=True)
class ExchangeOutcome:
    """``replies`` is empty where a fold took them; ``answered`` lists who answered; ``lost`` says why each other site did not."""

    replies: Mapping[str, Body]
    answered: tuple[str, ...]
    lost: Mapping[str, str]


@dataclass(frozen=True)
class RelayOutcome:
    """``body`` is what the last site sent, None if the chain broke; ``visited`` answered, ``bridged`` were never handed the message,
    ``lost`` maps the site at which the chain broke to the reason. ``unhanded`` is the body that was for that site, where the transport is
    sure that it was never handed it (a relay that bridges does not break there); None where the site had, or may have had, the message.
    """

    body: Body | None
    visited: tuple[str, ...]
    bridged: tuple[str, ...]
    lost: Mapping[str, str]
    unhanded: Body | None = None


Outcome = ExchangeOutcome | RelayOutcome
