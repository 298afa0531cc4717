"""Settings of `gallery`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core import ComponentConfig


class GalleryConfig(ComponentConfig):
    """`gallery`: scores each candidate image by the likelihood of what was seen if it is the victim."""

    history: Literal["last", "all"] = Field(
        "all", description="of a recorded run: all rounds up to the attacked one, whose scores are added, or that one alone"
    )
    others: Literal["shrunk", "diagonal"] = Field(
        "shrunk",
        description="covariance of what unknown images add to a sum: that of public updates, shrunk to its diagonal, or that alone",
    )
    public: int = Field(100, ge=2, le=10_000, description="public images of which mean and covariance are estimated, at most")
