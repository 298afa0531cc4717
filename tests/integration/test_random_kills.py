"""The study of random kills, small: eight processes, killed and started again at random, and a check that would see a wrong sum."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "examples" / "studies" / "failures" / "random_kills.py"


@pytest.fixture(scope="module")
def study():
    threads = os.environ.get("OMP_NUM_THREADS")
    spec = importlib.util.spec_from_file_location(STUDY.stem, STUDY)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.modules.pop(STUDY.stem, None)
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.__setitem__("OMP_NUM_THREADS", threads)


@pytest.mark.drill
@pytest.mark.quick
def test_eight_sites_under_kills(study, tmp_path):
    row = study.held(8, 3, 8, 0.02, seed=3, on_abort="retry", retries=5, out=tmp_path)
    assert row["kills"] >= 1
    assert row["sums"] == 3
    assert row["wrong"] == []
    assert min(row["survivors"]) < 8
    assert "| 2% |" in study.table([row])


def test_the_check_sees_a_wrong_sum(study, tmp_path):
    """Weights that are not those of the survivors: one site too few in the list, or other weights, in round 2 of 3."""
    given, watcher = study.sections(4, 3, 8), study.Weights()
    result = study.Experiment(**given, engine="local", reporters=[watcher]).run(tmp_path / "r", report=False).result
    assert study.wrong_sums(given, result, watcher.after, tmp_path / "right") == []
    assert study.wrong_sums(given, result, {**watcher.after, 2: "0" * 64}, tmp_path / "weights") == [2]
    short = {**result, "survivors": {**result["survivors"], "2": result["survivors"]["2"][1:]}}
    assert study.wrong_sums(given, short, watcher.after, tmp_path / "names") == [2, 3, 0]


def test_kills_are_as_frequent_as_asked(study):
    """0.0015 is almost five standard deviations; the seed is fixed, so it holds or does not."""
    sites = [f"site_{i}" for i in range(100)]
    drawn = study.kills(sites, 100, 0.05, seed=1)
    assert len(drawn) / (100 * 100 * study.ATTEMPTS * len(study.STAGES)) == pytest.approx(0.05, abs=0.0015)
    assert {strike["do"] for strike in drawn} == set(study.MOMENTS)
    assert drawn == study.kills(sites, 100, 0.05, seed=1)
