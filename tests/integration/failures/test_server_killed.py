"""``kill -9`` of the server at every stage: `pppml run` is killed, resumed, killed at the next stage a round later, and so to the end."""

from __future__ import annotations

import signal

import pytest
from drilling.commands import command, write_config
from drilling.runs import HE, disturbed, finished, sites, tiny, wrong_sums
from drilling.table import OVER, SERVER_KILLED, SERVER_KILLS, Ends, drills

AGGREGATORS = {"plain": "plain", "secagg-plus": "secagg-plus", "cyclic-he": HE}
#: sites; `cyclic-he` has two rings from five on.
COUNT = {"plain": 2, "secagg-plus": 3, "cyclic-he": 5}


def moment(row, round):
    """The event at which the server is killed."""
    where = {"round": 0 if row.stage == "hello" else round, "stage": row.stage}
    return {"event": "stage" if row.moment == OVER else "site-done", **where}


@pytest.mark.drill
@pytest.mark.parametrize("sum", SERVER_KILLS)
def test_the_server_is_killed_at_every_stage_and_goes_on(note, tmp_path, sum):
    rows = drills("processes", sum, SERVER_KILLED)
    count = COUNT[sum]
    everyone = sites(count)
    own = {} if sum == "plain" else {"run": {"metrics": "none"}}
    sections = tiny(count, len(rows) + 1, aggregator=AGGREGATORS[sum], engine="processes", **own)
    config, folder = write_config(tmp_path / "c.yaml", sections), tmp_path / "r"
    for round, row in enumerate(rows, 1):
        start = ("run", "--resume", folder) if folder.exists() else ("run", config, "--out", folder)
        done = command(*start, kill_at=moment(row, round))
        assert done.returncode == -signal.SIGKILL, (row.name, done.stdout, done.stderr)
    done = command("run", "--resume", folder)
    assert done.returncode == 0, done.stderr
    run = finished(folder, sections)
    wrong = wrong_sums(run, tmp_path / "reference")
    problems = []
    for round, row in enumerate(rows, 1):
        came = Ends.RESUMED if run.survivors[round] == everyone else Ends.RESUMED_LOST if run.lost(round) else None
        problems += note(row, came, run.told(round), int(bool(wrong)))
    assert wrong == []
    assert not problems, "\n".join(["", *problems])
    if all(row.ends is Ends.RESUMED for row in rows):
        whole = disturbed(tmp_path / "whole", {**sections, "aggregator": "plain", "engine": "local"})
        assert run.result["model_sha256"] == whole.result["model_sha256"]
        assert run.result["metrics"] == whole.result["metrics"]
