"""Distributions as pip would install them: a module and a dist-info folder on sys.path."""

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

PLUGIN = """
from pppml_core import Component, ComponentConfig, hookimpl

class Config(ComponentConfig):
    pass

@hookimpl
def {hook}():
    return [Component("{name}", Config, "{module}:Target", "the {name} of {module}")]
"""


class Site:
    """A folder like site-packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, distribution, source, *, version="0.1.0", requires=("pppml-core>=0.1,<0.2",), group="pppml", entry="plugin"):
        """One distribution with one module (of another name than a real plugin's) and one entry point that names it."""
        module = "fake_" + distribution.replace("-", "_")
        self.modules.append(module)
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.folder / f"{module.removeprefix('fake_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in requires)]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}\n")
        return module

    def offer(self, distribution, hook, name, **more):
        """A distribution that offers one component."""
        module = "fake_" + distribution.replace("-", "_")
        return self.install(distribution, PLUGIN.format(hook=hook, name=name, module=module), **more)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site-packages, first on sys.path; its modules are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("PPPML_PLUGINS", raising=False)
    found = Site(folder)
    yield found
    for module in found.modules:
        sys.modules.pop(module, None)
    importlib.invalidate_caches()
