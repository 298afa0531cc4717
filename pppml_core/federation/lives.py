"""The runs that the process of a site takes part in at once, and which of them gives way to another."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.pace import Steps
from pppml_core.federation.site import Site

RUNS_AT_ONCE = 4
#: seconds without a message after which an attempt is one of a coordinator that is gone.
FORGOTTEN = 86_400.0


@dataclass
class Life:
    """One run at this site, as long as this process holds it.

    Args:
        site: the site in it.
        standing: what its people insist on, as it was when the run was admitted.
        threads: of torch.
        steps: what it was asked.
        asked: when it was asked last, monotonic seconds.
    """

    site: Site
    standing: tuple[bytes, ...]
    threads: int
    steps: Steps
    asked: float

    def at_work(self, now: float) -> bool:
        """An attempt is open, of which nothing would be left."""
        return bool(self.site.cohort) and not self.site.over and now - self.asked < FORGOTTEN


class Lives:
    """By run; the last used at the end."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, Life] = OrderedDict()

    def __contains__(self, run: bytes) -> bool:
        return run in self._held

    def __len__(self) -> int:
        return len(self._held)

    def of(self, run: bytes, standing: tuple[bytes, ...]) -> Life | None:
        """A run that was admitted under what stands now; one that was admitted under something else is over."""
        life = self._held.get(run)
        if life is not None and life.standing != standing:
            del self._held[run]
            return None
        return life

    def refuse_full(self, run: bytes, now: float) -> None:
        """Raise PolicyRefusal where there is no room for one more run: no open attempt is thrown away for another."""
        if run not in self._held and sum(life.at_work(now) for life in self._held.values()) >= RUNS_AT_ONCE:
            raise PolicyRefusal(f"busy: this site is busy with {RUNS_AT_ONCE} runs; ask again when one of them is over")

    def begin(self, run: bytes, life: Life) -> Life:
        """In place of the one without an open attempt that was asked least recently, where there are too many."""
        self.refuse_full(run, life.asked)
        while run not in self._held and len(self._held) >= RUNS_AT_ONCE:
            del self._held[next(other for other, held in self._held.items() if not held.at_work(life.asked))]
        self._held[run] = life
        return life

    def use(self, run: bytes, now: float) -> None:
        """It is asked something now."""
        self._held[run].asked = now
        self._held.move_to_end(run)
