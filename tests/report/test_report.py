import html.parser
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from scipy import stats

from pppml_core.cli.report import command
from pppml_core.errors import ConfigError, DataError
from pppml_core.report import write_report

Make = Callable[..., Path]
NASTY = {
    "a": "<script>alert(1)</script>",
    "b": "--></svg><script>document.title='x'</script>",
    "c": "$\\frac{a$ {{ 7*7 }}",
    "d": "\"' onload=alert(1)",
}
VOID = {"meta", "br", "img", "link", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order and collects text, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def page(*runs: Path) -> Page:
    out = write_report(runs, runs[0].parent / "out" / "report.html")
    return Page(out.read_text("utf-8"))


def assert_self_contained(shown: Page) -> None:
    ids = [attrs["id"] for _, attrs in shown.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert not {tag for tag, _ in shown.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in shown.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/")), (tag, attrs)
        if attrs.get("role") in ("img", "region"):
            assert attrs.get("aria-label"), (tag, attrs)
    used = {match for _, attrs in shown.tags for value in attrs.values() for match in re.findall(r"url\(#([^)]+)\)", value or "")}
    used |= {str(v)[1:] for _, attrs in shown.tags for k, v in attrs.items() if k in ("href", "xlink:href") and str(v).startswith("#")}
    assert used <= set(ids)


def cells(shown: Page, start: str, count: int) -> str:
    where = shown.text.index(start)
    return shown.text[where : where + count]


def test_one_run_tells_what_was_run_and_who_sees_what(make_run: Make) -> None:
    shown = page(make_run())
    assert_self_contained(shown)
    assert shown.text.index("The server sees every update") < shown.text.index("demo-fedavg", shown.text.index("pppml report", 40))
    assert (
        "4 sites together trained a unet of 482,113 parameters for 6 rounds to outline regions in images (task lung-lesions)." in shown.text
    )
    assert "They hold 378 training examples in all, between 60 and 129 a site." in shown.text
    assert "Who sees the update of a single site The server." in shown.text
    assert "No differential privacy is claimed (mechanism: none)." in shown.text
    assert "Round 2: 14 of 482,129 coordinates of site b saturated" in shown.text
    assert "The local-only bracket: no run" in shown.text
    assert "Attacks: none was run" in shown.text
    assert "Values of hd95 at Hospital D: undefined" in shown.text
    assert "One seed each" in shown.text
    assert "482129 964 kB in the clear the site's update in fixed point" in shown.text, "the wire manifest"
    assert "23.2 MB" in shown.text, "6 rounds of 3,865,200 bytes up"
    assert "1 min 12 s" in shown.text


def test_final_values_are_those_of_the_result(make_run: Make) -> None:
    run = make_run()
    found = json.loads((run / "result.json").read_text())["metrics"]
    shown = page(run)
    expected = " ".join(f"{found[w]['sites']['c']['dice']:.3f}" for w in ("global", "personalized"))
    assert f"Clinic C {expected} Hospital D" in shown.text
    assert f"Mean of sites {found['global']['mean']['dice']:.3f} {found['personalized']['mean']['dice']:.3f}" in shown.text


def test_seeds_become_one_column_with_student_intervals_and_brackets_stand_beside(make_run: Make) -> None:
    runs = [make_run(f"{m}{s}", method=m, seed=s) for m in ("centralized", "fedavg", "local-only") for s in (1, 2, 3)]
    shown = page(*runs)
    assert_self_contained(shown)
    values = [json.loads((make / "result.json").read_text())["metrics"]["personalized"]["mean"]["dice"] for make in runs[3:6]]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]" in shown.text
    assert "95 % Student interval over seeds (local-only 3, fedavg 3, centralized 3)" in shown.text
    header = cells(shown, "local-only fedavg centralized", 200)
    assert "personalized global personalized global personalized" in header, "of local-only, the personalized weights alone"
    assert re.search(r"It lies 0\.\d{3} above local-only \(0\.\d{3}\).*; it lies 0\.\d{3} below centralized training", shown.text)
    assert "bracket: no run" not in shown.text
    assert "personalization.use local-only fedavg fedavg" in shown.text, "settings in which the columns differ"
    assert "reporters" not in cells(shown, "Settings in which", 300)


def test_a_repeated_seed_is_not_counted_twice(make_run: Make) -> None:
    shown = page(make_run("x", seed=5), make_run("y", seed=5))
    assert "y repeats x: same configuration and seed, so it is not counted again." in shown.text
    assert "One seed each" in shown.text


def test_runs_that_differ_in_a_setting_are_told_apart_by_it(make_run: Make) -> None:
    faster = make_run("y", settings={"training": {"epochs": 1, "batch_size": 16, "optimizer": {"use": "adam", "lr": 0.1}}})
    shown = page(make_run("x"), faster)
    assert "fedavg (training.optimizer.lr 0.001)" in shown.text
    assert "fedavg (training.optimizer.lr 0.1)" in shown.text


def test_equal_global_and_personalized_values_are_one_model(make_run: Make) -> None:
    run = make_run()
    result = json.loads((run / "result.json").read_text())
    result["metrics"]["personalized"] = result["metrics"]["global"]
    (run / "result.json").write_text(json.dumps(result))
    assert "dice fedavg one model Mean of sites" in page(run).text


def test_below_local_only_is_said_with_the_sites(make_run: Make) -> None:
    runs = [make_run("f"), make_run("l", method="local-only")]
    for run, value in zip(runs, (0.4, 0.5), strict=True):
        result = json.loads((run / "result.json").read_text())
        for part in result["metrics"].values():
            part["mean"]["dice"] = value
            part["sites"]["b"]["dice"] = value
            part["sites"]["a"]["dice"] = 1 - value
        (run / "result.json").write_text(json.dumps(result))
    shown = page(*runs)
    assert "0.100 below local-only (0.500): what the sites lose by training together" in shown.text
    assert re.search(r"\d of 4 sites (is|are) better off with fedavg than alone; .* worse off: .*Hospital B", shown.text)


def test_unequal_training_is_said(make_run: Make) -> None:
    runs = [make_run("f", rounds=6), make_run("c", method="centralized", rounds=3)]
    assert "They were not trained equally long" in page(*runs).text
    assert "fedavg about 2,112, centralized about 1,056." in page(*runs).text, "rounds x (4 + 5 + 6 + 7 steps) x batches of 16"
    assert "equally long" not in page(runs[0], make_run("l", method="local-only")).text


def test_a_step_of_two_gradients_counts_twice(make_run: Make) -> None:
    runs = [make_run("f", rounds=6), make_run("p", method="per-fedavg", rounds=3)]

    def planned(calls: int) -> None:
        plan = json.loads((runs[1] / "plan.json").read_text())
        (runs[1] / "plan.json").write_text(json.dumps(plan | {"training": {"gradient_calls": calls}}))

    planned(2)
    assert "equally long" not in page(*runs).text, "half the steps with two gradients each are as much training"
    planned(4)
    assert "fedavg about 2,112, per-fedavg about 4,224." in page(*runs).text


def test_equal_means_are_level(make_run: Make) -> None:
    runs = [make_run(m, method=m) for m in ("fedavg", "local-only", "centralized")]
    for run in runs[1:]:
        result, first = (json.loads((r / "result.json").read_text()) for r in (run, runs[0]))
        (run / "result.json").write_text(json.dumps(result | {"metrics": first["metrics"]}))
    shown = page(*runs)
    assert re.search(r"It lies level with local-only \(0\.\d+\); it lies level with centralized training \(0\.\d+\)\.", shown.text)


def test_selected_round_and_early_stop_are_told(make_run: Make) -> None:
    run = make_run(planned=20, settings={"run": {"name": "r", "rounds": 20, "seed": 1, "select": "best-validation"}})
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"selected_round": 3, "stopped": "dice did not improve for 3 evaluations"}))
    assert (
        "Values are of each site's own test data, model of round 3, chosen on validation data. "
        "Stopped early: dice did not improve for 3 evaluations." in page(run).text
    )


def test_every_claim_of_epsilon_names_all_it_must(make_run: Make) -> None:
    shown = page(make_run(private=True, masked=True))
    assert "epsilon = 6 per example, delta = 1e-05" in shown.text
    for words in ("adjacency add-remove", "accountant pld", "placement local", "adversary sees every message and the final model"):
        assert words in shown.text
    assert "No differential privacy" not in shown.text
    assert "Who sees the update of a single site Nobody." in shown.text
    assert "2 honest-but-curious parties; 1 that lie." in shown.text
    assert "The server sees every update" not in shown.text


def test_a_claim_with_holes_shows_them(make_run: Make) -> None:
    run = make_run(private=True)
    result = json.loads((run / "result.json").read_text())
    result["privacy"] = {"mechanism": "dp-sgd", "epsilon": 6.0, "unit": ""}
    (run / "result.json").write_text(json.dumps(result))
    shown = page(run)
    assert "epsilon = 6 per not recorded, delta = not recorded" in shown.text
    assert "accountant not recorded" in shown.text


def test_an_unfinished_run_says_so_first(make_run: Make) -> None:
    run = make_run(finished=False, planned=10, rounds=4)
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "run-failed", "error": "disk full."}\n{"event": "round-fin')
    shown = page(run)
    body = shown.text.split("pppml report", 1)[1]
    assert body.strip().startswith("Unfinished: run demo-fedavg stands after 4 of 10 rounds. It failed: disk full.")
    assert "Its figures are those of round 4, not final ones." in shown.text
    assert "The file events.jsonl has 1 line cut off or not JSON, left out." in shown.text
    assert "result.json" in shown.text, "listed among the files not there"


def test_unfinished_runs_never_enter_an_interval(make_run: Make) -> None:
    shown = page(make_run("x", seed=1), make_run("y", seed=2), make_run("z", seed=3, finished=False))
    assert "over seeds (fedavg 2, fedavg (unfinished) 1)" in shown.text


def test_nothing_from_a_record_becomes_markup(make_run: Make) -> None:
    runs = [make_run(m, method=m, sites=NASTY, kind=kind) for m, kind in (("fedavg", "segmentation"), ("local-only", "classification"))]
    for run in runs:
        plan = json.loads((run / "plan.json").read_text())
        evil = "</style></svg><script>alert(2)</script>"
        plan |= {"headline": evil, "warnings": [evil], "versions": {evil: evil}, "plugins": [evil]}
        plan["task"]["classes"] = [evil, evil]
        plan["stages"] = [{"name": evil, "takes": [evil], "gives": {evil: 1}, "seen_by": evil}]
        (run / "plan.json").write_text(json.dumps(plan))
        with (run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": "site-lost", "site": "b", "reason": evil}) + "\n")
            file.write(json.dumps({"event": "stage", "stage": evil, "sent": 1, "received": 1, "seconds": 1}) + "\n")
    shown = page(*runs)
    assert_self_contained(shown)
    for name in NASTY.values():
        assert name in shown.text


def test_insecure_modes_are_stamped(make_run: Make) -> None:
    shown = page(make_run(masked=True, settings={"aggregator": {"use": "masked", "insecure_seed": 7}}))
    assert "Insecure mode: aggregator.insecure_seed was asked for." in shown.text


@pytest.mark.parametrize(
    "missing", ["config.resolved.yaml", "plan.json", "manifest.json", "metrics.jsonl", "events.jsonl", "result.json", "examples.npz"]
)
@pytest.mark.parametrize("how", ["missing", "torn", "nonsense"])
def test_any_file_may_be_missing_or_damaged(make_run: Make, missing: str, how: str) -> None:
    run = make_run(sites={"a": "A", "b": "B"}, rounds=2)
    path = run / missing
    if how == "missing":
        path.unlink()
    elif how == "torn":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.write_text("[1, {]" if missing.endswith("yaml") else "[1, 2]")
    shown = page(run)
    assert_self_contained(shown)
    if missing == "result.json":
        assert "Unfinished" in shown.text
    if how == "missing":
        assert missing in shown.text
    elif not (how == "torn" and missing.endswith(".yaml")):
        assert re.search(rf"The (file {missing} (cannot be read|has 1 line cut off|holds no map))", shown.text)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"metrics": 3, "bytes": [], "seconds": null, "privacy": "x", "guarantees": 1}',
        '{"rounds": "many", "metrics": {"global": []}}',
    ],
)
def test_records_of_unexpected_shape_do_not_end_the_report(make_run: Make, content: str) -> None:
    run = make_run(rounds=2)
    (run / "result.json").write_text(content)
    (run / "plan.json").write_text(
        '{"sites": "ab", "task": null, "bytes": [1], "stages": {"a": 1}, "warnings": null, "versions": [], "plugins": null}'
    )
    (run / "config.resolved.yaml").write_text(yaml.safe_dump({"run": None, "task": "tiny", "personalization": "fedavg"}))
    (run / "manifest.json").write_text('{"fields": 3, "evaluation": [1]}')
    (run / "metrics.jsonl").write_text(
        '{"round": 1}\n{"round": "x", "site": null, "split": "test", "weights": "global", "dice": "high"}\n7\n'
    )
    (run / "events.jsonl").write_text(
        '{"event": "stage"}\n{"event": "run-started", "steps": 3}\n{"event": "round-finished", "round": null}\n'
    )
    assert_self_contained(page(run))


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("result.json", r'("dice": )[0-9.]+'),
        ("result.json", r'("up": )[0-9]+'),
        ("result.json", r'("total": )[0-9.]+'),
        ("result.json", r'("epsilon": )[0-9.]+'),
        ("plan.json", r'("train": )[0-9]+'),
        ("metrics.jsonl", r'("dice": )[0-9.]+'),
        ("metrics.jsonl", r'("round": )[0-9]+'),
        ("events.jsonl", r'("seconds": )[0-9.]+'),
    ],
)
@pytest.mark.parametrize("digits", [400, 5000])
def test_integers_that_no_float_holds_do_not_end_the_report(make_run: Make, file: str, pattern: str, digits: int) -> None:
    run = make_run(rounds=2, private=True, examples=False)
    text, found = re.subn(pattern, rf"\g<1>1{'0' * digits}", (run / file).read_text())
    assert found
    (run / file).write_text(text)
    shown = page(run)
    assert_self_contained(shown)
    assert "0" * 100 not in shown.text
    assert "cannot be read" not in shown.text


def test_examples_with_pickled_objects_are_refused(make_run: Make) -> None:
    run = make_run()
    np.savez(run / "examples.npz", images=np.array([{"a": 1}], dtype=object))
    shown = page(run)
    assert "The file examples.npz cannot be read" in shown.text
    assert "Example images: the run left none." in shown.text


def test_examples_that_do_not_fit_each_other_are_left_out(make_run: Make) -> None:
    run = make_run()
    with np.load(run / "examples.npz") as file:
        arrays = dict(file)
    np.savez(run / "examples.npz", **{**arrays, "sites": arrays["sites"][:3]})
    assert "The arrays of examples.npz do not fit each other" in page(run).text


def test_segmentation_examples_are_outlined_and_described(make_run: Make) -> None:
    shown = page(make_run())
    told = [str(attrs["aria-label"]) for _, attrs in shown.tags if str(attrs.get("aria-label", "")).startswith("Image of")]
    assert len(told) == 8
    assert (
        told[0]
        == "Image of Hospital A, global weights, with outlines of truth and prediction: truth 11.1 %, prediction 10.9 % of the image."
    )
    assert "truth empty, prediction empty of the image" in told[-1]


@pytest.mark.parametrize("shape", [(3, 24, 24), (5, 24, 24), (1, 4, 24, 24)])
def test_colour_slabs_and_volumes_can_be_shown(make_run: Make, shape: tuple[int, ...]) -> None:
    run = make_run()
    generator = np.random.default_rng(0)
    masks = np.zeros((2, *shape[1:]), np.int64)
    masks[..., 3:9, 3:9] = 2
    np.savez(
        run / "examples.npz", images=generator.normal(0, 300, (2, *shape)).astype(np.float32), targets=masks, predictions=masks,
        sites=np.array(["a", "b"]), weights=np.array(["global", "global"]),
    )  # fmt: skip
    assert "truth 6.2 %, prediction 6.2 % of the image" in str([attrs.get("aria-label") for _, attrs in page(run).tags])


def test_classification_examples_name_both_classes(make_run: Make) -> None:
    shown = page(make_run(kind="classification"))
    assert "✓ Truth background, predicted background" in shown.text
    assert "✗ Truth lesion, predicted background" in shown.text


def test_many_sites_are_one_grey_band_and_a_scrolling_table(make_run: Make) -> None:
    shown = page(make_run(sites={f"s{i:03d}": f"Site {i}" for i in range(40)}, rounds=3))
    assert "one of 40 sites" in shown.text
    assert any(attrs.get("class") == "wide tall" for _, attrs in shown.tags)


def test_a_resumed_round_counts_once(make_run: Make) -> None:
    run = make_run(finished=False)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = {**json.loads(lines[-1]), "dice": 0.987}
    (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(last)]) + "\n")
    assert "0.987" in page(run).text


def test_the_same_runs_give_the_same_page(make_run: Make) -> None:
    runs = [make_run("x"), make_run("y", method="local-only")]
    first = write_report(runs, runs[0] / "1.html").read_bytes()
    assert write_report(runs, runs[0] / "2.html").read_bytes() == first


def test_records_alone_decide(make_run: Make) -> None:
    """A run of which only result.json is left still has its table, and says what is missing."""
    run = make_run()
    for path in run.iterdir():
        if path.name != "result.json":
            path.unlink()
    shown = page(run)
    assert "Mean of sites" in shown.text
    assert "The records do not say which data the values are of, model of round 6." in shown.text
    assert "No wire manifest was recorded." in shown.text
    assert math.isclose(float(re.findall(r"Mean of sites ([\d.]+)", shown.text)[0]), 0.5, abs_tol=0.2)


def test_what_is_no_run_is_refused(tmp_path: Path, make_run: Make) -> None:
    with pytest.raises(DataError, match="no such run directory"):
        write_report([tmp_path / "none"], tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds none of the files of a run"):
        write_report([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="no run directory"):
        write_report([], tmp_path / "r.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*-o"):
        write_report([make_run()], tmp_path / "file" / "r.html")
    assert not list(tmp_path.glob("**/*.part"))


def test_command_writes_beside_one_run_and_here_for_several(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = make_run("x"), make_run("y", method="local-only")
    monkeypatch.chdir(run.parent)
    assert CliRunner().invoke(command, ["x"]).output.strip() == str(Path("x/report.html"))
    assert CliRunner().invoke(command, ["x", "y"]).output.strip() == "report.html"
    assert CliRunner().invoke(command, ["x", str(other), "-o", "deep/c.html"]).exit_code == 0
    assert (run.parent / "deep/c.html").is_file()


def test_attack_outcomes_are_listed(make_run: Make) -> None:
    run = make_run()
    (run / "attacks").mkdir()
    outcome: dict[str, Any] = {
        "attack": "idlg",
        "vantage": "server",
        "round": 1,
        "outcome": "not_shown_to_leak",
        "reason": "control passed",
    }
    (run / "attacks/idlg-server-r1.json").write_text(json.dumps(outcome))
    shown = page(run)
    assert "idlg server 1 not shown to leak control passed" in shown.text
    assert "Attacks: none was run" not in shown.text


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser_the_page_fits_and_runs_no_script(make_run: Make, tmp_path: Path, width: int) -> None:
    runs = [make_run(m, method=m, sites=NASTY) for m in ("fedavg", "local-only", "centralized")]
    out = write_report(runs, tmp_path / "report.html")
    # Without its content policy, so that a script that slipped in would run; our own probe adds to the title.
    text = re.sub(r"<meta http-equiv[^>]*>", "", out.read_text("utf-8"))
    probe = "<script>document.title += ` ${document.documentElement.scrollWidth} ${innerWidth}`</script>"
    (tmp_path / "probe.html").write_text(text.replace("</body>", probe + "</body>"))
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", (tmp_path / "probe.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    title = re.search(r"<title>local-only, fedavg and centralized, side by side: pppml report (\d+) (\d+)</title>", done.stdout)
    assert title, "the probe ran, and no other script changed the title"
    assert int(title[1]) <= int(title[2]), "the page is not wider than the window"
