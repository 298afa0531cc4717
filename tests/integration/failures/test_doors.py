"""What anybody can hand in at the door of a site that lives by itself: rubbish by the thousand, and letters that were recorded.

These are the sites of NVFlare and Flower, in one process and without a network between; whoever carries the engine reaches their doors.
"""

from __future__ import annotations

import os

import psutil
import pytest
from drilling.lines import at
from drilling.runs import disturbed, sites, tiny
from drilling.table import BOMB, REPLAY, drills

from pppml_core.discovery import from_objects
from pppml_core.federation.audit import read_audit
from pppml_core.federation.home import init_home
from pppml_core.federation.identity import load_identity
from pppml_core.federation.letter import frame_in, written
from pppml_core.registry import Registry
from pppml_core.testing import residents
from pppml_core.wire.codec import decode_message

COUNT, SITE = 4, "site_2"
LETTERS = 100_000
#: bytes this process, which holds all sites, may grow by meanwhile; and lines that the log of the site may.
ROOM, LINES = 64 * 2**20, 10


@pytest.fixture
def doors(monkeypatch):
    """The transport of the run, which keeps every letter with who got it and what it was answered, once there is one."""
    made = []

    class Recording(residents.ResidentsTransport):
        def __init__(self, *given):
            super().__init__(*given)
            self.letters = []
            made.append(self)

        def deliver(self, frames):
            for site, letter in frames:
                reply = self.residents[site].receive(letter)
                self.letters.append((site, letter, reply))
                yield site, reply

    monkeypatch.setattr(residents, "ResidentsTransport", Recording)
    return made


@pytest.fixture
def run(tmp_path):
    def one(*acts):
        found = Registry.discover()
        registry = Registry((*found.offers, *from_objects([residents.ENGINE])))
        engine = {"use": "residents", "homes": str(tmp_path / "homes")}
        sections = tiny(COUNT, 3, aggregator="secagg-plus", engine=engine, registry=registry, run={"metrics": "none"})
        return disturbed(tmp_path / "r", sections, *acts)

    return one


def lines(home):
    return len(read_audit(home, load_identity(home).public)[0])


@pytest.mark.drill
def test_a_flood_at_the_door(check_rounds, doors, run, tmp_path):
    """Rubbish, letters of a stranger, and letters of the coordinator with somebody else's signature."""
    (row,) = drills("residents", "secagg-plus", BOMB)
    home = tmp_path / "homes" / SITE
    init_home(tmp_path / "stranger", "server")
    stranger = load_identity(tmp_path / "stranger")
    grown = {}

    def flood():
        door, process = doors[0].residents[SITE], psutil.Process()
        newest = next(frame_in(letter) for site, letter, _ in reversed(doors[0].letters) if site == SITE)
        kinds = [os.urandom(200), b"", written(stranger, "server", newest, (), bridge=False), doors[0].letters[-1][1][:-1] + b"?"]
        before = process.memory_info().rss, lines(home)
        for n in range(LETTERS):
            door.receive(kinds[n % len(kinds)])
        grown.update(bytes=process.memory_info().rss - before[0], lines=lines(home) - before[1])

    check_rounds(run(at(flood, event="stage-started", round=2, stage="mask")), {2: [row]}, {})
    assert grown["bytes"] < ROOM
    assert 1 <= grown["lines"] < LINES, "counted, not written down one by one"


@pytest.mark.drill
def test_letters_that_were_recorded(check_rounds, doors, run):
    """Every letter to every site so far, in the middle of a round: nobody gets another answer to one, but for the rounds that a site holds,
    and no attempt ends by it.
    """
    (row,) = drills("residents", "secagg-plus", REPLAY)
    asked = []

    def again():
        for site, letter, first in list(doors[0].letters):
            kind = decode_message(frame_in(letter)).kind
            data = doors[0].residents[site].receive(letter)
            reply = decode_message(data)
            same = data == first or reply.kind in ("refused", "failed")
            asked.append((kind, same or (kind == "hello" and set(reply.body) == {"rounds", "attempts"})))

    ran = run(at(again, event="stage-started", round=2, stage="mask"))
    check_rounds(ran, {2: [row]}, {})
    assert ran.survivors == dict.fromkeys((1, 2, 3), sites(COUNT))
    assert {"join", "hello", "open", "session"} <= {kind for kind, _ in asked}
    assert [kind for kind, same in asked if not same] == []
