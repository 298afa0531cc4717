"""Rows of a comparison as a table, as plain data and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pppml_core.benchmarking.he import HERow
from pppml_core.benchmarking.sums import SumRow

if TYPE_CHECKING:
    from rich.table import Table

Row = HERow | SumRow
_STEPS = ("keys", "encrypt", "add", "decrypt")
#: colours that stay apart for people who see few of them (Okabe and Ito).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What ``--json`` prints."""
    return [asdict(row) for row in rows]


def table(rows: Sequence[Row], title: str) -> Table:
    """A table for a terminal; what was refused stands below its name with the reason."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    cells = [(row, _he_cells(row) if isinstance(row, HERow) else _sum_cells(row)) for row in rows]
    headings = next((list(found) for row, found in cells if not row.refused), [])
    shown.add_column("", no_wrap=True)
    for heading in headings:
        shown.add_column(heading, justify="right")
    for row, found in cells:
        if row.refused:
            shown.add_row(Text(f"{row.name}\n  {row.refused}", style="yellow"))
        else:
            shown.add_row(row.name, *found.values())
    return shown


def _he_cells(row: HERow) -> dict[str, str]:
    budget = "" if row.noise_budget is None else f"{row.noise_budget:.0f}"
    return {
        **{step: _time(row.seconds.get(step, 0.0)) for step in _STEPS},
        "bytes/number": f"{row.bytes_per_number:.1f}",
        "error": "exact" if row.error == 0 else f"{row.error:.2g}",
        "bits left": budget,
        "limbs": str(row.params.get("limbs", "")),
        "security": str(row.params.get("security_bits", "")),
        "peak MiB": _mib(row.peak_bytes),
    }


def _sum_cells(row: SumRow) -> dict[str, str]:
    return {
        "a site": _time(sum(row.site_seconds.values())),
        "the server": _time(sum(row.server_seconds.values())),
        "all parties": _time(row.total_seconds),
        "bytes/number": f"{row.bytes_per_number:.1f}",
        "sum": "exact" if row.exact else "inexact",
        "safe from": "not hidden" if row.sees_update else f"{row.coalition_curious}",
        "may vanish": f"{row.dropouts}",
        "peak MiB": _mib(row.peak_bytes),
    }


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f}"


def picture(rows: Sequence[Row], title: str, path: Path) -> None:
    """Two panels, seconds by step and bytes on the wire, one bar for each row that was not refused (there must be one).

    The ending of ``path`` chooses the format.
    """
    from matplotlib.figure import Figure

    kept = [row for row in rows if not row.refused]
    bars = [_bars(row) for row in kept]
    parts = list(dict.fromkeys(part for bar in bars for part in bar))
    figure = Figure(figsize=(10, 1.7 + 0.42 * len(kept)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places, ends = range(len(kept)), [0.0] * len(kept)
    for part, colour in zip(parts, _COLOURS, strict=False):
        widths = [bar.get(part, 0.0) for bar in bars]
        drawn = left.barh(places, widths, left=ends, color=colour, label=part, height=0.65)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    left.bar_label(drawn, labels=[_time(end) for end in ends], padding=3)
    left.set_yticks(places, [row.name for row in kept])
    sizes = right.barh(places, [row.bytes_per_number for row in kept], color="#888888", height=0.65)
    right.bar_label(sizes, fmt="%.1f", padding=3)
    left.invert_yaxis()
    for axes, label in ((left, "seconds"), (right, "bytes a number, sent by one site")):
        axes.set_xlabel(label)
        axes.margins(x=0.14)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=len(parts), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bars(row: Row) -> Mapping[str, float]:
    if isinstance(row, HERow):
        return {step: row.seconds[step] for step in _STEPS if step in row.seconds}
    return {"one site": sum(row.site_seconds.values()), "server": sum(row.server_seconds.values())}
