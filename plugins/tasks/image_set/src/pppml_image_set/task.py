"""``image-set`` as a task: a folder or an npz file becomes sites of normalized images."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError, check_site
from pppml_core.interfaces.task import DataCard, Reading, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.bundle.readings import apply, picture
from pppml_core.learning.bundle.readings import centred as centred_step
from pppml_core.learning.data.collection import Collection, SiteParts, assign, site_data
from pppml_core.learning.data.examples import centred, dihedral
from pppml_core.learning.data.npz import read_multisite
from pppml_core.learning.data.pixels import check_range, resize
from pppml_core.learning.metrics import CLASSIFICATION_METRICS, SEGMENTATION_METRICS
from pppml_core.learning.reading import read_images
from pppml_image_set.config import ImageSetConfig
from pppml_image_set.folder import read_folder


class ImageSet(Task):
    """Your own 2-D images, ``(x - 0.5) / 0.5`` of pixels scaled to [0, 1]; augmentation is flips and quarter turns."""

    config: ImageSetConfig

    @cached_property
    def _data(self) -> Collection:
        c = self.config
        if c.path is None:
            hint = "give `path: FILE or FOLDER`; to plan without data: kind, channels, size and classes, all four"
            raise DataError("no data are named", place="task.path", hint=hint)
        path = Path(c.path).expanduser()
        if path.is_dir():
            return read_folder(path, c.kind, c.classes, c.size, c.window, c.channels)
        data = read_multisite(path, c.kind, size=c.size, window=c.window)
        if c.channels not in (None, data.channels):
            text = f"`images` have {data.channels} channels, and `channels` is {c.channels}"
            raise DataError(text, place=data.place, hint="convert the images, or change `channels`")
        if c.classes is None:
            return data
        if len(c.classes) != len(data.classes):
            raise DataError(
                f"{len(c.classes)} names for {len(data.classes)} classes",
                place="task.classes",
                hint=f"the file has {', '.join(data.classes)}",
            )
        return replace(data, classes=tuple(c.classes))

    @cached_property
    def _parts(self) -> tuple[SiteParts, ...]:
        c = self.config
        return assign(self._data, c.partition, test_fraction=c.test_fraction, validation_fraction=c.validation_fraction)

    def spec(self) -> TaskSpec:
        """Kind, channels, size and classes as they are configured; what is not is as the data have it, which are read for that."""
        c = self.config
        kind = c.kind or self._data.kind
        segmentation = kind == "segmentation"
        return TaskSpec(
            kind=kind,
            channels=c.channels or self._data.channels,
            size=c.size or self._data.size,
            classes=tuple(c.classes or self._data.classes),
            model="unet" if segmentation else "small-cnn",
            primary_metric="dice" if segmentation else "balanced_accuracy",
            metrics=SEGMENTATION_METRICS if segmentation else CLASSIFICATION_METRICS,
            training={"batch_size": 16, "optimizer": {"use": "adam", "lr": 1e-3}},
            spacing_mm=self.config.spacing_mm,
        )

    def sites(self) -> tuple[SiteInfo, ...]:
        """The sources of the data, or simulated sites."""
        return tuple(site.info for site in self._parts)

    def load(self, site: str) -> SiteData:
        """One site's images."""
        found = {part.info.slug: part.parts for part in self._parts}
        check_site(site, found, DataError, place=self._data.place)
        return site_data(self._data, found[site], centred, dihedral)

    def prepare(self, path: str) -> list[tuple[npt.NDArray[np.float32], dict[str, Any]]]:
        """Images to predict, as in training: windowed, resized where ``size`` is given, normalized. The answer goes back onto the file."""
        c, spec, out = self.config, self.spec(), []
        for image, info in read_images(spec, path, c.window):
            # (DICOM files are windowed by their own headers in training; where `window` is not set, they are refused here)
            check_range(image, f"{path}: {info['name']}", c.window)
            resized = image if c.size is None else _resized(image, c.size)
            if resized.shape != image.shape:
                info = {**info, "original_shape": image.shape[1:]}
            out.append(((resized - np.float32(0.5)) / np.float32(0.5), info))
        return out

    def readings(self) -> tuple[Reading, ...]:
        """Pictures."""
        c, channels = self.config, self.spec().channels
        if c.size is None:
            return (picture(channels, (centred_step(),), c.window, value_range=(-1.0, 1.0)),)
        resized = f"torch.nn.functional.interpolate(x[None], size={tuple(c.size)}, mode='bilinear', antialias=True, align_corners=False)[0]"
        return (picture(channels, (apply(resized), centred_step()), c.window, grid="size", value_range=(-1.0, 1.0)),)

    def misfits(self) -> list[str]:
        """What keeps the data from being read and divided."""
        try:
            self.sites()
        except DataError as error:
            return [f"task: {error}"]
        return []

    def card(self) -> DataCard:
        """What can be told of data that pppml does not know."""
        data = self._data
        unknown = int((~data.known).sum())
        return DataCard(
            title=Path(data.place).stem,
            about=f"{len(data)} images of {len(data.source_names)} sources, given by the user.",
            licence="the data's own terms; pppml does not know them",
            how_to_get="yours: `path`",
            files=(data.place,),
            cautions=(
                *((f"The patient of {unknown} images is unknown: one patient's images may lie in several parts.",) if unknown else ()),
                *(f"{site.info.name}: {remark}." for site in self._parts for remark in site.remarks),
            ),
        )


def _resized(image: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """``(channels, height, width)``, or a volume ``(channels, height, width, slices)``, in plane, as training images are resized."""
    if image.ndim == 3:
        return np.ascontiguousarray(np.moveaxis(resize(np.moveaxis(image, 0, -1)[None], size)[0], -1, 0))
    return np.stack([_resized(image[..., at], size) for at in range(image.shape[-1])], axis=-1)
