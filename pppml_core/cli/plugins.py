"""``pppml plugins``: the table of everything installed."""

from __future__ import annotations

import dataclasses
import json

import click

from pppml_core.component import KINDS
from pppml_core.registry import Registry, Row


@click.command()
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only components of this kind.")
@click.option("--all", "everything", is_flag=True, help="Also what the catalogue knows and is not installed.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list, one object a row.")
def command(kind: str | None, everything: bool, as_json: bool) -> None:
    """List what is installed: kind, name, distribution, version, status, summary.

    A broken plugin is a row with its reason; a name that two distributions offer is a conflict and cannot be used. The environment
    variable PPPML_PLUGINS (distributions, by comma) restricts what is loaded.

    \b
      pppml plugins --kind aggregator
      pppml plugins --all
    """  # noqa: D301 - click wants the control character
    rows = [row for row in Registry.discover().rows(everything=everything) if kind in (None, row.kind)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        _print(rows)


def _print(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "broken": "red", "conflict": "red", "not installed": "dim"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "distribution", "version", "status"):
        table.add_column(column, no_wrap=True)
    table.add_column("summary", overflow="fold")
    for row in rows:
        status = Text(row.status, style=colours.get(row.status, "yellow"))
        table.add_row(*(Text(cell) for cell in (row.kind or "-", row.name, row.distribution, row.version)), status, Text(row.summary))
    console = Console()
    # Into a pipe, one line a row, whatever its length.
    Console(width=10_000 if not console.is_terminal else None, soft_wrap=not console.is_terminal).print(table)
