"""One thread, and small runs of the tiny task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pppml_core.api import Experiment, Run


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def experiment() -> Callable[..., Experiment]:
    """Two rounds of two steps of the tiny task with BatchNorm; sections are laid over these."""

    def make(**sections: Any) -> Experiment:
        basis: dict[str, Any] = {
            "task": {"use": "tiny", "sites": 3},
            "model": {"use": "tiny-net", "norm": "batch"},
            "training": {"steps": 2, "batch_size": 4, "device": "cpu"},
            "run": {"rounds": 2, "seed": 5, "evaluate_every": 2},
        }
        merged = {k: {**basis.get(k, {}), **v} if isinstance(v, dict) and k != "model" else v for k, v in sections.items()}
        return Experiment(**{**basis, **merged})

    return make


@pytest.fixture
def go(experiment: Callable[..., Experiment], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Run it in a folder of its own."""

    def run(**sections: Any) -> Run:
        folder: Path = tmp_path_factory.mktemp("run") / "r"
        return experiment(**sections).run(folder, reporters=False, report=False)

    return run
