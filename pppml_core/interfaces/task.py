"""Tasks: the images of several sites, what is predicted, how it is scored.

Every task plugin has the same folder: ``plugin.py`` (hook), ``config.py`` (settings), one file for each source, ``task.py``
(this interface), ``README.md``. A small task, whole::

    class Cells(Task):
        def spec(self):
            return TaskSpec(kind="classification", channels=3, size=(28, 28), classes=("normal", "sick"), model="small-cnn")

        def sites(self):
            return (SiteInfo("a", "Hospital A"), SiteInfo("b", "Hospital B"))

        def load(self, site):
            return SiteData(train=..., validation=..., test=...)      # ArrayExamples over numpy arrays

Loss, metrics and the data card have sensible defaults for ``classification`` and ``segmentation``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig

if TYPE_CHECKING:
    import torch

Kind = Literal["classification", "segmentation"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SiteInfo:
    """A site's slug (``[a-z0-9_]+``: file names, messages) and the name people read."""

    slug: str
    name: str
    about: str = ""


@dataclass(frozen=True)
class TaskSpec:
    """What a network must take and give.

    Args:
        kind: ``classification``: targets are int64 class indices, shape ``()``; ``segmentation``: int64 masks of the image's size.
        channels: input channels, after the task's own transforms.
        size: spatial size of a training example, 2 or 3 entries.
        classes: names; index 0 is background in segmentation.
        model: name of the default model.
        training: default training settings that differ from the general ones, e.g. ``{"optimizer": {"use": "adam", "lr": 1e-3}}``.
        primary_metric: what ``select`` and ``stop`` look at unless told.
        lower_is_better: metrics of which the smaller value is the better one.
        spacing_mm: spacing of each spatial axis where it is known, for distances in mm.
        metrics: the metric names ``score`` returns, with the range of each: they are the wire manifest's evaluation entries.
    """

    kind: Kind
    channels: int
    size: tuple[int, ...]
    classes: tuple[str, ...]
    model: str
    primary_metric: str
    metrics: Mapping[str, tuple[float, float]]
    training: Mapping[str, Any] = field(default_factory=dict)
    spacing_mm: tuple[float, ...] | None = None
    lower_is_better: frozenset[str] = frozenset({"hd95"})


class Examples(Protocol):
    """A finite list of examples. Deterministic: augmentation draws only from the generator it is given."""

    #: group (patient, smear, volume) of each example; examples of one group never lie in two splits. Shape ``(len,)``, dtype str or int.
    groups: npt.NDArray[Any]

    def __len__(self) -> int: ...

    def example(self, index: int, augment: np.random.Generator | None = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Image, float32 ``(channels, *size)``, and target, int64 ``()`` or ``size``."""

    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each example (classification), or of each whether any foreground is present (segmentation); shape ``(len,)``."""


@dataclass(frozen=True)
class SiteData:
    """The three parts of one site's data; ``test`` is touched by evaluation only."""

    train: Examples
    validation: Examples
    test: Examples

    def part(self, split: Split) -> Examples:
        """The part of that name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


@dataclass(frozen=True)
class DataCard:
    """Where the data come from and under which terms; ``pppml data`` adds counts, balance and pictures."""

    title: str
    about: str
    licence: str
    how_to_get: str
    files: tuple[str, ...] = ()
    cites: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """What evaluation hands to ``score``: probabilities ``(n, classes, *size)`` float32, targets, groups, in example order."""

    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]
    groups: npt.NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """How MONAI alone reads one kind of file and makes of it what ``Task.prepare`` makes of it.

    Args:
        name: of the kind: ``nifti``, ``dicom``, ``picture``; a file name.
        pattern: file name pattern, e.g. ``*.nii.gz``; ``*/`` where each folder is one image.
        about: what such a file must hold, one sentence.
        dims: spatial axes of the image after ``steps``; 3 for a 2-D network: predicted slice by slice along the last axis.
        steps: MONAI dictionary transforms on the key ``image`` in config form, from a file name to a float32 MetaTensor
            ``(channels, *size)``. They may name torch and MONAI only.
        grid: how an answer goes back onto the file's grid: ``same``: it lies there already; ``affine``: it is resampled from the image's
            affine to the file's; ``size``: it is resized in plane.
        value_range: smallest and largest value after ``steps``, where they are known.
        packages: distributions beside MONAI that reading needs.
    """

    name: str
    pattern: str
    about: str
    dims: int
    steps: tuple[Mapping[str, Any], ...]
    grid: Literal["same", "affine", "size"] = "same"
    value_range: tuple[float, float] | None = None
    packages: tuple[str, ...] = ()


class Task(ABC):
    """Data of several sites, and what is asked of them. Construction reads no pixel; ``load`` does."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def spec(self) -> TaskSpec:
        """What a network must take and give."""

    @abstractmethod
    def sites(self) -> tuple[SiteInfo, ...]:
        """The sites in their fixed order."""

    @abstractmethod
    def load(self, site: str) -> SiteData:
        """One site's data. Raises DataError that names the file, what is wrong and what to do."""

    @abstractmethod
    def card(self) -> DataCard:
        """The data card."""

    def misfits(self) -> list[str]:
        """All that is wrong with the data as configured, without loading pixels where that can be told."""
        return []

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean loss of a batch, a 0-d tensor. Default: cross-entropy, plus Dice for segmentation (MONAI's)."""
        from pppml_core.learning.losses import default_loss

        return default_loss(self.spec().kind, outputs, targets, class_weights)

    def score(self, predictions: Predictions) -> dict[str, float]:
        """Metric name -> value, for the names of ``spec().metrics``; a metric that is undefined on these data is NaN."""
        from pppml_core.learning.metrics import default_score

        return default_score(self.spec(), predictions)

    def prepare(self, path: str) -> list[tuple[npt.NDArray[np.float32], dict[str, Any]]]:
        """Images of a file or folder a user wants predicted, each float32 ``(channels, *any size)`` with what is needed to write the
        answer back (``name``, ``affine``, ``stack``). Default: NIfTI, DICOM, PNG and npz through MONAI's readers.
        """
        from pppml_core.learning.predict import read_images

        return read_images(self.spec(), path)

    def readings(self) -> Sequence[Reading]:
        """``prepare`` in MONAI's config form, for `pppml export bundle`: the kinds of files it can be told for, the usual one first.

        Empty: it cannot be told, and there is no bundle. Default: pictures and NIfTI as the default of ``prepare`` reads them, and empty
        for a task with a ``prepare`` of its own.
        """
        if type(self).prepare is not Task.prepare:
            return ()
        from pppml_core.learning.bundle.readings import as_stored

        return as_stored(self.spec())


def slug(name: str) -> str:
    """A site name as ``[a-z0-9_]+``.

    >>> slug("SIRM Italy/MedSeg")
    'sirm_italy_medseg'
    """
    out = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower())
    return "_".join(part for part in out.split("_") if part) or "site"


def unique_slugs(names: Sequence[str]) -> list[str]:
    """Slugs of names, numbered where two would be equal."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        base = slug(name)
        seen[base] = seen.get(base, 0) + 1
        out.append(base if seen[base] == 1 else f"{base}_{seen[base]}")
    return out
