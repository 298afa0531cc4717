"""Writes the tables of docs/failures.md from the table of drills: ``python -m drilling.docs [--check]`` in ``tests/integration``."""

from __future__ import annotations

import sys
from pathlib import Path

from drilling.table import TABLE, Drill

PAGE = Path(__file__).resolve().parents[3] / "docs" / "failures.md"
BEGIN, END = "<!-- made by tests/integration/drilling/docs.py: begin -->", "<!-- end -->"
HEAD = "| engine | sum | stage | when | what comes of it | what the operator is told |\n|---|---|---|---|---|---|\n"


def tables() -> str:
    """Markdown: a section for each thing that breaks; drills that differ in the moment only share a row."""
    out = []
    for breaks in dict.fromkeys(drill.breaks for drill in TABLE):
        rows: dict[tuple[str, ...], list[str]] = {}
        for drill in TABLE:
            if drill.breaks == breaks:
                rows.setdefault((drill.engine, drill.sum, drill.stage, drill.ends.value, _said(drill)), []).append(drill.moment)
        lines = [f"| {e} | {s} | {stage} | {_when(moments)} | {ends} | {said} |" for (e, s, stage, ends, said), moments in rows.items()]
        out.append(f"### {breaks[:1].upper()}{breaks[1:]}\n\n{HEAD}" + "\n".join(lines) + "\n")
    return "\n".join(out)


def _said(drill: Drill) -> str:
    return "nothing" if not drill.told else " or ".join(f"`{words}`" for words in drill.told.replace("\\", "").split("|"))


def _when(moments: list[str]) -> str:
    return "; ".join(moment for moment in moments if moment)


def page(text: str) -> str:
    """The page with its tables as they should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main() -> int:
    text = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        return int(page(text) != text)
    PAGE.write_text(page(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
