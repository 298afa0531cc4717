"""Runs of MLflow, read back with MLflow's own client."""

import json
import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

import pppml_core as pppml
from pppml_core.errors import PppmlError, RunFailed
from pppml_core.interfaces.reporter import Reporter
from pppml_core.testing import PluginSuite
from pppml_mlflow.config import MLflowConfig
from pppml_mlflow.store import TrackedRun, connect

TINY = {"task": {"use": "tiny", "sites": 3, "examples": 20}, "training": {"steps": 1, "batch_size": 4}}


class Stop(Reporter):
    """Ends the run at one event, once."""

    def __init__(self, event, round, error=KeyboardInterrupt):
        self.at, self.error = (event, round), error

    def handle(self, event):
        if (event["event"], event.get("round")) == self.at:
            self.at = None
            raise self.error


def experiment(*reporters, rounds=3, **more):
    return pppml.Experiment(**TINY, run={"rounds": rounds, "seed": 1, "name": "ring"}, reporters=["jsonl", *reporters], **more)


def runs(uri, experiment="pppml"):
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id])


def own(folder):
    return f"sqlite:///{folder / 'mlflow.db'}"


def steps(client, run, key):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return experiment("mlflow").run(tmp_path_factory.mktemp("ml") / "r", report=False)


def test_rounds_settings_and_files(run):
    client, (found,) = runs(own(run.folder))
    assert (found.info.status, found.info.run_name) == ("FINISHED", "ring")
    for row in run.metrics:
        if row["split"] == "validation":
            assert dict(steps(client, found, f"accuracy/validation/{row['weights']}/{row['site']}"))[row["round"]] == row["accuracy"]
    for site, scores in run.result["metrics"]["global"]["sites"].items():
        assert steps(client, found, f"accuracy/test/global/{site}") == [(run.result["selected_round"], scores["accuracy"])]
    assert steps(client, found, "round/survivors") == [(1, 3.0), (2, 3.0), (3, 3.0)]
    assert found.data.metrics["total/bytes/up"] == run.result["bytes"]["up"]
    assert found.data.params["training.batch_size"] == "4"
    assert found.data.tags["pppml.model_sha256"] == run.result["model_sha256"]
    assert "The server sees every update" in found.data.tags["pppml.headline"]
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"config.resolved.yaml", "plan.json", "manifest.json", "result.json"}
    kept = run.folder / "mlflow-files" / found.info.run_id / "artifacts" / "result.json"
    assert json.loads(kept.read_text()) == run.result


@pytest.mark.parametrize(
    ("event", "round"),
    [
        ("stage-started", 2),  # in the middle of a round
        ("round-finished", 2),  # told, but its checkpoint is not written: it is held again
        ("round-started", 3),  # between two rounds
    ],
)
def test_a_resumed_run_is_the_same_run_of_mlflow(event, round, run, tmp_path):
    made = experiment("mlflow", Stop(event, round))
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path / "r", report=False)
    client, (killed,) = runs(own(tmp_path / "r"))
    assert killed.info.status == "KILLED"
    made.run(tmp_path / "r", resume=True, report=False)
    client, (found,) = runs(own(tmp_path / "r"))
    assert found.info.run_id == killed.info.run_id
    assert found.info.status == "FINISHED"
    whole, (other,) = runs(own(run.folder))
    assert set(found.data.metrics) == set(other.data.metrics)
    for key in other.data.metrics:
        assert [step for step, _ in steps(client, found, key)] == [step for step, _ in steps(whole, other, key)], key
    name = "accuracy/validation/global/site_2"
    assert steps(client, found, name) == steps(whole, other, name)


def test_runs_side_by_side_with_names_and_without_files(tmp_path):
    uri = f"sqlite:///{tmp_path / 'all.db'}"
    for name in ("a", "b"):
        setting = {"use": "mlflow", "tracking_uri": uri, "experiment": "lungs", "run_name": name, "files": False}
        experiment(setting, rounds=1).run(tmp_path / name, report=False)
    client, found = runs(uri, "lungs")
    assert sorted(r.info.run_name for r in found) == ["a", "b"]
    assert [client.list_artifacts(r.info.run_id) for r in found] == [[], []]
    assert not (tmp_path / "a" / "mlflow.db").exists()


def test_a_failed_run_is_marked_with_its_reason(tmp_path):
    with pytest.raises(RunFailed):
        experiment("mlflow", Stop("round-started", 1, RunFailed("the disk is full"))).run(tmp_path / "r", report=False)
    _, (found,) = runs(own(tmp_path / "r"))
    assert found.info.status == "FAILED"
    assert found.data.tags["pppml.error"] == "the disk is full"


def test_a_server_that_is_lost_does_not_stop_the_run(tmp_path, monkeypatch):
    def lost(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(TrackedRun, "send", lost)
    run = experiment("mlflow", rounds=2).run(tmp_path / "r", report=False)
    assert run.result["rounds"] == 2
    events = [json.loads(line) for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()]
    (text,) = [e["text"] for e in events if e["event"] == "warning" and "reporter" in e["text"]]
    assert text == "reporter mlflow failed and hears no more of this run, which goes on: ConnectionError: no route to host"
    _, (found,) = runs(own(tmp_path / "r"))
    assert found.info.status == "KILLED"


def test_a_store_that_is_not_there_is_told_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("")
    bad = {"use": "mlflow", "tracking_uri": f"sqlite:///{tmp_path / 'file' / 'x.db'}"}
    with pytest.raises(RunFailed, match="MLflow cannot be reached") as told:
        experiment(bad).run(tmp_path / "r", report=False)
    assert told.value.exit_code == 1
    assert not list((tmp_path / "r" / "checkpoints").iterdir())


def test_a_password_does_not_belong_into_a_config():
    with pytest.raises(ValidationError, match="no place for a password"):
        MLflowConfig(tracking_uri="https://me:secret@mlflow.example.org")
    with pytest.raises(PppmlError) as told:
        experiment({"use": "mlflow", "tracking_uri": "https://me:secret@mlflow.example.org"})
    assert "secret" not in str(told.value)


def test_more_than_one_call_can_carry(tmp_path):
    from pppml_core.report.scalars import Scalar

    client = connect(f"sqlite:///{tmp_path / 'm.db'}")
    name = client.create_experiment("x", artifact_location=tmp_path.as_uri())
    for _ in range(2):  # the second time as after a resume: nothing is sent twice
        run = TrackedRun(client, name, "ab" * 16, "many", 1)
        run.send([Scalar("round/seconds", 1.0, 1), *(Scalar(f"dice/validation/global/s{i}", i, 1) for i in range(1200))], 1.0)
    run.describe({f"a.{i}": "x" * 7000 for i in range(150)}, {})
    found = client.get_run(run.id)
    assert len(found.data.metrics) == 1201
    assert len(client.get_metric_history(run.id, "dice/validation/global/s1199")) == 1
    assert len(found.data.params) == 150
    assert {len(value) for value in found.data.params.values()} == {6000}


QUIET = """
import sys
seen = []
sys.addaudithook(lambda event, given: seen.append(f"{event} {given}") if event.startswith("socket.") else None)
import time
import pppml_core as pppml
pppml.Experiment("c.yaml").run("r", report=False)
time.sleep(1)  # what is told to others is told from a thread of its own
print([line for line in seen if line.partition(" ")[0] in ("socket.connect", "socket.getaddrinfo", "socket.sendto")])
"""


def test_nothing_leaves_the_machine(tmp_path):
    """MLflow's own reports to its makers are off; they would be on here, where no variable says that this is a test."""
    config = "task: {use: tiny, sites: 2, examples: 10}\nrun: {rounds: 1}\nreporters: [mlflow]\n"
    (tmp_path / "c.yaml").write_text(config)
    quiet = ("CI", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY")
    kept = {k: v for k, v in os.environ.items() if k not in quiet and not k.startswith(("PYTEST", "GITHUB"))}
    done = subprocess.run([sys.executable, "-c", QUIET], cwd=tmp_path, env=kept, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "INFO" not in done.stderr


class TestPlugin(PluginSuite):
    plugin = "pppml_mlflow.plugin"
