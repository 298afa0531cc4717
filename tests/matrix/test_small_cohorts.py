"""A site that does not come may leave a cohort too small for the sum: the round is tried again, the run is not refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import pppml_core as pppml
from pppml_core.errors import RunFailed
from pppml_core.registry import Registry

SUMS = {
    "secagg-plus": (3, {"use": "secagg-plus"}),
    "ring": (3, {"use": "cyclic-he", "backend": {"use": "tenseal"}}),
    "two-rings": (5, {"use": "cyclic-he", "rings": 2, "backend": {"use": "tenseal"}}),
    "he-fedavg": (3, {"use": "he-fedavg", "backend": {"use": "tenseal"}}),
}


def experiment(name: str, times: int, on_abort: str = "retry") -> pppml.Experiment:
    """The smallest cohort of a sum, of which one site is not reached ``times`` times in the second round."""
    registry = Registry.discover()
    sites, aggregator = SUMS[name]
    status = {(row.kind, row.name): row.status for row in registry.rows()}
    if status.get(("aggregator", aggregator["use"])) != "ok" or status.get(("he-backend", "tenseal")) != "ok":
        pytest.skip(f"{name} is not installed")
    lost = ["site_1", "site_2"] if name == "two-rings" else ["site_1"]
    return pppml.Experiment(
        registry=registry,
        task={"use": "tiny", "sites": sites},
        run={"rounds": 2, "seed": 1, "retries": 2, "on_abort": on_abort},
        training={"steps": 1},
        aggregator=aggregator,
        engine={"use": "local", "faults": [{"site": s, "stage": "open", "round": 2, "do": "drop", "times": times} for s in lost]},
        reporters=["jsonl"],
    )


@pytest.mark.parametrize("name", SUMS)
def test_the_round_is_tried_again_with_everybody(name: str, tmp_path: Path) -> None:
    """Lost once: the second attempt has the whole cohort."""
    result = experiment(name, 1).run(tmp_path / "run", report=False).result
    assert len(result["survivors"]["2"]) == SUMS[name][0]


@pytest.mark.parametrize("name", ["secagg-plus", "two-rings"])
def test_lost_for_good_the_run_says_so_and_can_be_resumed(name: str, tmp_path: Path) -> None:
    """A run that fails is no refused plan."""
    with pytest.raises(RunFailed, match="site_1"):
        experiment(name, 100).run(tmp_path / "run", report=False)
