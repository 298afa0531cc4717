"""Settings of ``cyclic-he``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pppml_core import ComponentConfig
from pppml_core.component import Choice


class CyclicHEConfig(ComponentConfig):
    """Which variant, how many rings, and who encrypts."""

    variant: Literal["hardened", "paper"] = Field(
        "hardened", description="`paper` follows the PPPML-HMI code, as an exhibit; it is not secure"
    )
    rings: Literal["auto"] | Annotated[int, Field(ge=1, le=128)] = Field(
        "auto", description="rings a sum travels along; auto: the largest number the cohort allows, up to 2"
    )
    backend: Annotated[ComponentConfig, Choice("he-backend")] = Field(description="the homomorphic encryption back end")
