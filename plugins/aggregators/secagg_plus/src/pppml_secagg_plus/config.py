"""Settings of ``secagg-plus``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pppml_core import ComponentConfig

#: what a preset sets; a setting given beside it wins. ``paper``: 5 shares, 4 needed, as the authors of DPResNet ran Flower's SecAgg+.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"threshold": 4, "neighbours": 4},
    "large": {"neighbours": "auto"},
}

Threshold = Literal["auto"] | Annotated[int, Field(ge=2)]
Neighbours = Literal["all", "auto"] | Annotated[int, Field(ge=2)]


class SecAggPlusConfig(ComponentConfig):
    """Who shares masks with whom, and how many shares rebuild a vanished site's key."""

    preset: Literal["default", "paper", "large"] = Field(
        "default",
        description="default: everybody with everybody; paper: 5 shares, 4 needed; large: a sparse graph, for over 100 sites",
    )
    threshold: Threshold = Field(
        "auto", description="shares that rebuild a secret, 2 or more; auto: more than two thirds of the share holders"
    )
    neighbours: Neighbours = Field(
        "all", description="sites each site shares masks with: all, an even number, or auto: computed from the four settings below"
    )
    corrupt: float = Field(0.2, ge=0, le=0.5, description="sparse graph: part of the sites that may work together with the server")
    dropout: float = Field(0.1, ge=0, le=0.5, description="sparse graph: part of the sites that may vanish")
    sigma: int = Field(40, ge=20, le=128, description="sparse graph: privacy fails with a probability of at most 2^-sigma")
    eta: int = Field(30, ge=10, le=128, description="sparse graph: a round is lost with a probability of at most 2^-eta")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {**PRESETS.get(str(data.get("preset", "default")), {}), **data}
