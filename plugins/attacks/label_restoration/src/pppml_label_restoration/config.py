"""Settings of the two attacks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pppml_core import ComponentConfig


class LesionAreaConfig(ComponentConfig):
    """`lesion-area`: the mean share of foreground pixels, from the last layer's update."""

    public: int = Field(100, ge=2, le=10_000, description="public images on which it is learned what the last layer's update says, at most")


class LabelRestorationConfig(ComponentConfig):
    """`label-restoration`: how many images of each label are in a batch, from the last layer's update."""

    method: Literal["least-squares", "bias-corrected", "llg"] = Field(
        "least-squares",
        description="least squares weighed with noise and prevalence; or the two stages of LLG, on the bias or on row sums of the weights",
    )
    public: int = Field(100, ge=2, le=10_000, description="public images on which it is learned what the last layer's update says, at most")
