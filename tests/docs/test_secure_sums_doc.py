"""The bounds in docs/secure-sums.md are those the aggregators compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from pppml_core.config import resolve
from pppml_core.registry import Registry
from pppml_core.values import ValueSpec

DOC = (Path(__file__).resolve().parents[2] / "docs" / "secure-sums.md").read_text()
VALUE = ValueSpec(1000, "integer", 32_767)


def bounds(registry: Registry, aggregator: dict, sites: int) -> tuple[str, int]:
    """``curious / lying`` and dropouts, as planned."""
    config = resolve({"task": "tiny", "aggregator": aggregator}, registry=registry)
    session = registry.build("aggregator", config.aggregator).plan(VALUE, [f"s{i:02d}" for i in range(sites)])
    found = session.guarantees
    return f"{found.coalition_curious} / {found.coalition_active}", found.dropouts


def test_bounds() -> None:
    """Row by row."""
    registry = Registry.discover()
    ok = {(row.kind, row.name) for row in registry.rows() if row.status == "ok"}
    needed = {("aggregator", "secagg-plus"), ("aggregator", "cyclic-he"), ("he-backend", "tenseal")}
    if missing := needed - ok:
        pytest.skip(f"not installed: {missing}")
    table = DOC[DOC.index("| sites |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == 5
    for line in table:
        sites, masks, vanish, one, two = [cell.strip() for cell in line.strip("|").split("|")]
        assert (masks, int(vanish)) == bounds(registry, {"use": "secagg-plus"}, int(sites))
        for rings, cell in ((1, one), (2, two)):
            if cell:
                ring = {"use": "cyclic-he", "rings": rings, "backend": {"use": "tenseal"}}
                assert cell == bounds(registry, ring, int(sites))[0], line
