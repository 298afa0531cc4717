"""The chest-ct task: one of two sources behind the task interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_chest_ct.config import ChestCTConfig
from pppml_core.errors import DataError, check_site
from pppml_core.interfaces.task import DataCard, Reading, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.metrics import CLASSIFICATION_METRICS


class ChestCT(Task):
    """Classification of chest CT volumes. Images are float32 ``(1, size, size, size)`` in [-1, 1], classes 0 healthy and 1 patient."""

    config: ChestCTConfig

    def __init__(self, config: ChestCTConfig) -> None:
        super().__init__(config)
        if config.source == "phantom":
            from pppml_chest_ct.phantom import Phantom as Source
        else:
            from pppml_chest_ct.rad_chestct import RadChestCT as Source  # type: ignore[assignment]
        self.source = Source(config)

    def spec(self) -> TaskSpec:
        """3-D DenseNet by default, Adam at 1e-3, batches of 8; accuracy, balanced accuracy, macro F1, AUC."""
        return TaskSpec(
            kind="classification",
            channels=1,
            size=(self.source.size,) * 3,
            classes=("healthy", "patient"),
            model="densenet",
            primary_metric="balanced_accuracy",
            metrics=CLASSIFICATION_METRICS,
            training={"optimizer": {"use": "adam", "lr": 1e-3}, "batch_size": 8},
        )

    def sites(self) -> tuple[SiteInfo, ...]:
        """The sites in their fixed order."""
        return self.source.sites()

    def load(self, site: str) -> SiteData:
        """One site's volumes. Raises DataError."""
        check_site(site, (info.slug for info in self.sites()), DataError, place="task")
        return self.source.load(site)

    def card(self) -> DataCard:
        """The data card."""
        return self.source.card()

    def prepare(self, path: str) -> list[tuple[npt.NDArray[np.float32], dict[str, Any]]]:
        """Volumes to predict: RAD-ChestCT npz, NIfTI or DICOM series, as in training but with their own slices."""
        from pppml_chest_ct.predict import read

        return read(self.config, self.spec(), path)

    def readings(self) -> tuple[Reading, ...]:
        """The same for MONAI alone: NIfTI and DICOM series."""
        from pppml_chest_ct.predict import readings

        return readings(self.config, self.spec())

    def misfits(self) -> list[str]:
        """What is wrong with the data, as far as names and tables tell."""
        try:
            self.source.sites()
            return self.source.misfits()
        except DataError as fault:
            return [str(fault)]
