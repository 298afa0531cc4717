"""One model, whatever the sum: every aggregator gives the same bits on every engine.

The short form runs the phantom, two rounds with two steps each. The whole of it, five rounds on the phantom and on the real sets on both
engines, takes many minutes: ``PPPML_MATRIX=full pytest tests/matrix``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import pppml_core as pppml
from pppml_core.registry import Registry

FULL = os.environ.get("PPPML_MATRIX") == "full"
ROUNDS = 5 if FULL else 2
SHARED = Path(os.environ.get("PPPML_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

TENSEAL, PYFHEL = {"use": "tenseal"}, {"use": "pyfhel"}
AGGREGATORS: dict[str, dict[str, Any]] = {
    "secagg-plus": {"use": "secagg-plus"},
    "ring-tenseal-bfv": {"use": "cyclic-he", "rings": 1, "backend": TENSEAL},
    "ring-pyfhel-bfv": {"use": "cyclic-he", "rings": 1, "backend": PYFHEL},
    "ring-pyfhel-bgv": {"use": "cyclic-he", "rings": 1, "backend": {**PYFHEL, "scheme": "bgv"}},
    "ring-tenseal-ckks": {"use": "cyclic-he", "rings": 1, "backend": {**TENSEAL, "scheme": "ckks"}},
    "two-rings-tenseal-bfv": {"use": "cyclic-he", "rings": 2, "backend": TENSEAL},
    "two-rings-pyfhel-bfv": {"use": "cyclic-he", "rings": 2, "backend": PYFHEL},
    "he-fedavg-tenseal": {"use": "he-fedavg", "backend": TENSEAL},
}
#: which of them the short form runs between processes too.
BETWEEN_PROCESSES = ("secagg-plus", "two-rings-tenseal-bfv")

PHANTOM = {"use": "lung-lesions", "size": 32, "patients": 4, "slices_per_patient": 2}
DATA: dict[str, tuple[dict[str, Any], str]] = {
    "phantom": ({"use": "lung-lesions"}, ""),
    "covid-ct": ({"use": "lung-lesions", "source": "npz"}, "segmentation_multisource_covidct_128.npz"),
    "blood-cells": ({"use": "blood-cells", "partition": {"by": "iid", "sites": 5}}, "bloodcells_chula_rbc8_28.npz"),
    "pneumonia": ({"use": "image-set", "kind": "classification"}, "ct_or_xray_classification_pneumoniamnist_v1_28.npz"),
    "nuclei": ({"use": "image-set", "kind": "segmentation"}, "segmentation_multisource_nuclei_128.npz"),
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    """What is installed."""
    return Registry.discover()


def available(registry: Registry, aggregator: dict[str, Any]) -> None:
    """Skip where a plugin, or the library it needs, is not installed."""
    status = {(row.kind, row.name): row.status for row in registry.rows()}
    wanted = [("aggregator", aggregator["use"])]
    if "backend" in aggregator:
        wanted.append(("he-backend", aggregator["backend"]["use"]))
    for kind, name in wanted:
        if status.get((kind, name)) != "ok":
            pytest.skip(f"{kind} {name}: {status.get((kind, name), 'not installed')}")


def model_hash(folder: Path, task: dict[str, Any], aggregator: dict[str, Any], engine: dict[str, Any]) -> str:
    """The model's SHA-256 after FedAvg with few steps a round."""
    experiment = pppml.Experiment(
        task=task,
        run={"rounds": ROUNDS, "seed": 3, "evaluate_every": ROUNDS},
        training={"steps": 2, "batch_size": 4},
        aggregator=aggregator,
        engine=engine,
        reporters=["jsonl"],
    )
    result = experiment.run(folder, report=False).result
    assert all(len(sites) == len(result["survivors"]["1"]) for sites in result["survivors"].values()), result["survivors"]
    return str(result["model_sha256"])


@pytest.fixture(scope="module")
def plain_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the phantom, with ``plain`` in one process."""
    return model_hash(tmp_path_factory.mktemp("plain") / "run", PHANTOM, {"use": "plain"}, {"use": "local"})


@pytest.mark.parametrize("name", AGGREGATORS)
def test_every_sum_gives_the_model_of_plain(name: str, registry: Registry, plain_hash: str, tmp_path: Path) -> None:
    """On the local engine."""
    available(registry, AGGREGATORS[name])
    assert model_hash(tmp_path / "run", PHANTOM, AGGREGATORS[name], {"use": "local"}) == plain_hash


@pytest.mark.parametrize("name", BETWEEN_PROCESSES)
def test_and_so_do_processes(name: str, registry: Registry, tmp_path: Path) -> None:
    """Five operating-system processes that talk through sockets. With a small network, for each of them loads what it needs anew."""
    available(registry, AGGREGATORS[name])
    tiny = {"use": "tiny", "sites": 5}
    plain = model_hash(tmp_path / "plain", tiny, {"use": "plain"}, {"use": "local"})
    assert model_hash(tmp_path / "run", tiny, AGGREGATORS[name], {"use": "processes"}) == plain


@pytest.mark.parametrize("topology", ["p2p", "star"])
def test_and_both_topologies(topology: str, registry: Registry, plain_hash: str, tmp_path: Path) -> None:
    """A ring over links of its own, or carried by the server."""
    ring = AGGREGATORS["two-rings-tenseal-bfv"]
    available(registry, ring)
    assert model_hash(tmp_path / "run", PHANTOM, ring, {"use": "local", "topology": topology, "amnesia": True}) == plain_hash


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="takes many minutes; PPPML_MATRIX=full runs it")
@pytest.mark.parametrize("data", DATA)
def test_all_of_it(data: str, registry: Registry, tmp_path: Path) -> None:
    """Every data set, every sum, both engines."""
    task, file = DATA[data]
    if file:
        if not (SHARED / file).is_file():
            pytest.skip(f"{SHARED / file} is not here")
        task = {**task, "path": str(SHARED / file)}
        if data == "pneumonia":
            task["partition"] = {"by": "iid", "sites": 5}
    found = {"plain": model_hash(tmp_path / "plain", task, {"use": "plain"}, {"use": "local"})}
    sites = len(pppml.load(tmp_path / "plain" / "config.resolved.yaml").plan().plan.sizes)
    for name, aggregator in AGGREGATORS.items():
        if aggregator.get("rings") == 2 and sites < 5:
            continue
        for engine in ("local", "processes"):
            found[f"{name} on {engine}"] = model_hash(tmp_path / f"{name}-{engine}", task, aggregator, {"use": engine})
    assert len(set(found.values())) == 1, found
