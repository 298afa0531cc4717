"""The hook: one reporter."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_mlflow.config import MLflowConfig


@hookimpl
def pppml_reporters() -> Sequence[Component]:
    """``mlflow``."""
    return [
        Component(
            "mlflow",
            MLflowConfig,
            "pppml_mlflow.reporter:MLflow",
            "settings, curves and files of the run in MLflow",
            needs=("mlflow", "sqlalchemy", "alembic"),
        )
    ]
