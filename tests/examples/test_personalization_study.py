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
MODULES = ("records", "units", "selection", "jobs", "summary", "later", "results", "tables", "pictures", "tune", "run")

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


def study_job(study, folder, method, settings):
    """A job of the tiny task with these settings, tuned learning rate and all."""
    selection = study.selection.Selection.read(folder / "selection.yaml")
    tuned = {"tiny": {"methods": {method: {"chosen": settings}}}}
    return study.selection.make_job(selection, tuned, "tiny", method, 1, folder / "nowhere", folder)


def test_what_was_tried_as_a_table(study):
    tries = [{"settings": {"head": ["a.*", "b"]}, "score": 0.25}, {"settings": {"head": "auto"}, "score": 0.5}]
    rates = {"chosen": 0.1, "tries": [{"lr": 0.1, "local-only": 0.5, "fedavg-finetune": 0.75}]}
    lines = study.tune.table({"t": {"lr": rates, "methods": {"fedper": {"chosen": {"head": "auto"}, "tries": tries}}}}).splitlines()
    assert lines[2:] == [
        "| t | local-only and fedavg-finetune | **`lr=0.1`** 0.500 and 0.750 |",
        "| t | fedper | `head=a.* b` 0.250; **`head=auto`** 0.500 |",
    ]


def test_the_results_page_holds_what_was_tried(study):
    page = (ROOT / "docs" / "results" / "personalization.md").read_text("utf-8")
    assert study.tune.table(study.selection.read_tuned()) in page


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
    sites = ("site_1", "site_2", "site_3")
    assert all(found["training_gradients"] == dict.fromkeys(sites, 8) for found in results.values())
    adapting = {row: found["adapting_gradients"] for row, found in results.items()}
    assert adapting == {row: dict.fromkeys(sites, steps if row == "fedavg-finetune" else 0) for row in results}
    text = (folder / "out" / "tables.md").read_text()
    assert "Training: 8 with every method" in text
    assert f"no method has more than fedavg-finetune ({8 + steps})" in text
    assert "| 8 | 0 |" in text


def test_adapting_is_counted_by_steps_or_by_epochs(study, tmp_path):
    count = study.records.adapting_gradients
    config = {"personalization": {"steps": 7, "epochs": None}, "training": {"batch_size": 8}}
    assert count(config, "steps", 17) == 7
    assert count(config, None, 17) == 0
    for epochs, examples, wanted in ((None, 17, 3), (None, 16, 2), (2, 17, 6), (None, 5, 1), (0, 17, 0)):
        config["personalization"] = {"steps": None, "epochs": epochs}
        assert count(config, "steps", examples) == wanted, (epochs, examples)
    config["personalization"] = {"adapt_steps": None, "adapt_epochs": 3}
    assert count(config, "adapt_steps", 9) == 6


def test_an_epoch_of_fine_tuning_is_what_the_plan_and_the_method_say(finished):
    """The steps that the core makes in that epoch, counted by its own data loader."""
    from pppml_core.learning.training import steps_per_round

    study, folder, _ = finished
    run = folder / "out/runs/tiny/ditto/seed-1"
    config = study.jobs.experiment(study_job(study, folder, "fedavg-finetune", {})).config
    one_epoch = config.training.model_copy(update={"steps": None, "epochs": 1})
    plain = study.jobs.to_plain(config)
    assert plain["personalization"]["steps"] is None
    for site in study.records.plan_of(run)["sites"]:
        assert study.records.adapting_gradients(plain, "steps", site["train"]) == steps_per_round(one_epoch, site["train"]) > 1


def test_the_budget_is_what_the_records_say(study):
    def row(training, adapting):
        return {"training_gradients": dict(training), "adapting_gradients": dict(adapting)}

    rows = {
        "fedavg-finetune": row({"a": 200, "b": 200}, {"a": 10, "b": 12}),
        "per-fedavg": row({"a": 200, "b": 200}, {"a": 10, "b": 10}),
    }
    text = study.tables.budget(rows)
    assert "Training: 200 with every method" in text
    assert "no method has more than fedavg-finetune (210 to 212)" in text
    rows["per-fedavg"]["adapting_gradients"]["a"] = 11
    rows["per-fedavg (hessian-free)"] = row({"a": 160, "b": 160}, {"a": 40, "b": 40})
    text = study.tables.budget(rows)
    assert "Training: 200, fewer with per-fedavg (hessian-free) (160, its steps rounded down)" in text
    assert "more than fedavg-finetune (210 to 212) at some site: per-fedavg (210 to 211)." in text
    assert "more than" not in study.tables.budget({"ditto": row({"a": 200}, {"a": 0})})


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


@pytest.mark.parametrize(
    ("where", "change", "told"),
    [
        ("tiny/ditto", {"methods": {"ditto": {"chosen": {"strength": 0.7}}}}, "personalization.strength: "),
        ("tiny/ditto", {"lr": {"chosen": 0.5}}, "training.optimizer.lr: "),
        ("tiny/ditto", {"rounds": 3}, "run.rounds: 2 -> 3"),
        ("pixels/ditto", {"units": "groups"}, "units: 'images' -> 'groups'"),
    ],
)
def test_runs_with_other_settings_are_not_taken_for_this_study_s(finished, tmp_path, capsys, where, change, told):
    study, folder, command = finished
    task, method = where.split("/")
    tuned = yaml.safe_load((folder / "tuned.yaml").read_text())
    selection = yaml.safe_load((folder / "selection.yaml").read_text())
    if "rounds" in change:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "run": {"rounds": change["rounds"]}}))
        selection["tasks"]["tiny"]["config"] = str(tmp_path / "tiny.yaml")
    elif "units" in change:
        selection["tasks"][task]["units"] = change["units"]
    else:
        tuned[task] = {**tuned[task], **change}
    for name, content in (("tuned", tuned), ("selection", selection)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")}
    again = [*command, "--tuned", str(tmp_path / "tuned.yaml"), "--selection", str(tmp_path / "selection.yaml"), "--no-new-site"]
    assert study.run.main([*again, "--tasks", task, "--methods", method]) == 2
    said = capsys.readouterr().err
    assert f"out/runs/{where}/seed-1: what lies here was made with other settings: {told}" in said
    assert "give another --out, or delete the folder" in said
    assert "(and 1 more folders)" in said
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*")} == before


def test_tuning_runs_with_another_config_are_refused(finished, tmp_path, capsys):
    study, folder, command = finished
    selection = yaml.safe_load((folder / "selection.yaml").read_text())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "training": {**TINY["training"], "batch_size": 4}}))
    selection["tasks"]["tiny"]["config"] = str(tmp_path / "tiny.yaml")
    (tmp_path / "selection.yaml").write_text(yaml.safe_dump(selection))
    again = [
        *command,
        "--selection",
        str(tmp_path / "selection.yaml"),
        "--tuned",
        str(tmp_path / "tuned.yaml"),
        "--tune",
        "--tasks",
        "tiny",
    ]
    assert study.run.main(again) == 2
    assert "training.batch_size: 8 -> 4" in capsys.readouterr().err
    assert not (tmp_path / "tuned.yaml").exists()


def test_a_site_that_comes_later_is_not_taken_over_from_other_draws(finished):
    study, folder, _ = finished
    selection = study.selection.Selection.read(folder / "selection.yaml").narrowed(tasks=["tiny"])
    tuned = study.selection.read_tuned(folder / "tuned.yaml")

    def differences(**changes):
        new_site = selection.new_site.model_copy(update=changes)
        jobs = study.selection.jobs_of(selection.model_copy(update={"new_site": new_site}), tuned, folder / "out", folder)
        return {str(d) for job in jobs if job.left_out for d in study.jobs.differing(job)}

    assert differences() == set()
    assert differences(draws=3) == {"draws: 2 -> 3"}
    assert differences(scratch_steps=5) == {"scratch_steps: 3 -> 5"}


def test_a_folder_without_newer_records_is_done_all_the_same(finished, tmp_path):
    """Of a study that was begun before ``job.json`` said how it was scored."""
    study, folder, _ = finished
    selection = study.selection.Selection.read(folder / "selection.yaml").narrowed(tasks=["tiny"])
    copied = older_copy(folder / "out", tmp_path)
    assert all("scoring" not in json.loads(path.read_text()) for path in copied.rglob("job.json"))
    study.jobs.refuse_other_settings(study.selection.jobs_of(selection, study.selection.read_tuned(folder / "tuned.yaml"), copied, folder))
    now, then = (study.results.summarize(selection, out) for out in (folder / "out", copied))
    assert {**now, "cost": 0} == {**then, "cost": 0}


def test_tables_need_the_records_alone(finished, tmp_path, capsys):
    """No data, no tuned settings, no config of the run that would be made now."""
    study, folder, _ = finished
    copied = older_copy(folder / "out", tmp_path)
    command = ["--selection", str(folder / "selection.yaml"), "--out", str(copied), "--tables", "--tuned", str(tmp_path / "none.yaml")]
    assert study.run.main(command) == 0
    assert "left out" not in capsys.readouterr().err
    assert (copied / "tables.md").read_text().split("\n\n")[:-1] == (folder / "out" / "tables.md").read_text().split("\n\n")[:-1]
    assert (copied / "pictures" / "tiny.png").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("personalization", "strength", 7.0), "personalization.strength: "),
        (("run", "seed", 5), "this run has seed 5"),
        (("training", "batch_size", 4), "training.batch_size: 8 -> 4"),
    ],
)
def test_seeds_with_other_settings_are_not_averaged(finished, tmp_path, capsys, change, told):
    study, folder, _ = finished
    copied = older_copy(folder / "out", tmp_path)
    section, key, value = change
    path = copied / "runs/tiny/ditto/seed-2/config.resolved.yaml"
    config = yaml.safe_load(path.read_text())
    config[section][key] = value
    path.write_text(yaml.safe_dump(config))
    assert study.run.main(["--selection", str(folder / "selection.yaml"), "--out", str(copied), "--tables"]) == 2
    said = capsys.readouterr().err
    assert str(path.parent) in said
    assert told in said
    assert not (copied / "tables.md").exists()


def test_methods_with_other_training_are_not_compared(finished, tmp_path, capsys):
    study, folder, _ = finished
    copied = older_copy(folder / "out", tmp_path)
    for path in (copied / "runs/tiny/ditto").rglob("config.resolved.yaml"):
        config = yaml.safe_load(path.read_text())
        config["training"]["optimizer"]["lr"] = 7.0
        path.write_text(yaml.safe_dump(config))
    assert study.run.main(["--selection", str(folder / "selection.yaml"), "--out", str(copied), "--tables"]) == 2
    assert "training.optimizer.lr: " in capsys.readouterr().err


def older_copy(out, into):
    """The records of a finished study, as ``job.json`` was before it said how the run was scored."""
    import shutil

    copied = into / "copy"
    shutil.copytree(out, copied, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors", "tables.md", "results.json", "pictures"))
    for path in copied.rglob("job.json"):
        record = json.loads(path.read_text())
        record.pop("scoring")
        path.write_text(json.dumps(record))
    return copied


def test_a_job_that_fails_does_not_cost_the_others(finished, tmp_path, capsys):
    study, folder, _ = finished
    broken = yaml.safe_load((folder / "selection.yaml").read_text())
    broken["methods"]["ditto"]["settings"] = {"strengthh": 1}
    (tmp_path / "selection.yaml").write_text(yaml.safe_dump(broken))
    command = ["--selection", str(tmp_path / "selection.yaml"), "--out", str(tmp_path / "out"), "--tasks", "tiny", "--no-new-site"]
    assert study.run.main([*command, "--methods", "local-only", "ditto", "--seeds", "3"]) == 1
    assert "failed: tiny ditto, seed 3" in capsys.readouterr().err
    assert (tmp_path / "out/runs/tiny/local-only/seed-3/job.json").exists()


def test_learning_rates_that_fail_choose_nothing(finished, tmp_path, capsys):
    study, folder, _ = finished
    broken = yaml.safe_load((folder / "selection.yaml").read_text())
    broken["methods"]["fedavg-finetune"]["settings"] = {"stepss": 1}
    (tmp_path / "selection.yaml").write_text(yaml.safe_dump(broken))
    command = ["--selection", str(tmp_path / "selection.yaml"), "--out", str(tmp_path / "out"), "--tuned", str(tmp_path / "tuned.yaml")]
    assert study.run.main([*command, "--tune", "--tasks", "tiny"]) == 1
    said = capsys.readouterr()
    assert "failed: tiny fedavg-finetune" in said.err
    assert "chosen" not in said.out
    assert not (tmp_path / "tuned.yaml").exists()


def test_the_cost_is_that_of_the_runs_that_are_shown(finished, tmp_path):
    study, folder, _ = finished
    selection = study.selection.Selection.read(folder / "selection.yaml")

    def told(selection, out=folder / "out"):
        return study.results.summarize(selection, out)["cost"]

    def by_hand(*patterns):
        every = [json.loads(path.read_text()) for pattern in patterns for path in (folder / "out").glob(f"{pattern}/job.json")]
        return len(every), pytest.approx(sum(r["cpu_seconds"] for r in every)), pytest.approx(sum(r["seconds"] for r in every))

    whole = selection.narrowed()
    assert tuple(told(whole).values()) == by_hand("runs/*/*/*", "new-site/*/*/*/*")
    assert told(whole)["runs"] == 2 * 3 * 2 + 2
    assert tuple(told(selection.narrowed(tasks=["pixels"])).values()) == by_hand("runs/pixels/*/*")
    one = selection.narrowed(tasks=["tiny"], seeds=[1], methods=["ditto"])
    assert tuple(told(one).values()) == by_hand("runs/tiny/ditto/seed-1")
    copied = older_copy(folder / "out", tmp_path)
    assert study.run.main(["--selection", str(folder / "selection.yaml"), "--out", str(copied), "--tables", "--no-new-site"]) == 0
    assert json.loads((copied / "results.json").read_text())["cost"]["runs"] == 2 * 3 * 2
    (copied / "runs/tiny/ditto/seed-2/job.json").unlink()
    assert told(selection.narrowed(tasks=["tiny"]), copied)["runs"] == 3 + 2, "the table has the seed that all methods have"


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
    noise = [generator.normal(0, 0.001, 40) for _ in range(2)]

    def row(*shifts):
        values = [v + d + (n if d else 0) for v, d, n in zip(base, shifts, noise, strict=True)]
        return study.summary.strata_of({s: [units_of(study, v, np.ones(40))] for s, v in zip(("a", "b"), values, strict=True)})

    rows = {"local-only": row(0, 0), "better": row(0.3, 0.3), "mixed": row(0.3, -0.05), "same": row(0.001, 0.001)}
    found = {name: study.summary.row_summary("t", name, strata, rows) for name, strata in rows.items()}
    assert study.summary.clearly_better(found) == ["better"]
    assert found["mixed"]["clearly_harmed"] == ["b"]
    assert found["better"]["harmed"] == found["same"]["harmed"] == []


@pytest.mark.parametrize(
    ("patients", "shift", "harmed", "clearly"), [(6, -0.1, 1, 1), (5, -0.1, 1, 0), (40, -0.0004, 0, 0), (40, -0.0006, 1, 1)]
)
def test_few_patients_or_a_level_difference_are_no_clear_harm(study, patients, shift, harmed, clearly):
    """As the report judges: six patients, half a thousandth."""
    generator = np.random.default_rng(1)
    base = generator.uniform(0.4, 0.6, patients)
    noise = generator.uniform(-1e-5, 1e-5, patients)
    alone, own = (study.summary.strata_of({"a": [units_of(study, v, np.ones(patients))]}) for v in (base, base + shift + noise))
    found = study.summary.row_summary("t", "mine", own, {"local-only": alone, "mine": own})
    assert found["against_alone"]["a"]["high"] < 0
    assert (len(found["harmed"]), len(found["clearly_harmed"])) == (harmed, clearly)


def test_images_of_few_patients_are_no_clear_harm(study):
    generator = np.random.default_rng(2)
    base, noise, patients = generator.uniform(0.4, 0.6, 40), generator.uniform(0, 0.01, 40), ("p", "q") * 20
    alone, own = (study.summary.strata_of({"a": [units_of(study, v, np.ones(40), patients)]}) for v in (base, base - 0.1 - noise))
    found = study.summary.row_summary("t", "mine", own, {"local-only": alone, "mine": own})
    assert found["against_alone"]["a"]["high"] < 0
    assert (found["harmed"], found["clearly_harmed"]) == (["a"], [])


def test_equal_differences_are_no_certainty(study):
    alone, own = (study.summary.strata_of({"a": [units_of(study, [v] * 10, np.ones(10))]}) for v in (0.75, 0.5))
    found = study.summary.row_summary("t", "mine", own, {"local-only": alone, "mine": own})
    assert found["against_alone"]["a"] == {"estimate": -0.25, "low": None, "high": None, "method": "bootstrap-percentile"}
    assert (found["harmed"], found["clearly_harmed"]) == (["a"], [])


def test_sites_with_few_test_units_are_named(study):
    sites = {"a": {"name": "A", "groups": 3}, "b": {"name": "B", "groups": 4}, "c": {"name": "C", "groups": 9}}
    rows = {"local-only": {"worst_site": "c"}, "ditto": {"worst_site": "b"}, "apfl": {"worst_site": "b"}}
    task = {"few": ["a", "b"], "fewest": 6, "units": "groups", "sites": sites, "rows": rows, "clearly_better_than_alone": []}
    text = study.tables.caveat(task)
    assert text.startswith("Fewer than 6 test units: A (3), B (4). Nothing is called clear there")
    assert text.endswith("B is the worst site of ditto, apfl.")
    assert "is not judged" in study.tables.against_alone(task)
    enough = task | {"few": []}
    assert study.tables.caveat(enough) == ""
    assert study.tables.against_alone(enough).endswith("do not overlap: none.")


def test_what_intervals_say_depends_on_what_was_resampled(finished):
    _, folder, _ = finished
    parts = {part.split(":")[0]: part for part in (folder / "out" / "tables.md").read_text().split("## ")}
    assert "other patients, smears or images of the same sites" in parts["tiny"]
    assert "nothing of other patients" not in parts["tiny"]
    assert "other images of the same patients, and nothing of other patients" in parts["pixels"]


def test_what_a_site_that_comes_later_takes_is_told(finished):
    _, folder, _ = finished
    text = (folder / "out" / "tables.md").read_text().split("## A site that comes later")[1]
    steps = yaml.safe_load((folder / "tuned.yaml").read_text())["tiny"]["methods"]["fedavg-finetune"]["chosen"]["steps"]
    assert f"Gradient evaluations on its images: fedavg-finetune {steps}, from scratch 3." in text
    assert "mean of 2 seeds and 2 draws" in text
    assert "it is not untouched by tuning" in text


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
    with pytest.raises(ValueError, match="tuning seed is one of"):
        selection.narrowed(seeds=[1, selection.tuning_seed])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--tasks", "fantom"], "--tasks or --methods: unknown: fantom; there are phantom, "),
        (["--methods", "nope"], "--tasks or --methods: unknown: nope; there are local-only, "),
        (["--seeds", "99"], "selection of selection.yaml: the tuning seed is one of the seeds that are reported"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_words(study, tmp_path, capsys, more, reason):
    assert study.run.main(["--out", str(tmp_path / "out"), *more]) == 2
    assert capsys.readouterr().err.startswith(reason)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_workers_are_counted_from_one(study, tmp_path, capsys, number):
    with pytest.raises(SystemExit) as ended:
        study.run.main(["--out", str(tmp_path / "out"), "--workers", number])
    assert ended.value.code == 2
    assert "argument --workers: " in capsys.readouterr().err


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
