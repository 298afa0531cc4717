"""Settings of ``he-fedavg``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pppml_core import Choice, ComponentConfig


class HeFedAvgConfig(ComponentConfig):
    """Which back end encrypts."""

    backend: Annotated[ComponentConfig, Choice("he-backend", default="tenseal"), Field(description="what encrypts, adds and decrypts")]
