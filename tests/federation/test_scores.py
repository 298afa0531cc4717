"""Scores: which direction is better, sites that send none, models that are not shared."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

import pppml_core as pppml
from pppml_core.errors import CheckpointError, ConfigError, RunFailed
from pppml_core.learning.arrays import sha256_of_state
from pppml_core.registry import Registry

SITES = ["site_1", "site_2", "site_3"]


def experiment(task=None, **sections):
    run = {"rounds": 4, "seed": 3, **sections.pop("run", {})}
    return pppml.Experiment(task={"use": "tiny", **(task or {})}, run=run, reporters=["jsonl"], registry=Registry.only(), **sections)


def lost(*rounds, stage="evaluate", times=1000):
    return {"use": "local", "faults": [{"site": "site_1", "stage": stage, "round": r, "do": "drop", "times": times} for r in rounds]}


def warnings(run):
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    return [e["text"] for e in events if e["event"] == "warning"]


def test_of_a_distance_the_smallest_is_the_best(tmp_path):
    chosen = experiment({"kind": "segmentation"}, run={"select": "best-validation", "stop": {"metric": "hd95", "patience": 4}})
    run = chosen.run(tmp_path / "a", report=False)
    values = {r: [] for r in range(1, 5)}
    for row in run.metrics:
        if row["split"] == "validation":
            values[row["round"]].append(row["hd95"])
    means = {r: sum(v) / len(v) for r, v in values.items() if v and None not in v}
    assert len(set(means.values())) > 1, "the rounds must differ for this test to say anything"
    assert run.result["selected_round"] == min(means, key=means.get)


def test_a_round_that_some_sites_did_not_score_is_neither_best_nor_stale(tmp_path):
    settings = {"select": "best-validation", "stop": {"patience": 1}, "on_abort": "skip"}
    whole = experiment(run=settings).run(tmp_path / "whole", report=False)
    best = whole.result["selected_round"]
    run = experiment(run=settings, engine=lost(best)).run(tmp_path / "lost", report=False)
    assert run.result["selected_round"] != best
    assert any(f"round {best}: site_1 did not send scores" in text for text in warnings(run))


def test_final_scores_say_who_is_missing(tmp_path):
    run = experiment(run={"rounds": 1}, engine=lost(1)).run(tmp_path / "a", report=False)
    assert run.result["not_evaluated"] == ["site_1"]
    assert set(run.result["metrics"]["global"]["sites"]) == {"site_2", "site_3"}
    assert any("the means are over 2 sites" in text for text in warnings(run))


def test_no_final_score_at_all_is_a_failure_that_can_be_resumed(tmp_path):
    every = {"use": "local", "faults": [{"site": s, "stage": "evaluate", "round": 1, "do": "drop", "times": 6} for s in SITES]}
    with pytest.raises(RunFailed, match="no site sent final scores"):
        experiment(run={"rounds": 1}, engine=every).run(tmp_path / "a", report=False)
    assert (tmp_path / "a" / "model.safetensors").exists()
    assert not (tmp_path / "a" / "result.json").exists()
    # The faults strike as often in the second process, but validation was done: only the final scores are asked for.
    resumed = experiment(run={"rounds": 1}, engine=every)
    with pytest.raises(RunFailed):
        resumed.run(tmp_path / "a", report=False)


def test_summed_scores_of_fewer_sites_are_not_selected_on(tmp_path):
    settings = {"select": "best-validation", "metrics": "sum", "on_abort": "skip"}
    best = experiment(run=settings).run(tmp_path / "whole", report=False).result["selected_round"]
    run = experiment(run=settings, engine=lost(best)).run(tmp_path / "lost", report=False)
    assert run.result["selected_round"] != best


def test_sites_that_train_alone_have_no_shared_model(tmp_path):
    run = experiment(personalization="local-only").run(tmp_path / "a", report=False)
    assert not (run.folder / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="no shared model"):
        run.model()
    own = {s: sha256_of_state(run.model(site=s).state_dict()) for s in SITES}
    assert len(set(own.values())) == 3
    longer = experiment(personalization="local-only", run={"rounds": 3}).run(tmp_path / "b", report=False)
    assert run.result["model_sha256"] != longer.result["model_sha256"], "the hash is over what was trained"
    again = experiment(personalization="local-only").run(tmp_path / "c", report=False)
    assert run.result["model_sha256"] == again.result["model_sha256"]


def test_a_site_whose_folder_is_gone_stops_the_resume(tmp_path):
    fault = {"use": "local", "faults": [{"site": s, "stage": "contribute", "round": 3, "do": "drop", "times": 9} for s in SITES]}
    with pytest.raises(RunFailed):
        experiment(engine=fault).run(tmp_path / "a", report=False)
    home = tmp_path / "a" / "sites" / "site_1"
    for path in home.iterdir():
        if path.name not in ("identity.key", "roster.json"):
            path.unlink()
    with pytest.raises(CheckpointError, match="is gone or empty"):
        experiment(engine=fault).run(tmp_path / "a", report=False)
    shutil.rmtree(home)
    with pytest.raises(ConfigError, match="another identity is pinned for site_1"):
        experiment(engine=fault).run(tmp_path / "a", report=False)


def test_a_shared_model_is_written_as_it_is_hashed(tmp_path):
    run = experiment(run={"rounds": 1}).run(tmp_path / "a", report=False)
    assert sha256_of_state(load_file(run.folder / "model.safetensors")) == run.result["model_sha256"]
