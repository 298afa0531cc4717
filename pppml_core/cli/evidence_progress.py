"""Progress and the closing table of ``pppml evidence``."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from pppml_core.matrix import MatrixResult

_SHORT = {
    "recovered": "[bold red]leaks[/]",
    "not_shown_to_leak": "[green]not shown[/]",
    "inconclusive": "[yellow]inconclusive[/]",
    "not_applicable": "[dim]-[/]",
}


class Progress:
    """A bar over victims; a line for each run and group of cells where the output is no terminal."""

    def __init__(self) -> None:
        self._console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
        self._bars = Bars(*columns, console=self._console, disable=not self._console.is_terminal)
        self._bar = self._bars.add_task("", total=None)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def told(self, event: Mapping[str, Any]) -> None:
        """One event of :func:`pppml_core.matrix.run_matrix`."""
        name = f"[{event['place']}/{event['of_defences']}] {event['defence']}"
        if event["event"] == "victim":
            self._bars.update(self._bar, description=name, completed=event["number"], total=event["of"])
        elif event["event"] == "cells":
            self._console.print(f"{name}: {len(event['cells'])} cells: {', '.join(event['cells'])}", highlight=False, markup=False)
        else:
            self._console.print(f"{name}: run", highlight=False, markup=False)

    def table(self, result: MatrixResult) -> None:
        """Attack and vantage down, defences across."""
        table = Table(title="Who could learn what", title_justify="left")
        table.add_column("attack, vantage, round")
        names = [folder.name for folder in result.runs]
        for name in names:
            table.add_column(name)
        rows: dict[str, dict[str, str]] = {}
        for record in result.records:
            row = f"{record['attack']}, {record['vantage']}, r{record['round']}"
            rows.setdefault(row, {})[record["defence_name"]] = _SHORT[record["outcome"]]
        for row, cells in rows.items():
            table.add_row(row, *(cells.get(name, "") for name in names))
        console = self._console if self._console.is_terminal else Console(width=max(200, self._console.width))
        console.print(table)
