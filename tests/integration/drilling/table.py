"""THE table: what is broken, where, and what must come of it. The drills are made from it, and the table of docs/failures.md too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Ends(Enum):
    """What must come of a drill."""

    WHOLE = "the sum is over all sites"
    WITHOUT = "the sum is over the other sites"
    AGAIN = "the attempt is given up; the next one's sum is over all sites"
    LOST = "the round has no sum; the run goes on with the next round"
    RESUMED = "the run ends; resumed, it gives the model of an undisturbed run"
    RESUMED_LOST = "the run ends; resumed, it leaves this round out and goes on"
    REFUSED = "refused with the reason, before anything is trained"
    LEFT_OUT = "the site refuses with the reason; the run goes on without it"

    @property
    def survives(self) -> bool:
        """Whether the round has its sum in the end."""
        return self not in (Ends.LOST, Ends.RESUMED_LOST, Ends.REFUSED)


@dataclass(frozen=True)
class Drill:
    """One thing that breaks.

    Args:
        engine: where.
        sum: the aggregator; ``any``: none of its stages matters.
        breaks: what breaks, in words. Drills of one engine and sum that break the same are held in one run, a round each.
        stage: the stage of the protocol, or another moment of the run, in words.
        moment: when within it.
        ends: what must come of it.
        told: a regular expression that what the operator is told must match; it reads as an example of it.
    """

    engine: str
    sum: str
    breaks: str
    stage: str
    moment: str
    ends: Ends
    told: str

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.engine, self.sum, self.breaks, self.stage, self.moment) if part)

    def was_told(self, texts: list[str]) -> bool:
        return not self.told or any(re.search(self.told, text) for text in texts)


W, O, A, L, R, X = Ends.WHOLE, Ends.WITHOUT, Ends.AGAIN, Ends.LOST, Ends.RESUMED, Ends.RESUMED_LOST
KILLED = r"its process ended \(exit code -9\)"

# -- a site is killed ------------------------------------------------------------------------------------------------------------------------
#: the engine's `do` of each moment.
MOMENTS = {"before it has the request": "kill-before", "once it has the request": "kill", "after its reply": "kill-after"}
SITE_KILLED, INITIATOR_KILLED = "kill -9 of a site", "kill -9 of a ring's initiator"
Stages = dict[str, tuple[Ends, Ends, Ends]]
#: sum -> stage -> what comes of it at each of the moments.
KILLS: dict[str, Stages] = {
    "plain": {"hello": (W, W, W), "open": (O, O, O), "contribute": (O, O, W), "evaluate": (W, W, W)},
    "secagg-plus": {
        "hello": (W, W, W),
        "open": (O, O, O),
        "advertise": (O, O, O),
        "share": (O, O, O),
        "mask": (O, O, W),
        "agree": (W, W, W),
        "unmask": (W, W, W),
        "evaluate": (W, W, W),
    },
    "cyclic-he": {
        "hello": (W, W, W),
        "open": (O, O, A),
        "advertise": (A, A, A),
        "keys": (A, A, O),
        "ring-1": (O, A, A),
        "ring-2": (A, A, A),
        "confirm": (A, A, L),
        "release": (L, L, W),
        "evaluate": (W, W, W),
    },
}
INITIATOR_KILLS: Stages = {
    "keys": (A, A, A),
    "ring-1": (A, A, A),
    "ring-2": (A, A, A),
    "agree": (A, A, A),
    "confirm": (A, A, L),
    "release": (L, L, W),
}
#: the last stage of each sum before its scores: whoever is killed after it is back before anybody misses it.
LAST = ("contribute", "unmask", "release", "evaluate")
#: how many sites these runs have: one may vanish.
SITES = {"plain": 3, "secagg-plus": 4, "cyclic-he": 5}


def _site_kills() -> Iterator[Drill]:
    runs = [*((sum, SITE_KILLED, stages) for sum, stages in KILLS.items()), ("cyclic-he", INITIATOR_KILLED, INITIATOR_KILLS)]
    for sum, breaks, stages in runs:
        for stage, ends in stages.items():
            for moment, end in zip(MOMENTS, ends, strict=True):
                missed = not (stage in LAST or stage == "hello") or moment != "after its reply"
                yield Drill("processes", sum, breaks, stage, moment, end, KILLED if missed else "")


# -- the server is killed --------------------------------------------------------------------------------------------------------------------
SERVER_KILLED = "kill -9 of the server"
UNDER_WAY, OVER = "with the first reply", "with all replies"
SERVER_KILLS: dict[str, dict[str, tuple[Ends, Ends]]] = {
    "plain": {"hello": (R, R), "open": (R, R), "contribute": (R, R), "evaluate": (R, R), "checkpoint": (R, R)},
    "secagg-plus": {
        "open": (R, R),
        "advertise": (R, R),
        "share": (R, R),
        "mask": (R, R),
        "agree": (R, R),
        "unmask": (X, X),
        "evaluate": (R, R),
    },
    "cyclic-he": {
        "open": (R, R),
        "advertise": (R, R),
        "keys": (R, R),
        "ring-1": (R, R),
        "agree": (R, R),
        "confirm": (R, R),
        "release": (X, X),
        "evaluate": (R, R),
    },
}


def _server_kills() -> Iterator[Drill]:
    for sum, stages in SERVER_KILLS.items():
        for stage, ends in stages.items():
            for moment, end in zip((UNDER_WAY, OVER), ends, strict=True):
                if (stage, moment) != ("checkpoint", UNDER_WAY):
                    told = "gave out what opens this sum in an earlier attempt" if end is X else ""
                    yield Drill("processes", sum, SERVER_KILLED, stage, moment, end, told)


TABLE: tuple[Drill, ...] = (*_site_kills(), *_server_kills())


def drills(engine: str, sum: str, breaks: str) -> list[Drill]:
    """The drills that are held together, in the table's order."""
    return [drill for drill in TABLE if (drill.engine, drill.sum, drill.breaks) == (engine, sum, breaks)]
