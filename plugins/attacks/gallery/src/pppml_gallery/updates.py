"""Flat updates that the watched site would make of single images, as many at a time as fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Images, Knowledge, Sight
from pppml_core.learning import single
from pppml_core.learning.single import HELD, of_each, remembered


def in_batches(ctx: Knowledge, model: torch.nn.Module, images: Images, names: tuple[str, ...]) -> Iterator[npt.NDArray[np.float64]]:
    """So many images at a time as fit: ``(images, coordinates)``."""
    if len(images) * sum(model.get_parameter(name).numel() for name in names) <= HELD:
        yield remembered(ctx, model, images, names)
        return
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


def spread(images: Images, count: int, coordinates: int) -> Images:
    """At most ``count`` of them, and as many as fit at a time, evenly spread over the list."""
    return single.spread(images, max(2, min(count, HELD // max(1, coordinates))))
