"""Discovery over real entry points of made-up distributions."""

import subprocess
import sys

import pytest

from pppml_core.errors import ConfigError, PluginConflict, PluginError
from pppml_core.registry import Registry


def row(registry, distribution):
    """The only row of a distribution."""
    (found,) = [row for row in registry.rows() if row.distribution == distribution]
    return found


def test_a_plugin_is_found_with_its_version(site):
    site.offer("pppml-secagg-plus", "pppml_aggregators", "secagg-plus", version="0.1.7")
    registry = Registry.discover()
    found = row(registry, "pppml-secagg-plus")
    assert (found.kind, found.name, found.version, found.status) == ("aggregator", "secagg-plus", "0.1.7", "ok")
    assert registry.get("aggregator", "secagg-plus").distribution == "pppml-secagg-plus"
    assert registry.versions()["pppml-secagg-plus"] == "0.1.7"


def test_the_core_is_there_too_and_its_rows_do_not_depend_on_plugins(site):
    before = [row for row in Registry.discover().rows() if row.distribution == "pppml-core"]
    site.offer("a-plugin", "pppml_tasks", "mine")
    assert [row for row in Registry.discover().rows() if row.distribution == "pppml-core"] == before != []


MARKED = "from pppml_core import hookimpl\n@hookimpl\n"
BROKEN = {
    "import error": ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
    "syntax error": ("def (", "SyntaxError"),
    "exit at import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "misspelt hook": (
        MARKED + "def pppml_agregators():\n    return []",
        "there is no hook 'pppml_agregators'; the nearest is 'pppml_aggregators'",
    ),
    "unmarked hook": ("def pppml_models():\n    return []", "pppml_models is not marked with @hookimpl"),
    "nothing": ("", "it offers no component"),
    "hook raises": (
        MARKED + "def pppml_tasks():\n    raise ValueError('no\\n luck')",
        "ValueError: no luck",
    ),
    "hook takes an argument": (
        MARKED + "def pppml_tasks(registry):\n    return []",
        "PluginValidationError",
    ),
    "not a list": (MARKED + "def pppml_tasks():\n    return 'mine'", "returned str, not a list"),
    "not a component": (
        MARKED + "def pppml_tasks():\n    return ['mine']",
        "returned a list with str in it",
    ),
}
COMPONENT = """
from typing import Annotated
from pydantic import BaseModel
from pppml_core import Choice, Component, ComponentConfig, hookimpl
class Config(ComponentConfig):
    {field}
@hookimpl
def pppml_tasks():
    return [{component}]
"""
ILL_FORMED = {
    "bad name": ("pass", "Component('My Task', Config, 'a:B', 's')", "'My Task' is not lower-case words"),
    "reserved name": ("pass", "Component('object', Config, 'a:B', 's')", "'object' is not"),
    "config of another kind": ("pass", "Component('x', BaseModel, 'a:B', 's')", "not a ComponentConfig class"),
    "reserved field": ("use: str = ''", "Component('x', Config, 'a:B', 's')", "field 'use', which is reserved"),
    "reserved field of tasks": ("pool: bool = False", "Component('x', Config, 'a:B', 's')", "field 'pool', which is reserved"),
    "bad target": ("pass", "Component('x', Config, 'a.B', 's')", "is not 'module:Class'"),
    "no summary": ("pass", "Component('x', Config, 'a:B', '')", "no one-line summary"),
    "twice": ("pass", "Component('x', Config, 'a:B', 's'), Component('x', Config, 'a:C', 's')", "offers the task 'x' twice"),
    "choice of an unknown kind": (
        "part: Annotated[ComponentConfig, Choice('he')]",
        "Component('x', Config, 'a:B', 's')",
        "a choice of kind 'he', which there is not",
    ),
    "choice of its own kind": (
        "part: Annotated[ComponentConfig, Choice('task')]",
        "Component('x', Config, 'a:B', 's')",
        "chooses among its own kind",
    ),
}
BROKEN |= {name: (COMPONENT.format(field=field, component=component), reason) for name, (field, component, reason) in ILL_FORMED.items()}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_a_row_and_hides_no_other(site, case):
    source, reason = BROKEN[case]
    site.install("aaa-broken", source)
    site.offer("zzz-good", "pppml_tasks", "good")
    registry = Registry.discover()
    found = row(registry, "aaa-broken")
    assert found.status == "broken"
    assert reason in found.summary
    assert "\n" not in found.summary
    assert registry.get("task", "good")


@pytest.mark.parametrize(
    ("requires", "works"),
    [
        (["pppml-core>=0.1,<0.2"], True),
        (["pppml_core >= 0.1"], True),
        ([], True),
        (["numpy", "pppml-core-extras>=9"], True),
        (["pppml-core>=9; python_version < '3'"], True),
        (["pppml-core>=9; extra == 'x'"], True),
        (["pppml-core>=9"], False),
        (["pppml-core<0.1"], False),
        (["numpy", "PPPML.Core (==2.0)"], False),
    ],
)
def test_a_plugin_for_another_core_is_broken_and_not_imported(site, requires, works):
    module = site.offer("pppml-unet", "pppml_models", "my-net", requires=requires)
    found = row(Registry.discover(), "pppml-unet")
    assert (found.status == "ok") == works
    assert (module in sys.modules) == works
    if not works:
        assert "but pppml-core 0." in found.summary
        assert "requires" in found.summary


def test_two_distributions_of_one_name(site):
    site.offer("sums-a", "pppml_aggregators", "mine")
    site.offer("sums-b", "pppml_aggregators", "mine")
    site.offer("tasks", "pppml_tasks", "mine")
    registry = Registry.discover()
    with pytest.raises(PluginConflict, match="sums-a and sums-b") as caught:
        registry.get("aggregator", "mine")
    assert caught.value.exit_code == 3
    assert row(registry, "sums-a").status == row(registry, "sums-b").status == "conflict"
    assert "sums-b" in row(registry, "sums-a").summary
    assert row(registry, "tasks").status == "ok"
    assert "mine" not in [component.name for component in registry.components("aggregator")]


def test_a_missing_need_is_told_without_importing(site):
    source = """
    from pppml_core import Component, ComponentConfig, hookimpl
    @hookimpl
    def pppml_he_backends():
        return [Component("tenseal", ComponentConfig, "nowhere:X", "sealed", needs=("no_such_module_here",))]
    """
    site.install("pppml-he-tenseal", source)
    registry = Registry.discover()
    assert row(registry, "pppml-he-tenseal").status == "needs no_such_module_here"
    with pytest.raises(PluginError, match="needs no_such_module_here"):
        registry.get("he-backend", "tenseal").load()


def test_a_broken_plugin_that_would_offer_the_name(site):
    site.install("pppml-monai-nets", "raise RuntimeError('no nets today')")
    with pytest.raises(PluginError, match=r"pppml-monai-nets 0\.1\.0 is broken: RuntimeError: no nets today") as caught:
        Registry.discover().get("model", "unet")
    assert caught.value.exit_code == 3


def test_environment_restricts_what_is_loaded(site, monkeypatch):
    first = site.offer("Pppml_Unet", "pppml_models", "first")
    second = site.offer("pppml-other", "pppml_models", "second")
    monkeypatch.setenv("PPPML_PLUGINS", " pppml-unet, pppml-not-there ")
    registry = Registry.discover()
    names = [component.name for component in registry.components("model")]
    assert "first" in names
    assert "second" not in names
    assert second not in sys.modules
    assert first in [module.lower() for module in sys.modules] or first in sys.modules
    assert row(registry, "pppml-not-there").summary == "named in PPPML_PLUGINS but not installed"
    with pytest.raises(PluginError, match="not loaded") as caught:
        registry.get("model", "unet")
    assert "PPPML_PLUGINS" in caught.value.hint
    # Read once: what is set later does not change a registry.
    monkeypatch.setenv("PPPML_PLUGINS", "pppml-other")
    assert registry.get("model", "first")
    with pytest.raises(ConfigError):
        registry.get("model", "second")


def test_damaged_metadata_is_no_crash(site):
    info = site.folder / "damaged-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("[pppml]\nx = damaged_module\n")
    site.offer("zzz-good", "pppml_tasks", "good")
    registry = Registry.discover()
    assert registry.get("task", "good")
    assert any(row.status == "broken" and "damaged" in row.summary for row in registry.rows())


def test_recipes_are_found_by_distribution_and_name(site):
    package = site.folder / "my_recipes"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('recipes are read, not imported')")
    (package / "paper.yaml").write_text("task: tiny\n")
    site.install("pppml-mine", "", group="pppml.recipes")
    (site.folder / "pppml_mine-0.1.0.dist-info" / "entry_points.txt").write_text("[pppml.recipes]\nall = my_recipes\n")
    found = {name: path.name for name, path in Registry.discover().recipes().items()}
    assert {name: file for name, file in found.items() if name.startswith("pppml-mine/")} == {"pppml-mine/paper": "paper.yaml"}


def test_order_does_not_depend_on_the_file_system(site):
    for name in ("pppml-c", "pppml-a", "pppml-b"):
        site.offer(name, "pppml_tasks", name.removeprefix("pppml-") + "-task")
    offers = [offer.distribution for offer in Registry.discover().offers]
    assert offers[0] == "pppml-core"
    assert offers[1:] == sorted(offers[1:])


def test_the_command_line_lists_a_broken_plugin_and_names_it(site):
    site.install("pppml-lung-lesions", "import not_there_at_all")
    environment = {"PYTHONPATH": ":".join([str(site.folder), *sys.path]), "PATH": "/usr/bin:/bin", "COLUMNS": "300"}
    done = subprocess.run([sys.executable, "-m", "pppml_core.cli", "plugins"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if "pppml-lung-lesions" in line]
    assert "broken" in line
    assert "not_there_at_all" in line
