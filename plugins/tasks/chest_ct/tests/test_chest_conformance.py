"""The conformance kit's suites on both sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from pppml_chest_ct.plugin import pppml_tasks
from pppml_core.testing import PluginSuite, TaskSuite


class TestPlugin(PluginSuite):
    plugin = "pppml_chest_ct.plugin"


class TestPhantom(TaskSuite):
    component = pppml_tasks()[0]
    config: ClassVar[dict[str, Any]] = {"size": 16, "patients": 4}
    looked_at = 4


class TestRadChestCT(TaskSuite):
    component = pppml_tasks()[0]
    files: ClassVar[dict[str, Any]] = {}
    looked_at = 3

    @pytest.fixture(autouse=True)
    def _folder(self, dataset: Path) -> None:
        type(self).files = {"source": "rad-chestct", "path": str(dataset), "size": 16}

    def make(self, **changes: Any) -> Any:
        return super().make(**{**self.files, **changes})
