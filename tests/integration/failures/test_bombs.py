"""Messages that are too long, too many, or never end: the coordinator's memory stays bounded, and the run goes on."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import psutil
import pytest
from drilling.lines import at, patience, strange_sites
from drilling.runs import disturbed, sites, tiny
from drilling.table import BOMB, PATIENCE, drills

#: bytes the coordinator may grow by while it is bombed.
ROOM = 96 * 2**20
MODES = {"2^63": "length", "4 GiB": "drip", "million replies": "flood"}
ROWS = drills("processes", "plain", BOMB)


class Memory:
    """The most memory that this process held beyond what it held at the start."""

    def __init__(self):
        self.most = 0
        self._process, self._stop = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        start = self._process.memory_info().rss
        while not self._stop.wait(0.02):
            self.most = max(self.most, self._process.memory_info().rss - start)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.drill
@pytest.mark.parametrize("row", [row for row in ROWS if row.stage == "contribute"], ids=lambda r: r.moment)
def test_a_site_sends_a_bomb(check_rounds, monkeypatch, tmp_path, row):
    mode = next(mode for words, mode in MODES.items() if words in row.moment)
    strange_sites(monkeypatch, mode, "site_2", "2", "contribute")
    memory = Memory()
    starts = at(memory.__enter__, event="stage-started", round=2, stage="contribute")
    ends = at(lambda: memory.__exit__(), event="stage", round=2, stage="contribute")
    patience(monkeypatch, PATIENCE if mode == "drip" else 300)
    sections = tiny(3, 3, engine="processes")
    run = disturbed(tmp_path / "r", sections, starts, ends)
    check_rounds(run, {2: [row]}, {2: "site_2"})
    assert run.survivors[1] == sites(3)
    # Who never ends a reply has no line for the next one; who sends what cannot be one is started again.
    assert run.survivors[3] == (["site_1", "site_3"] if mode == "drip" else sites(3))
    assert memory.most < ROOM, f"{memory.most / 2**20:.0f} MiB more"


def bombard(port, stop, sent):
    """Send a million messages of eight bytes to a port, 200 on each of 5,000 connections."""
    while sent[0] < 1_000_000 and not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(b"\xff" * 8 * 200)
            sent[0] += 200


@pytest.mark.drill
def test_strangers_bomb_the_port(check_rounds, tmp_path):
    """They knock a million times while the sites train; who is awaited still comes in, and the rounds go on."""
    (row,) = [row for row in ROWS if row.stage == "whole round"]
    sent, stop, memory = [0], threading.Event(), Memory()
    threads = []

    def begin():
        listening = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        ports = {c.laddr.port for c in listening if c.laddr.ip == "127.0.0.1"}
        memory.__enter__()
        for port in ports:
            threads.append(threading.Thread(target=bombard, args=(port, stop, sent), daemon=True))
            threads[-1].start()

    def hold(event):
        if event["event"] == "round-finished" and event["round"] == 2:
            until = time.monotonic() + 400
            while sent[0] < 1_000_000 and time.monotonic() < until:
                time.sleep(0.1)

    # A site is killed in the meantime: it must get in again through the crowd.
    killed = {"site": "site_2", "stage": "evaluate", "round": 1, "do": "kill"}
    sections = tiny(2, 3, engine={"use": "processes", "timeout": 300, "faults": [killed]})
    try:
        run = disturbed(tmp_path / "r", sections, at(begin, event="round-started", round=1), hold)
    finally:
        stop.set()
        memory.__exit__()
    assert sent[0] >= 1_000_000
    check_rounds(run, {2: [row]}, {})
    assert all(names == sites(2) for names in run.survivors.values())
    assert memory.most < ROOM, f"{memory.most / 2**20:.0f} MiB more"
