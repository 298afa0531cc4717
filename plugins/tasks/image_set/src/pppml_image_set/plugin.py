"""The hook: one task, ``image-set``."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core import Component, hookimpl
from pppml_image_set.config import ImageSetConfig


@hookimpl
def pppml_tasks() -> Sequence[Component]:
    """Your own images by site."""
    return (
        Component(
            name="image-set",
            config=ImageSetConfig,
            target="pppml_image_set.task:ImageSet",
            summary="your own images: site/class/*.png|jpg|dcm, image and mask pairs, or an npz file",
            needs=("PIL", "pydicom"),
        ),
    )
