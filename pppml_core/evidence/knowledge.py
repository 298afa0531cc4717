"""What an adversary knows, as plain data, so that it can be handed to a process that has nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.config import to_plain
from pppml_core.federation.assembly import Assembly
from pppml_core.interfaces.attack import Defence, Images, Knowledge, Training
from pppml_core.interfaces.task import Task
from pppml_core.learning.losses import default_loss


def known(
    parts: Assembly,
    site: str,
    *,
    training: Training,
    defence: Defence,
    public: Images,
    candidates: Images | None = None,
    queries: Images | None = None,
    sites_public: Mapping[str, Images] | None = None,
    seed: int = 0,
    adaptive: bool = True,
) -> Knowledge:
    """The knowledge of an adversary who is after ``site``: everything public of the run, and what the arguments add."""
    low, high = value_range(public.images)
    return Knowledge(
        site=site,
        spec=parts.spec,
        network=network_of(parts),
        loss=loss_of(parts),
        training=training,
        defence=defence,
        low=low,
        high=high,
        public=public,
        candidates=candidates,
        queries=queries,
        sites=tuple(s.slug for s in parts.task.sites()),
        sites_public=sites_public or {},
        config=told(to_plain(parts.config)),
        seed=seed,
        adaptive=adaptive,
    )


def told(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the paths of this machine: where data, initial weights and homes of sites lie."""
    out = dict(config)
    for section, name in (("task", "path"), ("training", "init"), ("engine", "homes")):
        if isinstance(config.get(section), dict) and name in config[section]:
            out[section] = {**config[section], name: None}
    return out


def network_of(parts: Assembly) -> Callable[[], Any]:
    """Makes the run's network anew, on the CPU."""
    return partial(parts.factory.build, parts.spec)


def loss_of(parts: Assembly) -> Callable[[Any, Any], Any]:
    """The task's loss; the default one without the task, from which nothing leads to images."""
    loss = parts.task.loss
    if getattr(loss, "__func__", None) is Task.loss:
        return partial(_plain_loss, parts.spec.kind)
    return lambda outputs, targets: loss(outputs, targets)


def _plain_loss(kind: Any, outputs: Any, targets: Any) -> Any:
    return default_loss(kind, outputs, targets, None)


def value_range(images: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smallest and largest value of each channel, shape ``(channels, 1, ...)``."""
    axes = (0, *range(2, images.ndim))
    shape = (images.shape[1], *(1 for _ in range(images.ndim - 2)))
    return images.min(axis=axes).reshape(shape), images.max(axis=axes).reshape(shape)


def to_message(knowledge: Knowledge) -> dict[str, Any]:
    """Plain data for the codec: everything but the network and the loss, which follow from ``config``."""

    def plain(images: Images | None) -> Any:
        return None if images is None else {"images": images.images, "targets": images.targets}

    return {
        "site": knowledge.site,
        "training": asdict(knowledge.training),
        "defence": {**asdict(knowledge.defence), "grid": dict(knowledge.defence.grid)},
        "low": knowledge.low,
        "high": knowledge.high,
        "public": plain(knowledge.public),
        "candidates": plain(knowledge.candidates),
        "queries": plain(knowledge.queries),
        "sites": list(knowledge.sites),
        "sites_public": {site: plain(images) for site, images in knowledge.sites_public.items()},
        "seed": knowledge.seed,
        "adaptive": knowledge.adaptive,
    }


def from_message(message: Mapping[str, Any], parts: Assembly) -> Knowledge:
    """The inverse of :func:`to_message`; ``parts`` built from the same config."""

    def images(plain: Any) -> Images | None:
        return None if plain is None else Images(np.array(plain["images"]), np.array(plain["targets"]))

    public = images(message["public"])
    assert public is not None
    found = known(
        parts,
        message["site"],
        training=Training(**message["training"]),
        defence=Defence(**message["defence"]),
        public=public,
        candidates=images(message["candidates"]),
        queries=images(message["queries"]),
        sites_public={site: one for site, plain in message["sites_public"].items() if (one := images(plain)) is not None},
        seed=message["seed"],
        adaptive=message["adaptive"],
    )
    return replace(found, low=np.array(message["low"]), high=np.array(message["high"]), sites=tuple(message["sites"]))
