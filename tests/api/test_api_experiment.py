"""The Python API over real, tiny runs: sections, files and live objects in; models, metrics, predictions and tables out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import pppml_core as pppml
from pppml_core.builtin.configs import TinyTaskConfig
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import CheckpointError, ConfigError
from pppml_core.registry import Registry

SITES = ["site_1", "site_2", "site_3"]


class Net(torch.nn.Sequential):
    """A researcher's own network."""

    def __init__(self, hidden=6):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3))


@pytest.fixture(scope="module")
def registry():
    return Registry.only()


@pytest.fixture(scope="module")
def finished(registry, tmp_path_factory):
    made = pppml.Experiment(task="tiny", run={"rounds": 2, "seed": 5}, registry=registry)
    return made, made.run(tmp_path_factory.mktemp("api") / "a", reporters=False)


def test_the_run_directory_of_the_contract(finished):
    _, run = finished
    names = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    assert names >= {
        "config.resolved.yaml", "plan.json", "manifest.json", "metrics.jsonl", "result.json", "model.safetensors", "report.html",
        "transcripts/hops.jsonl", "checkpoints/round-000002.checkpoint", "sites/site_1/personalized.safetensors", "examples.npz",
    }  # fmt: skip
    result = run.result
    assert set(result) >= {
        "name", "rounds", "seed", "model_sha256", "survivors", "metrics", "bytes", "seconds", "privacy", "guarantees", "versions"
    }  # fmt: skip
    assert (result["rounds"], result["seed"], result["survivors"]["2"]) == (2, 5, SITES)
    assert set(result["versions"]) >= {"python", "torch", "monai", "numpy", "pppml-core"}
    assert result["guarantees"]["sees_update"] == ["server"]


def test_a_run_opened_later_is_the_same(finished, registry):
    _, run = finished
    again = pppml.open(run.folder, registry=registry)
    assert again.result == run.result
    assert list(again.metrics) == list(run.metrics)
    mine, other = run.model().state_dict(), again.model().state_dict()
    assert all(torch.equal(mine[n], other[n]) for n in mine)
    assert again.config.run.seed == 5


def test_models(finished):
    _, run = finished
    model = run.model()
    assert not model.training
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    for site in SITES:
        own = run.model(site=site).state_dict()
        assert all(torch.equal(own[n], t) for n, t in model.state_dict().items()), "without personalization all are the global one"


def test_an_unknown_site_is_told_the_nearest(finished):
    _, run = finished
    with pytest.raises(ConfigError, match="did you mean 'site_2'") as caught:
        run.model(site="sit_2")
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="the sites are site_1, site_2, site_3"):
        run.model(site="hospital")


def test_metrics_are_rows_that_show_as_a_table(finished):
    _, run = finished
    assert [set(r) >= {"round", "site", "split", "weights", "accuracy"} for r in run.metrics] == [True] * 9
    html = run.metrics._repr_html_()
    assert "accuracy" in html
    assert "<table" in html
    assert "<table" in run._repr_html_()


def test_predicting_a_picture(finished, tmp_path):
    _, run = finished
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "scan.png")
    found = run.predict(tmp_path / "scan.png", out=tmp_path / "o")
    assert found.files
    assert all(p.exists() for p in found.files)
    probabilities = np.asarray(found.probabilities[0])
    assert probabilities.shape == (3,)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    own = run.predict(tmp_path / "scan.png", site="site_3")
    np.testing.assert_allclose(own.probabilities[0], probabilities, atol=1e-6)
    with pytest.raises(ConfigError, match="did you mean"):
        run.predict(tmp_path / "scan.png", site="site3")


def test_a_torch_class_a_lambda_and_a_ready_module_as_model(registry, tmp_path):
    runs = []
    for number, model in enumerate((Net, {"use": Net, "args": {"hidden": 6}}, lambda: Net(6))):
        made = pppml.Experiment(task="tiny", model=model, run={"rounds": 1}, registry=registry)
        runs.append(made.run(tmp_path / str(number), reporters=False, report=False))
    assert len({r.result["model_sha256"] for r in runs}) == 1
    assert isinstance(runs[0].model(), Net)
    other = pppml.Experiment(task="tiny", model={"use": Net, "args": {"hidden": 7}}, run={"rounds": 1}, registry=registry)
    assert other.plan().plan.model["parameters"] != 3 * 7 + 64 * 6 + 6
    ready = Net(6)
    with torch.no_grad():
        for p in ready.parameters():
            p.fill_(0.25)
    made = pppml.Experiment(task="tiny", model=ready, run={"rounds": 1}, training={"epochs": 0}, registry=registry)
    assert bool((made.run(tmp_path / "ready", reporters=False, report=False).model()[1].weight == 0.25).all()), (
        "its weights are the initial ones"
    )


def test_a_live_object_is_needed_again_to_build_the_model(registry, tmp_path):
    made = pppml.Experiment(task="tiny", model=Net, run={"rounds": 1}, registry=registry)
    run = made.run(tmp_path / "r", reporters=False, report=False)
    with pytest.raises(ConfigError, match="a Python object"):
        pppml.open(run.folder, registry=registry).model()
    again = pppml.open(run.folder, registry=registry, objects={"model": Net}).model()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), run.model().parameters(), strict=True))


def test_a_task_object(registry, tmp_path):
    class Mine(TinyTask):
        def card(self):
            from pppml_core.interfaces.task import DataCard

            return DataCard("Mine", "about", "CC0", "draw it")

    made = pppml.Experiment(task=Mine(TinyTaskConfig(sites=2)), run={"rounds": 1}, registry=registry)
    assert made.data().card["title"] == "Mine"
    run = made.run(tmp_path / "r", reporters=False)
    assert {r["site"] for r in run.metrics} == {"site_1", "site_2"}
    assert (run.folder / "report.html").exists()


def test_a_run_with_objects_is_resumed_with_the_same_objects(registry, tmp_path):
    made = pppml.Experiment(task=TinyTask(TinyTaskConfig()), model=Net, run={"rounds": 2}, registry=registry)
    run = made.run(tmp_path / "r", reporters=False, report=False)
    sha = run.result["model_sha256"]
    (run.folder / "result.json").unlink()
    assert made.run(tmp_path / "r", resume=True, reporters=False, report=False).result["model_sha256"] == sha


def test_personalized_models_differ_from_site_to_site(registry, tmp_path):
    made = pppml.Experiment(task="tiny", personalization="local-only", run={"rounds": 2}, registry=registry)
    run = made.run(tmp_path / "r", reporters=False)
    assert not torch.equal(run.model("site_1")[0].weight, run.model("site_2")[0].weight)
    assert run.result["metrics"]["global"]["sites"] == {}
    assert set(run.result["metrics"]["personalized"]["sites"]) == set(SITES)
    assert "personalized" in (run.folder / "report.html").read_text()


def test_load_and_overrides(registry, tmp_path):
    (tmp_path / "c.yaml").write_text("task: tiny\nrun: {rounds: 3}\n")
    made = pppml.load(tmp_path / "c.yaml", ["run.seed=9", "training.epochs=2"], registry=registry)
    assert (made.config.run.rounds, made.config.run.seed, made.config.training.epochs) == (3, 9, 2)
    with pytest.raises(ConfigError, match="not both"):
        pppml.Experiment(tmp_path / "c.yaml", task="tiny", registry=registry)


def test_a_changed_experiment_keeps_the_tasks_own_defaults(finished):
    made, _ = finished
    changed = made.changed({"personalization": "local-only", "training.optimizer.lr": 0.2})
    assert changed.config.personalization.use == "local-only"
    plan = changed.plan()
    assert plan.plan.config.training.optimizer.lr == 0.2
    assert plan.plan.config.training.batch_size == 8, "the tiny task's own"
    assert made.config.personalization.use == "fedavg"


def test_views_show_as_text_and_html(finished):
    made, _ = finished
    text = str(made.plan())
    assert "The server sees every update" in text
    assert "decode and update" in text
    assert "<pre" in made.plan()._repr_html_()
    assert "Tiny squares" in str(made.data())
    assert "tiny" in made._repr_html_()


def test_a_sweep_over_methods_and_seeds_resumes(registry, tmp_path, monkeypatch):
    made = pppml.Experiment(task="tiny", run={"rounds": 1}, registry=registry)
    grid = {"personalization": ["fedavg", "local-only"]}
    first = pppml.sweep(made, grid, seeds=[1], out=tmp_path / "s")
    assert (first.failed, first.missing) == ({}, [])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("result.json")}
    assert len(before) == 2
    both = pppml.sweep(made, grid, seeds=[1, 2], out=tmp_path / "s")
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("result.json")}
    assert len(after) == 4
    assert {p: after[p] for p in before} == before, "finished points are not run again"
    assert [(c.settings["personalization"], c.seeds) for c in both.cells] == [("fedavg", (1, 2)), ("local-only", (1, 2))]
    values = [json.loads(p.read_text())["metrics"]["global"]["mean"]["accuracy"] for p in sorted(after) if "fedavg" in str(p)]
    assert both.cells[0].metrics["accuracy"].estimate == pytest.approx(np.mean(values))


def test_a_sweep_with_a_misspelt_setting_fails_before_anything_runs(registry, tmp_path):
    made = pppml.Experiment(task="tiny", run={"rounds": 1}, registry=registry)
    with pytest.raises(ConfigError, match="fedavg"):
        pppml.sweep(made, {"personalization": ["fedavg", "fedagv"]}, seeds=[1], out=tmp_path / "s")
    assert not list(tmp_path.rglob("result.json"))


def test_opening_what_is_no_run(tmp_path, registry):
    with pytest.raises(CheckpointError, match="no run here"):
        pppml.open(tmp_path, registry=registry)


def test_an_unfinished_run_says_so(finished, registry, tmp_path):
    import shutil

    shutil.copytree(finished[1].folder, tmp_path / "r")
    (tmp_path / "r" / "result.json").unlink()
    (tmp_path / "r" / "model.safetensors").unlink()
    run = pppml.open(tmp_path / "r", registry=registry)
    with pytest.raises(CheckpointError, match="not finished") as caught:
        _ = run.result
    assert "--resume" in caught.value.hint
    with pytest.raises(CheckpointError, match="not written its model"):
        run.model()
    assert len(run.metrics) == 9


def test_plugins_and_schema(registry):
    assert {("task", "tiny"), ("aggregator", "plain")} <= {(r["kind"], r["name"]) for r in pppml.plugins(registry)}
    assert pppml.schema(registry)["$schema"].startswith("https://json-schema.org")
