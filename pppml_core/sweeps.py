"""A grid of settings, each with several seeds: run what is missing, tabulate what is there.

::

    points = expand({"personalization": ["fedavg", "local-only"], "training.optimizer.lr": [0.1, 0.01]}, seeds=range(1, 6))
    result = Sweep(points, run_one, "sweeps/a", budget=60).run()     # minutes
    print(result.markdown())

``run_one(overrides, folder)`` trains one point and leaves ``result.json`` in its folder; called again for a folder without one, it
resumes. So a sweep that was interrupted, or that ran out of its budget, goes on by being called again; more seeds or values only add
points. ``sweep.json`` is the index, ``table.md`` and ``table.csv`` are written after every point.

(The module is not called ``sweep``, because that would hide the function ``pppml_core.sweep``.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pppml_core.config.saved import diff
from pppml_core.config.source import scalar
from pppml_core.errors import ConfigError, DataError, PppmlError
from pppml_core.federation.files import write_atomic
from pppml_core.sweep_result import SweepResult, open_sweep, read_index, read_result

__all__ = ["Point", "Sweep", "SweepResult", "as_settings", "expand", "open_sweep", "parse_grid", "parse_seeds"]

RunOne = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]
Settings = Mapping[str, Any]
SEED = "run.seed"


@dataclass(frozen=True)
class Point:
    """One run of a sweep: settings by dotted path, and a seed."""

    settings: Settings
    seed: int

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from the base config, seed included; whole sections before settings inside them."""
        ordered = sorted(self.settings.items(), key=lambda item: item[0].count("."))
        return {**dict(ordered), SEED: self.seed}

    @property
    def labels(self) -> dict[str, str]:
        """The settings as people read them."""
        return {path: label(value) for path, value in self.settings.items()}

    @property
    def name(self) -> str:
        """The folder: ``personalization=fedavg,training.optimizer.lr=0.01,seed=3``."""
        text = ",".join(f"{path}={value}" for path, value in [*self.labels.items(), ("seed", str(self.seed))])
        safe = re.sub(r"[^A-Za-z0-9._+=,-]+", "-", text)
        if safe == text and len(safe) <= 120:
            return safe
        # What was changed or cut must not make two points equal.
        return f"{safe[:100]},{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def label(value: Any) -> str:
    """A setting's value in a table or a folder name: ``per-fedavg+inner_lr=0.1`` for a map with ``use``, a class by its name."""
    if isinstance(value, Mapping):
        rest = "+".join(f"{key}={label(item)}" for key, item in value.items() if key != "use")
        return "+".join(part for part in (str(value.get("use", "")), rest) if part)
    if isinstance(value, (list, tuple)):
        return "-".join(label(item) for item in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, (str, int, float)):
        return str(value)
    return getattr(value, "__name__", type(value).__name__)


def expand(grid: Mapping[str, Any], seeds: Iterable[int]) -> list[Point]:
    """All points of a grid: every combination of values with the first seed, then with the second, and so on.

    Args:
        grid: dotted path -> values. A value for a component section (``personalization``) is its name or a map with ``use``, and sets the
            whole section; a value of a setting (``training.optimizer.lr``) sets that only.
        seeds: distinct integers from 0 on.

    Raises ConfigError on a setting without values, values that look the same, no seeds, equal seeds, or seeds in the grid.

    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seeds must be one or more distinct integers from 0 on, not {seeds}", place="seeds", hint="write 1..5 or 1,2,3.")
    if SEED in grid:
        raise ConfigError("seeds are not part of the grid", place=SEED, hint="give them as seeds: they become intervals, not rows.")
    choices: dict[str, list[Any]] = {}
    for path, values in grid.items():
        choices[path] = list(values) if isinstance(values, (list, tuple, set, range)) else [values]
        names = [label(value) for value in choices[path]]
        if not names:
            raise ConfigError("no values", place=f"grid: {path}", hint="give one or more, separated by commas.")
        if same := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"{', '.join(sorted(same))} appears twice", place=f"grid: {path}", hint="give each value once.")
    combinations = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return [Point(settings, seed) for seed in seeds for settings in combinations]


def parse_grid(texts: Iterable[str]) -> dict[str, list[Any]]:
    """``["a.b=x,y"]`` as ``{"a.b": ["x", "y"]}``; values are YAML, so ``model={use: unet, norm: group},unet`` is two values.

    Raises ConfigError on a text without ``=`` and on a path that is given twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not path or not values:
            raise ConfigError(f"{text!r} is not a grid", place="--grid", hint="write a.b=x,y")
        if path in grid:
            raise ConfigError(f"{path} is given twice", place="--grid", hint=f"write {path}=x,y,z once.")
        found = scalar(f"[{values}]")
        grid[path] = found if isinstance(found, list) else [found]
    return grid


def parse_seeds(text: str) -> list[int]:
    """``1..5``, ``1,2,3`` and ``1..3,7``.

    >>> parse_seeds("1..3,7")
    [1, 2, 3, 7]
    """
    out: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        if found is None or (found[2] and int(found[2]) < int(found[1])):
            raise ConfigError(f"{part!r} is neither a seed nor a range of seeds", place="--seeds", hint="write 1..5 or 1,2,3.")
        out += range(int(found[1]), int(found[2] or found[1]) + 1)
    return out


def as_settings(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides of plain values as the ``a.b=c`` texts that ``--set`` takes (JSON is YAML)."""
    return [f"{path}={json.dumps(value)}" for path, value in overrides.items()]


class Sweep:
    """Runs points one after another into ``out``, one folder each.

    Args:
        points: of :func:`expand`.
        run_one: ``run_one(overrides, folder) -> result`` (the content of ``result.json``); resumes a folder that is there.
        out: folder of the sweep.
        budget: minutes after which no new point is begun; points finished earlier cost nothing.
        base: the resolved base config as plain data; a sweep of another base is refused.
        tell: gets a line when a point begins or ends; default: the terminal's stderr.
        clock: seconds, monotonic.

    """

    def __init__(
        self,
        points: Sequence[Point],
        run_one: RunOne,
        out: str | Path,
        *,
        budget: float | None = None,
        base: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if budget is not None and not budget > 0:
            raise ConfigError(f"the budget must be positive, not {budget}", place="budget", hint="give minutes.")
        self.points, self.run_one, self.out, self.budget = tuple(points), run_one, Path(out), budget
        self.base = json.loads(json.dumps(base, default=label)) if base is not None else None
        self.tell, self.clock = tell or _tell, clock

    def run(self) -> SweepResult:
        """Every point that is not finished, in order. A point that fails is recorded, and tried again by the next call.

        Raises ConfigError where ``out`` holds a sweep of another base config, DataError where it cannot be written or its index read.
        """
        index = self._index()
        entries: dict[str, dict[str, Any]] = index["points"]
        begun = self.clock()
        for number_, point in enumerate(self.points, 1):
            folder = self.out / point.name
            entry = entries.setdefault(point.name, {"settings": point.labels, "seed": point.seed, "status": "missing"})
            where = f"[{number_}/{len(self.points)}] {point.name}"
            if read_result(folder) is not None:
                entry.update(status="done")
                entry.pop("error", None)
                self.tell(f"{where}: finished before")
                continue
            if entry["status"] == "done":  # its result has been removed since
                entry["status"] = "missing"
            if self.budget is not None and self.clock() - begun >= 60 * self.budget:
                continue
            self.tell(where)
            entry["status"] = "unfinished"
            self._write(index, tables=False)
            started = self.clock()
            error: str | None = None
            try:
                self.run_one(point.overrides, folder)
            except Exception as raised:  # one point must not cost the others; its reason is kept and shown
                error, entry["exit_code"] = _reason(raised), getattr(raised, "exit_code", 1)
            if read_result(folder) is not None:  # also where only something after the training failed, such as the report
                entry.update(status="done")
                entry.pop("error", None)
            else:
                entry.update(status="failed", error=error or "the run left no result.json")
            if error is not None:
                self.tell(f"{where}: {'finished, but' if entry['status'] == 'done' else 'failed'}: {error}")
            entry["seconds"] = round(entry.get("seconds", 0.0) + self.clock() - started, 3)
            self._write(index)
        self._write(index)
        result = self._result(index)
        if result.missing:
            self.tell(f"the budget of {self.budget:g} minutes is spent; not begun: {', '.join(result.missing)}")
        return result

    def _result(self, index: Mapping[str, Any]) -> SweepResult:
        return SweepResult(self.out, {point.name: index["points"].get(point.name, {}) for point in self.points})

    def _index(self) -> dict[str, Any]:
        file = self.out / "sweep.json"
        if not file.exists():
            return {"version": 1, "base": self.base, "points": {}}
        index = read_index(self.out)
        if self.base is not None and index.get("base") is not None and (changed := diff(index["base"], self.base)):
            raise ConfigError(
                f"this folder holds a sweep of another config: {'; '.join(map(str, changed[:5]))}",
                place=str(self.out),
                hint="take another folder with -o, or the old config.",
            )
        return {**index, "base": self.base if self.base is not None else index.get("base")}

    def _write(self, index: dict[str, Any], *, tables: bool = True) -> None:
        try:
            write_atomic(self.out / "sweep.json", json.dumps(index, indent=1).encode())
            if tables:
                result = self._result(index)
                write_atomic(self.out / "table.md", (result.markdown() + "\n").encode())
                write_atomic(self.out / "table.csv", result.csv().encode())
        except OSError as error:
            raise DataError(f"cannot be written: {error.strerror or error}", place=str(self.out), hint="choose another folder.") from error


def _tell(line: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, markup=False).print(line)


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, PppmlError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
