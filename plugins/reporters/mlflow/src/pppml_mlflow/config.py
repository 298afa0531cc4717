"""Settings of ``mlflow``."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pppml_core import ComponentConfig


class MLflowConfig(ComponentConfig):
    """`mlflow`: the run as a run of MLflow, with settings, curves and files."""

    tracking_uri: str | None = Field(
        None,
        min_length=1,
        description="a database (`sqlite:///FILE`) or an MLflow server (`https://...`); default: `mlflow.db` in the run's folder. Nothing "
        "leaves this machine unless a server is named here",
    )
    experiment: str = Field("pppml", min_length=1, description="MLflow experiment; made where it is not there")
    run_name: str | None = Field(None, min_length=1, description="name of the MLflow run; default: `run.name`")
    files: bool = Field(True, description="also keep config, plan, wire manifest and result as files of the MLflow run")

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError("a config is no place for a password: give it to MLflow in its own way (MLFLOW_TRACKING_PASSWORD or its file)")
        return uri
