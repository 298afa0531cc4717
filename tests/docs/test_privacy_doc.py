"""What the documentation says of privacy mechanisms: names of the contract, and the commands of the README carried out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacySetting, PrivacyStatement
from pppml_core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
PART = (ROOT / "docs" / "write-a-plugin.md").read_text("utf-8").split("\n## Another kind: a privacy mechanism\n")[1]
README = (ROOT / "README.md").read_text("utf-8").split("\n## A bound for every image\n")[1].split("\n## ")[0]


def test_the_names_in_the_text_are_those_of_the_contract():
    known = {name for cls in (PrivacyMechanism, PrivacyPlan) for name in dir(cls)} | {PrivacyStatement.__name__, PrivacySetting.__name__}
    named = set(re.findall(r"`([a-z]\w+|Privacy\w+)`", PART)) - {"PrivacySuite"}
    assert len(named) > 10
    assert named <= known, named - known


def test_the_section_of_the_readme(blocks, lines, pppml, tmp_path):
    """Plan, run (a few rounds) and audit, as printed."""
    ok = {row.name for row in Registry.discover().rows() if row.status == "ok"}
    if missing := {"dp-sgd", "secagg-plus", "dp-audit"} - ok:
        pytest.skip(f"not installed: {missing}")
    (text,) = blocks(README, "yaml")
    first, _, _ = text.partition("\n")
    (tmp_path / first.removeprefix("# ")).write_text(text)
    commands = lines(README)
    assert [line.split()[1] for line in commands] == ["plan", "run", "attack"]
    plan, _, attack = pppml(tmp_path, *(f"{line} --set run.rounds=2" if " run " in line else line for line in commands))
    assert "epsilon 6 for the whole run" in " ".join(plan.split())
    result = json.loads((tmp_path / "runs" / "dp" / "result.json").read_text())
    assert 0 < result["privacy"]["epsilon"] <= 6
    assert "not shown to leak" in attack or "inconclusive" in attack
