"""Faults in a part's code, damaged files of a site, other objects in an old folder, other working directories: one clear end each."""

from __future__ import annotations

import json
import traceback

import numpy as np
import pytest
import torch

from pppml_core.api import Experiment
from pppml_core.builtin.configs import FedAvgConfig, TinyTaskConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import CheckpointError, RunFailed
from pppml_core.federation import checkpoint
from pppml_core.federation.store import SiteStore
from pppml_core.interfaces.reporter import Reporter

FAULTS = [ValueError("bad value"), RuntimeError("bad state"), AssertionError("not so"), KeyError("gone"), StopIteration("early")]
#: A method that fails; in a module of its own, since workers cannot share live objects.
BROKEN = """
from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg as Base

class Broken(Base):
    def __init__(self, config):
        super().__init__(FedAvgConfig())

    def local_update(self, model, data, gradients, state):
        raise AssertionError("not so")
"""


class Listening(Reporter):
    """Keeps the events and, where asked, stops the run at one."""

    def __init__(self, at=None):
        self.events, self.at = [], at

    def handle(self, event):
        self.events.append(dict(event))
        if self.at is not None and (event["event"], event.get("round")) == self.at:
            self.at = None
            raise Stopped

    def texts(self, kind):
        return [e.get("text") or e.get("error") for e in self.events if e["event"] == kind]


class Stopped(Exception):
    """What a test stops a run with."""


class Broken(FedAvg):
    """FedAvg that raises in its second training."""

    def __init__(self, error):
        super().__init__(FedAvgConfig())
        self.error, self.trained = error, 0

    def local_update(self, model, data, gradients, state):
        self.trained += 1
        if self.trained == 5:
            raise self.error
        return super().local_update(model, data, gradients, state)


def stopped(experiment, folder, **sections):
    """A run stopped in its second round."""
    made = experiment(reporters=["jsonl", Listening(("stage", 2))], **sections)
    with pytest.raises(Stopped):
        made.run(folder, report=False)
    return made


@pytest.mark.parametrize("error", FAULTS, ids=lambda e: type(e).__name__)
def test_a_fault_in_a_method_ends_the_run_with_its_place_and_can_be_resumed(experiment, tmp_path, error):
    listening = Listening()
    made = experiment(personalization=Broken(error), reporters=[listening])
    with pytest.raises(RunFailed) as caught:
        made.run(tmp_path / "r", report=False)
    text = str(caught.value)
    assert "site_2, round 2, stage contribute" in text
    assert f"{type(error).__name__}: {error}" in text
    assert f"--resume {tmp_path / 'r'}" in text
    assert caught.value.__cause__ is error
    assert listening.texts("run-failed") == [text]
    assert made.run(tmp_path / "r", report=False).result["rounds"] == 2


def test_a_fault_in_a_worker_ends_the_run_alike(registry, tmp_path, monkeypatch, capfd):
    (tmp_path / "broken_method.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    texts = []
    for workers in (1, 2):
        sections = {"task": "tiny", "personalization": "broken_method:Broken", "engine": {"use": "local", "workers": workers}}
        with pytest.raises(RunFailed) as caught:
            Experiment(registry=registry, **sections, run={"rounds": 2}).run(tmp_path / str(workers), reporters=False, report=False)
        texts.append(str(caught.value).replace(str(tmp_path / str(workers)), "FOLDER"))
        shown = "".join(traceback.format_exception(caught.value))
        assert "local_update" in shown, "--debug shows where it was"
    assert "round 1, stage contribute" in texts[0]
    assert "AssertionError: not so" in texts[0]
    assert texts[0].split("site_")[1][1:] == texts[1].split("site_")[1][1:], "but for the site, which may be another"
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_cached_contribution_is_absent(tmp_path):
    store = SiteStore(tmp_path)
    store.save_contribution("update", b"k", np.arange(100))
    assert store.contribution("update", b"k") is not None
    path = tmp_path / "contribution-update"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert store.contribution("update", b"k") is None


def test_a_run_whose_cached_contributions_are_damaged_goes_on_to_the_same_model(experiment, go, tmp_path):
    made = stopped(experiment, tmp_path / "r")
    caches = list((tmp_path / "r" / "sites").glob("*/contribution-*"))
    assert caches
    for path in caches:
        path.write_bytes(path.read_bytes()[:50])
    assert made.run(tmp_path / "r", report=False).result["model_sha256"] == go().result["model_sha256"]


@pytest.mark.parametrize("name", ["state-000001", "attempts"])
def test_a_damaged_site_file_stops_the_run_at_its_beginning(experiment, tmp_path, name):
    made = stopped(experiment, tmp_path / "r", model={"use": "tiny-net", "norm": "batch"})
    path = tmp_path / "r" / "sites" / "site_2" / name
    path.write_bytes(bytes(b ^ 255 for b in path.read_bytes()))
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        made.run(tmp_path / "r", report=False)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("Hint:") == 1
    assert caught.value.exit_code == 2
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before


def test_a_torn_attempt_is_dropped(tmp_path):
    store = SiteStore(tmp_path)
    store.save_attempt(1, 1)
    with open(tmp_path / "attempts", "ab") as file:
        file.write(b"\xff" * 7)
    assert store.attempts() == {1: 1}
    store.save_attempt(1, 2)
    assert store.attempts() == {1: 2}


class Net(torch.nn.Module):
    """A class with a state the config cannot see."""

    start = 0.0

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
        torch.nn.init.constant_(self.body[1].weight, self.start)

    def forward(self, x):
        return self.body(x)


def test_another_object_of_the_same_class_is_refused(experiment, tmp_path, monkeypatch):
    task = {"use": "tiny", "size": 8, "classes": 3}
    run = experiment(task=task, model=Net).run(tmp_path / "r", reporters=False, report=False)
    again = experiment(task=task, model=Net).run(tmp_path / "r", reporters=False, report=False)
    assert again.result == run.result
    monkeypatch.setattr(Net, "start", 0.5)
    with pytest.raises(CheckpointError, match="what differs: initial weights") as caught:
        experiment(task=task, model=Net).run(tmp_path / "r", reporters=False, report=False)
    assert caught.value.exit_code == 2


def test_another_tasks_data_are_refused(experiment, tmp_path):
    experiment(task=TinyTask(TinyTaskConfig())).run(tmp_path / "r", reporters=False, report=False)
    with pytest.raises(CheckpointError, match="what differs: training examples"):
        experiment(task=TinyTask(TinyTaskConfig(examples=30))).run(tmp_path / "r", reporters=False, report=False)


def test_a_run_with_relative_paths_goes_on_from_another_folder(experiment, go, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    first = go()
    save_file(first.model().state_dict(), "init.safetensors")
    made = stopped(experiment, tmp_path / "r", training={"init": "init.safetensors"})
    monkeypatch.chdir(tmp_path / "b")
    saved = Experiment(tmp_path / "r" / "config.resolved.yaml", registry=made.registry, objects=made.objects)
    assert saved.config.training.init == str(tmp_path / "a" / "init.safetensors")
    assert saved.run(tmp_path / "r", report=False).result["rounds"] == 2
    monkeypatch.chdir(tmp_path / "a")
    assert made.run(tmp_path / "r", report=False).result["rounds"] == 2


def test_stray_files_are_passed_over(experiment, tmp_path):
    made = stopped(experiment, tmp_path / "r")
    for name in ("round-abc.checkpoint", "round-1x.checkpoint", "best-x.weights"):
        (tmp_path / "r" / "checkpoints" / name).write_bytes(b"?")
    for name in ("state-1x", "state-abc", "state-000001.bak"):
        (tmp_path / "r" / "sites" / "site_1" / name).write_bytes(b"?")
    assert checkpoint.rounds(tmp_path / "r" / "checkpoints") == [1]
    assert made.run(tmp_path / "r", report=False).result["rounds"] == 2


@pytest.mark.parametrize("text", ["", "0123456789abcdef"])
def test_a_truncated_run_name_is_an_error_naming_the_file(experiment, tmp_path, text):
    made = stopped(experiment, tmp_path / "r")
    (tmp_path / "r" / "run.id").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.id"):
        made.run(tmp_path / "r", report=False)


def test_one_reporter_given_twice_writes_once(experiment, tmp_path):
    run = experiment(reporters=["jsonl", "jsonl"]).run(tmp_path / "r", report=False)
    events = [json.loads(line)["event"] for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert events.count("run-finished") == 1


def test_a_fault_that_never_struck_is_told(experiment, tmp_path):
    listening = Listening()
    faults = [{"site": "site_1", "stage": "contribut", "do": "drop"}, {"site": "site_1", "stage": "contribute", "do": "delay"}]
    experiment(engine={"use": "local", "faults": faults}, reporters=[listening]).run(tmp_path / "r", report=False)
    (warning,) = [t for t in listening.texts("warning") if "never struck" in t]
    assert "contribut," in warning


def test_the_plans_warnings_are_told_when_the_run_starts(experiment, tmp_path):
    listening = Listening()
    made = experiment(encoding={"bits": 4}, reporters=[listening])
    warnings = made._plan().warnings
    assert warnings
    made.run(tmp_path / "r", report=False)
    names = [e["event"] for e in listening.events]
    assert listening.texts("warning")[: len(warnings)] == warnings
    assert names.index("run-started") < names.index("warning") < names.index("round-started")
