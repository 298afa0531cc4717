"""Runs that are killed at any moment, and go on to the same model, the same metrics and the same events."""

from __future__ import annotations

import json
import os
import signal
import traceback

import numpy as np
import pytest

from pppml_core.errors import CheckpointError, RunFailed
from pppml_core.federation import checkpoint
from pppml_core.interfaces.reporter import Reporter
from pppml_core.wire.transcript import read_transcript

#: Everything that has a state between rounds: server momentum, kept optimizers, BatchNorm counters, a drawn cohort, the best round.
STATEFUL = {
    "model": {"use": "tiny-net", "norm": "batch"},
    "run": {"rounds": 5, "cohort": 2, "select": "best-validation"},
    "personalization": {"use": "fedavg", "server_optimizer": {"use": "sgd", "momentum": 0.5}},
    "training": {"optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}, "keep_optimizer": True, "batch_size": 9},
}
CALLS = ("replace", "fsync", "unlink", "ftruncate", "write")


class Interrupted(Exception):
    """What a test stops a run with."""


class StopAt(Reporter):
    """Stops the run at one event, once."""

    def __init__(self, **wanted):
        self.wanted = wanted

    def handle(self, event):
        if self.wanted and all(event.get(k) == v for k, v in self.wanted.items()):
            self.wanted = {}
            raise Interrupted


def killed_child(work, kill_at):
    """Run ``work`` in a child process that is killed by SIGKILL right before its n-th call that changes a file. True: it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            left = [kill_at]

            def wrapped(call):
                def counted(*args, **kwargs):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **kwargs)

                return counted

            for name in CALLS:
                setattr(os, name, wrapped(getattr(os, name)))
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def lines(run, name):
    return [json.loads(line) for line in (run.folder / name).read_text().splitlines()]


def check_equal(run, reference):
    """The same model, selection and metrics; events without holes or doubles; bytes as in the transcript."""
    mine, other = run.result, reference.result
    for key in ("model_sha256", "selected_round", "survivors", "metrics", "validation"):
        assert mine[key] == other[key], key
    assert lines(run, "metrics.jsonl") == lines(reference, "metrics.jsonl")
    finished = [e for e in lines(run, "events.jsonl") if e["event"] == "round-finished"]
    assert [e["round"] for e in finished] == list(range(1, mine["rounds"] + 1))
    assert [e["training"] for e in finished] == [e["training"] for e in lines(reference, "events.jsonl") if e["event"] == "round-finished"]
    assert sum(1 for e in lines(run, "events.jsonl") if e["event"] == "run-finished") == 1
    hops = read_transcript(run.folder)
    assert mine["bytes"]["up"] == sum(h.size for h in hops if h.sender != "server")
    assert sum(mine["bytes"]["by_stage"].values()) == sum(h.size for h in hops)
    assert not list(run.folder.rglob(".*.tmp")), "what killed processes left is cleared away"


@pytest.fixture(scope="module")
def stateful(experiment, tmp_path_factory):
    made = experiment(**STATEFUL, reporters=["jsonl"])
    return made, made.run(tmp_path_factory.mktemp("whole") / "r", report=False)


@pytest.mark.parametrize("moments", [(2,), (9, 40), (55, 3, 30), (77,), (101, 18), (124,), (150, 150), (166,)], ids=str)
def test_killed_at_any_moment_and_resumed(stateful, tmp_path, moments):
    made, whole = stateful
    folder = tmp_path / "r"
    kills = [killed_child(lambda: made.run(folder, report=False), moment) for moment in moments]
    assert kills[0], "the run was over before it was to be killed"
    check_equal(made.run(folder, report=False), whole)


def test_local_only_survives_with_every_sites_own_weights(experiment, tmp_path):
    made = experiment(personalization="local-only", run={"rounds": 4, "select": "best-validation"}, reporters=["jsonl"])
    whole = made.run(tmp_path / "whole", report=False)
    for moment in (30, 61, 80):
        folder = tmp_path / str(moment)
        assert killed_child(lambda folder=folder: made.run(folder, report=False), moment)
        run = made.run(folder, report=False)
        check_equal(run, whole)
        for site in ("site_1", "site_2", "site_3"):
            mine, other = run.model(site).state_dict(), whole.model(site).state_dict()
            assert all(np.array_equal(mine[n], other[n]) for n in other)


def stopped(experiment, folder, wanted, **sections):
    """A run stopped at an event, and the experiment that goes on with it."""
    stop = StopAt(**wanted)
    made = experiment(**sections, reporters=["jsonl", stop])
    with pytest.raises(Interrupted):
        made.run(folder, report=False)
    return made


MOMENTS = [
    {"event": "round-started", "round": 5},
    {"event": "stage", "round": 5, "stage": "open"},
    {"event": "stage", "round": 5, "stage": "contribute"},
    {"event": "stage", "round": 5, "stage": "evaluate"},
    {"event": "metrics", "round": 5},
]


@pytest.mark.parametrize(
    ("wanted", "damage"), [*((m, "truncated") for m in MOMENTS), (MOMENTS[2], "flipped"), (MOMENTS[2], "empty")], ids=str
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(experiment, stateful, tmp_path, wanted, damage):
    made = stopped(experiment, tmp_path / "r", wanted, **STATEFUL)
    newest = tmp_path / "r" / "checkpoints" / "round-000004.checkpoint"
    data = newest.read_bytes()
    flipped = data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]
    newest.write_bytes({"truncated": data[: len(data) // 2], "flipped": flipped, "empty": b""}[damage])
    run = made.run(tmp_path / "r", report=False)
    check_equal(run, stateful[1])
    (warning,) = [e for e in lines(run, "events.jsonl") if e["event"] == "warning"]
    assert "round-000004.checkpoint" in warning["text"]


def test_two_damaged_checkpoints_are_an_error_with_exit_code_2(experiment, tmp_path):
    made = stopped(experiment, tmp_path / "r", MOMENTS[0], **STATEFUL)
    for path in (tmp_path / "r" / "checkpoints").glob("round-*.checkpoint"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="no checkpoint can be read") as caught:
        made.run(tmp_path / "r", report=False)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_checkpoints_that_the_sites_have_gone_beyond_are_an_error(experiment, tmp_path):
    """Sites keep what two checkpoints need; older ones, put back by hand, do not fit any more."""
    sections = {"model": {"use": "tiny-net", "norm": "batch"}, "run": {"rounds": 6}}
    stopped(experiment, tmp_path / "r", {"event": "round-started", "round": 2}, **sections)
    old = {p.name: p.read_bytes() for p in (tmp_path / "r" / "checkpoints").iterdir()}
    made = stopped(experiment, tmp_path / "r", {"event": "round-started", "round": 6}, **sections)
    for path in (tmp_path / "r" / "checkpoints").iterdir():
        path.unlink()
    for name, data in old.items():
        (tmp_path / "r" / "checkpoints" / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="what the sites still hold"):
        made.run(tmp_path / "r", report=False)


def test_another_config_is_refused_with_the_difference(experiment, tmp_path):
    stopped(experiment, tmp_path / "r", {"event": "round-started", "round": 2})
    stop = StopAt()
    for other, shown in (
        ({"training": {"optimizer": {"use": "sgd", "lr": 0.2}}}, "training.optimizer.lr: 0.05 -> 0.2"),
        ({"run": {"rounds": 9}}, "run.rounds: 2 -> 9"),
        ({"personalization": "local-only"}, "personalization.use: 'fedavg' -> 'local-only'"),
    ):
        with pytest.raises(CheckpointError) as caught:
            experiment(**other, reporters=["jsonl", stop]).run(tmp_path / "r", report=False)
        assert shown in str(caught.value)
        assert caught.value.exit_code == 2


def test_resuming_a_finished_run_does_nothing(experiment, tmp_path):
    made = experiment(reporters=["jsonl"])
    run = made.run(tmp_path / "r", report=False)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.folder.rglob("*") if p.is_file()}
    again = made.run(tmp_path / "r", resume=True, report=False)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.folder.rglob("*") if p.is_file()} == before
    assert again.result == run.result


def test_a_finished_run_whose_report_is_missing_gets_it(experiment, tmp_path):
    made = experiment()
    run = made.run(tmp_path / "r", reporters=False, report=False)
    assert not (run.folder / "report.html").exists()
    made.run(tmp_path / "r", reporters=False)
    assert (run.folder / "report.html").exists()


def test_where_a_run_must_or_must_not_be(go, tmp_path):
    with pytest.raises(CheckpointError, match="no run here"):
        go(tmp_path / "r", resume=True)
    go(tmp_path / "r", resume=False)
    with pytest.raises(CheckpointError, match="already holds a run"):
        go(tmp_path / "r", resume=False)


@pytest.mark.parametrize("where", ["file", "below a file", "/proc/nowhere"])
def test_an_output_that_cannot_be_written_is_an_error_with_place_and_hint(go, tmp_path, where):
    (tmp_path / "taken").write_text("not a folder")
    folder = {"file": tmp_path / "taken", "below a file": tmp_path / "taken" / "r", "/proc/nowhere": type(tmp_path)("/proc/nowhere")}[where]
    with pytest.raises(RunFailed, match="cannot write here") as caught:
        go(folder)
    assert str(folder) in str(caught.value)
    assert "--out" in str(caught.value)


def test_the_last_two_checkpoints_and_what_they_name_are_kept(go):
    run = go(run={"rounds": 6, "select": "best-validation"})
    assert checkpoint.rounds(run.folder / "checkpoints") == [5, 6]
    named = {checkpoint.load(run.folder / "checkpoints", [r])[1]["server"]["best_round"] for r in (5, 6)}
    assert {int(p.stem.removeprefix("best-")) for p in run.folder.glob("checkpoints/best-*")} == named


class Again(Reporter):
    """Starts the same run once more while it is running."""

    made, refused = None, ""

    def handle(self, event):
        if event["event"] == "round-started" and not self.refused:
            self.refused = "started"
            with pytest.raises(RunFailed, match="another process") as caught:
                self.made.run(self.folder, report=False)
            self.refused = str(caught.value)


def test_two_processes_do_not_write_one_run(experiment, tmp_path):
    again = Again(None)
    again.made, again.folder = experiment(reporters=[again]), tmp_path / "r"
    run = again.made.run(tmp_path / "r", report=False)
    assert str(tmp_path / "r") in again.refused
    assert run.result["rounds"] == 2
    assert [h.round for h in read_transcript(run.folder)][-1] == 2


def test_a_damaged_run_name_is_an_error(experiment, tmp_path):
    made = stopped(experiment, tmp_path / "r", {"event": "round-started", "round": 2})
    (tmp_path / "r" / "run.id").write_text("not hexadecimal")
    with pytest.raises(CheckpointError, match="name of a run"):
        made.run(tmp_path / "r", report=False)
