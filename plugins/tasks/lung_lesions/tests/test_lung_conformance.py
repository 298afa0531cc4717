"""The conformance kit's suites on all three sources, and the real slices where they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from pppml_core.testing import PluginSuite, TaskSuite
from pppml_lung_lesions.plugin import pppml_tasks


class TestPlugin(PluginSuite):
    plugin = "pppml_lung_lesions.plugin"


class TestPhantom(TaskSuite):
    component = pppml_tasks()[0]
    config: ClassVar[dict[str, Any]] = {"size": 32, "patients": 4, "sites": 6}


class _OnFiles(TaskSuite):
    component = pppml_tasks()[0]
    files: ClassVar[dict[str, Any]] = {}

    def make(self, **changes: Any) -> Any:
        return super().make(**{**self.files, **changes})


class TestNpz(_OnFiles):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        if self.files:
            return
        draw, n = np.random.default_rng(0), 48
        path = tmp_path_factory.mktemp("npz") / "slices.npz"
        np.savez(
            path,
            images=draw.integers(0, 256, (n, 32, 32), dtype=np.uint8),
            masks=(draw.random((n, 32, 32)) < 0.2).astype(np.uint8),
            source=(np.arange(n) % 2).astype(np.uint8),
            patient=np.array([f"p{i // 4}" if i < 32 else "unknown" for i in range(n)]),
        )
        type(self).files = {"source": "npz", "path": str(path)}


class TestCT(_OnFiles):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory, files: SimpleNamespace) -> None:
        if self.files:
            return
        root: Path = tmp_path_factory.mktemp("ct")
        files.write_sites(root, {"a": 3, "b": 4}, slices=8)
        type(self).files = {"source": "ct", "path": str(root), "spacing": 6.0, "size": 64, "slices": 3}


class TestRealSlices(_OnFiles):
    @pytest.fixture(autouse=True)
    def _file(self, covidct: Path) -> None:
        type(self).files = {"source": "npz", "path": str(covidct)}
