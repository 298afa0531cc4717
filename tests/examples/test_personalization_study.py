"""The study of personalization: its machinery on the tiny task, its numbers against hand-computed ones, its configs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples" / "studies" / "personalization"
MODULES = ("jobs", "pictures", "run", "selection", "summary", "tables", "tune", "units")

pytest.importorskip("pppml_personalization_baselines", reason="the study compares with its methods")


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
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.__setitem__("OMP_NUM_THREADS", threads)


# -- the machinery ------------------------------------------------------------------------------------------------------------------------

TINY = {
    "task": {"use": "tiny", "sites": 3},
    "model": {"use": "tiny-net", "width": 4},
    "run": {"rounds": 2},
    "training": {"steps": 4, "batch_size": 8, "optimizer": {"use": "adam", "lr": 0.01}},
}
METHODS = {
    "local-only": {"rows": {"personalized": "local-only"}},
    "fedavg-finetune": {
        "rows": {"global": "fedavg", "personalized": "fedavg-finetune"},
        "adapts": "steps",
        "tries": [{"steps": 1}, {"steps": 3}],
    },
    "ditto": {"rows": {"personalized": "ditto"}, "tries": [{"strength": 0.1}, {"strength": 1.0}]},
}


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """A tiny study, tuned and run by its one command, in this process."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    segmentation = {**TINY, "task": {"use": "tiny", "sites": 2, "kind": "segmentation", "classes": 2}}
    (folder / "pixels.yaml").write_text(yaml.safe_dump({k: v for k, v in segmentation.items() if k != "model"}))
    selection = {
        "seeds": [1, 2],
        "tuning_seed": 9,
        "tasks": {
            "tiny": {"config": str(folder / "tiny.yaml"), "about": "tiny images"},
            "pixels": {"config": str(folder / "pixels.yaml"), "about": "tiny masks", "units": "images"},
            "absent": {"config": str(STUDY / "configs" / "nuclei.yaml")},
        },
        "methods": METHODS,
        "learning_rates": [0.01, 0.003],
        "new_site": {
            "methods": ["fedavg-finetune"],
            "examples": [2, 100],
            "draws": 2,
            "scratch_steps": 3,
            "sites": {"tiny": ["site_2"]},
        },
    }
    (folder / "selection.yaml").write_text(yaml.safe_dump(selection))
    command = ["--selection", str(folder / "selection.yaml"), "--tuned", str(folder / "tuned.yaml"), "--out", str(folder / "out")]
    command += ["--data", str(folder), "--workers", "2"]
    patch = pytest.MonkeyPatch()
    patch.setattr(study.jobs, "ProcessPoolExecutor", Here)
    try:
        assert study.run.main([*command, "--tune", "--tasks", "tiny"]) == 0
        assert study.run.main(command) == 0
        yield study, folder, command
    finally:
        patch.undo()


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


def test_tuning_chooses_the_best_on_validation_with_a_seed_of_its_own(finished):
    _, folder, _ = finished
    tuned = yaml.safe_load((folder / "tuned.yaml").read_text())
    rates = tuned["tiny"]["lr"]["tries"]
    assert [r["lr"] for r in rates] == [0.01, 0.003]
    assert tuned["tiny"]["lr"]["chosen"] == max(rates, key=lambda r: r["local-only"] + r["fedavg-finetune"])["lr"]
    ditto = tuned["tiny"]["methods"]["ditto"]
    assert [t["settings"] for t in ditto["tries"]] == METHODS["ditto"]["tries"]
    assert ditto["chosen"] == max(ditto["tries"], key=lambda t: t["score"])["settings"]
    assert "local-only" not in tuned["tiny"]["methods"]
    for path in (folder / "out" / "tuning").rglob("config.resolved.yaml"):
        assert yaml.safe_load(path.read_text())["run"]["seed"] == 9
    # The score is that of the validation rows, by hand.
    run = folder / "out" / "tuning" / "tiny" / "ditto" / "strength=1.0,seed=9"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    own = [r["accuracy"] for r in rows if (r["round"], r["split"], r["weights"]) == (2, "validation", "personalized")]
    assert len(own) == 3
    assert ditto["tries"][1]["score"] == pytest.approx(np.mean(own), abs=1e-4)


def test_every_method_uses_the_same_training_and_no_more_gradients(finished):
    _, folder, _ = finished
    tuned = yaml.safe_load((folder / "tuned.yaml").read_text())["tiny"]
    configs = {m: yaml.safe_load((folder / "out" / "runs" / "tiny" / m / "seed-1" / "config.resolved.yaml").read_text()) for m in METHODS}
    optimizers = [c["training"]["optimizer"] for c in configs.values()]
    assert all(o == optimizers[0] for o in optimizers)
    assert optimizers[0]["lr"] == tuned["lr"]["chosen"]
    assert configs["ditto"]["personalization"]["strength"] == tuned["methods"]["ditto"]["chosen"]["strength"]
    assert configs["ditto"]["training"]["steps"] == 2  # two gradients a step
    results = json.loads((folder / "out" / "results.json").read_text())["tasks"]["tiny"]["rows"]
    steps = tuned["methods"]["fedavg-finetune"]["chosen"]["steps"]
    assert {row: found["evaluations"] for row, found in results.items()} == {
        "local-only": 8,
        "fedavg": 8,
        "fedavg-finetune": 8 + steps,
        "ditto": 8,
    }


def test_the_tables_hold_the_records_numbers(finished):
    _, folder, _ = finished
    out = folder / "out"
    task = json.loads((out / "results.json").read_text())["tasks"]["tiny"]
    accuracies = []
    for seed in (1, 2):
        for site in ("site_1", "site_2", "site_3"):
            content = json.loads((out / "runs/tiny/ditto" / f"seed-{seed}" / "sites" / site / "group-scores.json").read_text())
            record = content["sites"][site]["test"]["personalized"]
            accuracies.append(np.average(record["values"], weights=record["counts"]))
    by_site = np.array(accuracies).reshape(2, 3).mean(axis=0)
    found = task["rows"]["ditto"]
    assert [found["sites"][s]["estimate"] for s in task["sites"]] == pytest.approx(by_site)
    assert found["mean"]["estimate"] == pytest.approx(by_site.mean())
    assert found["worst"]["estimate"] == pytest.approx(by_site.min())
    assert found["worst_site"] == f"site_{by_site.argmin() + 1}"
    text = (out / "tables.md").read_text()
    assert f"| ditto | {by_site.mean():.3f} [" in text
    assert "mean of 2 seeds" in text
    assert "## A site that comes later" in text


def test_images_are_units_where_patients_are_too_few(finished):
    study, folder, _ = finished
    run = folder / "out" / "runs" / "pixels" / "fedavg-finetune" / "seed-1"
    metric, sites = study.units.read_units(run)
    assert metric == "dice"
    _, groups = study.units.core_records(run)
    for site, kinds in sites.items():
        assert set(kinds) == {"global", "personalized"}
        for kind, units in kinds.items():
            assert len(units.names) == sum(groups[site][kind]["counts"])
            assert units.score == pytest.approx(np.mean(groups[site][kind]["values"]), abs=1e-6)


def test_a_site_that_comes_later_adapts_to_its_training_images_alone(finished):
    _, folder, _ = finished
    content = json.loads((folder / "out/new-site/tiny/site_2/fedavg-finetune/seed-1/new-site.json").read_text())
    shape = [(row["model"], row["examples"], row["draw"]) for row in content["rows"]]
    each = [(model, count, draw) for count in (2, 25) for draw in (0, 1) for model in ("adapted", "scratch")]
    assert shape == [("global", 0, 0), *each]  # 100 are asked for, 25 are there
    config = yaml.safe_load((folder / "out/new-site/tiny/site_2/fedavg-finetune/seed-1/config.resolved.yaml").read_text())
    assert config["leave_out"] == ["site_2"]
    later = json.loads((folder / "out" / "results.json").read_text())["new_site"]["tiny"]["site_2"]["examples"]
    assert set(later) == {"0", "2", "25"}
    assert set(later["25"]) == {"fedavg-finetune", "from scratch"}


def test_the_study_goes_on_where_it_stopped(finished, capsys):
    study, folder, command = finished
    files = {path: path.stat().st_mtime_ns for path in (folder / "out" / "runs").rglob("job.json")}
    removed = folder / "out/runs/tiny/ditto/seed-2/job.json"
    removed.unlink()
    assert study.run.main(command) == 0
    said = capsys.readouterr()
    assert f"{len(files) + 2 - 1} of {len(files) + 2} jobs were done before" in said.err
    assert "absent is left out: segmentation_multisource_nuclei_128.npz is not in" in said.err
    assert removed.exists()
    assert all(path.stat().st_mtime_ns == when for path, when in files.items() if path != removed)


def test_a_job_that_fails_does_not_cost_the_others(finished, tmp_path, capsys):
    study, folder, _ = finished
    broken = yaml.safe_load((folder / "selection.yaml").read_text())
    broken["methods"]["ditto"]["settings"] = {"strengthh": 1}
    (tmp_path / "selection.yaml").write_text(yaml.safe_dump(broken))
    command = ["--selection", str(tmp_path / "selection.yaml"), "--out", str(tmp_path / "out"), "--tasks", "tiny", "--no-new-site"]
    assert study.run.main([*command, "--methods", "local-only", "ditto", "--seeds", "3"]) == 1
    assert "failed: tiny ditto, seed 3" in capsys.readouterr().err
    assert (tmp_path / "out/runs/tiny/local-only/seed-3/job.json").exists()


def test_pictures(finished):
    from PIL import Image

    _, folder, _ = finished
    pictures = sorted((folder / "out" / "pictures").glob("*.png"))
    assert [p.name for p in pictures] == ["pixels.png", "tiny-new-site.png", "tiny.png"]
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 200
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10


def test_time_left(study):
    job = study.selection.Job(
        task="a", method="x", seed=1, folder=Path("f"), config=Path("c"), data=None, personalization={"use": "fedavg"}
    )
    other = job.model_copy(update={"method": "y"})
    # two of kind x at 10 s, one unknown kind at the mean of what is known, over two workers
    assert study.jobs.time_left([job, job, other], {job.kind: [8.0, 12.0]}, 2) == pytest.approx(15.0)


# -- numbers by hand ----------------------------------------------------------------------------------------------------------------------


def units_of(study, numerators, denominators, strata=None):
    names = tuple(f"p{i}" for i in range(len(numerators)))
    return study.units.Units(names, strata or ("",) * len(names), np.array(numerators, float), np.array(denominators, float))


def rows_by_hand(study):
    """Two sites, two seeds. a: 3 and 1 right of 4 and 2; then all. b: one patient 0.5, then 0.1."""
    a = [units_of(study, [3, 1], [4, 2]), units_of(study, [4, 2], [4, 2])]
    b = [units_of(study, [0.5], [1]), units_of(study, [0.1], [1])]
    return study.summary.strata_of({"a": a, "b": b})


def test_site_scores_by_hand(study):
    strata = rows_by_hand(study)
    scores = study.summary.site_scores(strata, [np.arange(2), np.arange(1)])
    assert scores == pytest.approx([(4 / 6 + 1) / 2, 0.3])
    # A resample that draws a's first patient twice.
    again = study.summary.site_scores(strata, [np.array([[0, 0], [0, 1]]), np.zeros((2, 1), int)])
    assert again == pytest.approx(np.array([[(0.75 + 1) / 2, (4 / 6 + 1) / 2], [0.3, 0.3]]))


def test_a_row_by_hand(study):
    own = rows_by_hand(study)
    alone = study.summary.strata_of({"a": [units_of(study, [2, 2], [4, 2])] * 2, "b": [units_of(study, [0.9], [1])] * 2})
    row = study.summary.row_summary("t", "mine", own, {"local-only": alone, "fedavg-finetune": alone, "mine": own})
    assert row["mean"]["estimate"] == pytest.approx((5 / 6 + 0.3) / 2)
    assert row["worst"]["estimate"] == pytest.approx(0.3)
    assert row["worst_site"] == "b"
    assert row["by_seed"] == pytest.approx([(4 / 6 + 0.5) / 2, (1 + 0.1) / 2])
    assert row["seed_sd"] == pytest.approx(np.std(row["by_seed"], ddof=1))
    assert row["difference"]["estimate"] == pytest.approx((5 / 6 - 4 / 6 + 0.3 - 0.9) / 2)
    assert row["difference_alone"]["estimate"] == pytest.approx(row["difference"]["estimate"])  # both are the same rows here
    assert row["harmed"] == ["b"]
    # One patient has no interval, so nothing is clear.
    assert row["against_alone"]["b"]["low"] is None
    assert row["clearly_harmed"] == []


def test_clear_harm_and_clear_gain_need_intervals_that_say_so(study):
    generator = np.random.default_rng(0)
    base = [generator.uniform(0.4, 0.6, 40) for _ in range(2)]

    def row(*shifts):
        return study.summary.strata_of({s: [units_of(study, v + d, np.ones(40))] for s, v, d in zip(("a", "b"), base, shifts, strict=True)})

    rows = {"local-only": row(0, 0), "better": row(0.3, 0.3), "mixed": row(0.3, -0.05), "same": row(0.001, 0.001)}
    found = {name: study.summary.row_summary("t", name, strata, rows) for name, strata in rows.items()}
    assert study.summary.clearly_better(found) == ["better"]
    assert found["mixed"]["clearly_harmed"] == ["b"]
    assert found["better"]["harmed"] == found["same"]["harmed"] == []


def test_strata_refuse_other_patients(study):
    with pytest.raises(ValueError, match="a: the runs were scored on different patients"):
        study.summary.strata_of({"a": [units_of(study, [1], [1]), units_of(study, [1, 1], [1, 1])]})


def test_patients_of_a_site_count_alike_where_images_are_drawn(study):
    units = units_of(study, [2, 4, 0], [4, 4, 0], ("p", "p", "q"))
    assert units.score == pytest.approx((6 / 8 + 1.0) / 2)  # q: nothing there, nothing found
    strata = study.summary.strata_of({"a": [units]})
    assert [s.names for s in strata] == [("p0", "p1"), ("p2",)]
    assert study.summary.site_scores(strata, [np.arange(2), np.arange(1)]) == pytest.approx([0.875])


def test_image_record_by_hand(study):
    from pppml_core.interfaces.task import Predictions

    first = np.array([[[0.1, 0.9], [0.6, 0.2]]])  # foreground probability of one 2 x 2 image: predicted at two pixels
    probabilities = np.stack([1 - first, first], axis=1)
    record = study.units.image_record(Predictions(probabilities, np.array([[[0, 1], [0, 1]]]), np.array(["p"])))
    assert record == {"groups": ["p"], "common": [2], "sizes": [4]}
    with pytest.raises(ValueError, match="one class beside the background"):
        study.units.image_record(Predictions(np.zeros((1, 3, 2, 2)), np.zeros((1, 2, 2), int), np.array(["p"])))


# -- the selection ------------------------------------------------------------------------------------------------------------------------


def test_the_selection_asks_for_what_the_study_promises(study):
    selection = study.selection.Selection.read()
    assert len(selection.seeds) >= 5
    assert selection.tuning_seed not in selection.seeds
    assert set(selection.tasks) == {"phantom", "covid", "cells-source", "cells-dirichlet", "nuclei"}
    default, full = selection.narrowed(), selection.narrowed(full=True)
    assert {"local-only", "fedavg-finetune", "per-fedavg", "ditto", "fedprox", "fedper"} <= set(default.methods) < set(full.methods)
    assert set(full.methods) - set(default.methods) == {"per-fedavg-hf", "fedbn", "fedrep", "apfl"}
    assert selection.new_site.examples == [5, 20, 100]
    with pytest.raises(ValueError, match="unknown: coivd"):
        selection.narrowed(tasks=["coivd"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tuning_seed": 1}, "tuning seed is one of"),
        ({"new_site": {"methods": ["apfl2"], "examples": [5], "draws": 1, "scratch_steps": 1, "sites": {}}}, "unknown apfl2"),
        ({"methods": {"a": {"rows": {}, "tries": [{}]}, "b": {"rows": {}, "tries": [{}, {}]}}}, "same number of tries"),
    ],
)
def test_a_selection_that_would_mislead_is_refused(study, change, reason):
    plain = yaml.safe_load((STUDY / "selection.yaml").read_text())
    if "methods" in change:
        change = {**change, "new_site": {**plain["new_site"], "methods": ["a"]}}
    with pytest.raises(ValueError, match=reason):
        study.selection.Selection.model_validate({**plain, **change})


def data_folder() -> Path | None:
    given = os.environ.get("PPPML_STUDY_DATA")
    return Path(given) if given else None


@pytest.mark.parametrize("task", ["phantom", "covid", "cells-source", "cells-dirichlet", "nuclei"])
def test_the_configs_fit(study, task, tmp_path):
    selection = study.selection.Selection.read()
    file, data = selection.tasks[task].file, data_folder()
    if file is not None and (data is None or not (data / file).exists()):
        pytest.skip(f"needs {file}; set PPPML_STUDY_DATA to the folder that holds it")
    for method in selection.narrowed(full=True).methods:
        if method.startswith("per-fedavg"):
            pytest.importorskip("pppml_perfedavg", reason="per-fedavg is not installed")
        job = study.selection.make_job(selection, study.selection.read_tuned(), task, method, 1, tmp_path, data)
        fewer = {"task.patients": 4} if task == "phantom" else {}  # drawing patients takes seconds
        assert study.jobs.experiment(job, **fewer).plan().misfits == [], method
