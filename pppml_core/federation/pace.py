"""How fast one party may ask: each answer is a signed line of a log that is kept for ever."""

from __future__ import annotations

#: messages at once, and a second in the long run. The fastest run on small data stays far below.
BURST, A_SECOND = 5000, 10.0


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
