"""Remove one check at a time and demand that a test turns red.

    python scripts/mutate.py plugins/aggregators/secagg_plus/src/pppml_secagg_plus/site_side.py -- plugins/aggregators/secagg_plus/tests

For each check in the files (a statement ``raise``, an ``if`` that raises, a bare call of a checking function) the package is copied, that
statement is replaced by ``pass`` in the copy, and pytest is run with the copy first on the path. Red kills the mutant; green means that
nothing tests the check. One line for each; exit code 1 if a mutant survived, 2 if the tests are red without any.

Nothing in the repository is changed: the copies live in a temporary folder.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: a call statement whose function has such a name is a check: what it returns is not used, so it is there to raise.
CHECKING = re.compile(r"_*(check|verify|require|refuse|release|demand|ensure|validate|assert|fit)(_\w+|s|ed)?$")


#: a pytest plugin: if the tests import the package from elsewhere than the copy, every mutant would survive unseen.
PROBE = """
import pathlib, sys
def pytest_sessionfinish(session):
    here = str(pathlib.Path(__file__).parent)
    for name in {names!r}:
        file = getattr(sys.modules.get(name), "__file__", None) or here
        if not file.startswith(here):
            print(f"{{name}} was imported from {{file}}, not from the copy", file=sys.stderr)
            session.exitstatus = 3
"""


@dataclass(frozen=True)
class Check:
    """A statement that is there to refuse: where it stands, how it reads, and in which function."""

    file: Path
    line: int
    end: int
    column: int
    text: str
    function: str

    def removed(self, source: str) -> str:
        """The source with this statement replaced by ``pass``; line numbers stay as they are."""
        lines = source.splitlines(keepends=True)
        kept = ["\n"] * (self.end - self.line)
        return "".join([*lines[: self.line - 1], " " * self.column + "pass\n", *kept, *lines[self.end :]])


def checks(file: Path) -> list[Check]:
    """All checks of a file, in order. An ``if`` that only raises is one check, its ``raise`` is not a second one."""
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    found: list[Check] = []

    def walk(body: Sequence[ast.stmt], function: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                walk(node.body, f"{function}.{node.name}" if function else node.name)
            elif is_check(node) and not lines[node.lineno - 1][node.col_offset :].startswith("elif"):
                text = " ".join((ast.get_source_segment(source, node) or "").split())
                found.append(Check(file, node.lineno, node.end_lineno or node.lineno, node.col_offset, text, function))
            else:
                for inner in blocks(node):
                    walk(inner, function)

    walk(ast.parse(source).body, "")
    return found


def is_check(node: ast.stmt) -> bool:
    """Whether the statement is there to refuse."""
    if isinstance(node, ast.If):
        return not node.orelse and guards(node)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and CHECKING.fullmatch(called(node.value)) is not None
    return isinstance(node, ast.Raise) and not is_abstract(node)


def guards(node: ast.If) -> bool:
    """Whether the body does nothing but raise (after naming what it raises with, at most)."""
    return isinstance(node.body[-1], ast.Raise) and all(isinstance(s, ast.Assign | ast.AnnAssign) for s in node.body[:-1])


def is_abstract(node: ast.Raise) -> bool:
    """``raise NotImplementedError`` is no check, and a bare ``raise`` only passes on what was raised."""
    raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return raised is None or (isinstance(raised, ast.Name) and raised.id in ("NotImplementedError", "AttributeError", "TypeError"))


def called(call: ast.Call) -> str:
    """The last part of the called name: ``release`` of ``ctx.release(...)``."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def blocks(node: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The statement lists inside a statement."""
    for name in ("body", "orelse", "finalbody"):
        yield getattr(node, name, [])
    for handler in getattr(node, "handlers", []):
        yield handler.body
    for case in getattr(node, "cases", []):
        yield case.body


def package_of(file: Path) -> Path:
    """The top folder of the package that a file belongs to."""
    folder = file.parent
    while (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    if not (folder / "__init__.py").is_file():
        raise SystemExit(f"{file} is not in a package (no __init__.py beside it)")
    return folder


def run(packages: Sequence[Path], check: Check | None, arguments: Sequence[str], timeout: float) -> tuple[str, float]:
    """(``green``, ``red`` or ``broken``, seconds) of the tests with copies of the packages, the check removed from its one."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        for package in packages:
            shutil.copytree(package, Path(folder) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        if check is not None:
            package = package_of(check.file)
            copy = Path(folder) / package.name / check.file.relative_to(package)
            copy.write_text(check.removed(check.file.read_text(encoding="utf-8")), encoding="utf-8")
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        (Path(folder) / "mutate_probe.py").write_text(PROBE.format(names=[package.name for package in packages]))
        plugins = ["-p", "mutate_probe", "-p", "no:cacheprovider"]
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "--no-header", *plugins, *arguments]
        # Editable installs come through .pth files: PYTHONPATH stands before them. A session of its own, to end all of it at once.
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, **pipes) as tests:
            try:
                said = tests.communicate(timeout=timeout)[0]
            except subprocess.TimeoutExpired:
                os.killpg(tests.pid, signal.SIGKILL)
                return "red", time.perf_counter() - started  # a test that no longer ends is a failed one
        if tests.returncode not in (0, 1):
            print(said.decode(errors="replace")[-2000:], file=sys.stderr)
        return {0: "green", 1: "red"}.get(tests.returncode, "broken"), time.perf_counter() - started


def options() -> tuple[argparse.Namespace, list[str]]:
    """The arguments before and after ``--``."""
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="what follows -- goes to pytest")
    parser.add_argument("files", nargs="+", type=Path, help="source files of installed packages")
    parser.add_argument("--only", default="", help="regular expression: functions (Class.method) to look at")
    parser.add_argument("--skip", default="", help="regular expression: texts of checks to leave out")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a run of the tests may take; then it counts as red")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--list", action="store_true", help="print the checks and stop")
    return parser.parse_args(given[:split]), given[split + 1 :]


def main() -> int:
    """The table, and the exit code."""
    chosen, arguments = options()
    files = [file.resolve() for file in chosen.files]
    found = [c for file in files for c in checks(file)]
    found = [c for c in found if re.search(chosen.only, c.function) and not (chosen.skip and re.search(chosen.skip, c.text))]
    if chosen.list or not found:
        for c in found:
            print(f"{os.path.relpath(c.file, ROOT)}:{c.line}  {c.function}  {c.text[:100]}")
        return 0 if chosen.list else 2
    packages = sorted({package_of(file) for file in files})
    state, seconds = run(packages, None, arguments, chosen.timeout)
    print(f"{len(found)} checks; the tests without a mutant: {state} in {seconds:.1f} s", flush=True)
    if state != "green":
        return 2
    survived = 0
    with ThreadPoolExecutor(chosen.jobs) as pool:
        runs = pool.map(lambda c: run(packages, c, arguments, chosen.timeout), found)
        for c, (state, seconds) in zip(found, runs, strict=True):
            survived += state == "green"
            verdict = {"red": "killed", "green": "SURVIVED", "broken": "BROKEN"}[state]
            print(f"{verdict:9} {seconds:6.1f} s  {os.path.relpath(c.file, ROOT)}:{c.line}  {c.function}  {c.text[:90]}", flush=True)
    print(f"{len(found) - survived} of {len(found)} killed")
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
