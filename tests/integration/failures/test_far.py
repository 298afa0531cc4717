"""NVFlare's POC and a Flower SuperLink with SuperNodes: real processes with TLS, started for the drill and killed and stopped by it."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from drilling.commands import command, write_config
from drilling.far import ENGINES, TIMEOUT, behind_a_proxy, carrier, kill, needed, restarter, room, site_process
from drilling.lines import at, stall_for
from drilling.runs import HE, disturbed, finished, sites, tiny, wrong_sums
from drilling.table import (
    CARRIER_KILLED,
    FAR_KILLS,
    FAR_SITES,
    FULL_SITE,
    NOTHING,
    PARTITION,
    SERVER_KILLED,
    SITE_KILLED,
    STALL,
    Ends,
    drills,
)

from pppml_core.errors import RunFailed

AGGREGATORS = {"plain": "plain", "secagg-plus": "secagg-plus", "cyclic-he": HE}


@pytest.fixture
def short():
    """A folder with a short name, as paths of sockets must be, in which nobody else's processes have their files."""
    folder = Path(tempfile.mkdtemp(prefix="d-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


RUNS = [(engine, sum) for engine, sums in FAR_KILLS.items() for sum in sums]
#: the site that is killed, or that has no room or no network: none that initiates a ring.
SITE = "site_2"
#: seconds after which a client or node whose network is mended has tried again: NVFlare's gRPC waits two minutes at most between two tries,
#: a node that lost its SuperLink one minute.
AGAIN = 150


@pytest.mark.drill
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # a POC ends what it started by its ids
@pytest.mark.parametrize(("engine", "sum"), RUNS)
def test_a_site_is_lost_and_comes_back(check_rounds, monkeypatch, tmp_path, short, engine, sum):
    """Round 1 is left alone; then a drill a round. The site is started again, or what ails it mended, once it counts as lost, save where
    the table says that the next attempt is without it; else the last round is over all sites again.
    """
    needed(engine)
    restart, back = restarter(engine, monkeypatch)
    stalled = drills(engine, sum, STALL)
    broken = [row for breaks in (SITE_KILLED, FULL_SITE, STALL, PARTITION) for row in drills(engine, sum, breaks)]
    rounds = {1: drills(engine, sum, NOTHING), **{round: [row] for round, row in enumerate(broken, 2)}}
    count, last = FAR_SITES[engine][sum], len(rounds)
    gone = rounds[last][0].ends is Ends.AGAIN_WITHOUT
    last += not gone and rounds[last][0].ends not in (Ends.WHOLE, Ends.AGAIN)
    own = {} if sum == "plain" else {"run": {"metrics": "none"}}
    with ExitStack() as stack:
        settings, proxies = ENGINES[engine], []
        if stalled:
            settings, proxies = stack.enter_context(behind_a_proxy(engine, sites(count), SITE, short, monkeypatch))
        what = {
            SITE_KILLED: (lambda: kill(site_process(engine, SITE)), lambda: restart(SITE)),
            FULL_SITE: (lambda: room(site_process(engine, SITE), 0), lambda: room(site_process(engine, SITE), psutil.RLIM_INFINITY)),
            PARTITION: (lambda: proxies[0].cut(), lambda: proxies[0].mend()),
            STALL: (lambda: stall_for(30, proxies[0]), lambda: None),
        }
        acts = []
        for round, (row, *_) in list(rounds.items())[1:]:
            strike, mend = what[row.breaks]
            acts.append(at(strike, event="stage-started", round=round, stage=row.stage))
            if not gone:
                acts.append(at(mend, event="site-lost", round=round))
            if row.breaks == PARTITION:
                acts.append(at(lambda: time.sleep(AGAIN), event="round-finished", round=round))
            if row.breaks == SITE_KILLED and not gone:
                acts.append(at(lambda: back(SITE), event="round-finished", round=round))
        run = disturbed(tmp_path / "r", tiny(count, last, aggregator=AGGREGATORS[sum], engine=settings, **own), *acts)
        check_rounds(run, rounds, dict.fromkeys(rounds, SITE))
    assert gone or run.survivors[last] == sites(count), "it is back"
    took = {(e["round"], e["stage"]): e["seconds"] for e in run.events if e["event"] == "stage"}
    assert all(29 < took[round, row.stage] < TIMEOUT for round, (row, *_) in rounds.items() if row in stalled)
    assert not psutil.Process().children(), "nobody is left behind"


@pytest.mark.drill
@pytest.mark.parametrize("engine", FAR_KILLS)
def test_what_carries_the_messages_is_killed(note, tmp_path, engine):
    needed(engine)
    (row,) = drills(engine, "secagg-plus", CARRIER_KILLED)
    sections = tiny(3, 2, aggregator="secagg-plus", engine={**ENGINES[engine], "timeout": 30}, run={"retries": 0, "metrics": "none"})
    strike = at(lambda: kill(carrier(engine)), event="stage-started", round=2, stage="mask")
    with pytest.raises(RunFailed) as caught:
        disturbed(tmp_path / "r", sections, strike)
    assert "resume" in caught.value.hint
    run = disturbed(tmp_path / "r", sections, resume=True)
    wrong = wrong_sums(run, tmp_path / "reference")
    assert not note(row, Ends.RESUMED if all(n == sites(3) for n in run.survivors.values()) else None, [str(caught.value)], len(wrong))
    assert wrong == []


@pytest.mark.drill
@pytest.mark.parametrize("engine", FAR_KILLS)
def test_the_coordinator_is_killed(note, tmp_path, short, engine):
    """`pppml run` is killed: the processes it started end by themselves, and a resumed run starts others."""
    needed(engine)
    (row,) = drills(engine, "secagg-plus", SERVER_KILLED)
    sections = tiny(3, 2, aggregator="secagg-plus", engine=ENGINES[engine], run={"metrics": "none"})
    config, folder = write_config(tmp_path / "c.yaml", sections), tmp_path / "r"
    kill_at = {"event": "site-done", "round": 2, "stage": "mask"}
    done = command("run", config, "--out", folder, kill_at=kill_at, TMPDIR=str(short))
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = command("run", "--resume", folder)
    assert again.returncode == 0, again.stderr
    run = finished(folder, sections)
    wrong = wrong_sums(run, tmp_path / "reference")
    assert not note(row, Ends.RESUMED if all(n == sites(3) for n in run.survivors.values()) else None, [], len(wrong))
    assert wrong == []
    assert left_behind((str(tmp_path), str(short)), 60) == []


def left_behind(words, seconds):
    """Command lines with one of these words that are still there after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        found = [line for line in lines if any(word in part for part in line for word in words)]
        if not found or time.monotonic() > until:
            return found
        time.sleep(1)
