"""The plugin module: components, settings, imports, README."""

from __future__ import annotations

from typing import ClassVar

from pppml_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    plugin = "pppml_dpresnet.plugin"
    examples: ClassVar = {"linear-head": {"features": "small-cnn", "weights": "random"}, "group-normed": {"of": "small-cnn"}}
