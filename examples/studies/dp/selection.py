"""What the study runs: ``selection.yaml``, checked, and as a list of jobs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

HERE = Path(__file__).parent
Settings = dict[str, Any]
Row = Literal["no-dp", "clip-only", "distributed", "local"]
#: rows with noise, and so with an epsilon.
NOISED: tuple[Row, ...] = ("distributed", "local")


class Strict(BaseModel):
    """Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(Strict):
    """Where rows are compared: one network on one division of the data."""

    model: str
    partition: str
    sites: int = Field(ge=1)

    @property
    def name(self) -> str:
        """A folder, and the key in ``tuned.yaml``."""
        return f"{self.model}_{self.partition}_{self.sites}-sites"


class Block(Strict):
    """All combinations of these. ``epsilons`` are those of the rows with noise; the others have none."""

    models: list[str]
    partitions: list[str]
    sites: list[int]
    rows: list[Row]
    epsilons: list[float]

    def cells(self) -> list[Cell]:
        """Every network on every division."""
        return [Cell(model=m, partition=p, sites=n) for m, p, n in itertools.product(self.models, self.partitions, self.sites)]

    def variants(self) -> list[tuple[Row, float | None]]:
        """Rows with their epsilons."""
        return [(row, eps) for row in self.rows for eps in (self.epsilons if row in NOISED else [None])]


class Tuning(Strict):
    """How settings are chosen, once a cell and row: with this seed, at this epsilon, among these tries."""

    seed: int
    epsilon: float
    rows: list[Row]
    tries: list[Settings]
    #: further tries of the rows that have no guarantee, so that they are no straw men.
    also: list[Settings] = Field(default_factory=list)

    def tries_of(self, row: Row) -> list[Settings]:
        """The candidates of a row; the same for all rows with noise."""
        return self.tries if row in NOISED else self.tries + self.also


class Selection(Strict):
    """The whole study."""

    config: str
    seeds: list[int]
    delta: float
    clip: float
    tuning: Tuning
    models: dict[str, Settings]
    partitions: dict[str, Settings]
    default: list[Block]
    full: list[Block]

    @model_validator(mode="after")
    def _consistent(self) -> Selection:
        if self.tuning.seed in self.seeds:
            raise ValueError("the tuning seed is one of the seeds that are reported")
        for block in (*self.default, *self.full):
            if unknown := {*block.models} - {*self.models} | {*block.partitions} - {*self.partitions}:
                raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        return self

    @classmethod
    def read(cls, path: Path = HERE / "selection.yaml") -> Selection:
        """The selection of a file."""
        return cls.model_validate(yaml.safe_load(path.read_text("utf-8")))

    @property
    def base(self) -> Path:
        """The config that every run starts from."""
        return HERE / self.config

    def blocks(self, full: bool) -> list[Block]:
        """The default selection, or the full grid."""
        return self.full if full else self.default

    def variants(self, full: bool = False) -> dict[Cell, list[tuple[Row, float | None]]]:
        """Cell -> its rows, each once, in the order of the file."""
        found: dict[Cell, list[tuple[Row, float | None]]] = {}
        for block in self.blocks(full):
            for cell in block.cells():
                found[cell] = list(dict.fromkeys([*found.get(cell, []), *block.variants()]))
        return found


class Job(Strict):
    """One run; plain data, so that it can be sent to a worker process."""

    cell: Cell
    row: Row
    epsilon: float | None
    seed: int
    folder: Path
    base: Path
    #: settings by dotted path, laid over the base config.
    settings: Settings

    @property
    def label(self) -> str:
        """The row and its epsilon."""
        return label(self.row, self.epsilon)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.cell.name} {self.label}, {self.folder.name}"


def label(row: Row, epsilon: float | None) -> str:
    """``distributed, epsilon 6``, or the row alone."""
    return row if epsilon is None else f"{row}, epsilon {epsilon:g}"


def privacy_of(selection: Selection, row: Row, epsilon: float | None) -> Settings:
    """The sections of a row: the mechanism, and the sum that its placement needs."""
    if row == "no-dp":
        return {"privacy": {"use": "none"}, "aggregator": {"use": "plain"}}
    if row == "clip-only":
        return {"privacy": {"use": "clip-only", "clip": selection.clip}, "aggregator": {"use": "plain"}}
    mechanism = {"use": "dp-sgd", "clip": selection.clip, "epsilon": epsilon, "delta": selection.delta, "placement": row}
    return {"privacy": mechanism, "aggregator": {"use": "secagg-plus" if row == "distributed" else "plain"}}


class Data(Strict):
    """Files: the images, and weights for frozen features; None: the config's own, features that were never trained."""

    folder: Path | None = None
    file: str | None = None
    features: Path | None = None

    def sections(self, selection: Selection, cell: Cell) -> Settings:
        """Task and network of a cell."""
        task = dict(yaml.safe_load(selection.base.read_text("utf-8"))["task"])
        if "path" in task:
            path = Path(self.file or task["path"])
            task["path"] = str((self.folder / path).resolve() if self.folder else path)
        partition = selection.partitions[cell.partition]
        task |= {"partition": {**partition, "sites": cell.sites}} if "path" in task else {"sites": cell.sites}
        model = dict(selection.models[cell.model])
        if model.get("weights") == "random" and self.features is not None:
            model["weights"] = str(self.features.resolve())
        return {"task": task, "model": model}


def make_job(
    selection: Selection, data: Data, cell: Cell, row: Row, epsilon: float | None, seed: int, folder: Path, tuned: Settings
) -> Job:
    """A job of a cell and row with tuned settings."""
    settings = {**data.sections(selection, cell), **privacy_of(selection, row, epsilon), **tuned, "run.seed": seed}
    return Job(cell=cell, row=row, epsilon=epsilon, seed=seed, folder=folder, base=selection.base, settings=settings)


def folder_of(out: Path, cell: Cell, row: Row, epsilon: float | None, seed: int) -> Path:
    """Where a run lies."""
    return out / "runs" / cell.name / (row if epsilon is None else f"{row}-{epsilon:g}") / f"seed-{seed}"


def jobs_of(selection: Selection, tuned: Mapping[str, Any], out: Path, data: Data, full: bool, seeds: Iterable[int] = ()) -> list[Job]:
    """Every run of the first block with every seed, then of the second: an interrupted study has whole blocks."""
    found: dict[Path, Job] = {}
    for block in selection.blocks(full):
        for seed in seeds or selection.seeds:
            for cell, (row, epsilon) in itertools.product(block.cells(), block.variants()):
                folder = folder_of(out, cell, row, epsilon, seed)
                found.setdefault(folder, make_job(selection, data, cell, row, epsilon, seed, folder, chosen(tuned, cell, row)[0]))
    return list(found.values())


def read_tuned(path: Path = HERE / "tuned.yaml") -> dict[str, Any]:
    """What ``run.py --tune`` found."""
    return dict(yaml.safe_load(path.read_text("utf-8")) or {}) if path.exists() else {}


def chosen(tuned: Mapping[str, Any], cell: Cell, row: Row) -> tuple[Settings, str]:
    """Settings of a row, and the name of the cell in which they were tuned.

    A cell that was not tuned takes over the settings of one with its network, else of any. No settings at all, and no name, where nothing
    was tuned.
    """
    have = [name for name in tuned if row in tuned[name]]
    same_model = [name for name in have if name.startswith(f"{cell.model}_")]
    for name in [n for n in (cell.name,) if n in have] + same_model + have:
        return dict(tuned[name][row]["chosen"]), name
    return {}, ""
