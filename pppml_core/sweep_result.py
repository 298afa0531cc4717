"""What a sweep has found: rows, cells with intervals over seeds, and tables of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pppml_core.errors import DataError
from pppml_core.report.tables import MISSING, WEIGHTS, Grid, as_float, clean, final_metrics, number, seconds, size
from pppml_core.sweep_privacy import choice_notes

if TYPE_CHECKING:
    from rich.console import Group

    from pppml_core.learning.stats import Interval


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of ``result.json``; None where it is absent or not whole."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def read_index(out: Path) -> dict[str, Any]:
    """The content of ``sweep.json``. Raises DataError where it is absent or damaged."""
    file = out / "sweep.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found["points"], dict):
            raise TypeError("points is not a map")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"not the index of a sweep: {error}", place=str(file), hint="give the folder of a sweep.") from error
    return dict(found)


def open_sweep(out: str | Path) -> SweepResult:
    """All points of a sweep that was run before."""
    return SweepResult(Path(out), read_index(Path(out))["points"])


@dataclass(frozen=True)
class Cell:
    """One combination of settings: which of its seeds are done, and each metric's mean with an interval over them."""

    settings: Mapping[str, str]
    weights: str
    seeds: tuple[int, ...]
    asked: int
    metrics: Mapping[str, Interval]
    seconds: float
    bytes: float


class SweepResult:
    """What a sweep has found. Prints as a table; ``rows`` go straight into ``pandas.DataFrame``."""

    def __init__(self, out: Path, points: Mapping[str, Mapping[str, Any]]) -> None:
        self.out, self.points = out, points

    @property
    def failed(self) -> dict[str, str]:
        """Name -> reason."""
        return {name: str(p.get("error", "")) for name, p in self.points.items() if p.get("status") == "failed"}

    @property
    def exit_code(self) -> int:
        """0: none failed; the code that all points share where every one failed for such a reason (a wrong setting: 2); else 1."""
        codes = {p.get("exit_code", 1) for p in self.points.values() if p.get("status") == "failed"}
        if not codes:
            return 0
        return int(codes.pop()) if len(codes) == 1 and len(self.failed) == len(self.points) else 1

    @property
    def missing(self) -> list[str]:
        """Points that were not begun or not finished."""
        return [name for name, p in self.points.items() if p.get("status") not in ("done", "failed")]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each point and kind of weights: settings, seed, status, weights, mean of each metric over sites, seconds, bytes."""
        out: list[dict[str, Any]] = []
        for name, point in self.points.items():
            head = {**point.get("settings", {}), "seed": point.get("seed"), "status": point.get("status", "missing"), "folder": name}
            result = read_result(self.out / name) if point.get("status") == "done" else None
            if result is None:
                out.append({**head, "weights": None, "error": point.get("error")})
                continue
            cost = {
                "seconds": _number(result, "seconds", "total"),
                "bytes": _number(result, "bytes", "up") + _number(result, "bytes", "down"),
            }
            final = final_metrics(result)
            out += [{**head, "weights": weights, **final.mean.get(weights, {}), **cost} for weights in final.weights or WEIGHTS[:1]]
        return out

    @property
    def cells(self) -> list[Cell]:
        """Settings by kind of weights, in the order they were asked for; values that are undefined for a seed are left out."""
        from pppml_core.learning.stats import mean_interval

        asked: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
        paths = self._paths()
        for row in self.rows:
            asked.setdefault(tuple((path, row.get(path, MISSING)) for path in paths), []).append(row)
        out = []
        for settings, rows in asked.items():
            seeds = len({row["seed"] for row in rows})
            for weights in [w for w in WEIGHTS if any(row["weights"] == w for row in rows)] or [MISSING]:
                done = [row for row in rows if row["weights"] == weights]
                values = {m: [row[m] for row in done if math.isfinite(row.get(m, math.nan))] for m in self._metrics(done)}
                metrics = {m: mean_interval(found) for m, found in values.items() if found}
                cost = [sum(row[key] for row in done) / len(done) if done else math.nan for key in ("seconds", "bytes")]
                out.append(Cell(dict(settings), weights, tuple(row["seed"] for row in done), seeds, metrics, *cost))
        return out

    def _paths(self) -> list[str]:
        return list(dict.fromkeys(path for point in self.points.values() for path in point.get("settings", {})))

    def _metrics(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        own = {*self._paths(), "seed", "status", "folder", "weights", "error", "seconds", "bytes"}
        return list(dict.fromkeys(key for row in rows for key in row if key not in own))

    def grid(self) -> Grid:
        """The table as text: settings, weights, each metric with its interval, seconds and bytes of a run, seeds done of those asked."""
        cells, paths = self.cells, self._paths()
        metrics = list(dict.fromkeys(metric for cell in cells for metric in cell.metrics))
        rows = tuple(
            (
                *(cell.settings[path] for path in paths),
                cell.weights,
                *(_shown(cell.metrics.get(metric), len(cell.seeds)) for metric in metrics),
                seconds(cell.seconds),
                size(cell.bytes),
                f"{len(cell.seeds)}/{cell.asked}",
            )
            for cell in cells
        )
        return Grid(self.out.name, (*paths, "weights", *metrics, "time", "sent", "seeds"), rows, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        yield "Mean over sites, then over seeds, with Student's 95 % interval over seeds; other patients are not part of it."
        for name, reason in self.failed.items():
            yield f"Failed: {name}: {reason}"
        if self.missing:
            yield f"Not finished: {', '.join(self.missing)}."
        yield from choice_notes(self.out / name for name in self.points)

    def table(self) -> Group:
        """For a terminal: a block of rows for each metric, so that it stays narrow and cells stand below each other."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        paths, cells = self._paths(), self.cells
        last = [path.rpartition(".")[2] for path in paths]
        names = [short if last.count(short) == 1 else path for short, path in zip(last, paths, strict=True)]
        table = Table(title=Text(clean(self.out.name)), title_justify="left", box=SIMPLE_HEAD)
        for name in ("metric", *names):
            table.add_column(Text(clean(name)), overflow="fold")
        table.add_column("weights", no_wrap=True)
        for name in ("mean [95 %]", "seeds"):
            table.add_column(name, justify="right", no_wrap=True)
        for metric in dict.fromkeys(metric for cell in cells for metric in cell.metrics) or [MISSING]:
            for index, cell in enumerate(cells):
                shown = _shown(cell.metrics.get(metric), len(cell.seeds))
                head = (metric if index == 0 else "", *(cell.settings[path] for path in paths), cell.weights)
                table.add_row(*(Text(clean(text)) for text in (*head, shown, f"{len(cell.seeds)}/{cell.asked}")))
            table.add_section()
        return Group(table, Text(clean("\n".join(self._notes()), keep_lines=True)))

    def markdown(self) -> str:
        """For a README or an issue."""
        return self.grid().markdown()

    def csv(self) -> str:
        """A line for each cell and metric: settings, weights, metric, mean, low, high, n (seeds with a value), asked."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*self._paths(), "weights", "metric", "mean", "low", "high", "n", "asked"])
        for cell in self.cells:
            for metric, found in cell.metrics.items():
                ends = ["" if math.isnan(end) else repr(end) for end in (found.low, found.high)]
                writer.writerow([*cell.settings.values(), cell.weights, metric, repr(found.estimate), *ends, found.n, cell.asked])
        return stream.getvalue()

    def _repr_html_(self) -> str:
        return self.grid().html()

    def __repr__(self) -> str:
        return self.markdown()

    def report(self, path: str | Path) -> Path:
        """One HTML page of all finished points. Raises DataError where none is."""
        from pppml_core.report import write_report

        folders = [self.out / name for name, point in self.points.items() if point.get("status") == "done"]
        if not folders:
            raise DataError("no point of this sweep is finished", place=str(self.out), hint="see sweep.json for the reasons.")
        return Path(write_report(folders, Path(path)))


def _shown(interval: Interval | None, seeds: int) -> str:
    if interval is None:
        return MISSING
    text = number(interval.estimate)
    if math.isfinite(interval.low):
        text += f" [{number(interval.low)}, {number(interval.high)}]"
    return text if interval.n == seeds else f"{text} (n = {interval.n})"


def _number(result: Mapping[str, Any], *keys: str) -> float:
    value: Any = result
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return as_float(value) if isinstance(value, (int, float)) else math.nan
