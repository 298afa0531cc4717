"""Files that cannot be written, at a site and at the server, and files that were damaged before a resume.

The operating system refuses the writes (a limit on the size of files, which needs no rights). A file system that is really full is in
``tests/federation/test_disk_full.py``.
"""

from __future__ import annotations

import shutil

import pytest
from drilling.commands import command, write_config
from drilling.lines import strange_sites
from drilling.runs import disturbed, finished, sites, tiny, wrong_sums
from drilling.table import DAMAGED, FULL_SERVER, FULL_SITE, Ends, drills

from pppml_core.errors import PppmlError, RunFailed


def resumed(run, note, row, told, folder):
    """Note a run that was resumed: it must be that of an undisturbed one."""
    wrong = wrong_sums(run, folder)
    everyone = sites(run.sections["task"]["sites"])
    whole = all(names == everyone for names in run.survivors.values())
    assert wrong == []
    return note(row, Ends.RESUMED if whole else None, told, len(wrong))


FULL_SITES = [*drills("processes", "plain", FULL_SITE), *drills("processes", "secagg-plus", FULL_SITE)]


@pytest.mark.drill
@pytest.mark.parametrize("row", FULL_SITES, ids=lambda r: f"{r.sum}-{r.stage}")
def test_a_site_that_cannot_write(note, monkeypatch, tmp_path, row):
    sections = tiny(3, 2, aggregator=row.sum, engine="processes")
    with monkeypatch.context() as patched:
        strange_sites(patched, "full", "site_2", "2", row.stage)
        with pytest.raises(RunFailed) as caught:
            disturbed(tmp_path / "r", sections)
    assert caught.value.exit_code == 1
    assert "site_2" in caught.value.place
    assert "--resume" in caught.value.hint
    run = disturbed(tmp_path / "r", sections, resume=True)
    problems = resumed(run, note, row, [str(caught.value)], tmp_path / "reference")
    assert not problems, problems


@pytest.mark.drill
@pytest.mark.parametrize("row", drills("processes", "plain", FULL_SERVER), ids=lambda r: r.stage)
def test_a_server_that_cannot_write(note, tmp_path, row):
    sections = tiny(2, 2, engine="processes")
    config, folder = write_config(tmp_path / "c.yaml", sections), tmp_path / "r"
    # The stage before: what is written in the stage itself is what fails.
    before = {"open": {"event": "round-finished", "round": 1}, "contribute": {"event": "stage", "stage": "open", "round": 2}}
    done = command("run", config, "--out", folder, full_at=before.get(row.stage, {"event": "round-finished", "round": 2}))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Hint" in done.stderr
    assert "resume" in done.stderr
    again = command("run", "--resume", folder)
    assert again.returncode == 0, again.stderr
    problems = resumed(finished(folder, sections), note, row, [done.stderr], tmp_path / "reference")
    assert not problems, problems


def interrupt(event):
    """Ends the run, as Ctrl-C would, in the middle of round 3: two rounds have their checkpoints, the third has begun."""
    if event.get("round") == 3 and event["event"] == "stage" and event["stage"] == "mask":
        raise KeyboardInterrupt


def spoilt(path):
    data = bytearray(path.read_bytes())
    assert data
    for at in range(0, len(data), max(1, len(data) // 7)):
        data[at] ^= 0x55
    path.write_bytes(data)


DAMAGE = {
    "the server's newest checkpoint": "checkpoints/round-000002.checkpoint",
    "both checkpoints of the server": "checkpoints/round-*.checkpoint",
    "a site's state": "sites/site_2/state-000002",
    "a site's cached contribution": "sites/site_2/contribution-update",
    "a site's record of its attempts": "sites/site_2/attempts",
    "a site's record of what it released": "sites/site_2/released",
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of two sites that was interrupted in its third round."""
    folder = tmp_path_factory.mktemp("interrupted") / "r"
    # A state of its own makes a site's file one that cannot be made again.
    training = {"steps": 1, "batch_size": 4, "keep_optimizer": True, "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}}
    sections = tiny(3, 3, aggregator="secagg-plus", training=training, engine="processes")

    with pytest.raises(KeyboardInterrupt):
        disturbed(folder, sections, interrupt)
    return folder, sections


@pytest.mark.drill
@pytest.mark.parametrize("row", drills("processes", "secagg-plus", DAMAGED), ids=lambda r: r.stage)
def test_a_damaged_file(note, interrupted, tmp_path, row):
    source, sections = interrupted
    folder = tmp_path / "r"
    shutil.copytree(source, folder)
    for path in folder.glob(DAMAGE[row.stage]):
        spoilt(path)
    if row.ends is Ends.STOPPED:
        with pytest.raises(PppmlError) as caught:
            disturbed(folder, sections, resume=True)
        assert caught.value.hint
        problems = note(row, Ends.STOPPED, [str(caught.value)])
    else:
        run = disturbed(folder, sections, resume=True)
        problems = resumed(run, note, row, run.told(), tmp_path / "reference")
    assert not problems, problems
