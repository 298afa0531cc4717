"""What every plugin must do."""

from __future__ import annotations

from pppml_core.testing import PluginSuite


class TestPlugin(PluginSuite):
    """pppml-flower."""

    plugin = "pppml_flower.plugin"
