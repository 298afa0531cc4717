"""``Run``: a run's folder as Python sees it; its config, metrics, models, bundle, attacks and report."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pppml_core.config import RunConfig, resolve
from pppml_core.errors import CheckpointError, ConfigError, check_site
from pppml_core.registry import Registry
from pppml_core.views import Rows

if TYPE_CHECKING:
    import torch

    from pppml_core.federation.plan import Plan


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
    def status(self) -> dict[str, Any]:
        """How the run stands now, see :meth:`pppml_core.federation.status.Watcher.look`; also while another process carries it out."""
        from pppml_core.federation.status import Watcher

        return Watcher(self.folder).look()

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
            if self.config.sites is not None and not path.exists():
                hint = "in its home, under runs/; here is the global one"
                raise ConfigError(f"the model of {site} is at {site}", place="site", hint=hint)
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
        from pppml_core.evidence.found import Effort

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
