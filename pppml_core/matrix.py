"""The matrix of evidence: defences x vantages x attacks, one real run a defence, one record a cell; resumable, with a time budget.

A file says what is run (examples/evidence/matrix.yaml)::

    base: {task: ..., run: {rounds: 30}}                 # a config
    defences: {plain: {}, ring: {aggregator: cyclic-he}} # laid over the base, one run each; the first one has no defence
    attacks:
      - {use: gallery, vantages: [server, public], rounds: [1, last]}   # and settings of the attack; only: [ring], or skip: [ring]
    watched: a                                           # the site that is attacked
    effort: {cheap: 100, optimized: 3, seconds: 10, gallery: 100, seed: 0}

Runs lie in ``DIR/runs/NAME``, records in their ``attacks`` folders. What is there already is not made again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pppml_core.api import Experiment
from pppml_core.config import resolve, to_plain
from pppml_core.config.source import load_yaml
from pppml_core.errors import ConfigError, check_site, nearest
from pppml_core.evidence.attacks import RECORDED, Target, bound, needs_recording, record_path
from pppml_core.evidence.found import Cell, Control, Effort
from pppml_core.evidence.record import finite
from pppml_core.evidence.vantage import read_vantage
from pppml_core.interfaces.attack import Vantage
from pppml_core.registry import Registry

Emit = Callable[[Mapping[str, Any]], None]
Round = Annotated[int, Field(ge=1)] | Literal["last"]


class EffortSection(BaseModel):
    """How much is spent on a cell; see :class:`pppml_core.evidence.found.Effort`."""

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
    skip: tuple[str, ...] = ()

    def tries(self, defence: str) -> bool:
        """Whether it is tried on that defence."""
        return defence not in self.skip and (not self.only or defence in self.only)

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
        # A misspelt key explains the one that is then missing.
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}", place=document.place(tuple(first["loc"])), hint=__doc__.split("\n")[0]) from error
    for row in config.attacks:
        for name in (*row.only, *row.skip):
            if name not in config.defences:
                close = nearest(name, list(config.defences))
                hint = f"did you mean {close!r}?" if close else f"known: {', '.join(config.defences)}"
                raise ConfigError(f"attacks: {row.use}: there is no defence {name!r}", place=str(path), hint=hint)
    return config


@dataclass
class MatrixResult:
    """``runs``: folders in the order of the file, of those that were begun; ``records``: of all cells that are there; ``missing``: cells
    that are not.
    """

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
    planned = {name: experiment_of(config, name, registry) for name in config.defences}
    judged = sum(len(_checked(config, name, experiment)) for name, experiment in planned.items())
    ends = math.inf if budget is None else time.monotonic() + 60 * budget
    found, controls = MatrixResult(), dict[Any, dict[str, Control]]()
    for number, (name, experiment) in enumerate(planned.items(), 1):
        about = {"defence": name, "place": number, "of_defences": len(config.defences)}
        if time.monotonic() > ends and not (out / "runs" / name / "result.json").exists():
            found.missing += len(_checked(config, name, experiment))
            continue
        emit({"event": "run", **about})
        run = experiment.run(out / "runs" / name, reporters=False, report=False)
        found.runs.append(run.folder)
        target = Target(run.folder, run.result, run.assembly)
        places = _checked(config, name, experiment)
        held = partial(_held, config, name, target)
        _put_aside(target, {_path(target, place) for place in places if held(place)})
        for round_, cells in _grouped([place for place in places if not held(place)]):
            if time.monotonic() > ends:
                continue
            emit({"event": "cells", **about, "round": round_, "cells": [f"{c.row.use} from {c.vantage}" for c in cells]})
            _make(config, name, target, round_, cells, controls, partial(_with, emit, about), judged, ends)
        found.records += [
            {**json.loads(p.read_text()), "defence_name": name} for place in places if held(place) and (p := _path(target, place))
        ]
        found.missing += sum(not held(place) for place in places)
    return found


def experiment_of(config: MatrixConfig, name: str, registry: Registry) -> Experiment:
    """The run of one defence: its changes laid over the base, map by map, but a component that is named (``use``) as a whole."""
    base = dict(config.base)
    for section, value in config.defences[name].items():
        merge = isinstance(value, Mapping) and isinstance(base.get(section), Mapping) and "use" not in value
        base[section] = {**base[section], **value} if merge else value
    base["run"] = {**base.get("run", {}), "name": name}
    return Experiment(base, registry=registry)


def _checked(config: MatrixConfig, name: str, experiment: Experiment) -> list[_Place]:
    """The cells of one defence. Raises ConfigError, before hours of training, where one cannot be made or replaces another."""
    held, places = experiment.config, list(_places(config, name))
    sites = [s.slug for s in experiment.registry.build("task", held.task).sites()]
    written = dict[Path, str]()
    for place in places:
        about = f"{place.row.use} from {place.vantage}"
        attack = resolve({**to_plain(held), "attacks": [place.row.settings]}, registry=experiment.registry).attacks[0]
        read_vantage(place.vantage, sites)
        if (place.round or 1) > held.run.rounds:
            raise ConfigError(f"{about}: there is no round {place.round}", place=name, hint=f"the run has rounds 1 to {held.run.rounds}")
        built = experiment.registry.build("attack", attack)
        if built.reads_view and built.answers in RECORDED and held.run.transcript != "secrets":
            raise ConfigError(f"{about}: it attacks rounds as they were recorded", place=name, hint="set run.transcript: secrets")
        if built.reads_view and (place.round or 1) > 1 and held.run.transcript == "sizes":
            text = f"{about}: the model that round {place.round} began with is not kept"
            raise ConfigError(text, place=name, hint="set run.transcript: payloads")
        path = record_path(Path(), place.row.use, place.vantage, place.round or held.run.rounds)
        if path in written:
            text = f"{about}: two cells have the same record, {path}"
            raise ConfigError(text, place=name, hint="name each attack, vantage and round once; other settings need a matrix of their own")
        written[path] = about
    if places and config.watched is None:
        _outside(sites, [read_vantage(place.vantage, sites) for place in places])
    elif config.watched is not None:
        check_site(config.watched, sites, ConfigError, place="watched", where="in this run")
    return places


def _outside(sites: Sequence[str], vantages: Sequence[Vantage]) -> list[str]:
    """The sites that are in no vantage."""
    free = [s for s in sites if not any(s in who.sites for who in vantages)]
    if not free:
        raise ConfigError("every site is in some vantage, so none is attacked from all of them", place="watched", hint="watched: SITE")
    return free


def _watched(config: MatrixConfig, name: str, target: Target) -> str:
    """One site for all cells of a defence, so that their figures can be compared."""
    return config.watched or target.watched(None, [target.vantage(place.vantage) for place in _places(config, name)])


def _places(config: MatrixConfig, name: str) -> Iterator[_Place]:
    for row in config.attacks:
        if not row.tries(name):
            continue
        for round_ in row.rounds:
            for vantage in row.vantages:
                yield _Place(row, vantage, None if round_ == "last" else int(round_))


def _path(target: Target, place: _Place) -> Path:
    return record_path(target.folder, place.row.use, place.vantage, target.rounds if place.round is None else place.round)


def _held(config: MatrixConfig, name: str, target: Target, place: _Place) -> bool:
    """Whether the record of this cell is there; one that was made with other settings or less effort is not it."""
    try:
        record = json.loads(_path(target, place).read_text())
    except (OSError, ValueError):
        return False
    attack = bound(target.parts, place.row.settings)
    reads_view = target.parts.registry.build("attack", attack).reads_view
    effort = Effort(**config.effort.model_dump()) if reads_view else None
    asked = target.asked(attack, effort, _watched(config, name, target))
    return bool(record.get("asked") == json.loads(json.dumps(finite(asked))))


def _put_aside(target: Target, kept: Collection[Path]) -> None:
    """Move other records of the run to ``attacks/earlier``: the page speaks of this matrix, at what it asks for, and of nothing else."""
    for path in (target.folder / "attacks").glob("*.json"):
        if path not in kept:
            earlier = path.parent / "earlier"
            earlier.mkdir(exist_ok=True)
            for one in (path, path.with_suffix(".png")):
                if one.exists():
                    one.replace(earlier / one.name)


def _grouped(places: list[_Place]) -> list[tuple[int | None, list[_Place]]]:
    rounds = list(dict.fromkeys(p.round for p in places))
    return [(r, [p for p in places if p.round == r]) for r in rounds]


def _make(
    config: MatrixConfig,
    name: str,
    target: Target,
    round_: int | None,
    places: list[_Place],
    controls: dict[Any, dict[str, Control]],
    emit: Emit,
    judged: int,
    ends: float,
) -> None:
    """``judged``: how many cells the matrix has, whose bounds are judged together; ``ends``: when no further victim is begun."""
    staged, recorded = list[Cell](), list[Cell]()
    for place in places:
        attack = bound(target.parts, place.row.settings)
        who = target.vantage(place.vantage)
        if not target.parts.registry.build("attack", attack).reads_view:
            if time.monotonic() <= ends:
                target.audit(attack, who, round_)
        else:
            (recorded if needs_recording(target.parts, attack) else staged).append(Cell(attack, who))
    effort, watched = Effort(**config.effort.model_dump()), _watched(config, name, target)
    if staged:
        # Controls are of the same weights and victims, whatever the defence.
        shared = controls.setdefault((target.key(round_), watched), {})
        target.attack(staged, round_, effort, watched, controls=shared, emit=emit, judged=judged, ends=ends)
    if recorded:
        target.recorded(recorded, round_, effort, watched, emit=emit, judged=judged, ends=ends)


def _with(emit: Emit, about: Mapping[str, Any], event: Mapping[str, Any]) -> None:
    emit({**about, **event})
