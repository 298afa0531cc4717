"""The forward model of a site: which update it would make of given images, differentiable in them, and how single images are in a sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Defence, Knowledge, Sight, Training

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Mixture:
    """How single images are in a decoded sum, to first order: each as if it were alone.

    Args:
        weight: share of the update that an image would make alone; that of a recorded round (not ``exact``) is made in one step.
        count: images in the sum, all of the same weight.
        own: of these the watched site's.
    """

    weight: float
    count: int
    own: int

    @classmethod
    def of(cls, sight: Sight, knowledge: Knowledge) -> Mixture:
        """Sites weigh the same and make their steps alike."""
        defence, training, sites = knowledge.told, knowledge.training, len(sight.sites)
        # A public divisor stands in the update of a single image already; without one a step is a mean over its batch.
        batch = 1 if defence.clips == "example" and defence.clip is not None and defence.divisor else training.batch
        own = training.batch * training.steps
        # A batch of one image is stepped upon in every step, an image of the batch in one.
        alone = training.steps if training.exact else 1
        return cls(1.0 / (sites * batch * alone), sites * own, own)


def placed(model: torch.nn.Module, weights: Mapping[str, npt.NDArray[Any]], dtype: torch.dtype | None = None) -> torch.nn.Module:
    """``model`` with these shared weights (names it does not have are an error), in training mode; what is not shared stays as it is."""
    state = model.state_dict()
    with torch.no_grad():
        for name, array in weights.items():
            state[name].copy_(torch.from_numpy(np.array(array)))
    return model.to(dtype or torch.float32).train()


def expected_update(
    model: torch.nn.Module, loss: Loss, images: torch.Tensor, targets: torch.Tensor, training: Training, defence: Defence
) -> Tensors:
    """New weights less old ones after ``training.steps`` steps of SGD on ``images``, with the clip of ``defence``, without its noise.

    Args:
        model: at the weights the round began with; neither they nor the buffers change.
        loss: mean loss of a batch.
        images: ``(n, channels, *size)``; step ``i`` takes images ``i * batch`` to ``(i + 1) * batch`` (all over again when used up).
        targets: of the images, in any form ``loss`` takes.
        training: steps, batch, rate.
        defence: its ``clip``, ``clips`` and ``divisor`` are used.

    Returns:
        Parameter name -> update, with a graph back to ``images`` and ``targets`` where one of them requires a gradient.
        Parameters that are frozen are left out.

    """
    start = {n: p.detach().clone().requires_grad_(True) for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    # Summed by itself: the difference of weights would be rounded as coarsely as they are, and a sure network's gradient lost.
    update: Tensors = {}
    for step in range(training.steps):
        first = (step * training.batch) % len(images)
        chosen = slice(first, first + training.batch)
        at = {n: p + update[n] if update else p for n, p in start.items()}
        made = _gradient(model, loss, {**at, **frozen}, list(start), images[chosen], targets[chosen], defence)
        update = {n: (update[n] if update else 0.0) - training.learning_rate * made[n] for n in start}
    if defence.clips == "update" and defence.clip is not None:
        factor = _factor(update, defence.clip)
        update = {n: factor * u for n, u in update.items()}
    return update


def _gradient(
    model: torch.nn.Module, loss: Loss, at: Tensors, names: list[str], images: torch.Tensor, targets: torch.Tensor, defence: Defence
) -> Tensors:
    """Of the mean loss; with a clip of examples, the sum of the clipped gradients over the divisor."""
    if defence.clips != "example" or defence.clip is None:
        return _plain(model, loss, at, names, images, targets)
    total: Tensors = {}
    for i in range(len(images)):
        own = _plain(model, loss, at, names, images[i : i + 1], targets[i : i + 1])
        factor = _factor(own, defence.clip)
        total = {n: factor * g if not total else total[n] + factor * g for n, g in own.items()}
    divisor = defence.divisor or float(len(images))
    return {n: g / divisor for n, g in total.items()}


def _plain(model: torch.nn.Module, loss: Loss, at: Tensors, names: list[str], images: torch.Tensor, targets: torch.Tensor) -> Tensors:
    # Copies: normalization layers write their running statistics into what they are given.
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    outputs = torch.func.functional_call(model, {**at, **buffers}, (images,))
    searched = images.requires_grad or targets.requires_grad
    made = torch.autograd.grad(loss(outputs, targets), [at[n] for n in names], create_graph=searched, allow_unused=True)
    return {n: torch.zeros_like(at[n]) if g is None else g for n, g in zip(names, made, strict=True)}


def _factor(tensors: Tensors, clip: float) -> torch.Tensor:
    norm = torch.sqrt(torch.stack([t.square().sum() for t in tensors.values()]).sum() + 1e-30)
    return torch.clamp(clip / norm, max=1.0)
