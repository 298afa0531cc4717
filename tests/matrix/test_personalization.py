"""Personalization with everything else: every method gives the same shared model and the same model of each site, whatever sums the
updates and wherever the sites run; and a run that was killed in every round ends as one that was not.

The short form takes a few of the combinations on small images. All of them, on the phantom too: ``PPPML_MATRIX=full pytest tests/matrix``.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pppml_core as pppml
from pppml_core.interfaces.reporter import Reporter
from pppml_core.learning.arrays import sha256_of_state
from pppml_core.registry import Registry

FULL = os.environ.get("PPPML_MATRIX") == "full"

METHODS: dict[str, dict[str, Any]] = {
    "per-fedavg": {"use": "per-fedavg"},
    "per-fedavg-hessian-free": {"use": "per-fedavg", "order": "hessian-free"},
    "per-fedavg-exact": {"use": "per-fedavg", "order": "exact"},
    "per-fedavg-local": {"use": "per-fedavg", "batch_norm": "local"},
    "per-fedavg-frozen": {"use": "per-fedavg", "batch_norm": "frozen"},
    "fedavg-finetune": {"use": "fedavg-finetune"},
    "fedprox": {"use": "fedprox"},
    "fedbn": {"use": "fedbn"},
    "ditto": {"use": "ditto"},
    "fedper": {"use": "fedper"},
    "fedrep": {"use": "fedrep"},
    "apfl": {"use": "apfl"},
}
SUMS: dict[str, dict[str, Any]] = {
    "secagg-plus": {"use": "secagg-plus"},
    "two-rings": {"use": "cyclic-he", "rings": 2, "backend": {"use": "tenseal"}},
    "ring": {"use": "cyclic-he", "rings": 1, "backend": {"use": "tenseal"}},
}
ENGINES: dict[str, dict[str, Any]] = {
    "local": {"use": "local"},
    "two-workers": {"use": "local", "workers": 2},
    "recreated-sites": {"use": "local", "amnesia": True},
    "processes": {"use": "processes"},
}
TINY = {"use": "tiny", "sites": 5, "examples": 12}
DATA = {
    "tiny": (TINY, {"use": "tiny-net", "norm": "batch"}),
    "phantom": ({"use": "lung-lesions", "size": 32, "patients": 4, "slices_per_patient": 2}, {"use": "unet", "norm": "batch"}),
}

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def registry() -> Registry:
    """What is installed."""
    torch.set_num_threads(1)
    return Registry.discover()


def available(registry: Registry, method: str, aggregator: dict[str, Any] | None = None) -> None:
    """Skip where a plugin, or the library it needs, is not installed."""
    status = {(row.kind, row.name): row.status for row in registry.rows()}
    wanted = [("personalization", METHODS[method]["use"])]
    if aggregator is not None:
        wanted += [("aggregator", aggregator["use"]), *([("he-backend", "tenseal")] if "backend" in aggregator else [])]
    for kind, name in wanted:
        if status.get((kind, name)) != "ok":
            pytest.skip(f"{kind} {name}: {status.get((kind, name), 'not installed')}")


def outcome(
    folder: Path, method: str, *, data: str = "tiny", leave_out: tuple[str, ...] = (), metrics: str = "per-site", **sections: Any
) -> Outcome:
    """The shared model's hash, the hash of each site's own model, and its final scores, after two rounds."""
    task, model = DATA[data]
    experiment = pppml.Experiment(
        task={**task, "leave_out": list(leave_out)},
        model=model,
        personalization=METHODS[method],
        run={"rounds": 2, "seed": 3, "evaluate_every": 2, "metrics": metrics},
        training={"steps": 2, "batch_size": 4, "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}, "keep_optimizer": True},
        reporters=["jsonl"],
        **sections,
    )
    return summary(experiment.run(folder, report=False))


def summary(run: pppml.Run) -> Outcome:
    """What two runs must have in common."""
    result = run.result
    sites = result["survivors"]["1"]
    assert all(there == sites for there in result["survivors"].values()), result["survivors"]
    own = {s: sha256_of_state(load_file(run.folder / "sites" / s / "personalized.safetensors")) for s in sites}
    return {"model": result["model_sha256"], "own": own, "metrics": result["metrics"], "selected": result["selected_round"]}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a method with ``plain`` in this process, made once."""
    made: dict[Any, Outcome] = {}

    def get(method: str, **about: Any) -> Outcome:
        key = (method, *sorted(about.items()))
        if key not in made:
            made[key] = outcome(tmp_path_factory.mktemp(method) / "run", method, **about)
            assert (len(set(made[key]["own"].values())) > 1) == (method != "fedprox"), "every site has a model of its own"
        return made[key]

    return get


SHORT = [("per-fedavg", "secagg-plus"), ("per-fedavg", "two-rings"), ("fedper", "secagg-plus"), ("apfl", "ring")]
PAIRS = [(m, s) for m in METHODS for s in SUMS] if FULL else SHORT


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_every_sum_gives_the_models_of_plain(method: str, name: str, registry: Registry, plain: Any, tmp_path: Path) -> None:
    """Shared and personal, bit for bit."""
    available(registry, method, SUMS[name])
    assert outcome(tmp_path / "run", method, aggregator=SUMS[name]) == plain(method)


def test_scores_of_own_models_leave_in_a_secure_sum_too(registry: Registry, plain: Any, tmp_path: Path) -> None:
    """Personalized scores alone, where there is no shared model; the same mean as with ``plain``."""
    available(registry, "fedper", SUMS["secagg-plus"])
    found = outcome(tmp_path / "run", "fedper", metrics="sum", aggregator=SUMS["secagg-plus"])
    assert found == plain("fedper", metrics="sum")
    assert set(found["metrics"]["personalized"]["sites"]) == {"all"}
    one, other = found["metrics"]["personalized"]["mean"], plain("fedper")["metrics"]["personalized"]["mean"]
    assert one == pytest.approx(other, abs=1e-5)


FEW = [("ditto", "two-workers"), ("per-fedavg", "recreated-sites")]
PLACES = [(m, e) for m in METHODS for e in ENGINES if e != "local"] if FULL else FEW


@pytest.mark.parametrize(("method", "engine"), PLACES)
def test_and_so_does_every_engine(method: str, engine: str, registry: Registry, plain: Any, tmp_path: Path) -> None:
    """Sites that live elsewhere, and sites that are made anew before each message, which have nothing but their folder."""
    available(registry, method, SUMS["secagg-plus"])
    found = outcome(tmp_path / "run", method, aggregator=SUMS["secagg-plus"], engine=ENGINES[engine])
    assert found == plain(method)


def test_processes_with_sites_left_out(registry: Registry, plain: Any, tmp_path: Path) -> None:
    """Each process builds task and method from the resolved config, and knows who takes no part."""
    available(registry, "per-fedavg", SUMS["secagg-plus"])
    left_out = ("site_2", "site_5")
    found = outcome(tmp_path / "run", "per-fedavg", leave_out=left_out, aggregator=SUMS["secagg-plus"], engine=ENGINES["processes"])
    assert set(found["own"]) == {"site_1", "site_3", "site_4"}
    assert found == plain("per-fedavg", leave_out=left_out)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="takes many minutes; PPPML_MATRIX=full runs it")
@pytest.mark.parametrize("method", METHODS)
def test_all_of_it_on_the_phantom(method: str, registry: Registry, tmp_path: Path) -> None:
    """Every sum on every engine."""
    available(registry, method, SUMS["two-rings"])
    expected = outcome(tmp_path / "plain", method, data="phantom")
    for name, aggregator in SUMS.items():
        for engine, section in ENGINES.items():
            found = outcome(tmp_path / f"{name}-{engine}", method, data="phantom", aggregator=aggregator, engine=section)
            assert found == expected, (name, engine)


# -- killed in every round ----------------------------------------------------------------------------------------------------

STATEFUL = tuple(METHODS) if FULL else ("ditto", "apfl", "per-fedavg")
#: round and stage after which the process is killed, one after another; the last is the scoring of the end.
KILLS = ((1, "contribute"), (2, "evaluate"), (3, "open"), (4, "checkpoint"), (4, "evaluate"))


class Kill(Reporter):
    """Kills its process after a stage of a round, the ``count``-th time it sees it."""

    def __init__(self) -> None:
        self.at: tuple[int, str] | None = None

    def handle(self, event: Any) -> None:
        if event["event"] == "stage" and (event.get("round"), event["stage"]) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Any) -> bool:
    """Whether ``work`` was killed, in a child process."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("method", STATEFUL)
def test_killed_in_every_round_and_resumed(method: str, registry: Registry, tmp_path: Path) -> None:
    """A second model, a mixing factor, Adam's moments of each site: all of it is on the disk, of the right round."""
    available(registry, method)
    kill = Kill()
    made = pppml.Experiment(
        registry=registry,
        task={"use": "tiny", "examples": 12},
        model=DATA["tiny"][1],
        personalization=METHODS[method],
        run={"rounds": 4, "seed": 3, "select": "best-validation"},
        training={"steps": 3, "batch_size": 4, "optimizer": {"use": "adam", "lr": 0.003}, "keep_optimizer": True},
        reporters=[kill],
    )
    whole = made.run(tmp_path / "whole", report=False)
    for kill.at in KILLS:
        assert killed(lambda: made.run(tmp_path / "killed", report=False)), kill.at
    kill.at = None
    run = made.run(tmp_path / "killed", report=False)
    assert summary(run) == summary(whole)
    for site in ("site_1", "site_2", "site_3"):
        mine, other = (json.loads((r.folder / "sites" / site / "group-scores.json").read_text()) for r in (run, whole))
        assert mine == other
    assert list(run.metrics) == list(whole.metrics)
