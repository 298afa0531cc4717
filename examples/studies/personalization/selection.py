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


class Strict(BaseModel):
    """Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskChoice(Strict):
    """A config, and what the intervals are over: groups (patients, smears, images) or single images within groups."""

    config: str
    about: str = ""
    units: Literal["groups", "images"] = "groups"

    @property
    def plain(self) -> Settings:
        """The config's content."""
        return dict(yaml.safe_load((HERE / self.config).read_text("utf-8")))

    @property
    def file(self) -> str | None:
        """Name of the data file, to be found in the data folder; None: no file is needed."""
        task = self.plain["task"]
        return task.get("path") if isinstance(task, dict) else None


class Method(Strict):
    """A personalization, and what the study does with it."""

    use: str | None = None
    settings: Settings = Field(default_factory=dict)
    rows: dict[Literal["global", "personalized"], str]
    adapts: str | None = None
    tries: list[Settings] | dict[str, list[Settings]] = Field(default_factory=list)
    full: bool = False

    def tries_for(self, task: TaskChoice) -> list[Settings]:
        """Candidates of its settings; where they name layers, by network."""
        return self.tries if isinstance(self.tries, list) else self.tries[task.plain["model"]["use"]]


class NewSite(Strict):
    """Which sites are left out, and what they adapt to."""

    methods: list[str]
    examples: list[int]
    draws: int
    scratch_steps: int
    sites: dict[str, list[str]]


class Selection(Strict):
    """The whole study."""

    seeds: list[int]
    tuning_seed: int
    tasks: dict[str, TaskChoice]
    methods: dict[str, Method]
    learning_rates: list[float]
    new_site: NewSite

    @model_validator(mode="after")
    def _consistent(self) -> Selection:
        if self.tuning_seed in self.seeds:
            raise ValueError("the tuning seed is one of the seeds that are reported")
        lists = [each for m in self.methods.values() for each in ([m.tries] if isinstance(m.tries, list) else m.tries.values()) if each]
        if len({len(tries) for tries in lists}) > 1:
            raise ValueError("methods that have something to choose get the same number of tries")
        if unknown := {*self.new_site.methods} - {*self.methods} | {*self.new_site.sites} - {*self.tasks}:
            raise ValueError(f"new_site: unknown {', '.join(sorted(unknown))}")
        return self

    @classmethod
    def read(cls, path: Path = HERE / "selection.yaml") -> Selection:
        """The selection of a file."""
        return cls.model_validate(yaml.safe_load(path.read_text("utf-8")))

    def narrowed(
        self,
        *,
        tasks: Iterable[str] | None = None,
        methods: Iterable[str] | None = None,
        seeds: Iterable[int] | None = None,
        full: bool = False,
    ) -> Selection:
        """Only what is named; without names of methods, those of the default selection, or all with ``full``.

        Raises ValueError on an unknown name, and where what is left would mislead.
        """
        tasks = list(self.tasks) if tasks is None else list(tasks)
        usual = [name for name, m in self.methods.items() if full or not m.full]
        methods = usual if methods is None else list(methods)
        for wanted, known in ((tasks, self.tasks), (methods, self.methods)):
            if missing := [name for name in wanted if name not in known]:
                raise ValueError(f"unknown: {', '.join(missing)}; there are {', '.join(known)}")
        new_site = self.new_site.model_copy(
            update={
                "methods": [m for m in self.new_site.methods if m in methods],
                "sites": {t: s for t, s in self.new_site.sites.items() if t in tasks},
            }
        )
        narrow = self.model_copy(
            update={
                "tasks": {name: self.tasks[name] for name in tasks},
                "methods": {name: self.methods[name] for name in methods},
                "seeds": self.seeds if seeds is None else list(seeds),
                "new_site": new_site,
            }
        )
        return Selection.model_validate(narrow.model_dump())  # a copy checks nothing


class Job(Strict):
    """One training with what follows it; plain data, so that it can be sent to a worker process."""

    task: str
    method: str
    seed: int
    folder: Path
    config: Path
    data: Path | None
    personalization: Settings
    lr: float | None = None
    left_out: str | None = None
    units: Literal["groups", "images"] = "groups"
    new_site: NewSite | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.task} {self.method}" + (f" without {self.left_out}" if self.left_out else "") + f", seed {self.seed}"

    @property
    def kind(self) -> tuple[str, str, bool]:
        """Jobs of one kind take about the same time."""
        return self.task, self.method, self.left_out is not None


#: task -> method -> settings chosen on validation data; under ``lr`` the task's learning rate.
Tuned = Mapping[str, Mapping[str, Any]]


def read_tuned(path: Path = HERE / "tuned.yaml") -> dict[str, Any]:
    """What ``run.py --tune`` found."""
    return dict(yaml.safe_load(path.read_text("utf-8")) or {}) if path.exists() else {}


def chosen(tuned: Tuned, task: str, method: str) -> Settings:
    """Settings of a method on a task; none where nothing was tuned."""
    return dict(tuned.get(task, {}).get("methods", {}).get(method, {}).get("chosen", {}))


def make_job(selection: Selection, tuned: Tuned, task: str, method: str, seed: int, folder: Path, data: Path | None, **more: Any) -> Job:
    """A job with the tuned settings, unless ``more`` says otherwise."""
    choice, how = selection.tasks[task], selection.methods[method]
    settings = more.pop("settings", None) or chosen(tuned, task, method)
    fields = {
        "lr": tuned.get(task, {}).get("lr", {}).get("chosen"),
        "personalization": {"use": how.use or method, **how.settings, **settings},
        "data": None if choice.file is None or data is None else data / choice.file,
        **more,
    }
    return Job(task=task, method=method, seed=seed, folder=folder, config=HERE / choice.config, units=choice.units, **fields)


def jobs_of(selection: Selection, tuned: Tuned, out: Path, data: Path | None) -> list[Job]:
    """Everything with the first seed, then with the second, and so on: an interrupted study has whole seeds."""
    found = []
    for seed in selection.seeds:
        for task, method in itertools.product(selection.tasks, selection.methods):
            found.append(make_job(selection, tuned, task, method, seed, out / "runs" / task / method / f"seed-{seed}", data))
        for task, sites in selection.new_site.sites.items():
            for site, method in itertools.product(sites, selection.new_site.methods):
                folder = out / "new-site" / task / site / method / f"seed-{seed}"
                found.append(make_job(selection, tuned, task, method, seed, folder, data, left_out=site, new_site=selection.new_site))
    return found
