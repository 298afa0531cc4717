"""Slices whose question is not where their lesions are, but whether there are any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.task import Examples, SiteData

CLASSES = ("no_lesion", "lesion")


@dataclass(frozen=True)
class Present:
    """The same images; targets are classes, int64 ``()``: 1 where any pixel is a lesion."""

    inner: Examples

    @property
    def groups(self) -> npt.NDArray[Any]:
        """Patients, as they were."""
        return self.inner.groups

    def __len__(self) -> int:
        return len(self.inner)

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Image and class. Augmentation may move a lesion out of the picture; the class is that of the slice before."""
        image, _ = self.inner.example(index, augment)
        return image, np.asarray(self.labels()[index])

    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each example, shape ``(len,)``."""
        return np.asarray(self.inner.labels(), np.int64)


def present(data: SiteData) -> SiteData:
    """All three parts of a site."""
    return SiteData(Present(data.train), Present(data.validation), Present(data.test))
