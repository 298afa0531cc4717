"""The matrix of evidence: what is there is not made again, what is not is counted, and mistakes are told before anything runs."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import torch

from pppml_core import Component, ComponentConfig, matrix
from pppml_core.errors import ConfigError
from pppml_core.evidence import attacks, evaluate
from pppml_core.evidence.deciding import controls_needed
from pppml_core.interfaces.attack import Attack, Reconstruction, Verdict
from pppml_core.matrix import load_matrix, run_matrix
from pppml_core.registry import Registry
from pppml_core.report.records import read_run

FILE = """
base:
  task: {use: tiny, sites: 3, examples: 12}
  training: {steps: 1}
  run: {rounds: 1, transcript: secrets}
defences:
  plain: {}
  secagg-plus: {aggregator: secagg-plus}
attacks:
  - {use: guess, vantages: [server, public], rounds: [1]}
  - {use: guess, vantages: ["site:site_2"], rounds: [last]}
  - {use: who}
  - {use: check, only: [plain]}
effort: {cheap: 2, optimized: 2, gallery: 4}
"""


class Empty(ComponentConfig):
    depth: int = 3


class Guess(Attack):
    answers = "candidate"
    cheap = True

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        return Reconstruction({"candidate": np.arange(len(ctx.candidates))})


class Who(Attack):
    answers = "members"

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        return Reconstruction({"members": np.zeros(len(ctx.queries))})


class Slow(Guess):
    cheap = False


class Check(Attack):
    reads_view = False

    def run(self, view: Any, budget: Any, ctx: Any) -> Verdict:
        return Verdict("inconclusive", "looked")


@pytest.fixture(scope="module")
def registry():
    torch.set_num_threads(1)
    offered = [Component(c.__name__.lower(), Empty, f"{__name__}:{c.__name__}", "for a test") for c in (Guess, Slow, Who, Check)]
    return Registry.only({"attack": offered}, "pppml_secagg_plus.plugin")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Attacks run in this process; every answer is counted."""
    asked: list[str] = []
    answer, made = evaluate.Attacker.answer, evaluate.Attacker.__init__
    monkeypatch.setattr(evaluate.Attacker, "__init__", lambda self, parts, live=False: made(self, parts, True))
    monkeypatch.setattr(evaluate.Attacker, "answer", lambda self, a, *more: asked.append(a.use) or answer(self, a, *more))
    return asked


def written(tmp_path: Any, text: str = FILE) -> Any:
    (tmp_path / "m.yaml").write_text(text)
    return load_matrix(tmp_path / "m.yaml")


def test_every_cell_has_one_record_and_is_made_once(tmp_path, registry, here, monkeypatch):
    judged = []
    record_of = attacks.record_of
    monkeypatch.setattr(attacks, "record_of", lambda *a, **k: judged.append(k["cells"]) or record_of(*a, **k))
    events: list[Any] = []
    result = run_matrix(written(tmp_path), tmp_path / "out", registry=registry, emit=events.append)
    assert [folder.name for folder in result.runs] == ["plain", "secagg-plus"]
    cells = [(r["defence_name"], r["attack"], r["vantage"], r.get("staged")) for r in result.records]
    each = [("guess", "server", True), ("guess", "public", True), ("guess", "site:site_2", True), ("who", "server", False)]
    assert cells == [("plain", *c) for c in each] + [("plain", "check", "server", None)] + [("secagg-plus", *c) for c in each]
    assert result.missing == 0
    assert len(list((tmp_path / "out/runs").glob("*/attacks/*.json"))) == 9
    assert set(judged) == {9}, "bounds are judged together over the whole matrix"
    assert {r["site"] for r in result.records if "site" in r} == {"site_3"}, "one site for all: the largest that is in no vantage"
    # Both defences sum exactly, so their models are the same: controls are made once. 2 victims, each with a control and random updates.
    controls = 2 * (1 + -(-controls_needed(2) // 2))
    first = 2 * 2 + controls + 2 * 2
    last = 2 + controls + 2
    assert here.count("guess") == first + last
    assert {e["defence"] for e in events} == {"plain", "secagg-plus"}
    here.clear()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    again = run_matrix(written(tmp_path), tmp_path / "out", registry=registry)
    assert here == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert again.records == result.records
    (tmp_path / "out/runs/plain/attacks/guess-public-r1.json").unlink()
    run_matrix(written(tmp_path), tmp_path / "out", registry=registry)
    assert here.count("guess") == 2 + controls
    record = json.loads((tmp_path / "out/runs/plain/attacks/guess-public-r1.json").read_text())
    assert record["site"] == "site_3", "also where one cell alone is made"


def test_when_the_time_is_over_nothing_is_begun(tmp_path, registry, here):
    result = run_matrix(written(tmp_path), tmp_path / "out", budget=1e-9, registry=registry)
    assert (result.missing, result.records, result.runs, here) == (9, [], [], [])
    whole = run_matrix(written(tmp_path), tmp_path / "out", registry=registry)
    assert (whole.missing, len(whole.records)) == (0, 9)


def test_no_victim_is_begun_when_the_time_is_over(tmp_path, registry, here, monkeypatch):
    """The clock stands still but for the first victim of the first cells, who takes an hour."""
    now, tell = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def told(event: Any) -> None:
        if event["event"] == "victim":
            tell.append(event["number"])
            now[0] += 3600.0

    result = run_matrix(written(tmp_path), tmp_path / "out", budget=30.0, registry=registry, emit=told)
    assert tell == [1], "one victim, of several cells"
    assert (result.missing, result.records) == (9, []), "a cell with too few victims is no cell"


def test_what_is_whole_is_kept_when_it_is_killed(tmp_path, registry, here, monkeypatch):
    """``slow`` has more victims than ``guess``; it is killed at the last of them."""
    text = FILE.replace("  - {use: who}", "  - {use: slow, vantages: [server], rounds: [1]}").replace(
        "cheap: 2, optimized: 2", "cheap: 2, optimized: 6"
    )

    def killed(event: Any) -> None:
        if event["event"] == "victim" and event["number"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_matrix(written(tmp_path, text), tmp_path / "out", registry=registry, emit=killed)
    kept = {p.name for p in (tmp_path / "out/runs/plain/attacks").glob("*.json")}
    assert kept == {"guess-server-r1.json", "guess-public-r1.json"}
    here.clear()
    result = run_matrix(written(tmp_path, text), tmp_path / "out", registry=registry)
    assert result.missing == 0
    assert here.count("slow") > 0


def test_the_page_is_of_this_matrix_alone(tmp_path, registry):
    """Records of other settings, and of cells that are not asked for any more, are put aside and not shown."""
    run_matrix(written(tmp_path), tmp_path / "out", registry=registry)
    attacks_of = tmp_path / "out/runs/plain/attacks"
    first = {p.name for p in attacks_of.glob("*.json")}
    other = FILE.replace("cheap: 2", "cheap: 3").replace("  - {use: check, only: [plain]}\n", "")
    result = run_matrix(written(tmp_path, other), tmp_path / "out", budget=1e-9, registry=registry)
    assert result.missing > 0
    assert {p.name for p in attacks_of.glob("*.json")} == {"who-server-r1.json"}
    assert {p.name for p in (attacks_of / "earlier").glob("*.json")} == first - {"who-server-r1.json"}
    shown = read_run(attacks_of.parent)
    assert [r["attack"] for r in shown.attacks] == ["who"]


def test_controls_of_other_weights_are_other_controls(tmp_path, registry, here):
    """The two runs end with other models, as their steps are of other sizes."""
    text = FILE.replace("secagg-plus: {aggregator: secagg-plus}", "slower: {training: {steps: 1, optimizer: {lr: 0.001}}}")
    only = text.split("attacks:")[0] + "attacks:\n  - {use: guess, rounds: [last]}\n" + "effort:" + text.split("effort:")[1]
    run_matrix(written(tmp_path, only), tmp_path / "out", registry=registry)
    controls = 2 * (1 + -(-controls_needed(2) // 2))
    assert here.count("guess") == 2 * (2 + controls)


WRONG = {
    "unknown defence": ("only: [plain]", "only: [plane]", "did you mean 'plain'"),
    "unknown attack": ("use: check", "use: chekc", "did you mean 'check'"),
    "unknown setting": ("{use: who}", "{use: who, dept: 3}", "dept"),
    "unknown vantage": ("public]", "publick]", "did you mean 'public'"),
    "unknown site": ("site:site_2", "site:site_9", "site_9"),
    "no such round": ("rounds: [1]", "rounds: [2]", "rounds 1 to 1"),
    "round nought": ("rounds: [1]", "rounds: [0]", "rounds"),
    "same record": ("{use: who}", "{use: guess, depth: 4}\n  - {use: guess, rounds: [1]}", "same record"),
    "no secrets": (", transcript: secrets", "", "set run.transcript: secrets"),
    "all sites": ("site:site_2", "site:site_1+site:site_2+site:site_3", "watched: SITE"),
    "unknown watched": ("effort:", "watched: site_7\neffort:", "site_7"),
    "unknown aggregator": ("aggregator: secagg-plus", "aggregator: secagg-plsu", "did you mean 'secagg-plus'"),
    "unknown key": ("defences:", "defense:", "defense"),
    "no defences": ("  plain: {}\n  secagg-plus: {aggregator: secagg-plus}\n", "", "defences"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told_before_anything_runs(tmp_path, registry, name):
    old, new, said = WRONG[name]
    assert old in FILE
    with pytest.raises(ConfigError) as refused:
        run_matrix(written(tmp_path, FILE.replace(old, new)), tmp_path / "out", registry=registry)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_refuted_claims_are_listed():
    found = matrix.MatrixResult(records=[{"violation": True, "attack": "a"}, {"violation": False}, {}])
    assert [r["attack"] for r in found.violations] == ["a"]


def test_a_record_of_another_effort_does_not_stand_for_the_cell(tmp_path, registry):
    config = written(tmp_path)
    first = run_matrix(config, tmp_path / "out", registry=registry)
    path = first.runs[0] / "attacks" / "guess-server-r1.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps(made | {"asked": made["asked"] | {"victims": 1}, "outcome": "of one victim"}))
    run_matrix(config, tmp_path / "out", registry=registry)
    assert json.loads(path.read_text())["outcome"] == made["outcome"]
