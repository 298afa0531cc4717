"""Everything a command does, as Python: ``Experiment``, ``Run``, ``load``, ``open``, ``sweep``, ``plugins``, ``schema``.

::

    exp = pppml.Experiment(task="lung-lesions", model=MyUNet, run={"rounds": 10})     # or pppml.load("c.yaml")
    exp.plan()                                    # stages, bytes, guarantees, misfits
    run = exp.run("runs/a")                       # progress; later: pppml.open("runs/a")
    run.metrics                                   # rows: round, site, split, weights, values
    net = run.model(site="a")                     # torch.nn.Module, personalized; run.model() is the global one
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pppml_core.config import RunConfig, diff, resolve, save_resolved, split_objects
from pppml_core.errors import CheckpointError, ConfigError, DataError, PppmlError
from pppml_core.registry import Registry
from pppml_core.run import Run as Run
from pppml_core.views import CardView, PlanView

if TYPE_CHECKING:
    from pppml_core.federation.plan import Plan
    from pppml_core.federation.rundir import RunDir
    from pppml_core.sweeps import SweepResult


class Experiment:
    """A configuration that can be planned, run and swept.

    Every keyword is a section of the config: a name, a map with ``use``, or a live Python object (a torch module class, a task) wherever
    YAML has ``use``.

    Args:
        config: a YAML file or a map; the keywords are laid over it.
        overrides: ``a.b=c`` strings, as ``--set`` takes them.
        registry: components to choose from; default: everything installed.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | None = None,
        *,
        overrides: Sequence[str] = (),
        registry: Registry | None = None,
        objects: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        self.registry = registry or Registry.discover()
        if config is not None and sections:
            raise ConfigError(
                "give a config or sections, not both", place="Experiment", hint="lay changes over a config with overrides=[...]"
            )
        plain, found = split_objects(sections) if config is None else (config, {})
        self.objects = {**(objects or {}), **found}
        self.config: RunConfig = resolve(plain, tuple(overrides), self.registry, self.objects)

    def plan(self, *, measure: bool = False) -> PlanView:
        """Build and check everything; prints as a table. ``measure`` also times one batch and one sum on this machine."""
        plan = self._plan()
        if measure and not plan.misfits:
            from pppml_core.engines.measure import measure_plan

            plan.measured = measure_plan(plan)
        return PlanView(plan)

    def data(self, pictures: str | Path | None = None) -> CardView:
        """The data card with counts; ``pictures`` writes a sheet of sample images there."""
        from pppml_core.learning.data.card import card_with_counts, sample_sheet

        if self.config.sites is not None:
            hint = "a site looks at its own: pppml data CONFIG --set sites=null --set task.path=PATH"
            raise DataError(f"the data are at {', '.join(self.config.sites)}, and none of them here", place="sites", hint=hint)
        task = self.registry.build("task", self.config.task, self.objects)
        if pictures is not None:
            sample_sheet(task, pictures)
        return CardView(card_with_counts(task))

    def _plan(self) -> Plan:
        from pppml_core.federation.plan import make_plan

        plan = make_plan(self.config, self.registry, self.objects)
        if plan.config.attacks and plan.assembly is not None:
            from pppml_core.evidence.scheduled import misfits

            plan.misfits += misfits(plan)
        return plan

    def changed(self, changes: Mapping[str, Any]) -> Experiment:
        """A copy with ``{"a.b": value}`` laid over it; a live object may stand for a whole section."""
        from pppml_core.config import apply_overrides, to_plain
        from pppml_core.sweeps import as_settings

        live = {path: value for path, value in changes.items() if not isinstance(value, str | int | float | bool | list | dict | None)}
        plain = apply_overrides(
            _without_defaults(to_plain(self.config), self.config), as_settings({p: v for p, v in changes.items() if p not in live})
        )
        plain, found = split_objects({**plain, **live})
        return Experiment(plain, registry=self.registry, objects={**self.objects, **found})

    def run(self, folder: str | Path | None = None, *, resume: bool | None = None, reporters: bool = True, report: bool = True) -> Run:
        """Run in ``folder`` (default ``runs/<name>``); a folder that holds this very run unfinished is resumed.

        Args:
            folder: where to write; made if it is not there.
            resume: True: the folder must hold this run; False: it must not; None: resume where there is one.
            reporters: False runs silently.
            report: write ``report.html`` (and a few test images with predictions for it) at the end.
        """
        from pppml_core.federation.rundir import RunDir, writing

        directory = RunDir(Path(folder) if folder is not None else Path("runs") / self.config.run.name)
        held = directory.config.exists()
        if resume is True and not held:
            raise CheckpointError("there is no run here", place=str(directory.path), hint="run without --resume")
        if held and resume is False:
            raise CheckpointError(
                "this folder already holds a run", place=str(directory.path), hint=f"--resume {directory.path}, or another --out"
            )
        plan = self._plan()
        plan.refuse_misfits()
        fingerprint = _fingerprint(plan)
        if held:
            _refuse_other_config(directory.config, plan.config, self.registry)
            _refuse_other_parts(directory, fingerprint)
        else:
            directory.create()
            with writing(directory.path):
                directory.write_json("plan.json", plan.to_dict())
                directory.write_json("manifest.json", plan.manifest)
                directory.write_json("fingerprint.json", fingerprint)
                # The config comes last: its presence says that the folder is complete enough to resume.
                save_resolved(_from_anywhere(plan.config), directory.config)
        run = Run(directory.path, self.registry, self.objects, plan)
        if not directory.finished:
            engine = self.registry.build("engine", plan.config.engine, self.objects)
            listeners = [self.registry.build("reporter", c, self.objects) for c in _once(plan.config.reporters)] if reporters else []
            _report(lambda emit: self._launch(plan, directory, engine, emit), listeners, directory.path)
        if report and not directory.reported:
            with writing(directory.path):
                run.write_examples()
                run.report()
        return run

    def export(self, folder: str | Path) -> Path:
        """Write this run as a job of its engine's own kind, for the people who operate that engine; what is to be handed to it.

        Raises PlanRefused as :meth:`run` does, ConfigError where the engine has no jobs of its own or the folder is not empty.
        """
        from pppml_core.config import to_plain

        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError("this is not an empty folder", place=str(folder), hint="give a new one")
        settings = self.registry.build("engine", self.config.engine, self.objects).exported()
        there = copy(self)
        there.config = self.config.model_copy(update={"engine": settings})
        plan = there._plan()
        plan.refuse_misfits()
        engine = self.registry.build("engine", plan.config.engine, self.objects)
        found: Path = engine.export(to_plain(plan.config), folder)
        return found

    def _launch(self, plan: Plan, directory: RunDir, engine: Any, emit: Any) -> None:
        """The run, and the attacks that its config asks for."""
        from pppml_core.engines.launch import launch

        if not plan.config.attacks:
            launch(plan, directory, engine, emit, self.objects)
            return
        from pppml_core.evidence.scheduled import Scheduled

        assert plan.assembly is not None
        attacks = Scheduled(directory.path, plan.assembly, emit, live=bool(self.objects))

        def told(event: Mapping[str, Any]) -> None:
            emit(event)
            attacks.handle(event)

        launch(plan, directory, engine, told, self.objects)
        attacks.finish(directory.read_json("result.json"))

    def _repr_html_(self) -> str:
        import html

        from pppml_core.config import to_plain
        from pppml_core.config.source import dump_yaml

        return f"<pre>{html.escape(dump_yaml(to_plain(self.config)))}</pre>"


def _without_defaults(plain: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Without the training settings and the model the user never set, so that a task's own defaults still apply."""

    def only_set(section: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: only_set(getattr(section, name), values[name]) if hasattr(getattr(section, name), "model_fields_set") else values[name]
            for name in section.model_fields_set
        }

    out = {**plain, "training": only_set(config.training, plain["training"])}
    if out.get("model") is None:
        out.pop("model", None)
    return out


def _refuse_other_config(path: Path, config: RunConfig, registry: Registry) -> None:
    differences = diff(_from_anywhere(resolve(path, registry=registry)), _from_anywhere(config))
    if differences:
        shown = "; ".join(str(d) for d in differences[:5])
        raise CheckpointError(
            f"the run was started with another config: {shown}", place=str(path), hint="use the same config, or another --out"
        )


def _from_anywhere(config: RunConfig) -> RunConfig:
    """The config with its paths of data, initial weights and homes made absolute, so that the run goes on from any working directory."""
    sections = {}
    for name, field in (("task", "path"), ("training", "init"), ("engine", "homes"), ("engine", "kit")):
        section = getattr(config, name)
        given = getattr(section, field, None)
        if given and not Path(given).is_absolute() and Path(given).exists():
            sections[name] = section.model_copy(update={field: type(given)(Path(given).resolve())})
    return config.model_copy(update=sections)


def _fingerprint(plan: Plan) -> dict[str, Any]:
    """What a config cannot tell of live objects: the network and its initial weights, and how many examples each site trains on."""
    from pppml_core.learning.arrays import sha256_of_state

    parts = plan.assembly
    assert parts is not None
    shared = set(parts.initial_weights)
    return {
        "tensors": {n: [str(t.dtype).removeprefix("torch."), list(t.shape), n in shared] for n, t in parts.initial_state.items()},
        "initial weights": sha256_of_state(parts.initial_state),
        "training examples": dict(plan.sizes),
    }


def _refuse_other_parts(directory: RunDir, fingerprint: Mapping[str, Any]) -> None:
    before = directory.read_json("fingerprint.json")
    # A folder of an earlier version has none.
    differing = [name for name in fingerprint if before is not None and before.get(name) != fingerprint[name]]
    if differing:
        raise CheckpointError(
            f"the run was started with other objects; what differs: {', '.join(differing)}",
            place=str(directory.path),
            hint="give the objects the run was started with, or another --out",
        )


def _once(reporters: Sequence[Any]) -> list[Any]:
    """Without repetitions: two equal reporters would write one file twice. Live objects are each their own."""
    return [c for i, c in enumerate(reporters) if c not in reporters[:i]]


def _report(work: Any, listeners: Sequence[Any], folder: Path) -> None:
    """Run ``work(emit)`` with every event going to every reporter; a failure is an event too."""
    import time

    hearing = list(listeners)

    def emit(event: Mapping[str, Any]) -> None:
        stamped = {"time": time.time(), **event}
        for listener in list(hearing):
            if listener not in hearing:
                continue  # set aside while the failure of another one was told
            try:
                listener.handle(stamped)
            except Exception as error:
                if getattr(listener, "essential", True):
                    raise
                hearing.remove(listener)
                _set_aside(listener, error, emit if hearing else None)

    try:
        for listener in listeners:
            listener.open(folder)
        work(emit)
    except (Exception, KeyboardInterrupt) as error:
        text = str(error) if isinstance(error, PppmlError) else f"{type(error).__name__}: {error}"
        for listener in hearing:
            # A reporter that fails as well (the disk is full for it too) does not hide the first reason.
            with suppress(Exception):
                listener.handle({"time": time.time(), "event": "run-failed", "error": text})
        raise
    finally:
        for listener in listeners:
            if getattr(listener, "essential", True):
                listener.close()
                continue
            with suppress(Exception):
                listener.close()


def _set_aside(listener: Any, error: Exception, emit: Any) -> None:
    """Tell the reporters that remain, or who started the run where none remains, that one of them has failed."""
    import warnings

    name = getattr(getattr(listener, "config", None), "use", None) or type(listener).__name__
    reason = str(error) if isinstance(error, PppmlError) else f"{type(error).__name__}: {error}"
    text = f"reporter {name} failed and hears no more of this run, which goes on: {' '.join(reason.split())}"
    if emit is None:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    else:
        emit({"event": "warning", "text": text})


def load(config: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> Experiment:
    """An experiment from a YAML file."""
    return Experiment(config, overrides=overrides, registry=registry)


def open(folder: str | Path, registry: Registry | None = None, objects: Mapping[str, Any] | None = None) -> Run:
    """A run from its folder. ``objects`` gives back live objects the run was made with, by section."""
    return Run(folder, registry, objects)


def sweep(
    experiment: Experiment | str | Path,
    grid: Mapping[str, Any],
    seeds: Iterable[int] = (0,),
    *,
    budget: float | None = None,
    out: str | Path = "runs/sweep",
) -> SweepResult:
    """Run every point of a grid with every seed; resumable; see :mod:`pppml_core.sweeps`."""
    from pppml_core.config import to_plain
    from pppml_core.sweeps import Sweep, expand

    base = experiment if isinstance(experiment, Experiment) else load(experiment)

    def run_one(overrides: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        return base.changed(overrides).run(folder, reporters=False).result

    points = expand(grid, seeds)
    # A misspelt setting must be told now, not after hours.
    for point in points:
        if point.seed == points[0].seed:
            base.changed(point.overrides)
    return Sweep(points, run_one, out, budget=budget, base=to_plain(base.config)).run()


def plugins(registry: Registry | None = None) -> list[dict[str, Any]]:
    """Rows of ``pppml plugins``."""
    return [vars(row) for row in (registry or Registry.discover()).rows()]


def schema(registry: Registry | None = None) -> dict[str, Any]:
    """The JSON Schema of a config for everything installed."""
    from pppml_core.config import json_schema

    return json_schema(registry or Registry.discover())
