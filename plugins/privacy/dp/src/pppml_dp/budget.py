"""A run's budget: the event that is charged each round, what a ledger adds up to, and whether one more is within the claim."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pppml_core.errors import PppmlError
from pppml_dp.accounting import Event, accountant_of, epsilon, largest_count


@dataclass(frozen=True)
class Budget:
    """Of one run.

    Args:
        event: what each round is charged.
        rounds: planned.
        delta: of the claim.
        planned: epsilon of the planned rounds.
        limit: epsilon of the claim: the user's budget, or else ``planned``.
    """

    event: Event
    rounds: int
    delta: float
    planned: float
    limit: float

    @property
    def accountant(self) -> str:
        """The one whose number is stated."""
        return accountant_of([self.event])

    @property
    def remarks(self) -> list[str]:
        """What the plan says where the budget is spent before the last round."""
        if self.planned <= self.limit:
            return []
        within = largest_count(self.event, self.delta, self.limit * (1 + 1e-9))
        return [f"the budget is spent after {within:,} of {self.rounds:,} rounds: the run will stop there (exit code 4)"]

    def charge(self) -> dict[str, Any]:
        """A ledger entry."""
        return dict(self.event.to_charge())

    def spent(self, charges: Sequence[Mapping[str, Any]]) -> float:
        """Epsilon of these charges together. An entry that cannot be read counts as the largest, and at least as one of this run's."""
        return composed(charges, self.delta, self.event)

    def affords(self, charges: Sequence[Mapping[str, Any]]) -> bool:
        """Whether these charges stay within the claim: by counting, which is quick, where all of them are this run's own."""
        if math.isinf(self.limit):
            return True
        if any(self._read(charge) != self.event for charge in charges):
            return self.spent(charges) <= self.limit * (1 + 1e-9)
        if self.planned <= self.limit and len(charges) <= self.rounds:
            return True
        return len(charges) <= largest_count(self.event, self.delta, self.limit * (1 + 1e-9))

    def cross_checks(self) -> dict[str, float | None]:
        """Epsilon of the planned rounds by every accountant: the stated one, and those that must agree with it."""
        if not self.event.noise_multiplier:
            return {}
        out: dict[str, float | None] = {}
        for name in ("pld", "prv", "rdp"):
            try:
                value = epsilon([self.event] * self.rounds, self.delta, name)
            except PppmlError:
                value = math.inf
            out[name] = value if math.isfinite(value) else None  # with noise, infinity means that its arithmetic overflowed
        return out

    def _read(self, charge: Mapping[str, Any]) -> Event:
        try:
            return Event.from_charge(charge)
        except PppmlError:
            return self.event


def composed(charges: Sequence[Mapping[str, Any]], delta: float, least: Event | None = None) -> float:
    """Epsilon of ledger entries of any runs over the same data. One that cannot be read counts as the largest of all, ``least`` included.

    Infinite where none can be read and there is no ``least``.
    """
    events: list[Event] = []
    for charge in charges:
        with contextlib.suppress(PppmlError):
            events.append(Event.from_charge(charge))
    if unread := len(charges) - len(events):
        known = {*events, *(() if least is None else (least,))}
        if not known:
            return math.inf
        events += [max(known, key=lambda event: epsilon([event], delta, accountant_of([event])))] * unread
    return epsilon(events, delta, accountant_of(events)) if events else 0.0
