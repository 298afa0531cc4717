"""One MLflow run: found again or made, sent to, ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pppml_core.report.scalars import Scalar
from pppml_mlflow.naming import as_key, as_param

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: the tag by which a resumed run finds its MLflow run.
TAG = "pppml.run"
#: what one call of MLflow takes.
METRICS, PARAMS = 1000, 100


def connect(uri: str) -> MlflowClient:
    """A client of a database or a server."""
    # MLflow tells its makers who uses what unless it is told not to. It reads this when it is imported.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # their progress is not the run's; levels are set anew when MLflow is imported
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def experiment_id(client: MlflowClient, name: str, files: Path | None) -> str:
    """The experiment of that name, made where it is not there; ``files``: where its runs keep files, default: as the store has it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=files.resolve().as_uri() if files else None))


class TrackedRun:
    """The MLflow run of a run.

    Args:
        client: of the store.
        experiment: its id.
        run: the run's own id, in hex.
        first_round: the next one to be held. Only this one can have been sent before: a process may die between telling a round and its
            checkpoint.
    """

    def __init__(self, client: MlflowClient, experiment: str, run: str, name: str, first_round: int) -> None:
        self._client = client
        before = client.search_runs([experiment], f"tags.`{TAG}` = '{run}'", max_results=1)
        self.is_new = not before
        self._maybe_sent = None if self.is_new else first_round
        self.id = str((before[0] if before else client.create_run(experiment, run_name=name, tags={TAG: run})).info.run_id)
        if before:
            client.update_run(self.id, status="RUNNING")

    def describe(self, settings: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Settings as parameters, and tags."""
        from mlflow.entities import Param, RunTag

        params = [Param(as_key(name), as_param(value)) for name, value in settings.items()]
        for at in range(0, len(params), PARAMS):
            self._client.log_batch(self.id, params=params[at : at + PARAMS])
        self._client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items()])

    def send(self, scalars: Sequence[Scalar], time: float) -> None:
        """Numbers of one round; what MLflow holds already is left out. ``time``: seconds since the epoch."""
        from mlflow.entities import Metric

        if scalars and scalars[0].step == self._maybe_sent and self._holds(scalars[0]):
            scalars = [scalar for scalar in scalars if not self._holds(scalar)]
        metrics = [Metric(as_key(name), value, int(1000 * time), step) for name, value, step in scalars]
        for at in range(0, len(metrics), METRICS):
            self._client.log_batch(self.id, metrics=metrics[at : at + METRICS])

    def _holds(self, scalar: Scalar) -> bool:
        return any(metric.step == scalar.step for metric in self._client.get_metric_history(self.id, as_key(scalar.name)))

    def attach(self, *files: Path) -> None:
        """Files of the run."""
        for file in files:
            self._client.log_artifact(self.id, str(file))

    def end(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """``FINISHED``, ``FAILED`` or ``KILLED``."""
        for name, value in (tags or {}).items():
            self._client.set_tag(self.id, name, value)
        self._client.set_terminated(self.id, status)
