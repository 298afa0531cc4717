"""Reporter ``mlflow``: one MLflow run for one run, found again by the run's own id when it is resumed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pppml_core.errors import RunFailed
from pppml_core.interfaces.reporter import Event, Reporter
from pppml_core.report.scalars import RoundScalars, flat_settings
from pppml_mlflow.config import MLflowConfig
from pppml_mlflow.store import TrackedRun, connect, experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONFIG = "config.resolved.yaml"


class MLflow(Reporter):
    """Sends a round when it is finished. Steps are rounds; a round that was sent before the run was killed is not sent again."""

    config: MLflowConfig
    essential = False

    def __init__(self, config: MLflowConfig) -> None:
        super().__init__(config)
        self._client: MlflowClient | None = None
        self._run: TrackedRun | None = None

    def open(self, folder: Path) -> None:
        """Reach the store and find or make the experiment. Raises RunFailed where that cannot be done."""
        self.close()
        self._folder, self._scalars = folder, RoundScalars()
        own = self.config.tracking_uri is None
        try:
            self._client = connect(self.config.tracking_uri or f"sqlite:///{(folder / 'mlflow.db').resolve()}")
            self._experiment = experiment_id(self._client, self.config.experiment, folder / "mlflow-files" if own else None)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            hint = "is it running and reachable? Without tracking_uri the run is kept in its own folder"
            raise RunFailed(f"MLflow cannot be reached: {reason}", place="reporters: mlflow", hint=hint) from error

    def handle(self, event: Event) -> None:
        """Send what is known for good, once a round."""
        if self._client is None:
            return
        kind = event["event"]
        if kind == "run-started":
            self._begin(self._client, event)
        if self._run is None:
            return
        self._run.send(self._scalars.take(event), event.get("time") or time.time())
        if kind == "run-finished":
            self._finish(event["result"])
        elif kind == "run-failed":
            error = str(event["error"])
            self._end("KILLED" if error.startswith("KeyboardInterrupt") else "FAILED", {"pppml.error": error[:5000]})

    def close(self) -> None:
        """A run that was not told its end is marked as killed; safe to call twice."""
        self._end("KILLED", {})
        self._client = None

    def _begin(self, client: MlflowClient, event: Event) -> None:
        run = (self._folder / "run.id").read_text("ascii").strip()
        name = self.config.run_name or str(event["name"])
        self._run = TrackedRun(client, self._experiment, run, name, event["first_round"])
        if self._run.is_new:
            settings = flat_settings(yaml.safe_load((self._folder / CONFIG).read_text("utf-8")))
            self._run.describe(settings, {"pppml.headline": str(event["headline"])[:5000]})
            self._attach(CONFIG, "plan.json", "manifest.json")

    def _attach(self, *names: str) -> None:
        if self._run is not None and self.config.files:
            self._run.attach(*(self._folder / name for name in names))

    def _finish(self, result: dict[str, Any]) -> None:
        self._attach("result.json")
        self._end("FINISHED", {f"pppml.{name}": str(result[name]) for name in ("model_sha256", "selected_round")})

    def _end(self, status: str, tags: dict[str, str]) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.end(status, tags)
