"""The attacked model, reference models, and what a model says of images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.config.run_config import OptimizerSection
from pppml_core.interfaces.attack import Arrays, Images, Knowledge, Seen
from pppml_core.learning.forward import placed
from pppml_core.learning.training import make_optimizer
from pppml_core.randomness import Seeds, seeded

_BATCH = 64


def reached(seen: Seen, ctx: Knowledge) -> Arrays:
    """The weights nearest to what the watched site trained that this adversary can make; empty: none that were trained at all.

    Those that the smallest decoded sum of the site leads to, where that is not the sum of the whole cohort; else the model after the
    round, else the one it began with.
    """
    sight = seen.of(ctx.site)
    if seen.weights and sight is not None and len(sight.sites) < len(seen.cohort):
        moved = {n: np.asarray(seen.weights[n]) + u for n, u in sight.update.items() if n in seen.weights}
        return {n: moved[n].astype(np.asarray(w).dtype) if n in moved else w for n, w in seen.weights.items()}
    return seen.after or (seen.weights if seen.round > 1 else {})


def whole(ctx: Knowledge, weights: Arrays, steps: int, until: float) -> torch.nn.Module:
    """A model with these weights; layers that stay at the sites are trained on public images, with the others as they are."""
    with seeded(Seeds(ctx.seed).integer("membership", "layers")):
        model = placed(ctx.network(), weights)
        missing = [n for n, t in model.state_dict().items() if n not in weights and t.is_floating_point()]
        if missing:
            fit(model, ctx, ctx.public, steps, until, set(missing))
            placed(model, weights)  # running statistics of shared layers moved
    return model


def fit(model: torch.nn.Module, ctx: Knowledge, images: Images, steps: int, until: float, names: set[str] | None = None) -> int:
    """Train with the run's loss, optimizer and batches for ``steps`` steps, or till the clock shows ``until``; returns how many were made.

    ``names``: of the tensors that are trained; None: all. Draws from torch's generator, so enter :func:`seeded` first.
    """
    trained = [p for n, p in model.named_parameters() if p.requires_grad and (names is None or n in names)]
    section = dict(ctx.config.get("training", {}).get("optimizer", {}), lr=ctx.training.learning_rate)
    optimizer = make_optimizer(trained, OptimizerSection.model_validate(section)) if trained else None
    model.train()
    for step, chosen in enumerate(_batches(len(images), ctx.training.batch, steps)):
        if step and time.perf_counter() > until:
            return step
        made = ctx.loss(model(_tensor(images.images[chosen])), torch.from_numpy(images.targets[chosen]))
        if optimizer is not None:
            optimizer.zero_grad()
            made.backward()
            optimizer.step()
    return steps


def _batches(count: int, size: int, steps: int) -> Iterator[npt.NDArray[np.int64]]:
    """``steps`` batches, pass by pass in random orders."""
    order = np.zeros(0, np.int64)
    for _ in range(steps):
        if len(order) < min(size, count):
            order = torch.randperm(count).numpy()
        yield order[:size]
        order = order[size:]


def halves(count: int, references: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which of ``count`` public images each reference model is trained on, ``(references, count)``: random halves, two and two disjoint.

    So every image is a stranger to half of the models.
    """
    rows: list[Any] = []
    while len(rows) < references:
        inside = np.zeros(count, bool)
        inside[generator.permutation(count)[: count // 2]] = True
        rows += [inside, ~inside]
    return np.stack(rows[:references])


def log_p(model: torch.nn.Module, ctx: Knowledge, images: Images) -> npt.NDArray[np.float64]:
    """Minus the loss of each image, ``(n,)``: for cross-entropy the log-probability of the true class, averaged over a mask's pixels."""
    model.eval()
    found = []
    with torch.no_grad():
        for first in range(0, len(images), _BATCH):
            outputs = model(_tensor(images.images[first : first + _BATCH])).double()
            targets = torch.from_numpy(images.targets[first : first + _BATCH])
            found += [-float(ctx.loss(outputs[i : i + 1], targets[i : i + 1])) for i in range(len(outputs))]
    return np.array(found)


def _tensor(images: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(images, np.float32))
