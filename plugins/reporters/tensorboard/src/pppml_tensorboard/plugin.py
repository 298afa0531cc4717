"""The hook: one reporter."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_tensorboard.config import TensorBoardConfig


@hookimpl
def pppml_reporters() -> Sequence[Component]:
    """``tensorboard``."""
    return [
        Component(
            "tensorboard",
            TensorBoardConfig,
            "pppml_tensorboard.reporter:TensorBoard",
            "curves of rounds, sites, bytes, seconds and epsilon as TensorBoard event files",
            needs=("tensorboard", "torch"),
        )
    ]
