"""The code blocks of docs/conformance.md run."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pppml_core.testing
from pppml_core.engines.faults import Fault
from pppml_core.testing import KnowledgeSuite, PersonalizationSuite, PrivacySuite, SessionHarness

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
SUITE, RULES, PRIVACY, SESSION, LIE, KNOWLEDGE, WORLDS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("suite", [SUITE, RULES], ids=["sum", "rule"])
def test_the_suite_in_the_document_passes(suite, tmp_path):
    (tmp_path / "test_mine.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path / "test_mine.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20, done.stdout


@pytest.mark.parametrize("block", [SESSION, LIE, WORLDS], ids=["session", "lie", "worlds"])
def test_the_sessions_in_the_document_run(block):
    exec(compile(block, "docs/conformance.md", "exec"), {"__name__": "__main__"})


def test_the_knowledge_suite_in_the_document_has_the_hooks_that_there_are():
    (shown,) = ast.parse(KNOWLEDGE).body
    hooks = [node for node in shown.body if isinstance(node, ast.FunctionDef)]
    for hook in hooks:
        assert [a.arg for a in hook.args.args] == list(inspect.signature(getattr(KnowledgeSuite, hook.name)).parameters)
    assert {hook.name for hook in hooks} == {"aggregator", "rows", "expected"}


def test_the_privacy_suite_in_the_document_has_the_settings_and_hooks_that_there_are():
    (shown,) = ast.parse(PRIVACY).body
    hooks = [node for node in shown.body if isinstance(node, ast.FunctionDef)]
    for hook in hooks:
        assert [a.arg for a in hook.args.args] == list(inspect.signature(getattr(PrivacySuite, hook.name)).parameters)
    assert {hook.name for hook in hooks} == {"stated", "charged", "step", "clip", "clipped", "exact", "distance"}
    settings = {node.targets[0].id for node in shown.body if isinstance(node, ast.Assign)}
    assert settings == {"component", "config", "quiet", "noisier", "noise_in_rule", "colluders"}
    assert all(hasattr(PrivacySuite, name) for name in (*settings - {"component"}, "slack"))


def test_every_suite_and_setting_of_the_harness_is_documented():
    for name in pppml_core.testing.__all__:
        assert not name.endswith("Suite") or f"`{name}`" in TEXT, name
    for option in ("attempts", "coordinate", "transport", "models", "impostors", "rosters", "policies", "released", "remember"):
        assert option in inspect.signature(SessionHarness).parameters
        assert f"`{option}" in TEXT, option


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


def test_the_suite_of_rules_has_the_settings_that_there_are():
    part = TEXT.split("## What the personalization suite takes")[1].split("\n## ")[0]
    for name in ("zero_rates", "zero_outer_rates", "network", "site"):
        assert hasattr(PersonalizationSuite, name)
        assert f"`{name}" in part or f'`{name}("a")`' in part, name
    for module, name in re.findall(r"`(\w+)`(?: and `\w+`)? \(`pppml_core\.testing\.(\w+)`\)", part):
        assert hasattr(importlib.import_module(f"pppml_core.testing.{name}"), module)
