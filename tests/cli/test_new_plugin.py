"""`pppml new-plugin` writes folders that work: each is imported, its hook is called, and its component does its work."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pppml_core.cli.new_plugin import command, kinds, write_plugin
from pppml_core.component import KINDS, Component
from pppml_core.errors import ConfigError

Maker = Callable[[str], Component]


@pytest.fixture
def component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """Write a plugin of a kind, import it, and return what its hook describes."""

    def make(kind: str) -> Component:
        folder = write_plugin(f"fresh-{kind}", kind, tmp_path)
        monkeypatch.syspath_prepend(str(folder / "src"))
        declared = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        (module,) = declared["entry-points"]["pppml"].values()
        hooks = import_module(module)
        (described,) = getattr(hooks, KINDS[kind])()
        assert described.name == f"fresh-{kind}"
        return described

    yield make
    for name in [name for name in sys.modules if name.startswith("pppml_fresh_")]:
        del sys.modules[name]


def build(component: Component, **settings: Any) -> Any:
    return component.load()(component.config(**settings))


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_is_described_by_its_own_hook(kind: str, component: Maker) -> None:
    described = component(kind)
    assert not described.missing()
    assert type(build(described)).__name__ == f"Fresh{kind.capitalize()}"
    for name, field in described.config.model_fields.items():
        assert field.description, name


def test_the_tests_that_come_with_the_plugins_pass(tmp_path: Path) -> None:
    folders = [write_plugin(f"fresh-{kind}", kind, tmp_path) for kind in kinds()]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(folder / "src") for folder in folders)}
    pytest_quietly = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
    done = subprocess.run([*pytest_quietly, *map(str, folders)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    # Every one of them brought some.
    for folder in folders:
        assert list((folder / "tests").glob("test_*.py")), folder.name


@pytest.mark.parametrize(
    ("name", "kind", "place", "hint"),
    [("My Sum", "aggregator", "NAME", "my-sum"), ("7up", "task", "NAME", "up"), ("my-sum", "agregator", "--kind", "aggregator")],
)
def test_what_cannot_be_written_is_refused_with_a_hint(name: str, kind: str, place: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        write_plugin(name, kind, tmp_path)
    assert refused.value.place == place
    assert hint in (refused.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_plugin("my-sum", "aggregator", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        write_plugin("pppml-my-sum", "task", tmp_path)


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["my-sum", "--kind", "aggregator", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"pip install -e {tmp_path / 'my_sum'}" in result.output
