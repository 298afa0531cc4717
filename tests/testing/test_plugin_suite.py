from pathlib import Path

from pppml_core.testing.plugin_suite import PluginSuite

ROOT = Path(__file__).resolve().parents[2]


class TestInsecurePlugin(PluginSuite):
    plugin = "pppml_core.testing.insecure_plugin"
    readme = ROOT / "docs" / "conformance.md"


class TestBuiltins(PluginSuite):
    plugin = "pppml_core.builtin.plugin"
    readme = ROOT / "docs" / "config.md"
    uncited = {
        "plain": "a plain sum",
        "local-only": "the absence of federation",
        "none": "the absence of a mechanism",
        "read-out": "what the session decodes already",
    }
