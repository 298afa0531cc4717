"""What a run directory tells. Every file may be missing or torn; the records say so, and nothing is guessed in its place."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.report.patients import PatientScores, read_patient_scores
from pppml_core.report.tables import FinalMetrics, final_metrics

Record = Mapping[str, Any]
FILES = ("config.resolved.yaml", "plan.json", "manifest.json", "metrics.jsonl", "events.jsonl", "result.json", "examples.npz")
EXAMPLE_ARRAYS = ("images", "targets", "predictions", "sites")


@dataclass(frozen=True)
class RunRecords:
    """The files of one run directory, read. ``missing`` names absent files, ``damaged`` says what is wrong with others."""

    folder: Path
    config: Record = field(default_factory=dict)
    plan: Record = field(default_factory=dict)
    manifest: Record = field(default_factory=dict)
    result: Record = field(default_factory=dict)
    metrics: Sequence[Record] = ()
    events: Sequence[Record] = ()
    examples: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    attacks: Sequence[Record] = ()
    patients: PatientScores = field(default_factory=PatientScores)
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """A run is finished when it has written its result."""
        return bool(self.result)

    @property
    def name(self) -> str:
        """The run's name; the folder's where no file tells one."""
        return str(self.result.get("name") or self.part("config", "run").get("name") or self.folder.name)

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        seed = self.result.get("seed", self.part("config", "run").get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def rounds_planned(self) -> int | None:
        """Rounds the configuration asks for."""
        rounds = self.part("config", "run").get("rounds")
        return rounds if isinstance(rounds, int) else None

    @property
    def rounds_done(self) -> int:
        """Rounds that ended."""
        if isinstance(self.result.get("rounds"), int):
            return int(self.result["rounds"])
        ended = [event.get("round", 0) for event in self.told("round-finished")] + [row.get("round", 0) for row in self.metrics]
        return max((r for r in ended if isinstance(r, int)), default=0)

    @property
    def primary_metric(self) -> str | None:
        """The metric that ``select`` and ``stop`` look at; the first one recorded where no plan names it."""
        named = self.part("plan", "task").get("primary_metric")
        return str(named) if named else next(iter(self.final.metrics), None)

    @property
    def site_names(self) -> dict[str, str]:
        """Slug -> name that people read."""
        return {str(s["slug"]): str(s.get("name") or s["slug"]) for s in items(self.plan.get("sites")) if "slug" in s}

    @property
    def pooled(self) -> bool:
        """Centralized training: all images at one place."""
        return bool(self.config.get("pool") or self.part("config", "task").get("pool"))

    @property
    def steps_a_round(self) -> dict[str, int]:
        """Local optimizer steps of each site a round, as told at the start or else as planned."""
        told = [event["steps"] for event in self.told("run-started")[:1] if "steps" in event] or [
            self.part("plan", "training").get("steps")
        ]
        return {str(site): n for site, n in told[0].items() if isinstance(n, int)} if isinstance(told[0], Mapping) else {}

    @property
    def steps(self) -> int | None:
        """Local optimizer steps of all sites and rounds; None where no file tells."""
        return sum(self.steps_a_round.values()) * self.rounds_done if self.steps_a_round else None

    @cached_property
    def final(self) -> FinalMetrics:
        """The final metrics of ``result.json``; of the last evaluated round where the run has not finished."""
        rows = final_metrics(self.metrics)
        if not self.finished:
            return rows
        final = final_metrics(self.result)
        return FinalMetrics(final.sites, final.mean, final.round, self.result.get("split") or rows.split)

    def part(self, file: str, key: str) -> Record:
        """A map inside ``config``, ``plan`` or ``result``; a name alone (``model: unet``) reads as ``{use: name}``."""
        value = getattr(self, file).get(key)
        return value if isinstance(value, Mapping) else {"use": value} if isinstance(value, str) else {}

    def told(self, event: str) -> list[Record]:
        """All events of a kind."""
        return [e for e in self.events if e.get("event") == event]


def read_run(folder: Path) -> RunRecords:
    """The records of one run directory. Raises DataError where it is none."""
    if not folder.is_dir():
        raise DataError("there is no such run directory", place=str(folder), hint="give the folder that `pppml run` wrote")
    missing = tuple(name for name in FILES if not (folder / name).is_file())
    if {"config.resolved.yaml", "plan.json", "events.jsonl", "result.json", "metrics.jsonl"} <= set(missing):
        raise DataError("holds none of the files of a run", place=str(folder), hint="give the folder that `pppml run` wrote")
    damaged: list[str] = []
    config = _yaml(folder / "config.resolved.yaml", damaged)
    patients = read_patient_scores(folder, config)
    return RunRecords(
        folder,
        config=config,
        plan=_json(folder / "plan.json", damaged),
        manifest=_json(folder / "manifest.json", damaged),
        result=_json(folder / "result.json", damaged),
        metrics=_latest(_jsonl(folder / "metrics.jsonl", damaged)),
        events=_jsonl(folder / "events.jsonl", damaged),
        examples=_examples(folder / "examples.npz", damaged),
        attacks=[_json(path, damaged) for path in sorted((folder / "attacks").glob("*.json"))],
        patients=patients,
        missing=missing,
        damaged=(*damaged, *patients.damaged),
    )


def items(value: Any) -> list[Record]:
    """The maps of a list; nothing where there is no list."""
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list | tuple) else []


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested maps as dotted paths.

    >>> flat({"run": {"seed": 1}, "model": "unet"})
    {'run.seed': 1, 'model': 'unet'}
    """
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {path: leaf for key, item in value.items() for path, leaf in flat(item, f"{prefix}.{key}" if prefix else str(key)).items()}


def _json(path: Path, damaged: list[str]) -> Record:
    return _map(path, damaged, _loads)


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> float:
    """An integer; NaN for one that no float holds, since all of the report calculates with floats."""
    return int(digits) if math.isfinite(float(digits)) else math.nan


def _yaml(path: Path, damaged: list[str]) -> Record:
    import yaml

    return _map(path, damaged, yaml.safe_load)


def _map(path: Path, damaged: list[str], parse: Any) -> Record:
    import yaml

    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        damaged.append(f"the file {path.name} cannot be read: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(value, Mapping):
        damaged.append(f"the file {path.name} holds no map")
        return {}
    return value


def _jsonl(path: Path, damaged: list[str]) -> list[Record]:
    if not path.is_file():
        return []
    records, torn = [], 0
    for line in filter(str.strip, path.read_text("utf-8", errors="replace").splitlines()):
        try:
            record = _loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, Mapping):
            records.append(record)
        else:
            torn += 1
    if torn:
        damaged.append(f"the file {path.name} has {torn} line{'s' if torn > 1 else ''} cut off or not JSON, left out")
    return records


def _latest(rows: list[Record]) -> list[Record]:
    """One row for each round, site, split and weights: the last, as a resumed run may have written a round twice."""
    return list({(row.get("round"), row.get("site"), row.get("split"), row.get("weights")): row for row in rows}.values())


def _examples(path: Path, damaged: list[str]) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*EXAMPLE_ARRAYS, *(n for n in ("weights",) if n in file.files))}
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        damaged.append(f"the file {path.name} cannot be read: {error}")
        return {}
    counts = {name: len(array) if array.ndim else -1 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or arrays["images"].ndim not in (4, 5):
        damaged.append(f"the arrays of {path.name} do not fit each other: {counts}, images {arrays['images'].shape}")
        return {}
    return arrays
