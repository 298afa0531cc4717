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
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pppml_core.config import RunConfig, diff, resolve, save_resolved, split_objects
from pppml_core.errors import CheckpointError, ConfigError, DataError, PppmlError, check_site
from pppml_core.registry import Registry
from pppml_core.views import CardView, PlanView, Rows

if TYPE_CHECKING:
    import torch

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
            hint = "each site looks at its own: pppml data with the task and its own path, without `sites`"
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
        plan = self._plan()
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


class Run:
    """A finished or unfinished run in its folder."""

    def __init__(
        self, folder: str | Path, registry: Registry | None = None, objects: Mapping[str, Any] | None = None, plan: Plan | None = None
    ) -> None:
        from pppml_core.federation.rundir import RunDir

        self.folder = Path(folder)
        self._directory = RunDir(self.folder)
        if not self._directory.config.exists():
            raise CheckpointError("there is no run here", place=str(self.folder), hint="give a folder that `pppml run` wrote")
        self._registry, self._objects = registry or Registry.discover(), dict(objects or {})
        self._plan = plan

    @cached_property
    def config(self) -> RunConfig:
        """The resolved config."""
        return resolve(self._directory.config, registry=self._registry)

    @property
    def result(self) -> dict[str, Any]:
        """``result.json``. Raises CheckpointError for a run that has not finished."""
        found = self._directory.read_json("result.json")
        if found is None:
            raise CheckpointError("this run has not finished", place=str(self.folder), hint=f"pppml run ... --resume {self.folder}")
        return dict(found)

    @property
    def metrics(self) -> Rows:
        """Rows of metrics.jsonl: round, site, split, weights, values."""
        return Rows(self._directory.rows("metrics.jsonl"))

    @property
    def assembly(self) -> Any:
        """The run's components, built: a :class:`pppml_core.federation.assembly.Assembly`."""
        return self._assembly

    @cached_property
    def _assembly(self) -> Any:
        from pppml_core.federation.assembly import Assembly

        if self._plan is not None and self._plan.assembly is not None:
            return self._plan.assembly
        return Assembly.build(self.config, self._registry, self._objects)

    def model(self, site: str | None = None) -> torch.nn.Module:
        """The trained network: the global one, or a site's own. On the CPU, in evaluation mode."""
        from pppml_core.randomness import seeded

        parts = self._assembly
        path = self.folder / "model.safetensors"
        if site is None and not parts.personalization.has_global_model:
            names = ", ".join(s.slug for s in parts.task.sites())
            why = "keeps a part of the model for itself" if parts.personalization.shares else "trained alone"
            raise ConfigError(f"every site of this run {why}: there is no shared model", place="site", hint=f"name a site: {names}")
        if site is not None:
            check_site(site, (s.slug for s in parts.task.sites()), ConfigError, place="site", where="in this run")
            path = self.folder / "sites" / site / "personalized.safetensors"
        weights = self._weights(path)
        with seeded(0):
            model: torch.nn.Module = parts.factory.build(parts.spec)
        model.to(next(iter(t for t in weights.values() if t.is_floating_point())).dtype)
        model.load_state_dict(weights)
        return model.eval()

    def adapt(self, site: str, examples: int | None = None, draw: int = 0) -> torch.nn.Module:
        """The model of a site that comes later: the trained weights, adapted by the run's own method to a few of its training images.

        Args:
            site: slug of any site of the task, also of one in ``task.leave_out``. Only its training part is read, never the test part.
            examples: training examples to adapt to; default: all.
            draw: which examples; repeat with other draws to see how much depends on them.

        """
        from pppml_core.federation.newcomer import adapted

        path = self.folder / "model.safetensors"
        weights = self._weights(path) if self._assembly.personalization.shares else {}
        return adapted(self._assembly, weights, site, examples, draw)

    def _weights(self, path: Path) -> dict[str, torch.Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not path.exists():
            raise CheckpointError("the run has not written its model yet", place=str(path), hint=f"pppml run ... --resume {self.folder}")
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"the weights cannot be read: {error}", place=str(path), hint="copy the file again, or run anew"
            ) from error

    def predict(self, path: str | Path, site: str | None = None, out: str | Path | None = None, probabilities: bool = False) -> Any:
        """Predict the images of a file or folder with the global or a site's model; written to ``out`` where given."""
        from pppml_core.learning.predict import predict_run

        return predict_run(self.task, self.model(site), path, out, probabilities=probabilities)

    def export_bundle(self, out: str | Path | None = None, site: str | None = None) -> Path:
        """The global or a site's model as a MONAI bundle, usable with MONAI alone; returns its folder.

        Args:
            out: a new or empty folder; default: ``bundle`` or ``bundle-SITE`` in the run's folder.
            site: slug of the site whose model it is: its personalized one, or the shared one where it has no other.

        Raises CheckpointError for a run that has not finished, ConfigError on an unknown site, a method without global model, a folder
        that is not empty or cannot be written, and a network or task that MONAI alone cannot be told of.
        """
        from pppml_core.config import to_plain
        from pppml_core.learning.arrays import sha256_of_state
        from pppml_core.learning.bundle.documents import Origin
        from pppml_core.learning.bundle.export import write_bundle

        result, plain = self.result, to_plain(self.config)
        model = self.model(site)
        weights = sha256_of_state(model.state_dict())
        # Where a site has no weights of its own it has the shared ones, which are scored once.
        own = site is not None and weights != result["model_sha256"]
        scores, pooled = result["metrics"]["personalized" if own else "global"], self.config.pool
        origin = Origin(
            run=plain["run"]["name"],
            task=plain["task"]["use"],
            model=plain["model"]["use"],
            method=plain["personalization"]["use"],
            aggregator=plain["aggregator"]["use"],
            role="pooled" if pooled else "federated" if self._assembly.personalization.shares else "alone",
            site=site,
            own=own,
            rounds=result["rounds"],
            selected=result["selected_round"],
            weights=weights,
            scores=(scores["mean"] if site is None or pooled else scores["sites"].get(site)) or {},
            privacy=result["privacy"],
        )
        folder = Path(out) if out is not None else self.folder / ("bundle" if site is None else f"bundle-{site}")
        return write_bundle(self.task, self._assembly.factory, model, origin, folder)

    def attack(
        self,
        use: str,
        vantage: str = "server",
        round: int | None = None,
        *,
        site: str | None = None,
        victims: int | None = None,
        seconds: float = 10.0,
        gallery: int = 100,
        seed: int = 0,
        recorded: bool | None = None,
        emit: Any = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Attack this finished run, or audit what it claims; the record is also written to ``attacks/``.

        An attack that reads a view is made on a staged round: the round is held again with one victim's images as one step of the watched
        site, through the run's own clip, noise and secure sum. An audit brings evidence of its own.

        Args:
            use: name of the attack, e.g. ``dp-audit``.
            vantage: who looks: ``server``, ``site:a``, ``neighbours:a``, ``link:a-b``, ``public``, and sums with ``+``.
            round: whose model is attacked, default: the final one; of an audit, up to which, default: the last.
            site: the watched site; default: the largest outside of the coalition.
            victims: how many; default: 100 of an attack that takes milliseconds, else 3.
            seconds: budget for each victim.
            gallery: images among which each victim is to be picked.
            seed: of victims and galleries.
            recorded: attack the round as it was recorded (``run.transcript: secrets``); default: where the attack needs it.
            emit: called with an event before each victim.
            settings: of the attack.

        Returns a map with ``outcome`` (recovered, not_shown_to_leak, inconclusive, not_applicable), ``reason``, ``metrics``, ``control``,
        ``best_guess`` and ``effort``. Raises CheckpointError for a run that has not finished, ConfigError on an unknown attack, setting,
        vantage or round.
        """
        from pppml_core.evidence.attacks import run_attack
        from pppml_core.evidence.evaluate import Effort

        count = {} if victims is None else {"cheap": victims, "optimized": victims}
        effort = Effort(**count, seconds=seconds, gallery=gallery, seed=seed)
        told = emit or (lambda event: None)
        live = bool(self._objects)
        more: Any = {"site": site, "effort": effort, "recorded": recorded, "live": live, "emit": told}
        return run_attack(self.folder, self.result, self._assembly, use, vantage, round, settings, **more)

    @property
    def task(self) -> Any:
        """The task, built."""
        return self._assembly.task

    def report(self, out: str | Path | None = None) -> Path:
        """Write ``report.html`` for this run."""
        from pppml_core.report import write_report

        return write_report([self.folder], Path(out) if out is not None else self.folder / "report.html")

    def write_examples(self, per_site: int = 2) -> None:
        """A few test images with predictions for the report, where this process has the data. They stay in the run's folder."""
        from pppml_core.learning.samples import sample_predictions

        shared = self._assembly.personalization.has_global_model
        sample_predictions(self._assembly.task, lambda s: self.model(None if shared else s), self.folder / "examples.npz", per_site)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        from pppml_core.report.tables import to_html

        return to_html(self.result)


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
