"""The runs that the process of a site takes part in at once, and which of them gives way to another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from pppml_core.errors import PolicyRefusal
from pppml_core.federation.pace import Steps
from pppml_core.federation.site import Site

RUNS_AT_ONCE = 4
#: seconds without a message of the coordinator's after which an open attempt gives way to a run that is new here, and to one that was
#: joined before: of that an invitation may have been recorded.
SILENT, FORGOTTEN = 3_600.0, 86_400.0


@dataclass
class Life:
    """One run at this site, as long as this process holds it.

    Args:
        site: the site in it.
        standing: what its people insist on, as it was when the run was admitted.
        threads: of torch.
        steps: what it was asked.
        asked: when the coordinator asked it last, monotonic seconds.
        records: entries of each record of it (:mod:`.witnesses`), as this process saw them last.
    """

    site: Site
    standing: tuple[bytes, ...]
    threads: int
    steps: Steps
    asked: float
    records: Mapping[str, int]

    @property
    def at_work(self) -> bool:
        """An attempt is open, of which nothing would be left."""
        return bool(self.site.cohort) and not self.site.over


class Lives:
    """By run; the one that the coordinator asked last at the end."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, Life] = OrderedDict()

    def __contains__(self, run: bytes) -> bool:
        return run in self._held

    def __getitem__(self, run: bytes) -> Life:
        return self._held[run]

    def __len__(self) -> int:
        return len(self._held)

    def of(self, run: bytes, standing: tuple[bytes, ...]) -> Life | None:
        """A run that was admitted under what stands now; one that was admitted under something else is over."""
        life = self._held.get(run)
        if life is not None and life.standing != standing:
            del self._held[run]
            return None
        return life

    def refuse_full(self, run: bytes, now: float, *, new: bool = False) -> None:
        """Raise PolicyRefusal where there is no room for one more run: no open attempt is thrown away for another, unless its coordinator
        is gone. ``new``: this one was never joined here.
        """
        if run not in self._held and len(self._held) >= RUNS_AT_ONCE and not self._giving_way(now, new):
            raise PolicyRefusal(f"busy: this site is busy with {RUNS_AT_ONCE} runs; ask again when one of them is over")

    def begin(self, run: bytes, life: Life, *, new: bool = False) -> None:
        """In place of one that gives way, where there are too many."""
        self.refuse_full(run, life.asked, new=new)
        if run not in self._held and len(self._held) >= RUNS_AT_ONCE:
            del self._held[self._giving_way(life.asked, new)[0]]
        self._held[run] = life

    def _giving_way(self, now: float, new: bool) -> list[bytes]:
        """Those without an open attempt first, then those with; the one that was asked least recently first."""
        silence = SILENT if new else FORGOTTEN
        found = [run for run, life in self._held.items() if not life.at_work or now - life.asked >= silence]
        return sorted(found, key=lambda run: self._held[run].at_work)

    def end_idle(self, run: bytes) -> None:
        """Hold this run no more, unless an attempt is open in it."""
        if run in self._held and not self._held[run].at_work:
            del self._held[run]

    def use(self, run: bytes, now: float) -> None:
        """The coordinator asks it something now."""
        self._held[run].asked = now
        self._held.move_to_end(run)
