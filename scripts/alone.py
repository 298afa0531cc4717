"""Run one plugin's tests in an environment that holds wheels of the core and of that plugin only: ``make alone P=<plugin>``.

The environment, ``.cache/alone/<plugin>``, is made afresh each time, without a network: wheels of both packages are built and
installed by pip, and the third-party packages they require (and no others) are hard links to the files in ``.venv``. A plugin that
imports another plugin, or a package that neither it nor the core declares, fails here as it would on a stranger's machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"


class Undeclared(Exception):
    """What keeps a plugin from standing alone, in words."""


def build_wheel(project: Path, folder: Path) -> Path:
    """The wheel of a project folder, built with hatchling, in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=project, check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def metadata(wheel: Path) -> Message:
    """The METADATA of a wheel."""
    with ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether a requirement holds on this interpreter for a package asked for with these extras."""
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def closure(wheels: list[Path], extras: tuple[str, ...]) -> dict[str, Distribution]:
    """Every third-party distribution that the wheels require with these extras, directly or not, as installed in ``.venv``."""
    own = {canonicalize_name(metadata(w)["Name"]) for w in wheels}
    wanted = [(Requirement(r), extras, w.name) for w in wheels for r in metadata(w).get_all("Requires-Dist", [])]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement, active, asker = wanted.pop()
        name = canonicalize_name(requirement.name)
        if not applies(requirement, active) or name in own:
            continue
        if name.startswith("pppml-"):
            raise Undeclared(f"{asker} requires {name}: a plugin requires the core and never another plugin")
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                raise Undeclared(f"{asker} requires {name}, which .venv lacks: make install") from None
            wanted += [(Requirement(r), (extra,), name) for r in found[name].requires or ()]
    return found


def files(dist: Distribution, site_packages: Path) -> Iterator[Path]:
    """The files of a distribution inside site-packages, relative to it. Scripts beside it name another interpreter and stay out."""
    for file in dist.files or ():
        path = Path(os.path.normpath(str(file)))
        if not path.is_absolute() and path.parts[0] != ".." and (site_packages / path).is_file():
            yield path


def link(dist: Distribution, target: Path) -> None:
    """Hard-link a distribution's files into ``target``; copy where the file system cannot link."""
    source = Path(str(dist.locate_file("")))
    for path in files(dist, source):
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / path, place)
        except OSError:
            shutil.copy2(source / path, place)


def environment(plugin: Path) -> tuple[Path, int]:
    """Make the plugin's environment; returns its interpreter and how many third-party packages it sees."""
    name = plugin.name
    folder = CACHE / "alone" / name
    wheels = [build_wheel(ROOT, CACHE / "wheels" / "pppml_core"), build_wheel(plugin, CACHE / "wheels" / name)]
    packages = closure(wheels, ("test",))
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    python = folder / "bin" / "python"
    (target,) = folder.glob("lib/python*/site-packages")
    for dist in packages.values():
        link(dist, target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", *map(str, wheels)], check=True)
    subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
    return python, len(packages)


def run_tests(plugin: Path, arguments: list[str]) -> int:
    """Pytest's exit status for the plugin's tests in its own environment."""
    start = time.perf_counter()
    python, packages = environment(plugin)
    print(f"{plugin.name}: core, plugin and {packages} packages they require, ready in {time.perf_counter() - start:.0f} s", flush=True)
    # Safe path: the checkout, which is the working folder's parent, must not stand in for the installed wheels.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env |= {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
    env["PATH"] = f"{python.parent}{os.pathsep}{env.get('PATH', '')}"
    config = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(plugin), "--confcutdir", str(plugin)]
    return subprocess.run([str(python), "-m", "pytest", *config, *arguments, "tests"], cwd=plugin, env=env).returncode


def main() -> int:
    """Exit status 0 when the tests of every chosen plugin pass."""
    plugins = {p.parent.name: p.parent for p in sorted(ROOT.glob("plugins/*/*/pyproject.toml"))}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plugin", nargs="?", help=f"one of: {', '.join(plugins)}")
    parser.add_argument("--all", action="store_true", help="every plugin, one after another")
    options, arguments = parser.parse_known_args()
    name = (options.plugin or "").replace("-", "_").removeprefix("pppml_")
    if not options.all and name not in plugins:
        parser.error(f"no plugin {options.plugin!r}; one of: {', '.join(plugins)}")
    failed = []
    for plugin in plugins.values() if options.all else [plugins[name]]:
        try:
            status = run_tests(plugin, arguments)
        except Undeclared as error:
            print(f"{plugin.name}: {error}", file=sys.stderr)
            status = 1
        except subprocess.CalledProcessError as error:
            print(f"{plugin.name}: {error}\n{(error.stderr or b'').decode()}", file=sys.stderr)
            status = 1
        if status:
            failed.append(plugin.name)
    if failed:
        print(f"cannot stand alone: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
