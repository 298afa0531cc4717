"""The study of differential privacy: its machinery on the tiny task, its numbers against hand-computed ones, its selection and page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples" / "studies" / "dp"
MODULES = ("selection", "jobs", "summary", "tables", "tune", "run")
SERVER, BATCH, STEPS = "personalization.server_optimizer", "training.batch_size", "run.rounds"
LR = f"{SERVER}.lr"

pytest.importorskip("pppml_dp", reason="the study is about its mechanisms")
pytest.importorskip("pppml_secagg_plus", reason="distributed noise needs a secure sum")


@pytest.fixture(scope="module")
def study():
    """The study's modules, which import each other by their bare names."""
    import importlib

    sys.path.insert(0, str(STUDY))
    held = {name: sys.modules.pop(name, None) for name in MODULES}
    threads = os.environ.get("OMP_NUM_THREADS")
    try:
        yield type("Study", (), {name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(STUDY))
        for name, module in held.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.__setitem__("OMP_NUM_THREADS", threads)


class Here:
    """A pool that works in this process, so that the test takes seconds."""

    def __init__(self, *_, **__):
        pass

    def shutdown(self, **_):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


CONFIG = {
    "task": {"use": "tiny", "examples": 60},
    "personalization": {"use": "fedavg", "server_optimizer": {"use": "adam", "lr": 0.01, "epsilon": 1e-8}},
    "training": {"steps": 1, "batch_size": 8, "optimizer": {"use": "sgd", "lr": 1.0}},
    "run": {"rounds": 2},
}
TRIES = [
    {SERVER: {"use": "adam", "lr": 0.01}, BATCH: 8, STEPS: 4},
    {SERVER: {"use": "sgd", "lr": 0.5, "momentum": 0.9}, BATCH: 16, STEPS: 2},
]
ROWS = ["no-dp", "clip-only", "distributed", "local"]


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """A tiny study, tuned and run by its one command, in this process."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    block = {"models": ["net"], "partitions": ["any"], "sites": [5], "rows": ROWS, "epsilons": [6]}
    selection = {
        "config": str(folder / "tiny.yaml"),
        "seeds": [1, 2],
        "delta": 1e-3,
        "clip": 1.0,
        "tuning": {"seed": 9, "epsilon": 6, "rows": ["distributed", "local", "clip-only"], "tries": TRIES},
        "models": {"net": {"use": "tiny-net", "width": 4}},
        "partitions": {"any": {}},
        "default": [block],
        "full": [{**block, "sites": [5, 4]}],
    }
    (folder / "selection.yaml").write_text(yaml.safe_dump(selection))
    command = ["--selection", str(folder / "selection.yaml"), "--tuned", str(folder / "tuned.yaml"), "--out", str(folder / "out")]
    patch = pytest.MonkeyPatch()
    patch.setattr(study.jobs, "ProcessPoolExecutor", Here)
    try:
        assert study.run.main([*command, "--tune"]) == 0
        assert study.run.main(command) == 0
        yield study, folder, command
    finally:
        patch.undo()


def results(folder):
    return json.loads((folder / "out" / "results.json").read_text())


def run_folder(folder, row, seed=1):
    return folder / "out" / "runs" / "net_any_5-sites" / row / f"seed-{seed}"


def test_tuning_chooses_the_best_on_validation_with_a_seed_of_its_own_and_says_what_it_cost(finished):
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    _, folder, _ = finished
    tuned = yaml.safe_load((folder / "tuned.yaml").read_text())["net_any_5-sites"]
    assert set(tuned) == {"distributed", "local", "clip-only"}
    for row, found in tuned.items():
        assert [one["settings"] for one in found["tries"]] == TRIES
        assert found["chosen"] == max(found["tries"], key=lambda one: one["score"])["settings"]
        assert found.get("epsilon_of_all_tries", 7) > 6, row
    made = [yaml.safe_load(p.read_text()) for p in (folder / "out" / "tuning").rglob("config.resolved.yaml")]
    assert len(made) == 6
    assert {config["run"]["seed"] for config in made} == {9}
    # The cost of choosing, from the ledgers by dp-accounting directly.
    loss = None
    for path in (folder / "out" / "tuning" / "net_any_5-sites" / "local").rglob("ledger.jsonl"):
        if "sites" in path.relative_to(folder).parts:
            continue
        for line in map(json.loads, path.read_text().splitlines()):
            one = from_gaussian_mechanism(line["noise_multiplier"], sampling_prob=line["sample_rate"], value_discretization_interval=1e-3)
            loss = one if loss is None else loss.compose(one)
    assert tuned["local"]["epsilon_of_all_tries"] == pytest.approx(loss.get_epsilon_for_delta(1e-3), rel=0.01)


def test_rows_differ_in_the_mechanism_alone_and_use_their_tuned_settings(finished):
    _, folder, _ = finished
    tuned = yaml.safe_load((folder / "tuned.yaml").read_text())["net_any_5-sites"]
    of_row = {"clip-only": "clip-only", "distributed-6": "distributed", "local-6": "local"}
    budgets = set()
    for name, row in of_row.items():
        config = yaml.safe_load((run_folder(folder, name) / "config.resolved.yaml").read_text())
        chosen = tuned[row]["chosen"]
        assert chosen[SERVER].items() <= config["personalization"]["server_optimizer"].items()
        assert (config["training"]["batch_size"], config["run"]["rounds"]) == (chosen[BATCH], chosen[STEPS])
        assert config["training"]["steps"] == 1
        assert config["run"]["evaluate_every"] == config["run"]["rounds"]
        budgets.add(config["training"]["batch_size"] * config["run"]["rounds"])
        noised = config["privacy"]["use"] == "dp-sgd"
        assert noised == (name in ("distributed-6", "local-6"))
        assert not noised or (config["privacy"]["placement"], config["privacy"]["epsilon"]) == (row, 6)
        assert config["aggregator"]["use"] == ("secagg-plus" if name == "distributed-6" else "plain")
    assert budgets == {32}


def test_the_same_try_costs_the_same_gradient_evaluations(study):
    tuning = study.selection.Selection.read().tuning
    every = tuning.tries_of("no-dp")
    assert len({one[BATCH] * one[STEPS] for one in every}) == 1
    assert len({json.dumps(one) for one in every}) == len(every)
    assert tuning.tries_of("distributed") == tuning.tries_of("local") == tuning.tries


def test_scores_are_of_all_sites_images_together(finished):
    import pppml_core as pppml

    _, folder, _ = finished
    run = pppml.open(run_folder(folder, "local-6"))
    record = json.loads((run.folder / "job.json").read_text())
    counts = {site["slug"]: site["test"] for site in json.loads((run.folder / "plan.json").read_text())["sites"]}
    rows = [r for r in map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines()) if r["split"] == "test"]
    by_hand = sum(r["accuracy"] * counts[r["site"]] for r in rows) / sum(counts.values())
    assert record["test"]["accuracy"] == pytest.approx(by_hand)
    assert sum(record["groups"]["right"]) / sum(record["groups"]["images"]) == pytest.approx(by_hand)
    assert record["images"]["test"] == sum(counts.values()) == sum(record["groups"]["images"])


def test_means_spread_and_differences_by_hand(finished):
    _, folder, _ = finished
    cell = results(folder)["cells"]["net_any_5-sites"]
    assert list(cell["rows"]) == ["no-dp", "clip-only", "distributed, epsilon 6", "local, epsilon 6"]
    scores = {}
    for row, name in (("distributed, epsilon 6", "distributed-6"), ("local, epsilon 6", "local-6")):
        records = [json.loads((run_folder(folder, name, seed) / "job.json").read_text()) for seed in (1, 2)]
        for metric in ("accuracy", "balanced_accuracy", "macro_f1", "auc"):
            values = [r["test"][metric] for r in records]
            assert cell["rows"][row]["metrics"][metric] == pytest.approx(np.mean(values))
            assert cell["rows"][row]["seed_sd"][metric] == pytest.approx(np.std(values, ddof=1))
        scores[name] = [r["test"]["accuracy"] for r in records]
    difference = cell["differences"]["6"]
    by_hand = np.mean(np.subtract(scores["distributed-6"], scores["local-6"]))
    assert difference["over_groups"]["estimate"] == pytest.approx(by_hand)
    assert difference["over_seeds"]["estimate"] == pytest.approx(by_hand)
    assert difference["seeds"] == [1, 2]


def test_a_paired_interval_is_that_of_the_differences(study):
    """Two rows that are right on the same images differ by nothing in every resample, however the images are drawn."""
    names = [f"smear {i}" for i in range(30)]
    right = np.random.default_rng(0).integers(0, 10, 30)

    def record(shift):
        groups = {"names": names, "right": (right + shift).tolist(), "images": [20] * 30}
        return {"groups": groups, "test": {"accuracy": float((right + shift).sum() / 600)}}

    cell = study.selection.Cell(model="m", partition="p", sites=2)
    found = study.summary.difference(cell, [(record(4), record(0))])
    assert found["over_groups"]["estimate"] == pytest.approx(0.2)
    assert found["over_groups"]["low"] == pytest.approx(0.2)
    assert found["over_groups"]["high"] == pytest.approx(0.2)
    unpaired = study.summary.bootstrap([record(0)], lambda d: study.summary.accuracy([record(0)], d), "x")
    assert unpaired.high - unpaired.low > 0.05


def test_tables_state_every_epsilon_with_all_it_depends_on(finished):
    _, folder, _ = finished
    text = (folder / "out" / "tables.md").read_text()
    for needed in (
        "unit example, adjacency add-remove, delta 0.001, accountant pld",
        "Adversary with placement distributed: anyone who sees the secure sums",
        "local: anyone who sees what leaves a site",
        "clip-only and no-dp have no guarantee: their epsilon is infinite",
        "Epsilon of all tries",
        "do not include it",
    ):
        assert needed in text, needed
    for found in results(folder)["cells"]["net_any_5-sites"]["rows"].values():
        if found["row"] in ("distributed", "local"):
            assert found["privacy"]["epsilon"] == 6
            assert 5.9 < found["privacy"]["spent"] <= 6
        else:
            assert found["privacy"]["epsilon"] in (None, "inf")


def test_an_interrupted_study_goes_on_and_other_settings_are_refused(finished, capsys):
    _, folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("job.json")}
    gone = run_folder(folder, "clip-only", 2) / "job.json"
    gone.unlink()
    assert study_main(finished) == 0
    assert gone.exists()
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p != gone)
    other = yaml.safe_load((folder / "selection.yaml").read_text()) | {"clip": 0.5}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    assert study_main(finished, "--selection", str(folder / "other.yaml")) == 2
    assert "privacy.clip" in capsys.readouterr().err


def study_main(finished, *more):
    study, _, command = finished
    return study.run.main([*command, *more])


@pytest.mark.parametrize(("epsilon", "low", "high", "said"), [
    (0.15, 0.11, 0.2, "at least 10 points, also at the lower end"),
    (0.12, 0.05, 0.2, "at least 10 points as measured, not at the lower end"),
    (0.04, 0.01, 0.2, "less than 10 points"),
])  # fmt: skip
def test_the_verdict_follows_from_the_interval(study, epsilon, low, high, said):
    interval = {"estimate": epsilon, "low": low, "high": high}
    assert said in study.tables.verdict("6", {"over_groups": interval, "over_seeds": interval, "seeds": [1], "asked": 0.1})


def test_settings_are_taken_over_from_the_nearest_cell_that_was_tuned(study):
    cell = study.selection.Cell
    tuned = {
        "a_quantity_20-sites": {"distributed": {"chosen": {LR: 1}}, "local": {"chosen": {LR: 2}}},
        "b_quantity_20-sites": {"distributed": {"chosen": {LR: 3}}},
    }
    chosen = study.selection.chosen
    assert chosen(tuned, cell(model="b", partition="dirichlet", sites=5), "distributed") == ({LR: 3}, "b_quantity_20-sites")
    assert chosen(tuned, cell(model="b", partition="quantity", sites=20), "local") == ({LR: 2}, "a_quantity_20-sites")
    assert chosen(tuned, cell(model="a", partition="quantity", sites=20), "distributed") == ({LR: 1}, "a_quantity_20-sites")
    assert chosen({}, cell(model="a", partition="quantity", sites=20), "local") == ({}, "")


def test_the_full_grid_is_what_was_asked_for(study):
    selection = study.selection.Selection.read()
    variants = selection.variants(full=True)
    assert len(variants) == 4 * 2 * 3
    for rows in variants.values():
        assert set(rows) == {("no-dp", None), ("clip-only", None)} | {(p, e) for p in ("distributed", "local") for e in (1, 3, 6, 8)}
    assert {cell.model for cell in variants} == {"small-cnn", "dp-resnet9", "scale-resnet9", "linear-head"}
    assert {cell.sites for cell in variants} == {5, 10, 20}
    assert selection.partitions["dirichlet"]["alpha"] == 0.5
    assert len(selection.seeds) >= 3


def cells_like(path, generator):
    """A small file in the format of the blood cells: eight classes, three parts, smears as groups."""
    images = generator.integers(0, 256, (640, 28, 28, 3)).astype(np.uint8)
    np.savez(
        path,
        images=images,
        labels=(np.arange(640) % 8).astype(np.uint8),
        source=np.zeros(640, np.uint8),
        split=np.repeat([0, 1, 2], [400, 120, 120]).astype(np.uint8),
        source_names=np.array(["lab"]),
        split_names=np.array(["train", "val", "test"]),
        class_names=np.array([f"class {i}" for i in range(8)]),
    )


@pytest.mark.parametrize("partition", ["quantity", "dirichlet"])
@pytest.mark.parametrize("row", ["no-dp", "clip-only", "distributed", "local"])
def test_every_row_can_be_planned_on_cells(study, tmp_path, partition, row):
    pytest.importorskip("pppml_blood_cells")
    cells_like(tmp_path / "cells.npz", np.random.default_rng(1))
    selection = study.selection.Selection.read()
    data = study.selection.Data(folder=tmp_path, file="cells.npz")
    cell = study.selection.Cell(model="small-cnn", partition=partition, sites=5)
    settings = {LR: 0.01, BATCH: 8, STEPS: 3}
    job = study.selection.make_job(selection, data, cell, row, 6 if row in ("distributed", "local") else None, 1, tmp_path / "x", settings)
    assert study.jobs.experiment(job).plan().misfits == []


@pytest.mark.parametrize("model", ["dp-resnet9", "scale-resnet9", "linear-head"])
def test_every_network_of_the_full_grid_can_be_planned(study, tmp_path, model):
    pytest.importorskip("pppml_blood_cells")
    pytest.importorskip("pppml_dpresnet")
    cells_like(tmp_path / "cells.npz", np.random.default_rng(1))
    selection = study.selection.Selection.read()
    data = study.selection.Data(folder=tmp_path, file="cells.npz")
    cell = study.selection.Cell(model=model, partition="quantity", sites=5)
    job = study.selection.make_job(selection, data, cell, "distributed", 6, 1, tmp_path / "x", {LR: 0.01, BATCH: 8, STEPS: 3})
    assert study.jobs.experiment(job).plan().misfits == []


def test_the_results_page_holds_what_was_tried(study):
    page = (ROOT / "docs" / "results" / "dp.md").read_text("utf-8")
    assert study.tables.tries(study.selection.read_tuned()) in page
