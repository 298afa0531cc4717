"""``pppml status``: texts and exit codes."""

import json
import re

FAILED = '{"time": 2.0, "event": "run-failed", "error": "site_1: \\u001b[2Jno space is left"}\n'


def rows(text):
    return dict(re.findall(r"^(\S(?:.*?\S)?)\s{2,}(.*?)\s*$", text, flags=re.MULTILINE))


def test_a_finished_run(world):
    world.run_folder()
    done = world.pppml("status runs/a")
    assert done.code == 0, done.err
    shown = rows(done.out)
    assert shown["state"] == "finished"
    assert re.fullmatch(r"1 held in .* s", shown["round"])
    assert "go on" not in shown
    found = json.loads(world.pppml("status runs/a --json").out)
    assert (found["state"], found["finished_rounds"], found["rounds"]) == ("finished", 1, 1)


def test_an_unfinished_run_is_no_failure_and_can_be_resumed(world):
    world.run_folder(unfinished=True)
    done = world.pppml("status runs/a --watch")
    assert done.code == 0, done.err
    shown = rows(done.out)
    assert shown["state"] == "stopped, no process holds the run"
    assert shown["go on"] == "pppml run --resume runs/a"
    assert "site" in shown["last event"] or "run-finished" in shown["last event"]


def test_a_failed_run_is_exit_code_1(world):
    world.run_folder(unfinished=True)
    path = world.folder / "runs/a/events.jsonl"
    path.write_text(path.read_text() + FAILED + '{"time": 3.0, "event": "stage", "ro')
    done = world.pppml("status runs/a")
    assert done.code == 1
    assert done.err == ""
    shown = rows(done.out)
    assert shown["state"] == "failed, no process holds the run"
    assert shown["error"] == "site_1:  [2Jno space is left", "no control character reaches the terminal"
    watched = world.pppml("status runs/a --json --watch")
    assert watched.code == 1
    (line,) = watched.out.splitlines()
    assert json.loads(line)["state"] == "failed"


def test_no_run(world):
    done = world.pppml("status nowhere")
    assert done.code == 2
    assert done.err.startswith("error: nowhere: there is no run here")
