"""The lung-lesions task: one of three sources behind the task interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError, check_site
from pppml_core.interfaces.task import DataCard, Reading, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.metrics import CLASSIFICATION_METRICS, SEGMENTATION_METRICS
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.present import CLASSES, present


class LungLesions(Task):
    """Lesions in lung slices. Images: float32 ``(channels, size, size)`` in [-1, 1]; targets: masks, int64 ``(size, size)``, or classes."""

    config: LungLesionsConfig

    def __init__(self, config: LungLesionsConfig) -> None:
        super().__init__(config)
        if config.source == "phantom":
            from pppml_lung_lesions.phantom import Phantom as Source
        elif config.source == "npz":
            from pppml_lung_lesions.npz import Npz as Source  # type: ignore[assignment]
        else:
            from pppml_lung_lesions.ct import CT as Source  # type: ignore[assignment]
        self.source = Source(config)

    def spec(self) -> TaskSpec:
        """U-Net, Adam at 1e-3, batches of 16; Dice and the 95th percentile Hausdorff distance. For classes, `small-cnn`."""
        training = {"optimizer": {"use": "adam", "lr": 1e-3}, "batch_size": 16}
        if self.config.target == "lesion":
            return TaskSpec(
                kind="classification",
                channels=self.source.channels,
                size=tuple(self.source.size),
                classes=CLASSES,
                model="small-cnn",
                primary_metric="accuracy",
                metrics=CLASSIFICATION_METRICS,
                training=training,
            )
        return TaskSpec(
            kind="segmentation",
            channels=self.source.channels,
            size=tuple(self.source.size),
            classes=self.source.classes,
            model="unet",
            primary_metric="dice",
            metrics=SEGMENTATION_METRICS,
            training=training,
            spacing_mm=self.source.spacing_mm,
        )

    def sites(self) -> tuple[SiteInfo, ...]:
        """The sites in their fixed order."""
        return self.source.sites()

    def load(self, site: str) -> SiteData:
        """One site's slices. Raises DataError."""
        check_site(site, (info.slug for info in self.sites()), DataError, place="task")
        data = self.source.load(site)
        return present(data) if self.config.target == "lesion" else data

    def card(self) -> DataCard:
        """The data card."""
        return self.source.card()

    def prepare(self, path: str) -> list[tuple[npt.NDArray[np.float32], dict[str, Any]]]:
        """Images to predict, windowed and resampled as in training."""
        from pppml_lung_lesions.predict import read

        return read(self.config, self.spec(), path)

    def readings(self) -> tuple[Reading, ...]:
        """The same for MONAI alone."""
        from pppml_lung_lesions.predict import readings

        return readings(self.config, self.spec())

    def misfits(self) -> list[str]:
        """What is wrong with the data, as far as names and headers tell."""
        try:
            self.source.sites()
            return self.source.misfits()
        except DataError as fault:
            return [str(fault)]
