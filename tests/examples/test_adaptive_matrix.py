"""The study of adaptive attacks: its statistics against enumeration and scipy, its page, and one cell of it on the tiny task."""

from __future__ import annotations

import importlib.util
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from pppml_core.errors import ConfigError
from pppml_core.evidence.found import Effort
from pppml_core.matrix import load_matrix
from pppml_core.registry import Registry

ROOT = Path(__file__).parents[2]
pytest.importorskip("pppml_idlg", reason="the study is about its attack")


@pytest.fixture(scope="module")
def study():
    threads = os.environ.get("OMP_NUM_THREADS")
    spec = importlib.util.spec_from_file_location("adaptive_matrix", ROOT / "examples/studies/attacks/adaptive_matrix.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # its dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.__setitem__("OMP_NUM_THREADS", threads)


def measured(study, name, gains, misfit=""):
    """Every victim of a patient of its own."""
    persons = [f"patient {i}" for i in range(len(gains))]
    return study.Measured(study.Place(name, "server"), [20 + g for g in gains], [20.0] * len(gains), persons, 9.0, misfit)


def test_the_test_is_wilcoxons(study):
    """Against scipy where there are no ties, and against all signs where there are."""
    gains = np.random.default_rng(0).normal(-0.7, 1.0, 12)
    assert study.worse(gains) == pytest.approx(wilcoxon(gains + 0.5, alternative="less", method="exact").pvalue)
    tied = [-1.5, -1.5, 0.5, -0.7, -1.5]
    ranks = np.array([3.5, 3.5, 3.5, 1.0, 3.5])  # of 1.0, 1.0, 1.0, 0.2 and 1.0
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    observed = float((np.array([-1, -1, 1, -1, -1]) * ranks).sum())
    assert study.worse(tied) == pytest.approx(float(((signs * ranks).sum(1) <= observed + 1e-9).mean()))
    assert study.worse([-0.5] * 12) == 1.0, "behind by the margin and no more"
    assert study.worse([-0.6] * 12) == 0.5**12


def test_holm(study):
    """By hand: 0.01 x 4, 0.02 x 3, then never below what came before."""
    assert study.holm([0.02, 0.01, 0.03, 0.9]) == pytest.approx([0.06, 0.04, 0.06, 0.9])
    assert study.holm([0.6, 0.7]) == [1.0, 1.0]
    assert study.holm([]) == []


def test_the_level_over_all_cells_is_kept(study):
    """20 cells of 12 victims at the margin: of 100 matrices more than 10 have a worse cell with probability below 1e-6."""
    from scipy.stats import binom

    assert binom.sf(10, 100, 0.01) < 1e-6
    generator, hits, scale = np.random.default_rng(1), 0, np.arange(1, 13)
    p_of: dict[int, float] = {}  # by the sum of signed ranks
    for _ in range(100):
        cells = []
        for _ in range(20):
            signs = generator.choice((-1, 1), 12)
            key = int((signs * scale).sum())
            if key not in p_of:
                p_of[key] = study.worse(signs * scale - 0.5)
            cells.append(p_of[key])
        hits += min(study.holm(cells)) <= study.LEVEL
    assert hits <= 10


def test_the_page_answers(study):
    effort = Effort(seconds=10.0)
    fine, bad = measured(study, "plain", [0.1] * 12), measured(study, "noise", [-2.0] * 12)
    hidden = measured(study, "hidden", [], "this adversary decodes no sum")
    said = study.page([fine, hidden], effort, "m.yaml")
    assert "**In none of 1 cells is the adaptive attack significantly worse" in said
    assert "| plain | `server` | 12 (12) | 20.1 | 20.0 | +0.1 | +0.1 | 1 |" in said
    assert "- hidden from `server`: this adversary decodes no sum." in said
    said = study.page([fine, bad], effort, "m.yaml")
    assert "**Worse in 1 of 2 cells**: noise from server." in said
    assert "**This cannot tell**: with 2 victims nothing would be significant; 1 cells need at least 7." in study.page(
        [measured(study, "plain", [0.0, 0.0])], effort, "m.yaml"
    )
    assert study.enough(20) == 11


FILE = """
base:
  task: {use: tiny, sites: 3, examples: 12}
  model: sigmoid-lenet
  training: {steps: 1}
  run: {rounds: 2}
defences:
  plain: {}
  clip: {privacy: {use: clip-only, clip: 0.5}}
attacks:
  - {use: gallery, rounds: [last]}
  - {use: idlg, vantages: [server, "site:site_1"], rounds: [1], steps: 3, restarts: 1, skip: [clip]}
  - {use: idlg, rounds: [1], steps: 3, restarts: 1, only: [clip]}
watched: site_1
"""


def test_two_victims_of_one_cell(study, tmp_path):
    """The same victims and rounds for both; knowledge alone differs, and where the adversary has no sum it is said."""
    pytest.importorskip("pppml_dp", reason="clip-only is its mechanism")
    (tmp_path / "m.yaml").write_text(FILE)
    config, registry = load_matrix(tmp_path / "m.yaml"), Registry.discover()
    every = list(study.places(config))
    assert [(p.defence, p.vantage) for p, _ in every] == [("plain", "server"), ("plain", "site:site_1"), ("clip", "server")]
    effort = Effort(optimized=2, seconds=1e6, gallery=4)
    plain, own, clip = (study.measure(config, place, row, effort, registry, live=True) for place, row in every)
    assert "watched site is one of" in own.misfit
    assert len(plain.gains) == len(clip.gains) == 2
    assert len(set(plain.persons)) == 2
    assert plain.persons == clip.persons
    assert clip.adaptive != clip.blind
    assert plain.evaluations > 0
    row = every[0][1].model_copy(update={"rounds": ("last",)})
    with pytest.raises(ConfigError, match="this study is of rounds"):
        list(study.places(config.model_copy(update={"attacks": (row,)})))


def test_evaluations_end_a_search_and_the_same_sum_is_answered_once(study, tmp_path):
    """Exact sums under other keys: another cell, the same answer. Another defence is another question."""
    pytest.importorskip("pppml_dp", reason="clip-only is its mechanism")
    (tmp_path / "m.yaml").write_text(FILE.replace("  clip:", "  again: {}\n  clip:").replace("steps: 3,", "evaluations: 9,"))
    config, registry = load_matrix(tmp_path / "m.yaml"), Registry.discover()
    effort, chosen = Effort(optimized=1, seconds=1e6, gallery=4), [(p, r) for p, r in study.places(config) if p.vantage == "server"]
    study._Paired.remembered.clear()
    plain, again, clip = (study.measure(config, place, row, effort, registry, live=True) for place, row in chosen)
    assert [p.defence for p, _ in chosen] == ["plain", "again", "clip"]
    assert plain.evaluations == again.evaluations == clip.evaluations == 18, "9 with and 9 without knowledge"
    assert (plain.adaptive, plain.blind) == (again.adaptive, again.blind)
    assert plain.adaptive != clip.adaptive
    assert len(study._Paired.remembered) == 4
    assert "with 9 gradients an answer" in study.page([measured(study, "plain", [0.1] * 2)], effort, "m.yaml", 9)
