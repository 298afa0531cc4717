"""A double of a site's training data: fixed batches of small images, plain SGD at a given rate, no random stream touched.

And the core's own training data over the same images, where what counts is how it cuts them into steps.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pppml_core.config.run_config import TrainingSection
from pppml_core.interfaces.personalization import Batch, StepRule
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.training import LocalTraining
from pppml_core.randomness import Seeds

CHANNELS, SIZE, CLASSES = 1, (8, 8), 3


def noise(site: str, examples: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images ``(n, 1, 8, 8)`` float64 and targets ``(n,)`` int64 that have nothing to do with each other."""
    generator = Seeds(0).generator("fixed-data", site)
    images = generator.standard_normal((examples, CHANNELS, *SIZE))
    return images, generator.integers(0, CLASSES, examples)


def differing(site: str, examples: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images with a bright square in one of three places, under a little noise, and the place's name, which each site chooses itself.

    The letter of the site says by how much names are turned, how bright its scanner is and how strong its contrast. So the best model for
    all sites is a bad one at each, whether a method keeps a head, normalization or a whole model of its own.
    """
    images, generator = 0.2 * noise(site, examples)[0], Seeds(0).generator("differing", site)
    places, turn = generator.permutation(np.arange(examples) % CLASSES), ord(site[0]) - ord("a")
    for image, place in zip(images, places, strict=True):
        image[0, 3 * (place // 2) : 3 * (place // 2) + 3, 4 * (place % 2) : 4 * (place % 2) + 3] += 2.0
    return (1 + 0.5 * turn) * images + 0.3 * turn, (places + turn) % CLASSES


def real_training(site: str = "a", *, examples: int = 30, lr: float = 0.1, **settings: Any) -> LocalTraining:
    """The core's own training data over the same kind of images: ``settings`` are those of ``training`` (default: batches of 8)."""
    images, targets = noise(site, examples)
    section = TrainingSection(**{"device": "cpu", "batch_size": 8, "optimizer": {"use": "sgd", "lr": lr}, **settings})
    held = ArrayExamples(images.astype(np.float32), targets, np.arange(examples), to_image=np.asarray)
    return LocalTraining(held, section, Seeds(1), site=site, round=1, rounds=1)


class FixedData:
    """Implements ``interfaces.personalization.LocalData``.

    Args:
        site: names the data; another site has others.
        steps: optimizer steps of the configured training.
        lr: learning rate of :meth:`train`; 0 is allowed.
        dtype: of the images.
        differ: there is something to learn, and sites contradict each other: see :func:`differing`. Otherwise images and targets are noise.

    """

    def __init__(
        self,
        site: str = "a",
        *,
        steps: int = 3,
        lr: float = 0.1,
        batch_size: int = 8,
        dtype: torch.dtype = torch.float32,
        differ: bool = False,
    ) -> None:
        self.examples = 4 * batch_size
        self.steps, self._lr, self._size = steps, lr, batch_size
        images, targets = differing(site, self.examples) if differ else noise(site, self.examples)
        self._images, self._targets = torch.from_numpy(images).to(dtype), torch.from_numpy(targets)
        self._site, self._passes = site, dict[str, int]()
        #: optimizer state kept at the site, as the real training data have it.
        self.optimizer_state = None

    def everything(self) -> Batch:
        """All training examples, in their order."""
        return self._images, self._targets

    def _draw(self, purpose: str, steps: int, batches: int = 1) -> Iterator[tuple[Batch, ...]]:
        """For each step that many batches without an example in common."""
        generator = Seeds(1).generator("order", self._site, purpose)
        for _ in range(steps):
            order = torch.from_numpy(generator.permutation(self.examples))
            picked = [order[i * self._size : (i + 1) * self._size] for i in range(batches)]
            yield tuple((self._images[p], self._targets[p]) for p in picked)

    def _pass(self, purpose: str) -> str:
        self._passes[purpose] = self._passes.get(purpose, 0) + 1
        return f"{purpose}-{self._passes[purpose]}"

    def batches(self) -> Iterator[Batch]:
        """``steps`` batches; a further pass draws others."""
        return (batch for (batch,) in self._draw(self._pass("train"), self.steps))

    def sample(self, purpose: str, count: int) -> Iterator[Batch]:
        """``count`` batches of their own."""
        return (batch for (batch,) in self._draw(purpose, count))

    def train(
        self,
        model: torch.nn.Module,
        rule: StepRule,
        *,
        parameters: list[torch.nn.Parameter] | None = None,
        batches_per_step: int = 1,
        lr: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        purpose: str = "train",
    ) -> dict[str, float]:
        """Plain SGD; an epoch is as many whole steps as the examples make. At most four batches a step."""
        model.train()
        chosen = list(model.parameters()) if parameters is None else parameters
        rate = self._lr if lr is None else lr
        if epochs is not None:
            steps = epochs * (self.examples // (self._size * batches_per_step))
        losses = []
        for together in self._draw(self._pass(purpose), self.steps if steps is None else steps, batches_per_step):
            losses.append(rule(model, together if batches_per_step > 1 else together[0]))
            with torch.no_grad():
                for parameter in chosen:
                    if parameter.grad is not None:
                        parameter.sub_(rate * parameter.grad)
        return {"loss": sum(losses) / len(losses)} if losses else {}


def small_network(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Convolution, BatchNorm, ReLU, linear head ``head``; weights drawn without touching torch's global generator."""
    return copy.deepcopy(_small_network(seed, dtype))


@functools.cache
def _small_network(seed: int, dtype: torch.dtype) -> torch.nn.Module:
    network = torch.nn.Sequential()
    network.add_module("conv", torch.nn.utils.skip_init(torch.nn.Conv2d, CHANNELS, 4, 3, padding=1))
    network.add_module("norm", torch.nn.BatchNorm2d(4))
    network.add_module("act", torch.nn.ReLU())
    network.add_module("pool", torch.nn.AdaptiveAvgPool2d(4))
    network.add_module("flat", torch.nn.Flatten())
    network.add_module("head", torch.nn.utils.skip_init(torch.nn.Linear, 64, CLASSES))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.to(dtype)
