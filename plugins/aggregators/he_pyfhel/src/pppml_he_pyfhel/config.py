"""Settings of ``pyfhel``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core import ComponentConfig


class PyfhelConfig(ComponentConfig):
    """Which scheme; everything else is planned."""

    scheme: Literal["bfv", "bgv", "ckks"] = Field(
        "bfv", description="bfv and bgv add exactly; ckks adds approximately, with an error that rounding removes"
    )
