"""The data card with counts, and a sheet of sample images: what ``pppml data`` shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError
from pppml_core.interfaces.task import SPLITS, Examples, Task


def card_with_counts(task: Task) -> dict[str, Any]:
    """The task's data card as plain data, with ``kind``, ``classes``, ``size``, ``sites`` and ``warnings``.

    Each site: ``site``, ``name``, ``about`` and, for each split, ``examples``, ``groups``, and either ``classes`` (classification: count
    by class name) or ``foreground`` (segmentation: share of pixels by class name) and ``empty`` (examples without foreground). Loads all
    sites, one after another.
    """
    spec = task.spec()
    sites: list[dict[str, Any]] = []
    warned: list[str] = []
    for site in task.sites():
        data = task.load(site.slug)
        sites.append(
            {
                "site": site.slug,
                "name": site.name,
                "about": site.about,
                **{split: _counts(data.part(split), spec.classes) for split in SPLITS},
            }
        )
        warned += _absent(site.slug, data.train, spec.classes)
    return {
        **asdict(task.card()),
        "kind": spec.kind,
        "classes": list(spec.classes),
        "channels": spec.channels,
        "size": list(spec.size),
        "sites": sites,
        "warnings": warned,
    }


def warnings(task: Task) -> list[str]:
    """What is odd about the data but no reason to refuse: a sentence for each class that a site's training part lacks."""
    return [said for site in task.sites() for said in _absent(site.slug, task.load(site.slug).train, task.spec().classes)]


def sample_sheet(task: Task, path: str | Path, *, per_site: int = 6) -> None:
    """Write a PNG grid: a row for each site, ``per_site`` training images evenly spaced, titled with the class or outlined by the mask.

    Volumes show the middle slice of the first axis, or the one with most foreground.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spec, sites = task.spec(), task.sites()
    figure = Figure(figsize=(1.5 * per_site + 1.2, 1.65 * len(sites)), layout="constrained")
    if Path(path).suffix[1:].lower() not in FigureCanvasAgg(figure).get_supported_filetypes():
        raise ConfigError("is not the name of a picture", place=str(path), hint="end it with .png")
    axes = figure.subplots(len(sites), per_site, squeeze=False)
    for row, site in zip(axes, sites, strict=True):
        train = task.load(site.slug).train
        shown = np.unique(np.linspace(0, len(train) - 1, num=min(per_site, len(train)), dtype=int))
        row[0].set_ylabel(site.name if len(site.name) < 20 else site.slug[:19], fontsize=7)
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, index in zip(row, shown, strict=False):
            image, target = _plane(*train.example(int(index)))
            axis.imshow(image, cmap="gray" if image.ndim == 2 else None)
            if target.ndim == 0:
                axis.set_title(spec.classes[int(target)], fontsize=6)
            elif (target > 0).any():
                axis.contour(target, levels=np.arange(len(spec.classes) - 1) + 0.5, linewidths=0.7, cmap="autumn")
    figure.savefig(path, dpi=110)


def _counts(examples: Examples, classes: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"examples": len(examples), "groups": len(np.unique(examples.groups))}
    targets = _targets(examples)
    if targets.ndim == 1:
        counts = np.bincount(targets, minlength=len(classes)) if len(targets) else np.zeros(len(classes), int)
        return found | {"classes": dict(zip(classes, counts.tolist(), strict=True))}
    counts = np.array([np.count_nonzero(targets == c) for c in range(len(classes))])
    share = counts / max(1, counts.sum())
    empty = int((~(targets.reshape(len(targets), -1) > 0).any(axis=1)).sum()) if len(targets) else 0
    return found | {"foreground": dict(zip(classes[1:], share[1:].round(6).tolist(), strict=True)), "empty": empty}


def _absent(site: str, train: Examples, classes: tuple[str, ...]) -> list[str]:
    targets = _targets(train)
    there = {c for c in range(len(classes)) if (targets == c).any()}
    return [f"site {site!r} has no training example of class {name!r}" for c, name in enumerate(classes) if c not in there]


def _targets(examples: Examples) -> npt.NDArray[Any]:
    """All targets, without preparing images where the examples are arrays."""
    stored = getattr(examples, "targets", None)
    if isinstance(stored, np.ndarray):
        return stored
    return np.stack([examples.example(i)[1] for i in range(len(examples))]) if len(examples) else np.zeros(0, np.int64)


def _plane(image: npt.NDArray[np.float32], target: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A picture, ``(H, W)`` or ``(H, W, 3)`` scaled to [0, 1], and what fits it of the target."""
    if image.ndim == 4:
        fullest = target.reshape(len(target), -1).astype(bool).sum(axis=1) if target.ndim else np.zeros(1)
        middle = int(fullest.argmax()) if fullest.any() else image.shape[1] // 2
        image, target = image[:, middle], target[middle] if target.ndim else target
    picture = np.moveaxis(image[:3], 0, -1) if image.shape[0] >= 3 else image[image.shape[0] // 2]
    low, high = float(picture.min()), float(picture.max())
    return (picture - low) / max(high - low, 1e-12), target
