"""Tasks to build networks for, and one thread, since small tensors gain nothing from more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from pppml_core.interfaces.task import TaskSpec


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def spec() -> Callable[..., TaskSpec]:
    """``spec((28, 28), channels=3, classes=8, kind="classification")``."""

    def make(size: tuple[int, ...], channels: int = 3, classes: int = 8, kind: str = "classification") -> TaskSpec:
        metric = "dice" if kind == "segmentation" else "accuracy"
        return TaskSpec(kind, channels, size, tuple(f"c{i}" for i in range(classes)), "unet", metric, {metric: (0.0, 1.0)})  # type: ignore[arg-type]

    return make
