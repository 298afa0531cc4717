"""Settings of ``blood-cells``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pppml_core import ComponentConfig
from pppml_core.learning.data.partitions import PartitionConfig


class BloodCellsConfig(ComponentConfig):
    """Where the images are and how they become sites."""

    path: str | None = Field(None, description="a MedMNIST npz file, or an npz file with images, labels, source, split")
    download: bool = Field(False, description="fetch BloodMNIST (CC BY 4.0) once; needs the extra pppml-blood-cells[download]")
    folder: str | None = Field(None, description="where a download is kept; default: the user's cache folder")
    size: int | None = Field(
        None, ge=28, le=224, description="height and width; other sizes are resized; default: as stored (a download: 28)"
    )
    partition: PartitionConfig = Field(default_factory=PartitionConfig, description="how the images become sites")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="held out for testing where the file has no test part")
    validation_fraction: float = Field(0.15, gt=0, lt=1, description="held out of training where the file has no validation part")

    @model_validator(mode="after")
    def _path_or_download(self) -> Self:
        if self.path is not None and self.download:
            raise ValueError("give `path` or `download: true`, not both")
        return self
