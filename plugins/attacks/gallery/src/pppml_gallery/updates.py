"""Flat updates that the watched site would make of single images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Arrays, Images, Knowledge, Sight

#: numbers that are held at a time of many images' updates: 160 MB.
HELD = 20_000_000


def of_each(ctx: Knowledge, model: torch.nn.Module, images: Images, names: tuple[str, ...]) -> Iterator[npt.NDArray[np.float64]]:
    """The update of each image as a batch of one, its tensors ``names`` one after another: ``(coordinates,)``."""
    for image, target in zip(torch.from_numpy(images.images), torch.from_numpy(images.targets), strict=True):
        made = ctx.expected(model, image[None], target[None])
        yield flat({name: made[name].detach().numpy() for name in names}, names)


def in_batches(ctx: Knowledge, model: torch.nn.Module, images: Images, names: tuple[str, ...]) -> Iterator[npt.NDArray[np.float64]]:
    """The same, so many images at a time as fit: ``(images, coordinates)``."""
    rows: list[npt.NDArray[np.float64]] = []
    for row in of_each(ctx, model, images, names):
        rows.append(row)
        if (len(rows) + 1) * len(row) > HELD:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)


def of_model(model: torch.nn.Module, sight: Sight) -> tuple[str, ...]:
    """Names of the tensors of a sight that are trained; running statistics are not, and personal layers are in no sight."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return tuple(name for name in sight.update if name in trained)


def flat(update: Arrays, names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Its tensors ``names`` one after another."""
    return np.concatenate([np.asarray(update[name], np.float64).ravel() for name in names])


def spread(images: Images, count: int, coordinates: int) -> Images:
    """At most ``count`` of them, and as many as fit, evenly spread over the list, which may be sorted by site."""
    fits = max(2, min(count, HELD // max(1, coordinates), len(images)))
    chosen = np.unique(np.linspace(0, len(images) - 1, fits).round().astype(int))
    return Images(images.images[chosen], images.targets[chosen])
