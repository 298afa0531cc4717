"""A round of the local engine, in process: what remains when training is next to nothing, and how it grows with sites and parameters.

The overhead against a loop written by hand is measured by ``overhead.py``, peak memory by ``memory.py``: both need minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import pppml_core as pppml


@pytest.mark.parametrize(("sites", "width"), [(3, 8), (30, 8), (3, 360)], ids=["3-sites-2k", "30-sites-2k", "3-sites-2.4M"])
@pytest.mark.parametrize("encoding", ["fixed", "float"])
@pytest.mark.benchmark(group="engine-round")
def test_round(benchmark, tmp_path: Path, sites: int, width: int, encoding: str) -> None:
    experiment = pppml.Experiment(
        task={"use": "tiny", "sites": sites, "examples": 6},
        model={"use": "tiny-net", "width": width},
        training={"steps": 1, "batch_size": 4},
        run={"rounds": 4, "evaluate_every": 4},
        encoding=encoding,
        reporters=[],
    )
    experiment.run(tmp_path / "warm", report=False)
    folders = iter(range(1000))
    result = benchmark.pedantic(lambda: experiment.run(tmp_path / str(next(folders)), report=False).result, rounds=3)
    stages = result["seconds"]["by_stage"]
    outside = result["seconds"]["total"] - stages["train"] - stages["evaluate"]
    benchmark.extra_info |= {"seconds a round outside training and evaluation": outside / 4, "bytes up": result["bytes"]["up"]}
    assert len(result["survivors"]["4"]) == sites
