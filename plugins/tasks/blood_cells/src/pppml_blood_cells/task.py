"""``blood-cells`` as a task: a file or a download becomes sites of normalized images."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_blood_cells.config import BloodCellsConfig
from pppml_blood_cells.download import FILES, RECORD, bloodmnist
from pppml_blood_cells.medmnist import BLOODMNIST, is_medmnist, read_medmnist
from pppml_core.errors import DataError, PluginError, check_site
from pppml_core.interfaces.task import DataCard, Reading, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.bundle.readings import centred as centred_step
from pppml_core.learning.bundle.readings import picture
from pppml_core.learning.data.collection import Collection, SiteParts, assign, site_data
from pppml_core.learning.data.examples import centred, dihedral
from pppml_core.learning.data.npz import read_multisite
from pppml_core.learning.data.pixels import check_range
from pppml_core.learning.metrics import CLASSIFICATION_METRICS
from pppml_core.learning.reading import read_images


class BloodCells(Task):
    """Images of single blood cells, ``(x / 255 - 0.5) / 0.5``; augmentation is flips and quarter turns."""

    config: BloodCellsConfig

    @cached_property
    def _data(self) -> Collection:
        c = self.config
        if c.path is None and not c.download:
            raise DataError(
                "neither a file nor a download is asked for",
                place="task.path",
                hint="give `path: FILE` (a MedMNIST npz, or an npz with images, labels, source, split), or `download: true`",
            )
        path = Path(c.path).expanduser() if c.path is not None else bloodmnist(c.size or min(FILES), c.folder)
        if is_medmnist(path):
            return read_medmnist(path, c.size)
        return read_multisite(path, "classification", size=(c.size, c.size) if c.size else None)

    @cached_property
    def _parts(self) -> tuple[SiteParts, ...]:
        c = self.config
        return assign(self._data, c.partition, test_fraction=c.test_fraction, validation_fraction=c.validation_fraction)

    def spec(self) -> TaskSpec:
        """Classes, channels and size as the file has them; where none is named, those of BloodMNIST."""
        c = self.config
        if c.path is None and not c.download:
            channels, size, classes = 3, (c.size or min(FILES),) * 2, BLOODMNIST
        else:
            channels, size, classes = self._data.channels, self._data.size, self._data.classes
        return TaskSpec(
            kind="classification",
            channels=channels,
            size=size,
            classes=classes,
            model="small-cnn",
            primary_metric="accuracy",
            metrics=CLASSIFICATION_METRICS,
            training={"batch_size": 32, "optimizer": {"use": "adam", "lr": 1e-3}},
        )

    def sites(self) -> tuple[SiteInfo, ...]:
        """The file's sources, or simulated sites."""
        return tuple(site.info for site in self._parts)

    def load(self, site: str) -> SiteData:
        """One site's images."""
        found = {part.info.slug: part.parts for part in self._parts}
        check_site(site, found, DataError, place=self._data.place)
        return site_data(self._data, found[site], centred, dihedral)

    def prepare(self, path: str) -> list[tuple[npt.NDArray[np.float32], dict[str, Any]]]:
        """Images to predict, normalized as in training."""
        found = read_images(self.spec(), path)
        for image, info in found:
            check_range(image, f"{path}: {info['name']}", None)
        return [((image - np.float32(0.5)) / np.float32(0.5), info) for image, info in found]

    def readings(self) -> tuple[Reading, ...]:
        """Pictures."""
        return (picture(self.spec().channels, (centred_step(),), value_range=(-1.0, 1.0)),)

    def misfits(self) -> list[str]:
        """What keeps the file from being read and divided."""
        try:
            self.sites()
        except (DataError, PluginError) as error:
            return [f"task: {error}"]
        return []

    def card(self) -> DataCard:
        """What is known of the file; its own terms decide."""
        blood = is_medmnist(self._data.place)
        return DataCard(
            title="BloodMNIST, or a file of its format" if blood else Path(self._data.place).stem,
            about="Microscopy of single cells, one class each. BloodMNIST: 17,092 normal cells of 8 types, one lab (Barcelona)."
            if blood
            else f"{len(self._data)} images, one class each, of {len(self._data.source_names)} sources, given by the user.",
            licence="BloodMNIST: CC BY 4.0; another file: its own terms" if blood else "the file's own terms; pppml does not know them",
            how_to_get=f"`download: true`, or {RECORD}/bloodmnist.npz" if blood else "yours: `path`",
            files=(self._data.place,),
            cites=("Yang et al. 2023, Scientific Data 10:41", "Acevedo et al. 2020, Data in Brief 30:105474") if blood else (),
            cautions=(
                "No patient ids: images of one patient may lie in several parts."
                if not self._data.known.all()
                else "Classes may cluster by slide: compare with a model that sees the background colour only.",
                *(f"{site.info.name}: {remark}." for site in self._parts for remark in site.remarks),
            ),
        )
