"""Settings of ``image-set``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pppml_core import ComponentConfig
from pppml_core.learning.data.partitions import PartitionConfig

Side = Annotated[int, Field(ge=8, le=4096)]


class ImageSetConfig(ComponentConfig):
    """Where the images are, what they are for, how they become sites."""

    path: str | None = Field(
        None,
        description="an npz file, a folder site/class/*.png|jpg|dcm, or a folder of images/ and masks/, by site or not; left out where "
        "each site has its own data",
    )
    kind: Literal["classification", "segmentation"] | None = Field(None, description="default: segmentation where there are masks")
    channels: Literal[1, 3] | None = Field(None, description="1: grey, 3: colour (grey images are repeated); default: as stored")
    size: tuple[Side, Side] | None = Field(None, description="height and width to resize to; default: as stored")
    classes: list[str] | None = Field(
        None, description="class names; folders: which and in what order; segmentation: names of pixel values from 0, background first"
    )
    window: tuple[float, float] | None = Field(None, description="black and white of the pixel values, e.g. [-1000, 400] for CT in HU")
    spacing_mm: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = Field(
        None, description="height and width of a pixel in mm, after resizing; distances are then in mm"
    )
    partition: PartitionConfig = Field(default_factory=PartitionConfig, description="how the images become sites")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="held out for testing where the data have no test part")
    validation_fraction: float = Field(0.15, gt=0, lt=1, description="held out of training where the data have no validation part")

    @model_validator(mode="after")
    def _window_in_order(self) -> Self:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"`window` is [black, white]: {self.window[0]:g} is not below {self.window[1]:g}")
        return self
