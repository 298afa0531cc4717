"""scripts/mutate.py finds the checks of a file, removes one at a time, and tells tested ones from untested ones."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "mutate.py"

SOURCE = '''
"""A package with checks."""


def verify(x):
    if x < 0:
        raise ValueError(
            "negative"
        )
    return x


class Door:
    def enter(self, x):
        verify(x)
        if x == 1:
            reason = "one"
            raise ValueError(reason)
        elif x == 2:
            raise ValueError("two")
        if x == 3:
            raise ValueError("three")
        else:
            y = x
        try:
            return 10 // y
        except ZeroDivisionError as error:
            raise ValueError("zero") from error

    def todo(self):
        raise NotImplementedError
'''

TESTS = """
import pytest
from mutated_pkg.door import Door

@pytest.mark.parametrize("x", [-1, 1, 2, 0])
def test_refused(x):
    with pytest.raises(ValueError):
        Door().enter(x)
"""


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "mutated_pkg"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "door.py").write_text(SOURCE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_door.py").write_text(TESTS)
    return folder / "door.py"


def mutate(package, *options, pytest_arguments=None):
    tests = package.parents[1] / "tests" / "test_door.py"
    arguments = [*map(str, options), str(package), "--", "--rootdir", str(tests.parent), *(pytest_arguments or [str(tests)])]
    path = os.pathsep.join([str(package.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False)


def test_the_checks_of_a_file(package):
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    found = [(c.function, c.text.split("(")[0]) for c in module.checks(package)]
    assert found == [
        ("verify", "if x < 0: raise ValueError"),
        ("Door.enter", "verify"),
        ("Door.enter", "raise ValueError"),
        ("Door.enter", "raise ValueError"),
        ("Door.enter", "raise ValueError"),
        ("Door.enter", "raise ValueError"),
    ]
    for check in module.checks(package):
        removed = check.removed(SOURCE)
        compile(removed, "removed", "exec")
        assert len(removed.splitlines()) == len(SOURCE.splitlines())


def test_what_nothing_tests_survives(package):
    done = mutate(package, "--jobs", 2)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "door.py:" in line]
    survived = [line for line in lines if line.startswith("SURVIVED")]
    assert len(lines) == 6
    assert len(survived) == 1, done.stdout
    assert '"three"' in survived[0]
    assert package.read_text() == SOURCE


def test_all_killed_is_zero_and_red_tests_are_told(package):
    assert mutate(package, "--only", "verify").returncode == 0
    assert "door.py:6" in mutate(package, "--list", "--only", "^verify").stdout
    (package.parents[1] / "tests" / "test_door.py").write_text("def test_red():\n    assert False\n")
    done = mutate(package, "--only", "verify")
    assert done.returncode == 2
    assert "red" in done.stdout


def test_tests_of_another_copy_are_told(package):
    """The folder of the tests comes first on the path, and the package lies there too."""
    beside = package.parents[1] / "test_door.py"
    beside.write_text(TESTS)
    done = mutate(package, "--only", "verify", pytest_arguments=[str(beside)])
    assert done.returncode == 2
    assert "not from the copy" in done.stderr
