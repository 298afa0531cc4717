"""The matrix of evidence: what is there is not made again, what is not is counted, and mistakes are told before anything runs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from pppml_core import Component, ComponentConfig, matrix
from pppml_core.errors import ConfigError
from pppml_core.evidence import attacks, evaluate
from pppml_core.interfaces.attack import Attack, Reconstruction, Verdict
from pppml_core.matrix import load_matrix, run_matrix
from pppml_core.registry import Registry

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


class Check(Attack):
    reads_view = False

    def run(self, view: Any, budget: Any, ctx: Any) -> Verdict:
        return Verdict("inconclusive", "looked")


@pytest.fixture(scope="module")
def registry():
    torch.set_num_threads(1)
    offered = [Component(c.__name__.lower(), Empty, f"{__name__}:{c.__name__}", "for a test") for c in (Guess, Who, Check)]
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
    # Both defences sum exactly, so their models are the same: controls are made once. 2 victims, each with a control and a random update.
    first = 2 * (2 + 2) + 2 * 2
    last = 2 * 2 + 2 * 2
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
    assert here.count("guess") == 2 + 4
    record = json.loads((tmp_path / "out/runs/plain/attacks/guess-public-r1.json").read_text())
    assert record["site"] == "site_3", "also where one cell alone is made"


def test_when_the_time_is_over_nothing_is_begun(tmp_path, registry, here):
    result = run_matrix(written(tmp_path), tmp_path / "out", budget=1e-9, registry=registry)
    assert (result.missing, result.records, result.runs, here) == (9, [], [], [])
    whole = run_matrix(written(tmp_path), tmp_path / "out", registry=registry)
    assert (whole.missing, len(whole.records)) == (0, 9)


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
