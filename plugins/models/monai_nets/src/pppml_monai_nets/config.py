"""Settings of the networks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pppml_core import ComponentConfig

Width = Annotated[int, Field(ge=1, le=4096)]
Groups = Annotated[
    int,
    Field(ge=1, le=256, description="most groups of group normalization; a layer takes the largest that divides its channels"),
]


class UNetConfig(ComponentConfig):
    """MONAI's U-Net. Defaults: 0.21 M parameters in 2-D, 0.34 M in 3-D."""

    channels: tuple[Width, ...] | None = Field(
        None,
        min_length=2,
        max_length=8,
        description="feature maps by level, top first; default 16, 32, 64, 128 (3-D: 12, 24, 48, 96)",
    )
    strides: tuple[Annotated[int, Field(ge=1, le=4)], ...] | None = Field(
        None, description="downsampling from each level to the next, one fewer than channels; default: 2 each"
    )
    num_res_units: int = Field(1, ge=0, le=6, description="convolutions of a residual unit; 0: plain convolutions")
    norm: Literal["instance", "group", "batch"] = Field(
        "instance",
        description="normalization: instance (no state, no parameters, each image by itself), group (the same with a learned scale), or "
        "batch (running statistics that mix sites and couple the examples of a batch)",
    )
    groups: Groups = 8
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate")

    @model_validator(mode="after")
    def _one_stride_fewer(self) -> UNetConfig:
        levels = 4 if self.channels is None else len(self.channels)
        if self.strides is not None and len(self.strides) != levels - 1:
            raise ValueError(f"{levels} levels of channels need {levels - 1} strides, not {len(self.strides)}")
        return self


class DenseNetConfig(ComponentConfig):
    """MONAI's DenseNet. ``small``: 0.20 M parameters in 2-D, 0.41 M in 3-D; ``121``: 7 M and 11 M."""

    variant: Literal["small", "121", "169", "201", "264"] = Field(
        "small", description="small (16 features, growth 12, blocks of 4, 8 and 8 layers) or a size of the DenseNet paper"
    )
    norm: Literal["batch", "group"] = Field(
        "batch", description="batch, as published, or group: no running statistics, needed for per-example gradients"
    )
    groups: Groups = 8
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate after each dense layer")

    @model_validator(mode="before")
    @classmethod
    def _variant_may_be_a_number(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("variant"), int):
            return {**values, "variant": str(values["variant"])}
        return values


class SmallCNNConfig(ComponentConfig):
    """Four 3 x 3 convolutions with group normalization. Default: 0.15 M parameters."""

    channels: tuple[Width, Width, Width] = Field((32, 64, 92), description="feature maps at full, half and quarter resolution")
    groups: Groups = 8


class MonaiConfig(ComponentConfig):
    """Any network of ``monai.networks.nets``."""

    name: str = Field(description="class name in monai.networks.nets, e.g. SwinUNETR")
    args: dict[str, Any] = Field(
        default_factory=dict, description="constructor arguments; channels, classes, dimensions and image size are filled in where absent"
    )
    norm: Literal["as-is", "group"] = Field("as-is", description="as-is, or group: group in place of every batch normalization")
    groups: Groups = 8
