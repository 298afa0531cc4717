"""`make alone` gives a plugin the core, its declared dependencies and nothing else."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pppml_core.cli.new_plugin import write_plugin

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def alone() -> Iterator[ModuleType]:
    """scripts/alone.py, building below a folder that is removed afterwards; on the disk of the checkout, so that links can be hard."""
    spec = importlib.util.spec_from_file_location("alone", ROOT / "scripts" / "alone.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (ROOT / ".cache").mkdir(exist_ok=True)
    module.CACHE = Path(tempfile.mkdtemp(prefix="test-alone-", dir=ROOT / ".cache"))
    yield module
    shutil.rmtree(module.CACHE)


@pytest.fixture(scope="module")
def plugin(alone: ModuleType) -> Path:
    folder = write_plugin("lonely", "reporter", alone.CACHE)
    (folder / "tests").joinpath("test_lonely.py").write_text("def test_it():\n    import pppml_lonely.reporter\n")
    return folder


@pytest.fixture(scope="module")
def python(alone: ModuleType, plugin: Path) -> Path:
    interpreter, _ = alone.environment(plugin)
    return interpreter


def imported(python: Path, module: str) -> subprocess.CompletedProcess[str]:
    code = f"import {module}; print({module}.__file__)"
    return subprocess.run([python, "-P", "-s", "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["pppml_core", "pppml_lonely", "torch", "pydantic", "pytest"])
def test_the_core_the_plugin_and_what_they_require_are_there(module: str, python: Path) -> None:
    done = imported(python, module)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(python.parents[1]), "from the environment, not from the checkout"


@pytest.mark.parametrize("module", ["mypy", "grimp", "hatchling", "pppml_monai_nets"])
def test_nothing_else_is_there(module: str, python: Path) -> None:
    assert importlib.util.find_spec(module), f"{module} is installed beside, or this test would show nothing"
    assert "ModuleNotFoundError" in imported(python, module).stderr


def test_third_party_files_are_shared_and_not_copied(python: Path) -> None:
    (torch,) = python.parents[1].glob("lib/python*/site-packages/torch/__init__.py")
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert torch.samefile(str(spec.origin))


def test_a_plugin_passes_until_it_imports_what_it_does_not_declare(alone: ModuleType, plugin: Path) -> None:
    source = plugin / "src" / "pppml_lonely" / "reporter.py"
    honest = source.read_text()
    assert alone.run_tests(plugin, ["-q"]) == 0
    source.write_text(f"import grimp\n{honest}")
    try:
        assert alone.run_tests(plugin, ["-q"]) == 1
    finally:
        source.write_text(honest)


def test_a_plugin_that_requires_another_plugin_is_refused(alone: ModuleType, plugin: Path) -> None:
    project = plugin / "pyproject.toml"
    honest = project.read_text()
    project.write_text(honest.replace('"pppml-core>=0.1,<0.2"', '"pppml-core>=0.1,<0.2", "pppml-monai-nets"'))
    try:
        with pytest.raises(alone.Undeclared, match="requires pppml-monai-nets"):
            alone.environment(plugin)
    finally:
        project.write_text(honest)
