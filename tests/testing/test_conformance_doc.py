"""The code blocks of docs/conformance.md run."""

import os
import re
import subprocess
import sys
from pathlib import Path

from pppml_core.engines.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
SUITE, SESSION = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_suite_in_the_document_passes(tmp_path):
    (tmp_path / "test_my_sum.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path / "test_my_sum.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20, done.stdout


def test_the_session_in_the_document_runs():
    exec(compile(SESSION, "docs/conformance.md", "exec"), {"__name__": "__main__"})


def test_every_fault_is_documented():
    deeds = Fault.model_json_schema()["properties"]["do"]["enum"]
    table = TEXT.split("## Faults")[1].split("## Two")[0]
    assert not [deed for deed in deeds if f"`{deed}`" not in table]


def test_the_pytest_plugin_is_light():
    probe = (
        "import sys, pytest; before = set(sys.modules); import pppml_core.testing.pytest_plugin; print(*sorted(set(sys.modules) - before))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert set(done.stdout.split()) <= {"pppml_core", "pppml_core.testing", "pppml_core.testing.pytest_plugin"}
