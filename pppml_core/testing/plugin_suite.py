"""``PluginSuite``: what every plugin module must do. Valid descriptions, no heavy import, no network, every setting documented."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from pppml_core.adhoc import interface
from pppml_core.component import KINDS, Component, ComponentConfig
from pppml_core.testing.suite import Suite

HEAVY = ("torch", "monai", "matplotlib", "scipy", "sklearn", "skimage", "nibabel", "pydicom", "PIL", "tenseal", "Pyfhel", "opacus")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

#: kinds that implement something published; the others need no citation.
CITED = frozenset({"aggregator", "personalization", "privacy", "attack", "he-backend"})

# Calls every hook with sockets forbidden, then prints what has been imported.
_PROBE = """
import importlib, json, sys
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise RuntimeError(f"the plugin opened a socket: {event}")
sys.addaudithook(watch)
plugin = importlib.import_module(sys.argv[1])
for hook in sys.argv[2:]:
    if hasattr(plugin, hook):
        list(getattr(plugin, hook)())
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


class PluginSuite(Suite):
    """Subclass it with ``plugin``, the module that the entry point names.

    ``readme``: the README that documents the settings; default: the nearest ``README.md`` above the module, else the description in the
    distribution's metadata. ``uncited``: component name -> why it cites nothing. ``examples``: component name -> the fewest settings that
    it accepts, for one that is refused without any, such as one that demands this setting or that.
    """

    plugin: ClassVar[str]
    readme: ClassVar[Path | None] = None
    uncited: ClassVar[Mapping[str, str]] = {}
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def components(self) -> Iterator[tuple[str, Component]]:
        """``(kind, component)`` of every hook of the module."""
        module = importlib.import_module(self.plugin)
        for kind, hook in KINDS.items():
            if hasattr(module, hook):
                yield from ((kind, component) for component in getattr(module, hook)())

    def readme_text(self) -> str:
        """The documentation of the plugin's settings."""
        if self.readme is not None:
            return self.readme.read_text(encoding="utf-8")
        file = importlib.import_module(self.plugin).__file__ or ""
        for folder in Path(file).resolve().parents[:5]:
            if (folder / "pyproject.toml").is_file() and (folder / "README.md").is_file():
                return (folder / "README.md").read_text(encoding="utf-8")
        package = self.plugin.partition(".")[0]
        owners = importlib.metadata.packages_distributions().get(package, [])
        assert owners, f"no README.md above {file}, and no distribution has the package {package}"
        return str(importlib.metadata.metadata(owners[0]).json["description"])

    def probe(self) -> list[str]:
        """Top-level modules loaded in a fresh process by importing the plugin and calling its hooks, with sockets forbidden."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-c", _PROBE, self.plugin, *KINDS.values()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout.splitlines()[-1]))

    # -- tests ------------------------------------------------------------------------------------------------------------------------

    def test_hooks_return_components(self) -> None:
        """If this fails: each hook is a function without arguments that returns a list of ``Component``; see ``docs/hooks.md``."""
        module = importlib.import_module(self.plugin)
        found = [hook for hook in KINDS.values() if hasattr(module, hook)]
        hooks = set(KINDS.values())
        unknown = [name for name, thing in vars(module).items() if name.startswith("pppml_") and callable(thing) and name not in hooks]
        assert not unknown, f"not hooks of pppml: {unknown}"
        assert found, "the module has no hook"
        for hook in found:
            offered = getattr(module, hook)()
            assert isinstance(offered, Sequence), f"{hook} returns a {type(offered).__name__}"
            assert all(isinstance(component, Component) for component in offered), f"{hook} returns something that is no Component"
        names = [(kind, component.name) for kind, component in self.components()]
        assert len(set(names)) == len(names), f"a name is offered twice: {sorted(names)}"

    def test_components_are_described(self) -> None:
        """If this fails: name in lower case with ``-``, a summary of one line, and what the work implements in ``cites``."""
        for kind, component in self.components():
            assert NAME.fullmatch(component.name), component.name
            assert issubclass(component.config, ComponentConfig), f"{component.name}: {component.config} is no ComponentConfig"
            assert component.summary.strip(), f"{component.name} has no summary"
            assert "\n" not in component.summary, f"{component.name}: the summary is one line"
            assert len(component.summary) <= 120, f"{component.name}: the summary has {len(component.summary)} characters"
            if kind in CITED and component.name not in self.uncited:
                assert component.cites, f"{component.name} cites nothing; or give the reason in `uncited`"

    def test_targets_load(self) -> None:
        """If this fails: ``target`` is ``"module:Class"`` of a class of the kind's interface that can be imported here."""
        for kind, component in self.components():
            if missing := component.missing():
                pytest.skip(f"{component.name} needs {', '.join(missing)}, not installed here")
            target = component.load()
            assert isinstance(target, type), f"{component.name}: {component.target} is no class"
            assert issubclass(target, interface(kind)), f"{component.name}: {component.target} is no {interface(kind).__name__}"

    def test_settings_have_defaults_and_descriptions(self) -> None:
        """If this fails: give each field a default or make it required on purpose, and always a description."""
        for _, component in self.components():
            fields = component.config.model_fields
            assert "use" not in fields, f"{component.name}: `use` is the registry's"
            required = {name for name, field in fields.items() if field.is_required()}
            undescribed = [name for name, field in fields.items() if not field.description]
            assert not undescribed, f"{component.name}: no description for {undescribed}"
            refused = _refused(component.config, {})
            assert refused - {""} <= required, f"{component.name}: the defaults of {sorted(refused - required)} are refused"
            named = component.name in self.examples
            assert named or "" not in refused, f"{component.name} is refused without settings: name the fewest it needs in `examples`"

    def test_examples_are_the_fewest_settings(self) -> None:
        """If this fails: ``examples`` are for components that are refused without settings, and name no setting that has a default."""
        configs = {component.name: component.config for _, component in self.components()}
        assert set(self.examples) <= set(configs), f"examples of no component: {sorted(set(self.examples) - set(configs))}"
        for name, example in self.examples.items():
            assert not (refused := _refused(configs[name], example)), f"{name}: its example is refused ({sorted(refused)})"
            assert _refused(configs[name], {}), f"{name} needs no settings, so no example"
            for setting in example:
                fewer = {key: value for key, value in example.items() if key != setting}
                assert _refused(configs[name], fewer), f"{name} does without `{setting}`: leave it out of its example"

    def test_unknown_settings_are_refused(self) -> None:
        """If this fails: the config must keep ``extra="forbid"``, or a misspelt setting would be ignored."""
        for _, component in self.components():
            with pytest.raises(ValidationError, match="no_such_setting"):
                component.config.model_validate({"no_such_setting": 1})

    def test_schema(self) -> None:
        """If this fails: a field has a type that JSON Schema cannot express."""
        for _, component in self.components():
            schema = component.config.model_json_schema()
            json.dumps(schema)
            assert set(schema.get("properties", {})) == set(component.config.model_fields)

    def test_import_is_light_and_local(self) -> None:
        """If this fails: move the import into a function or into the module that ``target`` names; open no socket in a hook."""
        loaded = self.probe()
        heavy = [name for name in HEAVY if name in loaded]
        assert not heavy, f"importing {self.plugin} loads {', '.join(heavy)}"

    def test_readme_mentions_every_setting(self) -> None:
        """If this fails: the README must name each component and each of its settings, in backticks."""
        text = self.readme_text()
        for _, component in self.components():
            for name in (component.name, *component.config.model_fields):
                pattern = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
                assert re.search(pattern, text), f"the README does not mention `{name}` of {component.name}"


def _refused(config: type[ComponentConfig], settings: Mapping[str, Any]) -> set[str]:
    """The settings that are refused when these are given; ``""`` where they are refused as a whole."""
    try:
        config.model_validate(settings)
    except ValidationError as error:
        return {str(entry["loc"][0]) if entry["loc"] else "" for entry in error.errors()}
    return set()
