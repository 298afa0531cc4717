"""Settings of `site-inference`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core import ComponentConfig


class SiteInferenceConfig(ComponentConfig):
    """`site-inference`: scores each site by how well its update agrees with the gradient of an image."""

    history: Literal["last", "all"] = Field(
        "all", description="all rounds up to the attacked one, whose scores are averaged, or that one alone"
    )
    public: int = Field(100, ge=2, le=10_000, description="public images against whose scores those of the queries are held, at most")
