"""The plugin module: components, settings, imports, README."""

from __future__ import annotations

from typing import ClassVar

from pppml_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    plugin = "pppml_dp.plugin"
    examples: ClassVar = {"dp-sgd": {"epsilon": 6}, "dp-update": {"preset": "paper"}}
