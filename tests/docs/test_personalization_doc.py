"""The table in docs/personalization.md counts the gradients of a step as the methods declare them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pppml_core.config import resolve
from pppml_core.registry import Registry

DOC = (Path(__file__).resolve().parents[2] / "docs" / "personalization.md").read_text("utf-8")
ORDERS = {"per-fedavg": ("first", "exact", "hessian-free")}


def test_gradients_a_step() -> None:
    """Row by row; of a method with several orders, one number for each."""
    registry = Registry.discover()
    installed = {row.name for row in registry.rows() if row.kind == "personalization" and row.status == "ok"}
    table = DOC[DOC.index("| method |") :].split("\n\n")[0].splitlines()
    assert table[0].endswith("| gradients a step |")
    rows = {cells[0].strip(" `"): cells[-1] for cells in (line.strip("|").split("|") for line in table[2:])}
    if missing := rows.keys() - installed:
        pytest.skip(f"not installed: {missing}")
    for name, said in rows.items():
        sections = [{"use": name, "order": order} for order in ORDERS[name]] if name in ORDERS else [{"use": name}]
        configs = [resolve({"task": "tiny", "personalization": section}, registry=registry) for section in sections]
        declared = [registry.build("personalization", config.personalization).gradient_calls for config in configs]
        assert [int(number) for number in re.findall(r"\d+", said)] == declared, name
