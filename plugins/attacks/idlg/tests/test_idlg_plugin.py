"""The plugin as such."""

from __future__ import annotations

from pppml_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    plugin = "pppml_idlg.plugin"
