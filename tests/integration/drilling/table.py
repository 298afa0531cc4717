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
    AGAIN_WITHOUT = "the attempt is given up; the next one's sum is over the other sites"
    LOST = "the round has no sum; the run goes on with the next round"
    RESUMED = "the run ends; resumed, it gives the model of an undisturbed run"
    RESUMED_LOST = "the run ends; resumed, it leaves this round out and goes on"
    REFUSED = "refused with the reason, before anything is trained"
    LEFT_OUT = "the site refuses with the reason; the run goes on without it"
    STOPPED = "the run does not go on, and says which file is damaged"

    @property
    def survives(self) -> bool:
        """Whether the round has its sum in the end."""
        return self not in (Ends.LOST, Ends.RESUMED_LOST, Ends.REFUSED, Ends.STOPPED)


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


W, B, A, L, R, X = Ends.WHOLE, Ends.WITHOUT, Ends.AGAIN, Ends.LOST, Ends.RESUMED, Ends.RESUMED_LOST
KILLED = r"its process ended \(exit code -9\)"

# -- a site is killed ---------------------------------------------------------------------------------------------------------------------
#: the engine's `do` of each moment.
MOMENTS = {"before it has the request": "kill-before", "once it has the request": "kill", "after its reply": "kill-after"}
SITE_KILLED, INITIATOR_KILLED = "kill -9 of a site", "kill -9 of a ring's initiator"
Stages = dict[str, tuple[Ends, Ends, Ends]]
#: sum -> stage -> what comes of it at each of the moments. What all sums have in common, `hello` and `evaluate`, is held with `plain`.
KILLS: dict[str, Stages] = {
    "plain": {"hello": (W, W, W), "open": (B, B, B), "contribute": (B, B, W), "evaluate": (W, W, W)},
    "secagg-plus": {
        "open": (B, B, B),
        "advertise": (B, B, B),
        "share": (B, B, B),
        "mask": (B, B, W),
        "agree": (W, W, W),
        "unmask": (W, W, W),
    },
    "cyclic-he": {
        "open": (B, B, A),
        "advertise": (A, A, A),
        "keys": (A, A, B),
        "ring-1": (B, A, A),
        "ring-2": (A, A, A),
        "confirm": (A, A, L),
        "release": (L, L, W),
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


# -- the server is killed -----------------------------------------------------------------------------------------------------------------
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
    },
    "cyclic-he": {
        "open": (R, R),
        "advertise": (R, R),
        "keys": (R, R),
        "ring-1": (R, R),
        "ring-2": (R, R),
        "agree": (R, R),
        "confirm": (R, R),
        "release": (X, X),
    },
}


def _server_kills() -> Iterator[Drill]:
    for sum, stages in SERVER_KILLS.items():
        for stage, ends in stages.items():
            for moment, end in zip((UNDER_WAY, OVER), ends, strict=True):
                if (stage, moment) != ("checkpoint", UNDER_WAY):
                    told = "gave out what opens this sum in an earlier attempt" if end is X else ""
                    yield Drill("processes", sum, SERVER_KILLED, stage, moment, end, told)


# -- the network, clocks ------------------------------------------------------------------------------------------------------------------
#: seconds the coordinator waits in the drills of stalls, where it does not wait for ever.
PATIENCE = 12
STALL, LONG_STALL, PARTITION = "network stalls for 30 s", "network of a site stalls beyond the timeout", "network of a site is cut"
SPLIT, SLOW, SKEW = "network of too many sites is cut", "a site is slow", "clocks are hours apart"
WAITED = f"no answer within {PATIENCE} seconds"


def _network() -> Iterator[Drill]:
    here, all_rounds = "processes", "whole round"
    for stage in ("open", "mask"):
        yield Drill(here, "secagg-plus", STALL, stage, "", W, "")
    yield Drill(here, "secagg-plus", SLOW, all_rounds, "0.2 s a packet", W, "")
    for stage, end in {"open": B, "share": B, "mask": B, "agree": W, "unmask": W, "evaluate": W}.items():
        yield Drill(here, "secagg-plus", LONG_STALL, stage, "", end, WAITED)
    for stage, end in {"advertise": B, "mask": B, "agree": W, "unmask": W}.items():
        yield Drill(here, "secagg-plus", PARTITION, stage, "", end, r"could not be handed over|its process ended \(exit code")
    yield Drill(here, "secagg-plus", SPLIT, "mask", "until the attempt is given up", A, "2 of 4 sites are left, 3 are needed")
    for stage, end in {"advertise": A, "ring-1": A, "release": L}.items():
        yield Drill(here, "cyclic-he", LONG_STALL, stage, "", end, WAITED)
    for sum in ("secagg-plus", "cyclic-he"):
        yield Drill(here, sum, SKEW, all_rounds, "of all sites, up to 19 hours", W, "")


# -- disks, checkpoints, rosters, bombs ---------------------------------------------------------------------------------------------------
FULL_SITE, FULL_SERVER, DAMAGED = "no file can be written at a site", "no file can be written at the server", "damaged file"
REVOKED, BOMB = "revoked key", "message bomb"
NO_ROOM = "File too large|no space is left"


def _here() -> Iterator[Drill]:
    engine = "processes"
    for sum, stages in {"plain": ("open", "contribute", "evaluate"), "secagg-plus": ("mask",)}.items():
        for stage in stages:
            yield Drill(engine, sum, FULL_SITE, stage, "", R, NO_ROOM)
    for stage in ("open", "contribute", "checkpoint"):
        yield Drill(engine, "plain", FULL_SERVER, stage, "", R, NO_ROOM)
    for file, end, told in (
        ("the server's newest checkpoint", R, "cannot be read and is passed over"),
        ("both checkpoints of the server", Ends.STOPPED, "no checkpoint can be read"),
        ("a site's state", Ends.STOPPED, "the site's file is damaged"),
        ("a site's cached contribution", R, ""),
        ("a site's record of its attempts", Ends.STOPPED, "record of its attempts is damaged"),
        ("a site's record of what it released", Ends.STOPPED, "record of what it released is damaged"),
    ):
        yield Drill(engine, "secagg-plus", DAMAGED, file, "before a resume", end, told)
    yield Drill(
        engine,
        "plain",
        REVOKED,
        "start",
        "a site's key is gone from the server's roster",
        Ends.REFUSED,
        "has pinned no identity for site_2",
    )
    for stage, told in {
        "a site's key is gone from another's roster": "no identity is pinned here for site_2",
        "a site's key was replaced, at the server only": "identities that the server announced are not those pinned at this site",
    }.items():
        yield Drill(engine, "plain", REVOKED, "open", stage, Ends.LEFT_OUT, told)
    for kind, end, told in (
        ("a reply that says it has 2^63 bytes", B, "a frame of|its process ended"),
        ("a reply of 4 GiB that never comes", B, WAITED),
        ("a million replies that nobody asked for", W, ""),
    ):
        yield Drill(engine, "plain", BOMB, "contribute", kind, end, told)
    yield Drill(engine, "plain", BOMB, "whole round", "a million messages of strangers at the coordinator's port", W, "")


# -- sites that live by themselves: what they are asked for when they join ----------------------------------------------------------------
REPLAY = "letters that were recorded"
STRANGE = "a site that is not what the run takes it for"


def _joins() -> Iterator[Drill]:
    """On `residents`, the sites of NVFlare and Flower without a network between."""
    for what, told in {
        "other plugin version": "same_versions: ",
        "other code of a plugin": "same_versions: ",
        "plugin that is not installed there": "is part of pppml-secagg-plus",
        "model that is not on the site's list": "models: ",
        "other data than announced": "examples of this site",
        "terms that its configuration does not keep": "are not those of this site's configuration",
        "a key gone from its roster": "no identity is pinned here for site_3",
        "the coordinator's key gone from its roster": "letters that its pinned coordinator signed, and no others",
        "its own key replaced": "signature|identity|pinned",
    }.items():
        yield Drill("residents", "secagg-plus", STRANGE, "join", what, Ends.REFUSED, told)


def _doors() -> Iterator[Drill]:
    """Whoever carries an engine's messages reaches the door of such a site."""
    yield Drill("residents", "secagg-plus", BOMB, "mask", "a hundred thousand letters of strangers at a site's door", W, "")
    yield Drill("residents", "secagg-plus", REPLAY, "mask", "all letters so far are handed in again", W, "")


# -- NVFlare's POC and Flower's SuperLink with SuperNodes, as processes of this machine ---------------------------------------------------
NOTHING, CARRIER_KILLED = "nothing", "kill -9 of what carries the messages"
CARRIER = {"nvflare": "NVFlare's server", "flower": "the SuperLink"}
BEFORE = "before it has the request"
#: engine -> sum -> stage -> what comes of it when the process in which a site lives is killed as the stage begins.
FAR_KILLS: dict[str, dict[str, dict[str, Ends]]] = {
    "nvflare": {
        "plain": {"open": W, "contribute": B, "evaluate": W},
        "secagg-plus": {"open": W, "advertise": B, "share": B, "mask": B, "agree": W, "unmask": W},
        "cyclic-he": {"open": W, "advertise": A, "keys": A, "ring-1": A, "ring-2": A, "agree": A, "confirm": A, "release": L},
    },
    "flower": {
        "plain": {"contribute": B},
        "secagg-plus": {"share": B, "mask": B},
        "cyclic-he": {"ring-1": Ends.AGAIN_WITHOUT},
    },
}
#: Flower starts a process for every message: no more sites than it takes, of `cyclic-he` on one ring.
FAR_SITES = {"nvflare": SITES, "flower": {**SITES, "cyclic-he": 4}}
FAR_KILLED = {
    "nvflare": "its process had ended|its process ended",
    "flower": "Node Unavailable|not connected|no answer within|its own log says why",
}
#: where a process that is gone is started again for the message itself, which needs nothing of before.
AFRESH = {("nvflare", "open"), ("nvflare", "evaluate")}
FAR_CUT = {"nvflare": "no sign of life|not connected|could not be handed over", "flower": "Node Unavailable|not connected|no answer within"}


def _far() -> Iterator[Drill]:
    for engine, sums in FAR_KILLS.items():
        for sum, stages in sums.items():
            yield Drill(engine, sum, NOTHING, "whole round", "", W, "")
            for stage, end in stages.items():
                missed = (engine, stage) not in AFRESH
                yield Drill(engine, sum, SITE_KILLED, stage, BEFORE, end, FAR_KILLED[engine] if missed else "")
        yield Drill(engine, "secagg-plus", FULL_SITE, "mask", "", B, "cannot write its audit log")
        yield Drill(engine, "secagg-plus", PARTITION, "mask", "until it counts as lost", B, FAR_CUT[engine])
        yield Drill(engine, "secagg-plus", STALL, "mask", "", W, "")
        yield Drill(engine, "secagg-plus", SERVER_KILLED, "mask", UNDER_WAY, R, "")
        yield Drill(engine, "secagg-plus", CARRIER_KILLED, "mask", CARRIER[engine], R, "")


TABLE: tuple[Drill, ...] = (*_site_kills(), *_server_kills(), *_network(), *_here(), *_joins(), *_doors(), *_far())


def drills(engine: str, sum: str, breaks: str) -> list[Drill]:
    """The drills that are held together, in the table's order."""
    return [drill for drill in TABLE if (drill.engine, drill.sum, drill.breaks) == (engine, sum, breaks)]
