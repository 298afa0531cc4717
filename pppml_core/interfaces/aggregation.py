"""Aggregators: how the sum over sites is computed, and who learns what.

An aggregator plans a session for a value and a cohort; the session is the protocol. The server side, ``coordinate``, is ordinary
sequential code that yields operations; the site side, ``handle``, is a step ``(state, message) -> (state, reply)`` whose state is
plain data that the codec can encode, so an engine may recreate a site before every message. A whole aggregator, in two files::

    # my_sum/plugin.py
    @hookimpl
    def pppml_aggregators():
        return [Component("my-sum", MySumConfig, "my_sum.session:MySum", "adds in the clear, slowly")]

    # my_sum/session.py
    class MySum(Aggregator):
        def plan(self, value, cohort):
            return MySession(value, cohort)

    class MySession(Session):
        def coordinate(self, ctx):
            total = np.zeros(self.value.length, np.int64)
            def fold(site, body):
                total[:] += body["values"]
            outcome = yield Exchange("contribute", {site: {} for site in ctx.cohort}, fold)
            return Sum(total, outcome.answered)

        def handle(self, state, message, ctx):
            return state, {"values": ctx.contribution()}

The name, shape and dtype of everything a site sends is declared in ``fields``; anything else is refused before it leaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig
from pppml_core.values import ValueSpec
from pppml_core.wire.manifest import WireField
from pppml_core.wire.messages import Body, Message, Operation, Outcome

State = Mapping[str, Any]


@dataclass(frozen=True)
class Guarantees:
    """What an aggregator promises, as plan and report print it.

    Args:
        sees_sum: who learns the sum.
        sees_update: who learns one site's update (empty: nobody).
        sees_weight: who learns one site's weight.
        dropouts: how many sites may vanish without losing the round.
        coalition_curious: largest honest-but-curious coalition (server included where it coordinates) that learns only the sum.
        coalition_active: the same for parties that lie.
        adversary: the adversary model in words.
        assumes: what must hold for the promise to hold.
        arithmetic: ``exact`` or ``approximate``.
    """

    sees_sum: tuple[str, ...]
    sees_update: tuple[str, ...]
    sees_weight: tuple[str, ...]
    dropouts: int
    coalition_curious: int
    coalition_active: int
    adversary: str
    assumes: tuple[str, ...] = ()
    arithmetic: str = "exact"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``plan.json`` and ``result.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Sum:
    """The outcome of a session: the total over ``survivors`` (integer, or floating with ``encoding: float``), shape ``(length,)``."""

    total: npt.NDArray[np.generic]
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Exposure:
    """Something a coalition can decode: the sum over exactly these sites."""

    sites: tuple[str, ...]
    value: npt.NDArray[np.generic]


class SumPolicy(Protocol):
    """What a site insists on in a secure sum; held at the site, never set by the server."""

    @property
    def min_cohort(self) -> int:
        """Fewest sites in a sum."""

    @property
    def max_colluders(self) -> int:
        """How many other sites may work together with the server without harm."""

    @property
    def min_honest(self) -> int:
        """Fewest sites besides the colluders whose updates must be mixed, at least 2."""

    @property
    def min_degree(self) -> int:
        """Fewest neighbours on a sparse graph of masks."""


def _unsigned(statement: bytes) -> bytes:
    raise NotImplementedError("this party has no identity here")


def _forgotten(secrets: Mapping[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class ServerContext:
    """What the server side of a session knows: names and the hash that binds model, terms and roster, never a contribution.

    ``roster``: public identities (Ed25519, 32 bytes) of the cohort and of ``server``; ``sign`` signs as the server. ``remember`` is to be
    told the secrets that the server side makes (plain data by name): experiments on curious servers keep them, else nothing happens.
    """

    run: bytes
    round: int
    attempt: int
    cohort: tuple[str, ...]
    binding: bytes
    roster: Mapping[str, bytes] = field(default_factory=dict)
    sign: Callable[[bytes], bytes] = _unsigned
    remember: Callable[[Mapping[str, Any]], None] = field(default=_forgotten, repr=False)


class SiteContext(Protocol):
    """What the site side of a session is given for one message."""

    @property
    def site(self) -> str:
        """This site's slug."""

    @property
    def run(self) -> bytes:
        """16 bytes that name the run."""

    @property
    def round(self) -> int:
        """Counted from 1."""

    @property
    def attempt(self) -> int:
        """Counted from 1 within the round."""

    @property
    def cohort(self) -> tuple[str, ...]:
        """All sites of this attempt, in the task's order."""

    @property
    def binding(self) -> bytes:
        """SHA-256 over run, round, attempt, roster, model and terms as this site decoded them."""

    def contribution(self) -> npt.NDArray[np.generic]:
        """This site's value: trained on the first call of a round, cached on disk, the same array ever after (int32 or float32)."""

    def entropy(self, length: int) -> bytes:
        """Bytes from the operating system."""

    @property
    def roster(self) -> Mapping[str, bytes]:
        """Public identities (Ed25519, 32 bytes) of the cohort and of ``server``, as pinned at this site; the server cannot change them."""

    @property
    def policy(self) -> SumPolicy:
        """This site's own rules."""

    def sign(self, statement: bytes) -> bytes:
        """Signs what ``pppml_core.federation.identity.statement`` made, with this site's identity."""

    def release(self, sites: Sequence[str]) -> None:
        """Call before any unmasking material for the sum over ``sites`` leaves this site (a share, a self-mask seed, a decrypted sum).

        It is written to disk before this returns: from then on this site refuses every further attempt at this sum, so that no second sum
        over another set can be subtracted from it. Raises PolicyRefusal where another attempt has released already, or where ``sites`` is
        smaller than the policy's ``min_cohort``.
        """


Coordinator = Generator[Operation | Sequence[Operation], Any, Sum]


class Session(ABC):
    """One secure sum: bound to a value and a cohort, stateless itself."""

    #: whether ``handle`` answers a repeated request with the same bytes by itself (it draws nothing and keeps nothing). Replies of other
    #: sessions are kept for a repeated request.
    repeatable = False
    #: stages that are a :class:`pppml_core.wire.messages.Relay`: their messages may come from another site, and go on to one. A site takes
    #: no message of any other stage from anybody but the server.
    relays: tuple[str, ...] = ()

    def __init__(self, value: ValueSpec, cohort: Sequence[str]) -> None:
        self.value, self.cohort = value, tuple(cohort)

    @property
    @abstractmethod
    def guarantees(self) -> Guarantees:
        """What is promised for this value and cohort."""

    @property
    @abstractmethod
    def fields(self) -> tuple[WireField, ...]:
        """Everything a site may send in this session."""

    @abstractmethod
    def coordinate(self, ctx: ServerContext) -> Coordinator:
        """The server's side. Returns the sum, or raises RoundAborted. Clean up secrets in ``finally``."""

    def open(self, ctx: SiteContext) -> State:
        """A site's state at the start of an attempt."""
        return {}

    @abstractmethod
    def handle(self, state: State, message: Message, ctx: SiteContext) -> tuple[State, Body]:
        """A site's answer to one message, and its new state. Raise PppmlError to refuse: the server sees a lost site."""

    def exposed(self, view: Mapping[str, Any]) -> list[Exposure]:
        """All sums that a coalition holding ``view`` can decode, by the authors' own worst case.

        ``view`` holds ``parties`` (names, ``server`` among them where it takes part), ``messages`` (the decoded messages they sent,
        received or relayed) and ``states`` (their own session states).
        """
        return []

    def predicted_bytes(self) -> dict[str, int]:
        """Stage -> bytes one site sends, from ``fields``; override where ``max_bytes`` is a loose bound."""
        sizes: dict[str, int] = {}
        for f in self.fields:
            sizes[f.stage] = sizes.get(f.stage, 0) + f.max_bytes
        return sizes


class Aggregator(ABC):
    """Binds its config to a value and a cohort, or says why it cannot."""

    #: whether it sums floating-point contributions (``encoding: float``).
    accepts_real = False

    def __init__(self, config: ComponentConfig, **choices: Any) -> None:
        self.config = config

    def misfits(self, value: ValueSpec, cohort: Sequence[str]) -> list[str]:
        """All reasons why this value and cohort cannot be summed, each a sentence with its remedy."""
        if value.kind == "real" and not self.accepts_real:
            return ["aggregator: sums integers only, but encoding.use is float; use `encoding: fixed`, or `aggregator: plain`"]
        if (value.sum_bound(len(cohort)) or 0) >= 2**63:
            return [f"aggregator: sums over {len(cohort)} sites may reach 2^63 and overflow; lower `encoding.bits`"]
        return []

    @abstractmethod
    def plan(self, value: ValueSpec, cohort: Sequence[str]) -> Session:
        """The session for this value and cohort (called once a round, and by ``pppml plan``)."""


__all__ = [
    "Aggregator",
    "Body",
    "Coordinator",
    "Exposure",
    "Guarantees",
    "Message",
    "Operation",
    "Outcome",
    "ServerContext",
    "Session",
    "SiteContext",
    "State",
    "Sum",
    "WireField",
    "field",
]
