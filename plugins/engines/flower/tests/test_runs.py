"""One config, one seed: the same model, charges and manifest over Flower as in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pppml_core.api import Experiment
from pppml_core.federation.letter import frame_in
from pppml_core.registry import Registry
from pppml_core.wire.codec import decode_message
from pppml_flower.at_hand import using
from pppml_flower.grid import GridPost
from pppml_flower.post import FRAME

SITES = ("site_1", "site_2", "site_3", "site_4")
#: aggregator, and the stage at which a site may vanish without the round being lost.
SUMS = {
    "plain": ({"use": "plain"}, "contribute"),
    "secagg-plus": ({"use": "secagg-plus"}, "mask"),
    "cyclic-he": ({"use": "cyclic-he", "backend": {"use": "tenseal"}}, None),
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    """What is installed."""
    return Registry.discover()


def _config(aggregator: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"task": {"use": "tiny", "sites": 4}, "aggregator": aggregator, "run": {"rounds": 2, "seed": 3, "name": "x"}, **more}


def _of(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text())
    return {
        **{name: result[name] for name in ("model_sha256", "survivors", "metrics", "privacy", "guarantees")},
        "manifest": json.loads((folder / "manifest.json").read_text()),
    }


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", SUMS)
def test_equal_to_local(name, dropout, registry, homes, grid_of, tmp_path):
    aggregator, stage = SUMS[name]
    status = {row.name: row.status for row in registry.rows()}
    if status.get(name) != "ok" or (name == "cyclic-he" and status.get("tenseal") != "ok"):
        pytest.skip(f"{name} is not installed")
    if stage is None and dropout:
        stage = "open"
    fault = {"site": "site_3", "stage": stage, "round": 2, "do": "drop"}
    there = homes(SITES)
    local = {"use": "local", "topology": "star", "faults": [fault] if dropout else []}
    Experiment(_config(aggregator, engine=local), registry=registry).run(tmp_path / "local", report=False, reporters=False)

    grid = grid_of(there)
    left = [1] if dropout else []

    def takes(node: int, kind: str, data: bytes) -> bool:
        if kind == FRAME and left and node == 103:
            message = decode_message(frame_in(data))
            if (message.stage, message.round) == (stage, 2):
                left.pop()
                return False
        return True

    grid.takes = takes
    flower = {"use": "flower", "homes": str(there["server"].parent), "poll": 0.01}
    with using(GridPost(grid)):
        Experiment(_config(aggregator, engine=flower), registry=registry).run(tmp_path / "flower", report=False, reporters=False)
    assert not left
    expected, found = _of(tmp_path / "local"), _of(tmp_path / "flower")
    assert found == expected
    assert len(found["survivors"]["2"]) == len(SITES) - dropout


def test_the_same_charges(registry, homes, grid_of, tmp_path):
    """Noise is secret, so the models differ; what is charged for it, at the coordinator and at each site, does not."""
    if {row.name: row.status for row in registry.rows()}.get("dp-sgd") != "ok":
        pytest.skip("dp-sgd is not installed")
    there = homes(SITES)
    privacy = {"use": "dp-sgd", "clip": 1.0, "epsilon": 8.0, "delta": 1e-3}
    Experiment(_config({"use": "plain"}, privacy=privacy), registry=registry).run(tmp_path / "local", report=False, reporters=False)
    flower = {"use": "flower", "homes": str(there["server"].parent), "poll": 0.01}
    with using(GridPost(grid_of(there))):
        Experiment(_config({"use": "plain"}, privacy=privacy, engine=flower), registry=registry).run(
            tmp_path / "flower", report=False, reporters=False
        )
    assert _ledger(tmp_path / "flower") == _ledger(tmp_path / "local") != []
    for site in SITES:
        (own,) = (there[site] / "runs").glob(f"*/{site}")
        charged = _ledger(own)
        assert charged == _ledger(tmp_path / "local" / "sites" / site)
        assert len(charged) == 2


def _ledger(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in ("contribution", "time")} for entry in entries]
