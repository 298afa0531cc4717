"""Settings of ``tensorboard``."""

from __future__ import annotations

from pydantic import Field

from pppml_core import ComponentConfig


class TensorBoardConfig(ComponentConfig):
    """`tensorboard`: curves of every round, and the settings and final scores of runs side by side."""

    folder: str | None = Field(
        None, min_length=1, description="folder of event files, with one folder a run in it; default: `tensorboard` in the run's own folder"
    )
