"""How fast one party may ask: each answer is a signed line of a log that is kept for ever.

What brings a run forward that the site has accepted is bounded by that run, and comes as fast as it likes. All else is paid for.
"""

from __future__ import annotations

#: messages at once, and a second in the long run.
BURST, A_SECOND = 5000, 10.0
#: attempts of a round, and messages of one party in an attempt, that are not paid for: more than honest runs need.
ATTEMPTS, MESSAGES = 64, 64


class Pace:
    """A bucket of tokens for each party; of this process."""

    def __init__(self, burst: float = BURST, a_second: float = A_SECOND) -> None:
        self._burst, self._a_second = burst, a_second
        self._held: dict[str, tuple[float, float]] = {}

    def allows(self, party: str, now: float) -> bool:
        """Take a token; False where there is none left. ``now``: monotonic seconds. ``party``: one that is known, so that they are few."""
        left, then = self._held.get(party, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._a_second)
        self._held[party] = (max(left - 1, 0.0) if left >= 1 else left, now)
        return left >= 1


class Steps:
    """Counts what one run of ``rounds`` rounds was asked in its attempts."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._asked: dict[tuple[int, int], dict[str, int]] = {}

    def allows(self, party: str, round: int, attempt: int) -> bool:
        """Count a message; False for one more than an attempt of this run needs, and for one of no attempt that it may come to."""
        if not (1 <= round <= self._rounds and 1 <= attempt <= ATTEMPTS):
            return False
        asked = self._asked.setdefault((round, attempt), {})
        asked[party] = asked.get(party, 0) + 1
        return asked[party] <= MESSAGES
