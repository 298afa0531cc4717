"""The insecure sums and the faults in real runs: training, engine, courier and sites as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from pppml_core import Experiment
from pppml_core.errors import RunFailed
from pppml_core.registry import Registry
from pppml_core.testing import insecure_plugin

REGISTRY = Registry.only(insecure_plugin)
SUMS = {"plain": "contribute", "insecure-masked-sum": "masked", "insecure-ring": "ring"}


def hold(folder: Path, aggregator: str, *faults: dict[str, Any], run: dict[str, Any] | None = None, **engine: Any) -> dict[str, Any]:
    """A run of two rounds on the tiny task; its result.json."""
    Experiment(
        registry=REGISTRY,
        task={"use": "tiny", "sites": 4, "examples": 6},
        aggregator=aggregator,
        run={"rounds": 2, **(run or {})},
        engine={"use": "local", "faults": list(faults), **engine},
        reporters=["jsonl"],
    ).run(folder)
    return json.loads((folder / "result.json").read_text())


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return hold(tmp_path_factory.mktemp("runs") / "plain", "plain")


@pytest.mark.parametrize("topology", ["p2p", "star"])
@pytest.mark.parametrize("aggregator", SUMS)
def test_the_model_is_the_same_bit_for_bit(tmp_path, plain, aggregator, topology):
    stage = SUMS[aggregator]
    faults = [{"site": "site_2", "stage": stage, "do": do, "round": round} for round, do in ((1, "duplicate"), (2, "delay"))]
    result = hold(tmp_path / "run", aggregator, *faults, amnesia=True, topology=topology)
    assert result["model_sha256"] == plain["model_sha256"]


def test_a_dropout_gives_every_sum_the_same_model(tmp_path):
    def with_dropout(aggregator: str, stage: str) -> dict[str, Any]:
        fault = {"site": "site_3", "stage": stage, "round": 1, "do": "drop"}
        return hold(tmp_path / aggregator, aggregator, fault, amnesia=True)

    results = [with_dropout(aggregator, stage) for aggregator, stage in SUMS.items()]
    assert results[0]["survivors"]["1"] == ["site_1", "site_2", "site_4"]
    assert len({result["model_sha256"] for result in results}) == 1
    assert len({json.dumps(result["survivors"]) for result in results}) == 1


@pytest.mark.parametrize("do", ["drop-reply", "tamper", "truncate", "replay"])
def test_a_broken_ring_is_held_again_with_the_same_result(tmp_path, plain, do):
    result = hold(tmp_path / "run", "insecure-ring", {"site": "site_2", "stage": "ring", "round": 1, "do": do})
    assert [event["next"] for event in events(tmp_path / "run", "round-aborted")] == ["retry"]
    assert result["model_sha256"] == plain["model_sha256"]


def test_a_round_that_cannot_be_held_stops_the_run(tmp_path):
    with pytest.raises(RunFailed):
        hold(tmp_path / "run", "insecure-ring", {"site": "site_2", "stage": "ring", "do": "drop-reply", "times": 99}, run={"retries": 1})


@pytest.mark.parametrize("aggregator", ["insecure-masked-sum", "insecure-ring"])
def test_a_run_with_an_insecure_sum_is_stamped(tmp_path, aggregator):
    result = hold(tmp_path / "run", aggregator)
    assert any("INSECURE" in assumption for assumption in result["guarantees"]["assumes"])
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert any("INSECURE" in warning for warning in plan["warnings"])
