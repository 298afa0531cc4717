"""The shape of the repository: every plugin folder looks alike and stands on its own, nothing in it depends on one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pppml_core

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/*/pyproject.toml"))
EXPECTED = {
    "tasks/blood_cells",
    "tasks/chest_ct",
    "tasks/image_set",
    "tasks/lung_lesions",
    "models/monai_nets",
    "personalization/perfedavg",
    "personalization/baselines",
    "privacy/dp",
    "privacy/dpresnet",
    "attacks/dp_audit",
}
LARGEST_FILE = 1024 * 1024
# A path that starts at the root of one machine's disk. Put together from parts, so that this file does not name what it looks for.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~)}*\"'-])/ROOT/\w|[\"'(=]/ROOT/\w|\b[A-Z]:\\\\?Users".replace("ROOT", "(?:home|Users|work|root|mnt|scratch)")
)


each_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.relative_to(ROOT / "plugins").as_posix())


def project(plugin: Path) -> dict[str, Any]:
    return tomllib.loads((plugin / "pyproject.toml").read_text())


def requirements(folder: Path) -> list[str]:
    about = project(folder)["project"]
    return [*about.get("dependencies", []), *(r for extra in about.get("optional-dependencies", {}).values() for r in extra)]


def short(plugin: Path) -> str:
    """The folder's name; with its family before it where it would say nothing by itself."""
    return f"{plugin.parent.name}_{plugin.name}" if plugin.name == "baselines" else plugin.name


def package(plugin: Path) -> Path:
    return plugin / "src" / f"pppml_{short(plugin)}"


def imports(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """``(line, module, name or None)`` of every absolute import of a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_attributes(path: Path) -> Iterator[tuple[int, str]]:
    """Private attributes of anything a file imported from the core: ``arrays._helper`` after ``from pppml_core.learning import arrays``."""
    tree = ast.parse(path.read_text(), str(path))
    core = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).split(".")[0] == "pppml_core"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in core:
                yield node.lineno, ast.unparse(node)


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_plugins_of_this_repository_are_there() -> None:
    assert {p.relative_to(ROOT / "plugins").as_posix() for p in PLUGINS} >= EXPECTED
    strays = [p for p in ROOT.glob("plugins/*/*/") if (p / "src").is_dir() and p not in PLUGINS]
    assert strays == [], "a plugin folder without pyproject.toml is not installed"


@each_plugin
def test_every_plugin_folder_has_the_common_shape(plugin: Path) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", plugin.name)
    for name in ("README.md", "pyproject.toml"):
        assert (plugin / name).read_text().strip(), f"{name} is empty"
    assert [p.name for p in (plugin / "src").iterdir() if p.suffix != ".egg-info"] == [package(plugin).name]
    modules = {p.name for p in package(plugin).glob("*.py")}
    assert {"__init__.py", "plugin.py", "config.py"} < modules, "and at least one module for the subject"
    assert list((plugin / "tests").glob("test_*.py"))


@each_plugin
def test_every_plugin_declares_itself_alike(plugin: Path) -> None:
    declared = project(plugin)
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about, dashed = declared["project"], short(plugin).replace("_", "-")
    assert about["name"] == f"pppml-{dashed}"
    assert about["version"] == pppml_core.__version__, "one version for all"
    assert about["requires-python"] == core["requires-python"]
    assert about["license"] == core["license"]
    assert about["readme"] == "README.md"
    assert about["description"]
    assert list(about["entry-points"]["pppml"].values()) == [f"pppml_{short(plugin)}.plugin"]
    assert declared["build-system"]["build-backend"] == "hatchling.build"
    required = {canonicalize_name(r.name): r for r in map(Requirement, about["dependencies"])}
    assert required["pppml-core"].specifier == Requirement("pppml-core>=0.1,<0.2").specifier
    assert [n for n in required if n.startswith("pppml-") and n != "pppml-core"] == [], "a plugin never requires another plugin"


@each_plugin
def test_a_plugin_is_a_flat_package(plugin: Path) -> None:
    bare = [f for f in package(plugin).rglob("*.py") if not (f.parent / "__init__.py").exists()]
    assert bare == [], "a folder without __init__.py is a namespace package"


@each_plugin
def test_a_plugin_imports_public_names_of_the_core_and_no_other_plugin(plugin: Path) -> None:
    wrong = []
    for file in [*package(plugin).rglob("*.py"), *(plugin / "tests").rglob("*.py")]:
        for line, module, name in imports(file):
            top, *rest = module.split(".")
            where = f"{file.relative_to(ROOT)}:{line}: {module}{f'.{name}' if name else ''}"
            if top.startswith("pppml_") and top not in ("pppml_core", package(plugin).name):
                wrong.append(f"{where} is another plugin")
            elif top == "pppml_core" and any(private(part) for part in [*rest, name or ""]):
                wrong.append(f"{where} is private")
        wrong += [f"{file.relative_to(ROOT)}:{line}: {what} is private" for line, what in private_attributes(file)]
    assert wrong == []


@pytest.mark.parametrize("project_folder", [ROOT, *PLUGINS], ids=lambda p: p.name if p != ROOT else "core")
def test_every_third_party_import_is_declared(project_folder: Path) -> None:
    """By the project itself or, for a plugin, by the core; extras count, for what is imported only where it is asked for.

    pydantic_core comes with pydantic, which pins its exact version.
    """
    declared = {canonicalize_name(Requirement(r).name) for folder in {ROOT, project_folder} for r in requirements(folder)}
    sources = (ROOT / "pppml_core") if project_folder == ROOT else package(project_folder)
    owners = packages_distributions()
    missing = set()
    for file in sources.rglob("*.py"):
        for line, module, _ in imports(file):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top.startswith("pppml_") or not top:
                continue
            if top != "pydantic_core" and not {canonicalize_name(d) for d in owners.get(top, [top])} & declared:
                missing.add(f"{file.relative_to(ROOT)}:{line}: {top}")
    assert sorted(missing) == []


@each_plugin
@pytest.mark.parametrize("module", ["plugin.py", "config.py"])
def test_descriptions_import_nothing_heavy(plugin: Path, module: str) -> None:
    heavy = {"torch", "monai", "matplotlib", "scipy", "sklearn", "skimage", "nibabel", "pydicom", "tenseal", "opacus"}
    assert [(line, name) for line, name, _ in imports(package(plugin) / module) if name.split(".")[0] in heavy] == []


def test_the_development_requirements_list_every_plugin() -> None:
    lines = (ROOT / "requirements" / "dev.txt").read_text().splitlines()
    editable = [line.removeprefix("-e ").strip() for line in lines if line.startswith("-e ")]
    assert editable[0] == "."
    assert sorted(editable[1:]) == [f"./{p.relative_to(ROOT).as_posix()}" for p in PLUGINS]


def test_the_constraints_pin_every_development_requirement_exactly() -> None:
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all([s.operator for s in r.specifier] == ["=="] for r in pinned)
    assert not any("+" in str(r.specifier) for r in pinned), "a local version label names one build of one index"
    wanted = [r for p in (ROOT, *PLUGINS) for r in project(p)["project"].get("dependencies", [])]
    wanted += [line for line in (ROOT / "requirements" / "dev.txt").read_text().splitlines() if line and line[0] not in "#-"]
    missing = {canonicalize_name(Requirement(r).name) for r in wanted} - {canonicalize_name(r.name) for r in pinned}
    assert {name for name in missing if not name.startswith("pppml-")} == set()


def test_what_a_repository_needs_is_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"):
        assert (ROOT / name).read_text().strip(), name
    assert f"version: {pppml_core.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run is executable"


def test_no_tracked_file_is_large() -> None:
    assert [f"{f.relative_to(ROOT)}: {f.stat().st_size} bytes" for f in tracked_files() if f.stat().st_size > LARGEST_FILE] == []


def test_no_tracked_file_names_a_machine() -> None:
    found = []
    for file in tracked_files():
        if file.name == "LICENSE" or b"\0" in (data := file.read_bytes()):
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


@pytest.mark.parametrize(("text", "names_one"), [("see @home@ann@data", True), ("path='@work@x'", True), ("tests@work@x", False)])
def test_the_search_for_machine_paths_finds_them(text: str, names_one: bool) -> None:
    assert bool(MACHINE_PATH.search(text.replace("@", "/"))) == names_one


def test_nothing_is_pickled() -> None:
    """Neither the core nor a plugin reads or writes pickles, openly or through torch and numpy. One exception is written, never read:
    the tensors of a bundle, in the format that MONAI asks for.
    """
    pickles = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    found = []
    for file in [*(ROOT / "pppml_core").rglob("*.py"), *(f for p in PLUGINS for f in package(p).rglob("*.py"))]:
        where = file.relative_to(ROOT)
        found += [f"{where}:{line}: imports {module}" for line, module, _ in imports(file) if module.split(".")[0] in pickles]
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            allows = any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in node.keywords
            )
            if call in ("torch.load", "torch.save") or allows:
                found.append(f"{where}: {call}")
    assert found == ["pppml_core/learning/bundle/export.py: torch.save"]
