"""Views made by hand of small networks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import AdversaryView, Defence, Images, Knowledge, Seen, Sight, Training, Vantage
from pppml_core.interfaces.task import TaskSpec


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class World:
    """A network at given weights, and what an adversary after ``site_1`` knows. ``update``: what images make, by a loop of its own."""

    def __init__(
        self, network: torch.nn.Module, classes: int, kind: str = "classification", loss=torch.nn.functional.cross_entropy
    ) -> None:
        self.network, self.classes, self.kind, self.loss = network, classes, kind, loss

    def knowledge(self, public: Images, training=None, defence=None, **others) -> Knowledge:
        spec = TaskSpec(self.kind, 1, public.images.shape[2:], tuple("abcdefghij"[: self.classes]), "any", "accuracy", {})
        zero, one = np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
        training, defence = training or Training(0.5, 1, 8), defence or Defence()
        return Knowledge("site_1", spec, lambda: self.network, self.loss, training, defence, zero, one, public, **others)

    def update(self, images: Images, rate: float = 0.5, clip: float | None = None, divisor: float | None = None) -> dict[str, np.ndarray]:
        """Of one step, each example clipped by itself: plain autograd and numpy, without the library's forward model."""
        parameters = dict(self.network.named_parameters())
        total = {n: np.zeros(p.shape) for n, p in parameters.items()}
        for image, target in zip(torch.from_numpy(images.images), torch.from_numpy(images.targets), strict=True):
            self.network.zero_grad()
            self.loss(self.network(image[None]), target[None]).backward()
            norm = float(np.sqrt(sum(float(p.grad.square().sum()) for p in parameters.values())))
            factor = 1.0 if clip is None else min(1.0, clip / norm)
            total = {n: t + factor * parameters[n].grad.numpy() for n, t in total.items()}
        return {n: -rate * t / (divisor or len(images)) for n, t in total.items()}

    def view(self, updates: list[dict[str, np.ndarray]], without: str = "nothing") -> AdversaryView:
        """Of the mean of the updates of so many sites; tensors whose name begins with ``without`` stay at the sites."""
        names = tuple(f"site_{i + 1}" for i in range(len(updates)))
        mean = {n: np.mean([u[n] for u in updates], axis=0).astype(np.float32) for n in updates[0] if not n.startswith(without)}
        weights = {n: p.detach().numpy().copy() for n, p in self.network.named_parameters() if n in mean}
        return AdversaryView(Vantage("server", server=True), (Seen(1, weights, {}, names, (Sight(names, mean, float(len(names))),)),))


@pytest.fixture
def world_of():
    return World


@pytest.fixture
def classifier():
    """``make(seed, classes)``: a small convolutional network with random weights."""

    def make(seed: int, classes: int = 4) -> World:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = torch.nn.Sequential(
                torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(96, classes)
            )  # fmt: skip
        return World(network, classes)

    return make


@pytest.fixture
def images():
    """``draw(generator, labels)``: a bright square whose place is the label, under noise; 10 x 10."""

    def draw(generator: np.random.Generator, labels) -> Images:
        pictures = generator.normal(0.3, 0.15, (len(labels), 1, 10, 10)).astype(np.float32)
        for picture, label in zip(pictures, labels, strict=True):
            row, column = divmod(int(label), 3)
            picture[0, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 0.6
        return Images(pictures, np.asarray(labels, np.int64))

    return draw
