"""Settings of `imprint` and `imprint-front`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pppml_core import ComponentConfig


class ImprintConfig(ComponentConfig):
    """`imprint`: the server plants the first linear layer, and everybody who decodes a sum reads images out of its update."""

    planted: bool = Field(True, description="whether a lying server plants the layer; false: it is read as it is")
    query: Literal["whitened", "random", "brightness"] = Field(
        "whitened", description="what sorts images into bins: a direction in which public images differ, a random one, or their mean"
    )
    bins: Literal["normal", "empirical"] = Field(
        "normal", description="quantiles of the query over public images: of the normal distribution with their moments, or as counted"
    )
    scale: float | None = Field(
        None,
        gt=0,
        le=100,
        description="size of the planted layer's outputs; the smaller, the larger its share of a gradient; default: 1e-4, with a clip 1e-7",
    )


class ImprintFrontConfig(ComponentConfig):
    """`imprint-front`: linear layer on the flattened image, ReLU, linear layer back to the image, then another network."""

    rows: int = Field(256, ge=2, le=4096, description="outputs of the linear layer: bins of a planted one")
    skip: bool = Field(True, description="whether the image is added to what is mapped back, so that the other network still sees it")
    of: str | None = Field(
        None, description="the other network: an installed model by name, or module:attribute; default: two convolutions of its own"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="settings of that network")

    @model_validator(mode="after")
    def _args_of_something(self) -> ImprintFrontConfig:
        if self.args and self.of is None:
            raise ValueError("args are settings of another network: name it with `of`")
        return self
