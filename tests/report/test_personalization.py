"""Does personalization pay: numbers against those computed here by hand, and what a page must never show."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pppml_core.report import columns as report_columns
from pppml_core.report import patients, personalization_words, write_report
from pppml_core.report.personalization import Against, Gains, Measured, Model, gains, over_patients
from pppml_core.report.records import read_run

Make = Callable[..., Path]
Mean = Callable[[list[float], list[int]], float]


def compared(*runs: Path) -> Gains:
    (found,) = gains(report_columns.columns([read_run(run) for run in runs])[0])
    return found


def shown(*runs: Path) -> str:
    text = write_report(runs, runs[0].parent / "out.html").read_text("utf-8")
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).replace("&#39;", "'")


def kept(run: Path, site: str, weights: str) -> dict[str, Any]:
    return dict(json.loads((run / f"sites/{site}/group-scores.json").read_text())["sites"][site]["test"][weights])


def change(run: Path, site: str, edit: Callable[[dict[str, Any]], object]) -> None:
    path = run / f"sites/{site}/group-scores.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def scored(run: Path, weights: str, **values: float) -> None:
    """Final Dice of single sites."""
    result = json.loads((run / "result.json").read_text())
    for site, value in values.items():
        result["metrics"][weights]["sites"][site]["dice"] = value
    (run / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("kind", "mean"),
    [
        ("segmentation", lambda values, counts: float(np.mean(values))),
        ("classification", lambda values, counts: float(np.dot(values, counts) / np.sum(counts))),
    ],
)
def test_differences_are_paired_over_the_same_patients(make_run: Make, kind: str, mean: Mean) -> None:
    runs = [make_run(m, method=m, kind=kind, patients=12) for m in ("local-only", "per-fedavg")]
    found = compared(*runs)
    (method,) = [m for m in found.methods if m.model.role == "own"]
    assert method.alone is not None
    for site in "abcd":
        here, there = kept(runs[1], site, "personalized"), kept(runs[0], site, "personalized")
        difference = method.alone.sites[site]
        assert (difference.over, difference.n) == ("patients", 12)
        paired = [a - b for a, b in zip(here["values"], there["values"], strict=True)]
        assert difference.mean == pytest.approx(mean(paired, here["counts"]), abs=1e-12)
        level = found.level(method.model, site)
        assert level.mean == pytest.approx(mean(here["values"], here["counts"]), abs=1e-12)
        # Patients vary by 0.1, a patient between methods by 0.03: pairing is what makes the interval short.
        assert difference.high - difference.low < 0.6 * (level.high - level.low)


def test_an_interval_over_patients_is_the_bootstrap_s() -> None:
    values = np.random.default_rng(3).normal(0.6, 0.1, 40)
    found = over_patients(values.tolist(), [1.0] * 40)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(0)).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert found == over_patients(values.tolist(), [1.0] * 40), "the resamples are named by the data"
    assert over_patients([0.4], [1.0]) == Measured(0.4, n=1), "one patient has no interval"
    assert over_patients([1.0] * 9, [1.0] * 9) == Measured(1.0, n=9), "nine of nine is no certainty"


def test_each_patient_is_first_averaged_over_the_seeds_both_have(make_run: Make) -> None:
    settings = {"run": {"name": "r", "rounds": 6, "metrics": "per-site"}}
    runs = [make_run(f"{m}{s}", method=m, seed=s, patients=9, settings={**settings}) for m, seeds in
            (("local-only", (1, 2)), ("ditto", (1, 2, 3))) for s in seeds]  # fmt: skip
    method = compared(*runs).methods[-1]
    assert method.alone is not None
    here = np.mean([kept(r, "b", "personalized")["values"] for r in runs[2:4]], axis=0)
    there = np.mean([kept(r, "b", "personalized")["values"] for r in runs[:2]], axis=0)
    assert method.alone.sites["b"].mean == pytest.approx(float(np.mean(here - there)), abs=1e-12)
    assert method.alone.sites["b"].n == 9
    assert "a patient's score is first averaged over the seeds" in shown(*runs)


def test_without_patients_the_interval_is_over_shared_seeds(make_run: Make) -> None:
    runs = [make_run(f"{m}{s}", method=m, seed=s) for m in ("local-only", "per-fedavg") for s in (1, 2, 3)]
    found = compared(*runs)
    method = found.methods[-1]
    assert method.alone is not None
    paired = [r.final.value("personalized", "a", "dice") for r in map(read_run, runs)]
    differences = np.subtract(paired[3:], paired[:3])
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    difference = method.alone.sites["a"]
    assert (difference.mean, difference.low, difference.high) == pytest.approx((differences.mean(), low, high))
    assert difference.over == "seeds"
    text = shown(*runs)
    assert "95 % Student intervals over seeds. They cover seeds only" in text
    assert "its run folders hold no scores of single patients (those lie at the sites)" in text


def test_one_seed_without_patients_has_no_interval_and_says_so(make_run: Make) -> None:
    text = shown(make_run("l", method="local-only"), make_run("p", method="per-fedavg"))
    assert "No number here has an interval, so a small difference means nothing." in text
    assert "clearly so" not in text


def test_harm_is_counted_and_named(make_run: Make) -> None:
    alone, method = make_run("l", method="local-only"), make_run("p", method="per-fedavg")
    scored(alone, "personalized", a=0.5, b=0.5, c=0.5, d=0.5)
    scored(method, "personalized", a=0.6, b=0.4, c=0.5004, d=0.7)
    scored(method, "global", a=0.65, b=0.3, c=0.4, d=0.65)
    found = compared(alone, method)
    own = found.methods[-1]
    assert own.alone is not None
    assert own.one is not None
    assert (own.alone.having(1), own.alone.having(0), own.alone.having(-1)) == (["a", "d"], ["c"], ["b"])
    assert own.one.having(-1) == ["a"]
    assert (own.worst, own.worst_site) == (0.4, "b")
    text = shown(alone, method)
    assert "Highest worst site: local-only (0.500)." in text
    assert "2 of 4 sites are better off with per-fedavg than alone; 1 is level; 1 is worse off: Hospital B" in text
    assert "3 of 4 sites are better off with per-fedavg than with its own global model; 1 is worse off: Hospital A." in text


def test_clear_needs_an_interval_off_zero_and_enough_patients() -> None:
    assert Measured(0.2, 0.1, 0.3, "patients", 6).clear
    assert not Measured(0.2, 0.1, 0.3, "patients", 5).clear
    assert not Measured(0.2, -0.1, 0.3, "patients", 60).clear
    assert Measured(-0.2, -0.3, -0.1, "seeds", 3).clear
    assert not Measured(-0.2).clear
    assert not Measured(0.0, 0.0, 0.0, "patients", 60).clear


def test_clear_gains_and_losses_are_said(make_run: Make) -> None:
    runs = [make_run(m, method=m, patients=15) for m in ("local-only", "fedavg-finetune")]
    for site, by in (("a", -0.2), ("b", 0.0)):
        for weights in ("global", "personalized"):
            change(runs[1], site, lambda r, s=site, w=weights, v=by: r["sites"][s]["test"][w].update(  # type: ignore[misc]
                values=[max(x + v * (0.5 + i % 2), 0.0) for i, x in enumerate(kept(runs[0], s, "personalized")["values"])]))  # fmt: skip
            scored(runs[1], weights, **{site: float(np.mean(kept(runs[1], site, weights)["values"]))})
    text = shown(*runs)
    assert "2 of 4 sites are better off with fedavg-finetune than alone, all clearly so; 1 is level; 1 is worse off, clearly so: " in text
    assert "fedavg-finetune alone" not in text
    assert "1 of 4 (1 clearly)" in text


def test_one_run_tells_what_it_can(make_run: Make) -> None:
    text = shown(make_run("f", method="fedavg-finetune", patients=8))
    assert "Whether a site would be better off alone cannot be told: no local-only run on the same data was given." in text
    assert "than with its own global model (plain FedAvg)" in text
    assert "global (FedAvg)" in text, "the head of the table of results"
    assert "Does personalization pay" not in shown(make_run("g", method="fedavg", personalized=False)), "nothing to compare"


def test_without_a_personalized_method_the_global_one_is_set_against_alone(make_run: Make) -> None:
    text = shown(make_run("l", method="local-only", patients=8), make_run("f", method="fedavg", personalized=False, patients=8))
    assert "No run here personalizes" in text
    assert "better off with fedavg than alone" in text


def test_the_global_model_it_is_set_against(make_run: Make) -> None:
    def base(*runs: Path) -> dict[str, str | None]:
        return {m.model.name: m.one and m.one.base.name for m in compared(*runs).methods}

    fedavg, tuned = make_run("f", method="fedavg", personalized=False), make_run("t", method="fedavg-finetune")
    meta, head = make_run("p", method="per-fedavg"), make_run("h", method="fedper")
    result = json.loads((head / "result.json").read_text())
    result["metrics"]["global"] = {"mean": {}, "sites": {}}
    (head / "result.json").write_text(json.dumps(result))
    assert base(meta) == {"the global model of per-fedavg": None, "per-fedavg": "the global model of per-fedavg"}
    assert base(meta, fedavg) == {"fedavg": None, "per-fedavg": "fedavg"}, "a start for adapting is no fair opponent where FedAvg is there"
    assert base(meta, tuned)["per-fedavg"] == "the global model of fedavg-finetune", "which is FedAvg's"
    assert base(head, tuned)["fedper"] == "the global model of fedavg-finetune"
    assert base(head) == {"fedper": None}
    assert "what is shared makes no model without each site's own parts" in shown(head)
    # With the same weights and scores, FedAvg stands for the global model of fine-tuning; else each keeps its own.
    assert base(tuned, fedavg)["fedavg-finetune"] == "the global model of fedavg-finetune"
    both = [json.loads((r / "result.json").read_text()) for r in (tuned, fedavg)]
    both[0]["metrics"]["global"] = both[1]["metrics"]["global"]
    (tuned / "result.json").write_text(json.dumps(both[0]))
    assert base(tuned, fedavg) == {"fedavg": None, "fedavg-finetune": "fedavg"}


def test_several_local_only_runs_pair_by_settings_and_tasks_stay_apart(make_run: Make) -> None:
    slow = {"training": {"epochs": 1, "batch_size": 16, "optimizer": {"use": "adam", "lr": 0.1}}}
    runs = [make_run(f"{m}-{n}", method=m, settings=s) for m in ("local-only", "ditto") for n, s in (("a", {}), ("b", slow))]
    bases = {m.model.label: m.alone.base.label for m in compared(*runs).methods if m.alone and m.model.role == "own"}
    assert bases == {f"ditto (training.optimizer.lr {lr})": f"local-only (training.optimizer.lr {lr})" for lr in ("0.001", "0.1")}
    other = make_run("o", method="ditto", kind="classification", settings={"task": {"use": "blood-cells"}})
    text = shown(*runs, other)
    assert "Task lung-lesions: " in text
    assert re.search(r"Task blood-cells: ditto[^:]* Whether a site would be better off alone cannot be told", text)


@pytest.mark.parametrize("share", ["sum", "none", None])
def test_patients_are_read_only_where_single_sites_may_be_told(make_run: Make, share: str | None) -> None:
    runs = [make_run(m, method=m, patients=9, settings={"run": {"name": m, "rounds": 6, "seed": 1} | ({"metrics": share} if share else {})})
            for m in ("local-only", "ditto")]  # fmt: skip
    # Even a file that could not be read leaves no trace.
    change(runs[1], "a", lambda record: record.update(metric="x"))
    for run in runs:
        found = read_run(run)
        assert not found.patients.kept
        assert not found.patients.damaged
        assert found.patients.withheld
    text = shown(*runs)
    assert "group-scores" not in text
    assert "bootstrap intervals over" not in text
    assert ("was meant to stay at the sites, so it is not read" if share else "no configuration tells what may leave the sites") in text


def test_where_only_sums_left_nothing_is_said_of_single_sites(make_run: Make) -> None:
    runs = [make_run(m, method=m, patients=9, settings={"run": {"name": m, "rounds": 6, "seed": 1, "metrics": "sum"}}) for m in
            ("local-only", "ditto")]  # fmt: skip
    for run in runs:
        result = json.loads((run / "result.json").read_text())
        for part in result["metrics"].values():
            part["sites"] = {"all": part["mean"]}
        (run / "result.json").write_text(json.dumps(result))
    text = shown(*runs)
    assert "This cannot be told: no scores of single sites left the sites (run.metrics: sum)." in text
    assert "worse off" not in text
    section = text[text.rindex("Does personalization pay?") : text.index("Example images")]
    assert "Hospital" not in section


def test_no_patient_is_named_on_the_page_or_in_a_complaint(make_run: Make) -> None:
    runs = [make_run(m, method=m, patients=9) for m in ("local-only", "per-fedavg", "ditto", "fedavg-finetune")]
    change(runs[1], "a", lambda r: r["sites"]["a"]["test"]["global"]["groups"].__setitem__(0, "PATIENT-a-1"))
    change(runs[2], "b", lambda r: r["sites"]["b"]["test"]["global"]["values"].__setitem__(0, 7))
    text = write_report(runs, runs[0].parent / "out.html").read_text("utf-8")
    assert "it names a patient twice" in text
    assert "PATIENT" not in text
    assert "PATIENT" not in repr([read_run(run).patients for run in runs])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r: r.update(metric="auc"), "its metric is none of dice, accuracy"),
        (lambda r: r.update(sites=[]), "it holds no map of sites"),
        (lambda r: r.update(sites={"b": r["sites"]["a"]}), "it is not of the site in whose folder it lies"),
        (lambda r: r["sites"].update(a=[1]), "its test scores are no map"),
        (lambda r: r["sites"]["a"].update(test=3), "its test scores are no map"),
        (lambda r: r["sites"]["a"]["test"].update({"global": {"groups": [1]}}), "it holds no list of values"),
        (lambda r: r["sites"]["a"]["test"]["global"]["counts"].pop(), "groups, values and counts are not of one length"),
        (lambda r: r["sites"]["a"]["test"].update({"global": {"groups": [], "values": [], "counts": []}}), "are not of one length"),
        (lambda r: r["sites"]["a"]["test"]["global"]["values"].__setitem__(2, math.nan), "a value is no number between 0 and 1"),
        (lambda r: r["sites"]["a"]["test"]["global"]["values"].__setitem__(2, True), "a value is no number between 0 and 1"),
        (lambda r: r["sites"]["a"]["test"]["global"]["counts"].__setitem__(2, 0), "a count is no positive whole number"),
        (lambda r: r["sites"]["a"]["test"]["global"]["values"].__setitem__(2, 10**400), "a value is no number between 0 and 1"),
        (lambda r: r["sites"]["a"]["test"]["global"]["values"].__setitem__(2, math.inf), "a value is no number between 0 and 1"),
        (lambda r: r["sites"]["a"]["test"]["global"]["counts"].__setitem__(2, 10**400), "or far too large"),
    ],
)
def test_a_damaged_file_is_said_and_not_used(make_run: Make, edit: Callable[[dict[str, Any]], object], said: str) -> None:
    run = make_run("p", method="per-fedavg", patients=9)
    change(run, "a", edit)
    (run / "sites/b/group-scores.json").write_text('{"metric": "dice", "sites"')
    (run / "sites/c/group-scores.json").unlink()
    found = compared(run)
    overs = {site: {cell.over for cell in row} for site, row in found.levels.items()}
    assert overs == {"a": {"nothing"}, "b": {"nothing"}, "c": {"nothing"}, "d": {"patients"}}
    text = shown(run)
    assert re.search(rf"The file sites/a/group-scores.json cannot be read: [a-z, ]*{said}", text)
    assert "The file sites/b/group-scores.json cannot be read: " in text
    assert "No interval over patients for per-fedavg: no scores of single patients of Clinic C can be read." in text


def test_scores_that_do_not_give_the_result_are_not_used(make_run: Make) -> None:
    run = make_run("p", method="per-fedavg", patients=9)
    scored(run, "personalized", a=0.5)
    found = compared(run)
    assert [cell.over for cell in found.levels["a"]] == ["patients", "nothing"]
    assert found.levels["a"][1].mean == 0.5
    assert "the scores of single patients of Hospital A do not give the site's dice of the result" in shown(run)


def test_different_patients_are_not_paired(make_run: Make) -> None:
    runs = [make_run(m, method=m, patients=9) for m in ("local-only", "ditto")]
    change(runs[0], "a", lambda r: r["sites"]["a"]["test"]["personalized"]["groups"].__setitem__(0, "PATIENT-else"))
    method = compared(*runs).methods[-1]
    assert method.alone is not None
    assert {site: d.over for site, d in method.alone.sites.items()} == {"a": "nothing", "b": "patients", "c": "patients", "d": "patients"}
    text = shown(*runs)
    assert "ditto and local-only were tested on different patients" in text
    assert "PATIENT" not in text


def test_seeds_with_different_patients_fall_back_to_seeds(make_run: Make) -> None:
    runs = [make_run(f"d{s}", method="ditto", seed=s, patients=9) for s in (1, 2)]
    change(runs[0], "a", lambda r: [part["groups"].__setitem__(0, "PATIENT-else") for part in r["sites"]["a"]["test"].values()])
    assert {cell.over for cell in compared(*runs).levels["a"]} == {"seeds"}
    assert "the seeds were tested on different patients" in shown(*runs)


def test_pooled_runs_are_brackets_and_no_method(make_run: Make) -> None:
    runs = [make_run(m, method=m, patients=9, personalized=m != "centralized") for m in ("local-only", "ditto", "centralized")]
    assert [m.model.label for m in compared(*runs).rows] == ["local-only", "ditto", "ditto"]
    assert not read_run(runs[2]).patients.kept


def test_the_page_draws_both_comparisons(make_run: Make) -> None:
    runs = [make_run(m, method=m, patients=9) for m in ("local-only", "per-fedavg", "ditto")]
    text = write_report(runs, runs[0].parent / "out.html").read_text("utf-8")
    told = re.findall(r'aria-label="(dice, against [^"]*)"', text)
    assert [t.split(", by site")[0] for t in told] == ["dice, against local-only", "dice, against one model for all"]
    own = compared(*runs).methods[-1]
    assert own.alone is not None
    assert f"ditto: {len(own.alone.having(1))} sites above zero, {len(own.alone.having(-1))} below" in told[0]


def test_names_of_files_are_those_the_sites_write() -> None:
    from pppml_core.federation.trainer import GROUP_SCORES

    assert patients.GROUP_SCORES == GROUP_SCORES


def test_a_real_run_gives_intervals_over_patients(tmp_path: Path) -> None:
    import pppml_core as pppml

    task = {"use": "tiny", "kind": "segmentation", "sites": 3}
    runs = [
        pppml.load({"task": task, "run": {"rounds": 1, "name": m}, "personalization": m, "reporters": []}).run(tmp_path / m).folder
        for m in ("local-only", "fedavg")
    ]
    found = compared(*runs)
    cells = [cell for row in found.levels.values() for cell in row]
    assert {cell.n for cell in cells} == {6}, "twelve images, two of a patient"
    assert "patients" in {cell.over for cell in cells}
    assert not found.reasons


def test_a_tally_names_the_sites_that_lose() -> None:
    model, base = (Model(label, "own", None, "personalized") for label in "xy")  # type: ignore[arg-type]
    clear, vague = Measured(-0.1, -0.2, -0.05, "patients", 9), Measured(-0.1, -0.2, 0.05, "patients", 9)
    names = {"a": "North", "b": "South, old", "c": "C"}

    def told(**sites: Measured) -> str:
        return personalization_words.tally(Against(model, base, sites), names, "than alone")

    assert told(a=clear, b=vague, c=Measured(0.1)) == (
        "1 of 3 sites is better off with x than alone, not clearly so; "
        "2 are worse off, 1 of them clearly so: North (clearly) and “South, old”."
    )
    assert told(a=clear, b=clear) == "0 of 2 sites are better off with x than alone; 2 are worse off, all clearly so."
    assert told(a=Measured(0.0), b=Measured(0.0002)) == "No site gains or loses with x, against alone."


def test_verdicts() -> None:
    model = Model("x", "own", None, "personalized")  # type: ignore[arg-type]
    sites = {"a": Measured(0.1, 0.05, 0.2, "patients", 9), "b": Measured(0.1, -0.05, 0.2, "patients", 9), "c": Measured(-0.1)}
    found = Against(model, model, sites)
    assert [personalization_words.verdict(found, sign) for sign in (1, -1)] == ["2 of 3 (1 clearly)", "1 of 3 (0 clearly)"]
    assert personalization_words.verdict(Against(model, model, {"c": sites["c"]}), -1) == "1 of 1", "without an interval nothing is clear"
    assert personalization_words.verdict(None, 1) == "–"


def test_unfinished_runs_and_other_splits_are_left_out_and_named(make_run: Make) -> None:
    alone, method = make_run("l", method="local-only"), make_run("p", method="per-fedavg")
    going, told = make_run("d", method="ditto", finished=False), make_run("b", method="apfl")
    result = json.loads((told / "result.json").read_text())
    (told / "result.json").write_text(json.dumps(result | {"split": "validation"}))
    found = compared(going, told, alone, method)
    assert {m.column.method for m in found.models} == {"local-only", "per-fedavg"}
    text = shown(going, told, alone, method)
    why = "ditto (unfinished) (no result yet); apfl (scores of validation data, the others' of test data)."
    assert f"Left out: {why}" in text
    assert f"Not compared: {why}" in text
    assert "better off with ditto" not in text
    assert "better off with apfl" not in text
    assert not re.search(r"(ditto \(unfinished\)|apfl) reaches a mean", text)


def test_without_a_finished_run_nothing_is_compared(make_run: Make) -> None:
    alone, going = make_run("l", method="local-only"), make_run("d", method="ditto", finished=False)
    for runs in ((going,), (alone, going)):
        text = shown(*runs)
        assert "This cannot be told: no federated run here has a result to compare. Left out: ditto (unfinished) (no result yet)." in text
        assert "better off with" not in text
    waiting = make_run("w", method="local-only", finished=False)
    assert "no finished local-only run on the same data was given" in shown(waiting, make_run("p", method="ditto"))


def test_means_worst_sites_and_ranks_are_over_the_sites_all_rows_have(make_run: Make) -> None:
    alone, method, other = make_run("l", method="local-only"), make_run("p", method="ditto"), make_run("x", method="apfl")
    scored(alone, "personalized", a=0.7, b=0.5, c=0.6, d=0.2)
    scored(method, "personalized", a=0.7, b=0.4, c=0.6, d=0.1)
    scored(other, "personalized", a=0.6, b=0.45, c=0.5, d=0.3)
    result = json.loads((other / "result.json").read_text())
    for part in result["metrics"].values():  # without its hardest site it looks better: 0.517 against 0.450
        del part["sites"]["d"]
        part["mean"]["dice"] = 0.517
    (other / "result.json").write_text(json.dumps(result))
    runs = (alone, method, other)
    rows = {row.model.name: (row.mean, row.worst, row.worst_site) for row in compared(*runs).rows if row.model.used}
    assert rows["local-only"] == (pytest.approx(0.6), 0.5, "b")
    assert rows["ditto"] == (pytest.approx(1.7 / 3), 0.4, "b")
    assert rows["apfl"] == (pytest.approx(1.55 / 3), 0.45, "b")
    text = shown(*runs)
    assert "Highest mean of sites (of 3 of 4): local-only (0.600). Highest worst site (of 3 of 4): local-only (0.500)." in text
    assert re.search(r"Not every model was scored at every site: [^.;]*apfl not at Hospital D", text)
    assert "Means and worst sites below are over the 3 of 4 sites that all have" in text
    assert "Each mean is over its column's own sites" in text, "the table of results"
    assert "0.567 3 of 4 sites" in text, "the table says so too"
    assert "worse off than it would be alone" not in text, "a method that left a site out does not harm it, which is no merit"
    assert "ditto reaches a mean dice of 0.567 over the 3 of 4 sites that all columns have. It lies 0.033 below local-only (0.600)" in text


def test_without_a_common_site_none_is_ranked(make_run: Make) -> None:
    runs = [make_run("l", method="local-only"), make_run("p", method="ditto", sites={"x": "Clinic X", "y": "Clinic Y"})]
    task = "task: {use: lung-lesions, sites: 6}"
    for run in runs:
        path = run / "config.resolved.yaml"
        path.write_text(re.sub(r"task:\n( +.*\n)+", task + "\n", path.read_text()))
    text = shown(*runs)
    assert "So none is ranked" in text
    assert "Highest mean" not in text
    assert "reaches a mean" not in text


def test_the_global_and_the_own_model_of_a_method_have_names_of_their_own(make_run: Make) -> None:
    runs = [make_run(m, method=m) for m in ("local-only", "fedavg-finetune")]
    raw = write_report(runs, runs[0].parent / "out.html").read_text("utf-8")
    start = raw.index("<summary>Differences of dice, against local-only")
    head = re.findall(r'<th scope="col">([^<]*)</th>', raw[start : raw.index("</thead>", start)])
    assert head == ["Site", "the global model of fedavg-finetune", "fedavg-finetune"]
    assert len(re.findall(r"better off with the global model of fedavg-finetune than alone", raw)) == 1
    assert len(re.findall(r"better off with fedavg-finetune than alone", raw)) == 1


@pytest.mark.parametrize("method", ["fedavg-finetune", "ditto", "apfl"])
def test_rounds_chosen_by_own_models_are_not_fedavg_s(make_run: Make, method: str) -> None:
    def told(name: str, **run: Any) -> str:
        run |= {"name": "r", "rounds": 6, "seed": 1, "metrics": "per-site"}
        return shown(make_run(f"{name}-{method}", method=method, settings={"run": run}))

    last = told("last", select="last", stop=None)
    assert "global (FedAvg)" in last
    assert "its own global model (plain FedAvg)" in last
    best = told("best", select="best-validation")
    assert "FedAvg)" not in best
    assert "global, at the round its own models were best" in best
    assert "than with its own global model (at the round its own models were best)" in best
    stopped = told("stopped", stop={"patience": 2})
    assert "FedAvg)" not in stopped
    assert "models were best" not in stopped, "it is the last round, which they chose in another way"


def test_per_fedavg_s_head_says_who_chose_the_round(make_run: Make) -> None:
    run = {"name": "r", "rounds": 6, "seed": 1, "metrics": "per-site"}
    best, last = (make_run(s, method="per-fedavg", settings={"run": {**run, "select": s}}) for s in ("best-validation", "last"))
    assert "global (before adapting), at the round its own models were best" in shown(best)
    assert "models were best" not in shown(last)
    assert "global (before adapting)" in shown(last)


def test_a_global_model_chosen_by_own_models_stands_for_no_fedavg(make_run: Make) -> None:
    chosen = {"run": {"name": "r", "rounds": 6, "seed": 1, "metrics": "per-site", "select": "best-validation"}}
    meta, ditto = make_run("p", method="per-fedavg", settings=chosen), make_run("d", method="ditto", settings=chosen)
    bases = {m.model.name: m.one and m.one.base.name for m in compared(meta, ditto).methods}
    assert bases["per-fedavg"] == "the global model of per-fedavg"
    assert bases["ditto"] == "the global model of ditto"
    plain = make_run("f", method="fedavg", personalized=False, settings=chosen)
    assert {m.one.base.name for m in compared(meta, ditto, plain).methods if m.one} == {"fedavg"}, "it chose by its own scores"


def test_without_a_common_seed_it_says_that_all_seeds_were_taken(make_run: Make) -> None:
    runs = [make_run(f"{m}{s}", method=m, seed=s) for m, seeds in (("local-only", (1, 2)), ("ditto", (3, 4))) for s in seeds]
    (method,) = [m for m in compared(*runs).methods if m.model.role == "own"]
    assert method.alone is not None
    values = [r.final.value("personalized", "a", "dice") for r in map(read_run, runs)]
    assert method.alone.sites["a"].mean == pytest.approx(np.mean(values[2:]) - np.mean(values[:2]))
    assert not method.alone.sites["a"].has_interval
    text = shown(*runs)
    assert "No seed in common: the global model of ditto and local-only; ditto and local-only. There each score is the mean" in text
    both = [*runs, make_run("ditto1", method="ditto", seed=1)]
    assert "No seed in common" not in shown(*both)


def test_scores_missing_at_the_common_seed_are_not_filled_in_from_others(make_run: Make) -> None:
    runs = [make_run(f"{m}{s}", method=m, seed=s) for m, seeds in (("local-only", (1, 2)), ("ditto", (1, 3))) for s in seeds]
    scored(runs[2], "personalized", a=None)  # type: ignore[arg-type]
    (method,) = [m for m in compared(*runs).methods if m.model.role == "own"]
    assert method.alone is not None
    assert list(method.alone.sites) == ["b", "c", "d"]
