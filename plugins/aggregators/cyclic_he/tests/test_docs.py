"""The table in docs/cyclic-he.md is what the code computes. ``python tests/test_docs.py`` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pppml_cyclic_he.rings import Rings
from pppml_cyclic_he.template import largest_rings

DOCS = Path(__file__).resolve().parents[4] / "docs" / "cyclic-he.md"
HEAD = "| sites | rings | curious | active | reads one update |\n|---|---|---|---|---|\n"
PLACE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table() -> str:
    rows = []
    for sites in (3, 4, 5, 6, 7, 8, 10, 20):
        for count in range(1, min(4, largest_rings(sites)) + 1):
            rings = Rings(tuple(f"{i:02d}" for i in range(sites)), count)
            rows.append(f"| {sites} | {count} | {rings.curious()} | {rings.active()} | server and {len(rings.isolating())} sites |\n")
    return HEAD + "".join(rows)


@pytest.mark.skipif(not DOCS.exists(), reason="not in a checkout")
def test_the_table_is_computed() -> None:
    assert PLACE.findall(DOCS.read_text()) == [table()]


if __name__ == "__main__":
    DOCS.write_text(PLACE.sub(lambda _: table(), DOCS.read_text()))
