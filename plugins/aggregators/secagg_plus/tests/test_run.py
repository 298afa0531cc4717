"""A whole run: the same model as in the clear, to the last bit, whatever the graph, also with a site that vanishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pppml_core as pppml


def model_of(folder: Path, aggregator: Any, engine: Any = "local") -> dict[str, Any]:
    experiment = pppml.Experiment(
        task={"use": "tiny", "sites": 6}, aggregator=aggregator, run={"rounds": 2, "metrics": "none"}, engine=engine, reporters=["jsonl"]
    )
    experiment.run(folder, report=False)
    return json.loads((folder / "result.json").read_text())


def test_the_same_model_as_in_the_clear(tmp_path: Path) -> None:
    plain = model_of(tmp_path / "plain", "plain")
    for name in ("default", "paper"):
        found = model_of(tmp_path / name, {"use": "secagg-plus", "preset": name})
        assert found["model_sha256"] == plain["model_sha256"], name
        assert found["survivors"] == plain["survivors"]
        assert found["guarantees"]["sees_update"] == []


@pytest.mark.parametrize("stage", ["mask", "unmask"])
def test_the_same_model_when_a_site_vanishes(tmp_path: Path, stage: str) -> None:
    """What a vanished site costs is its update, and not even that once it is in the sum."""
    gone = {"site": "c", "stage": stage, "round": 2, "do": "drop"}
    lost = {**gone, "stage": "contribute"} if stage != "unmask" else None
    plain = model_of(tmp_path / "plain", "plain", {"use": "local", "faults": [lost] if lost else []})
    found = model_of(tmp_path / "masked", "secagg-plus", {"use": "local", "faults": [gone]})
    assert found["survivors"] == plain["survivors"]
    assert found["model_sha256"] == plain["model_sha256"]
