"""How a run stands, told from its folder: while a process carries it out, after it was killed, and where its files are torn."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

import pppml_core as pppml
from pppml_core.errors import CheckpointError, RunFailed
from pppml_core.federation.files import has_writer, only_writer
from pppml_core.federation.status import Tail, Watcher
from pppml_core.interfaces.reporter import Reporter

CONFIG = {
    "task": {"use": "tiny", "sites": 3, "examples": 20},
    "run": {"rounds": 3, "seed": 1, "name": "ring", "on_abort": "stop", "min_cohort": 2},
    "training": {"steps": 1, "batch_size": 4},
}

# Waits, with the run's lock held, at one event; dies there where somebody kills it.
WAITING = """
import json, sys, time
import pppml_core as pppml
from pppml_core.interfaces.reporter import Reporter

class Waits(Reporter):
    def handle(self, event):
        if all(event.get(k) == v for k, v in json.loads(sys.argv[3]).items()):
            print("here", flush=True)
            time.sleep(600)

pppml.Experiment(**json.loads(sys.argv[1]), reporters=["jsonl", Waits(None)]).run(sys.argv[2], report=False)
"""


@contextmanager
def stopped_at(folder, config=CONFIG, **event):
    """A process that carries a run out and waits at that event."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, json.dumps(config), str(folder), json.dumps(event)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "here"
        yield process
    finally:
        process.kill()
        process.communicate()


class Fails(Reporter):
    def __init__(self, event, error):
        self.at, self.error = event, error

    def handle(self, event):
        if self.at is not None and all(event.get(k) == v for k, v in self.at.items()):
            self.at = None
            raise self.error


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run in the second round, its process alive and then killed: what was told before and after."""
    folder = tmp_path_factory.mktemp("status") / "r"
    with stopped_at(folder, event="site-done", round=2, stage="contribute", site="site_1"):
        alive = Watcher(folder).look()
    return folder, alive, Watcher(folder).look()


def test_a_run_that_goes_on(killed):
    folder, alive, _ = killed
    assert (alive["state"], alive["held"], alive["events"]) == ("running", True, True)
    assert (alive["name"], alive["folder"], alive["rounds"]) == ("ring", str(folder), 3)
    assert (alive["round"], alive["finished_rounds"], alive["attempt"]) == (2, 1, 1)
    assert "server sees every update" in alive["headline"]
    assert alive["survivors"] == ["site_1", "site_2", "site_3"]
    assert alive["seconds_per_round"] > 0
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert alive["bytes"] == {
        "up": sum(e["received"] for e in events if e["event"] == "stage"),
        "down": sum(e["sent"] for e in events if e["event"] == "stage"),
    }
    assert alive["last_event"]["event"] == "site-done"
    assert (alive["stage"], alive["answered"], alive["waiting_for"]) == ("contribute", ["site_1"], ["site_2", "site_3"])
    assert alive["epsilon"] is None


def test_who_answered_and_who_was_lost(tmp_path):
    faults = [{"site": "site_2", "stage": "contribute", "round": 1, "do": "drop"}]
    with stopped_at(tmp_path / "r", {**CONFIG, "engine": {"use": "local", "faults": faults}}, event="site-lost", round=1):
        status = Watcher(tmp_path / "r").look()
    assert (status["stage"], status["answered"], status["waiting_for"]) == ("contribute", ["site_1", "site_3"], [])
    assert {site: loss["stage"] for site, loss in status["lost"].items()} == {"site_2": "contribute"}
    assert status["lost"]["site_2"]["reason"]
    assert status["cohort"] == ["site_1", "site_2", "site_3"]
    assert status["expected_end"] is None, "no round was finished"
    assert status["stage_since"] >= status["round_since"]


def test_the_same_run_after_its_process_was_killed(killed):
    _, alive, dead = killed
    assert (dead["state"], dead["held"]) == ("stopped", False)
    assert dead["expected_end"] is None
    changing = {"state", "held", "age", "expected_end"}
    assert {k: v for k, v in dead.items() if k not in changing} == {k: v for k, v in alive.items() if k not in changing}
    assert dead["age"] >= alive["age"]


def test_the_expected_end(killed, tmp_path):
    """After one round of s seconds and t seconds into the second of three: max(0, s - t) + s from now."""
    folder, _, _ = killed
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (begun,) = [e["time"] for e in lines if e["event"] == "round-started" and e["round"] == 2]
    (spent,) = [e["seconds"] for e in lines if e["event"] == "round-finished"]
    with only_writer(folder / "run.id"):  # as if it lived
        soon, late = Watcher(folder).look(begun + spent / 4), Watcher(folder).look(begun + 10 * spent)
    assert soon["expected_end"] == pytest.approx(begun + 2 * spent)
    assert late["expected_end"] == pytest.approx(begun + 11 * spent)
    assert late["age"] > soon["age"]


def test_a_torn_last_line_and_lines_that_are_no_events(killed, tmp_path):
    folder, _, dead = killed
    copy = tmp_path / "r"
    subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
    with open(copy / "events.jsonl", "ab") as file:
        file.write(b'[1]\n{"event": 3}\n\xff\xfe\n{"event": "round-started"}\n{"event": "stage", "round": 2, "sta')
    torn = Watcher(copy).look()
    assert torn["state"] == "stopped"
    assert torn["bytes"] == dead["bytes"]
    assert (torn["round"], torn["attempt"]) == (2, 1)
    assert torn["age"] is None, "the last event has no time"


def test_a_resumed_and_finished_run_is_followed_by_one_watcher(tmp_path):
    made = pppml.Experiment(**CONFIG, reporters=["jsonl", Fails({"event": "stage-started", "round": 3}, KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    watcher = Watcher(tmp_path / "r")
    first = watcher.look()
    assert (first["state"], first["finished_rounds"], first["round"]) == ("stopped", 2, 3)
    assert first["last_error"]["text"].startswith("KeyboardInterrupt")
    run = made.run(tmp_path / "r", resume=True, report=False)
    last = watcher.look()
    assert (last["state"], last["finished_rounds"], last["last_error"]) == ("finished", 3, None)
    assert last["bytes"] == {name: run.result["bytes"][name] for name in ("up", "down")}
    assert last["model_sha256"] == run.result["model_sha256"]
    assert {**last, "age": 0} == {**run.status, "age": 0}


def test_a_failed_run(tmp_path):
    made = pppml.Experiment(**CONFIG, reporters=["jsonl", Fails({"event": "stage", "round": 2}, RunFailed("no space is left"))])
    with pytest.raises(RunFailed):
        made.run(tmp_path / "r", report=False)
    status = Watcher(tmp_path / "r").look()
    assert (status["state"], status["last_error"]["text"]) == ("failed", "no space is left")


def test_attempts_without_a_sum_are_counted_and_told(tmp_path):
    run = {**CONFIG["run"], "on_abort": "retry", "min_cohort": 3}
    engine = {"use": "local", "faults": [{"site": "site_1", "stage": "open", "round": 2, "attempt": 1, "do": "drop"}]}
    done = pppml.Experiment(**{**CONFIG, "run": run}, engine=engine, reporters=["jsonl"]).run(tmp_path / "r", report=False)
    status = done.status
    assert status["aborted_attempts"] == 1
    assert status["last_warning"]["round"] == 2
    assert "ended without a sum" in status["last_warning"]["text"]


def test_without_the_reporter_jsonl_only_finished_rounds_are_known(tmp_path):
    made = pppml.Experiment(**CONFIG, reporters=[Fails({"event": "stage-started", "round": 3}, KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    status = Watcher(tmp_path / "r").look()
    assert (status["events"], status["state"], status["finished_rounds"], status["age"]) == (False, "stopped", 2, None)


def test_epsilon_spent_of_claimed(tmp_path):
    pytest.importorskip("pppml_dp")
    privacy = {"use": "dp-sgd", "clip": 1.0, "epsilon": 6, "delta": 1e-5, "placement": "local"}
    training = {"steps": 1, "batch_size": 4, "optimizer": {"use": "sgd", "lr": 0.5}}
    made = pppml.Experiment(
        **{**CONFIG, "training": training},
        privacy=privacy,
        reporters=["jsonl", Fails({"event": "round-started", "round": 3}, KeyboardInterrupt)],
    )
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    before = Watcher(tmp_path / "r").look()["epsilon"]
    assert (before["epsilon"], before["delta"], before["unit"], before["placement"]) == (6.0, 1e-5, "example", "local")
    run = made.run(tmp_path / "r", resume=True, report=False)
    after = run.status["epsilon"]
    assert 0 < before["spent"] < after["spent"] == run.result["privacy"]["spent"] <= 6


def test_no_run_here(tmp_path):
    with pytest.raises(CheckpointError, match="no run here"):
        Watcher(tmp_path)


@pytest.mark.parametrize("text", ["run: [", "- a list", "run: 1\nrun: 2\n", "run: \x00", b"\xff\xfe"])
def test_a_damaged_configuration_is_told_with_its_place(tmp_path, text):
    (tmp_path / "config.resolved.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        Watcher(tmp_path)
    assert "config.resolved.yaml" in caught.value.place
    assert "restore the file" in caught.value.hint


def test_a_configuration_without_its_run_is_none_of_a_watcher(tmp_path):
    (tmp_path / "config.resolved.yaml").write_text("run: 7\n")
    assert Watcher(tmp_path).look()["rounds"] is None


def test_looking_is_no_writing(tmp_path):
    """One who looks disturbs neither a writer nor another one who looks."""
    file = tmp_path / "run.id"
    assert has_writer(file) is False
    file.write_bytes(b"x")
    assert has_writer(file) is False
    with only_writer(file):
        assert has_writer(file) is True
        with pytest.raises(RunFailed, match="another process"), only_writer(file):
            pass
    looking = (
        "import fcntl, sys, time\nf = open(sys.argv[1], 'rb')\nfcntl.flock(f, fcntl.LOCK_SH)\nprint('here', flush=True)\ntime.sleep(0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", looking, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "here"
    with only_writer(file):
        assert has_writer(file) is True
    process.communicate()


def test_a_tail_notices_that_the_file_was_cut_back(tmp_path):
    path, tail = tmp_path / "e.jsonl", Tail(tmp_path / "e.jsonl")
    assert tail.read() == (False, [])

    def write(*names):
        path.write_text("".join(json.dumps({"event": name}) + "\n" for name in names))

    def read():
        anew, events = tail.read()
        return anew, [event["event"] for event in events]

    write("a", "b")
    assert read() == (False, ["a", "b"])
    write("a", "b", "c")
    assert read() == (False, ["c"])
    assert read() == (False, [])
    write("a", "d", "e", "f")  # cut back to one line, then longer than before
    assert read() == (True, ["a", "d", "e", "f"])
    write("a")
    assert read() == (True, ["a"])
    os.remove(path)
    assert read() == (True, [])
