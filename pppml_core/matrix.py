"""The matrix of evidence: defences x vantages x attacks, one real run a defence, one record a cell; resumable, with a time budget.

A file says what is run (examples/evidence/matrix.yaml)::

    base: {task: ..., run: {rounds: 30}}                 # a config
    defences: {plain: {}, ring: {aggregator: cyclic-he}} # laid over the base, one run each; the first one has no defence
    attacks:
      - {use: gallery, vantages: [server, public], rounds: [1, last]}   # and settings of the attack; only: [ring] for some defences
    watched: a                                           # the site that is attacked
    effort: {cheap: 100, optimized: 3, seconds: 10, gallery: 100, seed: 0}

Runs lie in ``DIR/runs/NAME``, records in their ``attacks`` folders. What is there already is not made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pppml_core.api import Experiment, Run
from pppml_core.config.source import load_yaml
from pppml_core.errors import ConfigError, nearest
from pppml_core.evidence.attacks import Target, bound, record_path
from pppml_core.evidence.evaluate import Cell, Control, Effort
from pppml_core.registry import Registry

Emit = Callable[[Mapping[str, Any]], None]
Round = int | Literal["last"]


class EffortSection(BaseModel):
    """How much is spent on a cell; see :class:`pppml_core.evidence.evaluate.Effort`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cheap: int = Field(100, ge=1, description="victims of an attack that takes milliseconds")
    optimized: int = Field(3, ge=1, description="victims of one that takes its whole budget")
    seconds: float = Field(10.0, gt=0, description="budget of one answer")
    gallery: int = Field(100, ge=2, description="images among which a victim is to be picked")
    seed: int = Field(0, ge=0, description="of victims and galleries")


class AttackRow(BaseModel):
    """One attack and where it is tried; further keys are settings of the attack."""

    model_config = ConfigDict(extra="allow", frozen=True)

    use: str
    vantages: tuple[str, ...] = ("server",)
    rounds: tuple[Round, ...] = ("last",)
    only: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Of the attack itself."""
        return {"use": self.use, **(self.model_extra or {})}


class MatrixConfig(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: dict[str, Any]
    defences: dict[str, dict[str, Any]] = Field(min_length=1)
    attacks: tuple[AttackRow, ...] = Field(min_length=1)
    watched: str | None = None
    effort: EffortSection = Field(default_factory=EffortSection)


def load_matrix(path: Path) -> MatrixConfig:
    """Read a matrix file. Raises ConfigError that names line and remedy."""
    document = load_yaml(path)
    try:
        config = MatrixConfig.model_validate(document.data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}", place=document.place(tuple(first["loc"])), hint=__doc__.split("\n")[0]) from error
    for row in config.attacks:
        for name in row.only:
            if name not in config.defences:
                close = nearest(name, list(config.defences))
                hint = f"did you mean {close!r}?" if close else f"known: {', '.join(config.defences)}"
                raise ConfigError(f"attacks: {row.use}: there is no defence {name!r}", place=str(path), hint=hint)
    return config


@dataclass
class MatrixResult:
    """``runs``: folders in the order of the file; ``records``: of all cells that are there; ``missing``: cells that are not."""

    runs: list[Path] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    missing: int = 0

    @property
    def violations(self) -> list[dict[str, Any]]:
        """Records in which a claim of privacy is refuted: a bug."""
        return [r for r in self.records if r.get("violation")]


@dataclass(frozen=True)
class _Place:
    """One cell of one defence: ``round`` None is the run's final model."""

    row: AttackRow
    vantage: str
    round: int | None


def run_matrix(
    config: MatrixConfig,
    out: Path,
    *,
    budget: float | None = None,
    registry: Registry | None = None,
    emit: Emit = lambda event: None,
) -> MatrixResult:
    """Make every run and cell that is missing in ``out``, until ``budget`` minutes are over (None: until all are there).

    ``emit`` gets ``run``, ``cells`` and ``victim`` events, each with ``defence``.
    """
    registry = registry or Registry.discover()
    ends = None if budget is None else time.monotonic() + 60 * budget
    found, controls = MatrixResult(), dict[Any, dict[str, Control]]()
    for number, (name, changes) in enumerate(config.defences.items(), 1):
        about = {"defence": name, "place": number, "of_defences": len(config.defences)}
        emit({"event": "run", **about})
        run = _run(config, name, changes, out, registry)
        found.runs.append(run.folder)
        target = Target(run.folder, run.result, run.assembly)
        places = [p for p in _places(config, name, target) if not _held(target, p)]
        for round_, cells in _grouped(places):
            if ends is not None and time.monotonic() > ends:
                continue
            emit({"event": "cells", **about, "round": round_, "cells": [f"{c.row.use} from {c.vantage}" for c in cells]})
            _make(config, target, round_, cells, controls, partial(_with, emit, about))
        places = list(_places(config, name, target))
        found.records += [{**json.loads(p.read_text()), "defence_name": name} for place in places if (p := _path(target, place)).exists()]
        found.missing += sum(not _held(target, place) for place in places)
    return found


def _run(config: MatrixConfig, name: str, changes: Mapping[str, Any], out: Path, registry: Registry) -> Run:
    base = dict(config.base)
    for section, value in changes.items():
        merge = isinstance(value, Mapping) and isinstance(base.get(section), Mapping) and "use" not in value
        base[section] = {**base[section], **value} if merge else value
    base["run"] = {**base.get("run", {}), "name": name}
    return Experiment(base, registry=registry).run(out / "runs" / name, reporters=False, report=False)


def _places(config: MatrixConfig, name: str, target: Target) -> Iterator[_Place]:
    for row in config.attacks:
        if row.only and name not in row.only:
            continue
        for round_ in row.rounds:
            for vantage in row.vantages:
                yield _Place(row, vantage, None if round_ == "last" else int(round_))


def _path(target: Target, place: _Place) -> Path:
    return record_path(target.folder, place.row.use, place.vantage, target.rounds if place.round is None else place.round)


def _held(target: Target, place: _Place) -> bool:
    return _path(target, place).exists()


def _grouped(places: list[_Place]) -> list[tuple[int | None, list[_Place]]]:
    rounds = list(dict.fromkeys(p.round for p in places))
    return [(r, [p for p in places if p.round == r]) for r in rounds]


def _make(
    config: MatrixConfig, target: Target, round_: int | None, places: list[_Place], controls: dict[Any, dict[str, Control]], emit: Emit
) -> None:
    staged: list[Cell] = []
    for place in places:
        attack = bound(target.parts, place.row.settings)
        who = target.vantage(place.vantage)
        if target.parts.registry.build("attack", attack).reads_view:
            staged.append(Cell(attack, who))
        else:
            target.audit(attack, who, round_)
    if staged:
        effort = Effort(**config.effort.model_dump())
        # Controls are of the same weights and victims, whatever the defence.
        shared = controls.setdefault(target.key(round_), {})
        target.attack(staged, round_, effort, config.watched, controls=shared, emit=emit, judged=max(1, len(places)))


def _with(emit: Emit, about: Mapping[str, Any], event: Mapping[str, Any]) -> None:
    emit({**about, **event})
