"""Updates of single images, one image a step: what an attacker holds a sum against. Made once for all places from which it looks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Arrays, Images, Knowledge

#: numbers that are held at a time of many images' updates: 160 MB.
HELD = 20_000_000


def of_each(ctx: Knowledge, model: torch.nn.Module, images: Images, names: Sequence[str]) -> Iterator[npt.NDArray[np.float64]]:
    """The update of each image as a batch of one (:meth:`.Knowledge.expected`), its tensors ``names`` one after another:
    ``(coordinates,)``.
    """
    for image, target in zip(torch.from_numpy(images.images), torch.from_numpy(images.targets), strict=True):
        made = ctx.expected(model, image[None], target[None])
        yield flat({name: made[name].detach().numpy() for name in names}, names)


def remembered(ctx: Knowledge, model: torch.nn.Module, images: Images, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """The same of all images, ``(images, coordinates)``. The last few answers are kept, as long as they are below :data:`HELD` numbers."""
    if not isinstance(ctx.loss, partial):  # of another loss nothing is known that could name it
        return np.stack(list(of_each(ctx, model, images, names)))
    digest = hashlib.sha256(repr((tuple(names), ctx.training, _forward(ctx))).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(images.images.tobytes() + images.targets.tobytes())
    key = digest.digest()
    if key not in _MADE:
        _MADE[key] = np.stack(list(of_each(ctx, model, images, names)))
        while len(_MADE) > 1 and sum(made.size for made in _MADE.values()) > HELD:
            _MADE.pop(next(iter(_MADE)))
    else:
        _MADE[key] = _MADE.pop(key)  # the newest is dropped last
    return _MADE[key]


#: what :func:`remembered` keeps; it depends on nothing but its key.
_MADE: dict[bytes, npt.NDArray[np.float64]] = {}


def _forward(ctx: Knowledge) -> tuple[object, ...]:
    """All that an expected update depends on besides model and image."""
    defence = ctx.told
    return (defence.clip, defence.clips, defence.divisor, ctx.loss.func, ctx.loss.args) if isinstance(ctx.loss, partial) else ()


def flat(update: Arrays, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Its tensors ``names`` one after another."""
    return np.concatenate([np.asarray(update[name], np.float64).ravel() for name in names])


def spread(images: Images, count: int) -> Images:
    """At most ``count`` of them, evenly spread over the list, which may be sorted by site."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return Images(images.images[chosen], images.targets[chosen])
