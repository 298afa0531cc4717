"""What came of a session of the harness: the messages, the parties' states, and the sum against an exact oracle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.engines.faults import Fault
from pppml_core.errors import RoundAborted
from pppml_core.testing.parties import Contribution
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SERVER, Message


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
class Attempt:
    """One attempt of a session.

    Args:
        number: counted from 1 within the round.
        cohort: the sites that accepted.
        binding: what the server's signatures and adverts are bound to.
        aborted: the RoundAborted that ended it, else None.
        states: each site's last session state.
        history: each site's state after every message it answered; empty unless the harness remembers.
        drawn: everything each site drew from the operating system, in order.

    """

    number: int
    cohort: tuple[str, ...]
    binding: bytes
    aborted: RoundAborted | None
    states: Mapping[str, Any]
    history: Mapping[str, Sequence[Any]]
    drawn: Mapping[str, Sequence[bytes]]


@dataclass(frozen=True)
class HarnessResult:
    """What came of one session, over all its attempts.

    Args:
        sum: the total, shape ``(length,)``; None where the session aborted.
        survivors: the sites it is the sum of; empty where it aborted.
        aborted: the RoundAborted that ended the last attempt, else None.
        transcript: every message of every attempt, with the parties whose hands it went through.
        contributions: what each site gave.
        losses: ``(stage, site, reason)`` for each site that did not answer; stage ``open`` where it took no part in an attempt.
        crashes: errors at a site that were no refusal (no PppmlError): bugs, whatever the site was sent.
        states: each site's last session state of the last attempt.
        unused: faults that never struck.
        released: the sets over which each site released unmasking material.
        attempts: each attempt on its own, in order.

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
    attempts: tuple[Attempt, ...] = ()

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

    def view(self, parties: Iterable[str], attempt: int | None = None) -> dict[str, Any]:
        """What a coalition holds: messages through its hands and its members' states, as :meth:`Session.exposed` takes it.

        ``attempt``: the number of one attempt; default: the messages of all attempts, ``states`` of the last one, and in ``attempts``
        for each one its ``number``, ``cohort`` and ``states``, and ``history``: all states its members remember, where the harness does.
        """
        members = set(parties)
        chosen = [a for a in self.attempts if attempt in (None, a.number)]
        numbers = {a.number for a in chosen}
        passages = [p for p in self.transcript.passages if members.intersection(p.parties)]
        each = [
            {
                "number": a.number,
                "cohort": a.cohort,
                "states": {s: state for s, state in a.states.items() if s in members},
                "history": {s: states for s, states in a.history.items() if s in members},
            }
            for a in chosen
        ]
        return {
            "parties": tuple(sorted(members)),
            "messages": [p.message for p in passages if p.message.attempt in numbers],
            "states": each[-1]["states"] if each else {},
            "attempts": each,
        }
