"""Twenty sites, each a process, killed and started again at random all the time: every sum that comes about is that of its survivors."""

from __future__ import annotations

import random
import threading
import time

import psutil
import pytest
from drilling.runs import disturbed, sites, tiny, wrong_sums

STAGES = ("open", "advertise", "share", "mask", "agree", "unmask")
DEEDS = ("kill-before", "kill", "kill-after")


def kills(count, rounds, chance, seed, attempts=8):
    """At each stage of each attempt each site is killed with this chance, before, while or after it answers."""
    generator = random.Random(seed)
    return [
        {"site": site, "stage": stage, "round": round, "attempt": attempt, "do": generator.choice(DEEDS)}
        for round in range(1, rounds + 1)
        for attempt in range(1, attempts + 1)
        for stage in STAGES
        for site in sites(count)
        if generator.random() < chance
    ]


class Memory:
    """The most memory that this process and its children held: resident, what they share counted once for each."""

    def __init__(self):
        self.most, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self):
        while not self._stop.wait(0.5):
            held = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.most = max(self.most, held)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def held(tmp_path, record_property, sections, rounds):
    """Run it and count what came of it. Wrong sums: none."""
    began = time.monotonic()
    with Memory() as memory:
        run = disturbed(tmp_path / "r", sections)
    seconds = time.monotonic() - began
    wrong = wrong_sums(run, tmp_path / "reference")
    completed = [round for round, names in run.survivors.items() if names]
    aborts = [e for e in run.events if e["event"] == "round-aborted"]
    killed = sum(1 for e in run.events if e["event"] == "site-lost" and "exit code -9" in e["reason"])
    counts = {
        "rounds completed": len(completed),
        "clean aborts": len(aborts),
        "of these lost after a release": sum(1 for e in aborts if e["lost"]),
        "sites found killed": killed,
        "survivors": [len(run.survivors[round]) for round in sorted(run.survivors)],
        "wrong sums": len(wrong),
        "seconds": round(seconds),
        "MiB": round(memory.most / 2**20),
    }
    record_property("counts", str(counts))
    print(counts)
    assert wrong == []
    assert set(run.survivors) == set(range(1, rounds + 1))
    return run, counts


@pytest.mark.drill
@pytest.mark.quick
def test_eight_sites_under_kills(tmp_path, record_property):
    strikes = kills(8, 3, 0.02, seed=3)
    sections = tiny(8, 3, aggregator="secagg-plus", run={"metrics": "none", "retries": 5}, engine={"use": "processes", "faults": strikes})
    run, counts = held(tmp_path, record_property, sections, 3)
    assert counts["rounds completed"] == 3
    assert counts["sites found killed"] >= 1
    assert not all(names == sites(8) for names in run.survivors.values())


@pytest.mark.drill
@pytest.mark.slow
@pytest.mark.parametrize(("chance", "on_abort"), [(0.02, "retry"), (0.10, "skip")])
def test_twenty_sites_under_kills(tmp_path, record_property, chance, on_abort):
    """2.4 million parameters, ten rounds. At 2 % every round has its sum; at 10 % most are given up, and none is wrong."""
    strikes = kills(20, 10, chance, seed=7)
    sections = tiny(
        20,
        10,
        aggregator="secagg-plus",
        model={"use": "tiny-net", "width": 362},
        run={"metrics": "none", "on_abort": on_abort, "retries": 5},
        engine={"use": "processes", "faults": strikes},
    )
    sections["training"] = {"steps": 1, "batch_size": 2}
    _, counts = held(tmp_path, record_property, sections, 10)
    if chance < 0.05:
        assert counts["rounds completed"] == 10
    else:
        assert counts["clean aborts"] >= 1
