"""A reporter that fails: one that is the record stops the run, one that only shows it elsewhere does not."""

import json

import pytest

from pppml_core.interfaces.reporter import Reporter


class Broken(Reporter):
    """Fails at one event."""

    essential = False

    def __init__(self, at="round-started", close=False):
        self.at, self.fails_to_close, self.heard = at, close, []

    def handle(self, event):
        self.heard.append(event["event"])
        if event["event"] == self.at:
            raise RuntimeError("no route\nto host")

    def close(self):
        if self.fails_to_close:
            raise OSError("gone")


class Record(Broken):
    """The same, but whoever asked for it needs it."""

    essential = True


class Listening(Reporter):
    def __init__(self):
        self.events = []

    def handle(self, event):
        self.events.append(dict(event))


def test_the_run_goes_on_and_the_others_are_told_once(experiment, go, tmp_path):
    broken, also, listening = Broken(), Broken(close=True), Listening()
    run = experiment(reporters=["jsonl", broken, also, listening]).run(tmp_path / "r", report=False)
    assert run.result["model_sha256"] == go().result["model_sha256"]
    warnings = [e["text"] for e in listening.events if e["event"] == "warning" and "reporter" in e["text"]]
    assert warnings == ["reporter Broken failed and hears no more of this run, which goes on: RuntimeError: no route to host"] * 2
    kept = [json.loads(line) for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()]
    assert [e["text"] for e in kept if e["event"] == "warning" and "reporter" in e["text"]] == warnings
    assert broken.heard.count("round-started") == also.heard.count("round-started") == 1
    assert listening.events[-1]["event"] == kept[-1]["event"] == "run-finished"


def test_one_that_fails_over_the_failure_of_another(experiment, tmp_path):
    first, second, listening = Broken(), Broken("warning"), Listening()
    experiment(reporters=[first, second, listening]).run(tmp_path / "r", report=False)
    assert len([e for e in listening.events if e["event"] == "warning" and "reporter" in e["text"]]) == 2
    assert second.heard.count("warning") == 1


def test_where_no_other_is_left_whoever_started_the_run_is_told(experiment, tmp_path):
    with pytest.warns(RuntimeWarning, match="reporter Broken failed"):
        experiment(reporters=[Broken("run-started")]).run(tmp_path / "r", report=False)


def test_a_record_stops_the_run_which_can_be_resumed(experiment, tmp_path):
    record = Record("round-finished")
    made = experiment(reporters=["jsonl", record])
    with pytest.raises(RuntimeError):
        made.run(tmp_path / "r", report=False)
    assert record.heard[-1] == "run-failed"
    record.at = None
    assert made.run(tmp_path / "r", resume=True, report=False).result["rounds"] == 2
