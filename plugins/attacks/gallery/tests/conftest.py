"""Views made by hand of small networks whose updates are known."""

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

    def __init__(self, network: torch.nn.Module, size: tuple[int, ...], classes: int = 2) -> None:
        self.network, self.classes, self.size = network, classes, size

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return {n: p.detach().numpy().copy() for n, p in self.network.named_parameters()}

    def knowledge(self, public: Images, candidates: Images | None, training=None, defence=None, **others) -> Knowledge:
        spec = TaskSpec("classification", 1, self.size, tuple("abcdefghij"[: self.classes]), "any", "accuracy", {})
        zero, one = np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
        loss, training, defence = torch.nn.functional.cross_entropy, training or Training(0.5), defence or Defence()
        return Knowledge("site_1", spec, lambda: self.network, loss, training, defence, zero, one, public, candidates, **others)

    def update(self, images: Images, rate: float = 0.5, clip: float | None = None, divisor: float | None = None) -> dict[str, np.ndarray]:
        """Of one step, each example clipped by itself: plain autograd and numpy, without the library's forward model."""
        total = {n: np.zeros(w.shape) for n, w in self.weights.items()}
        for image, target in zip(images.images, images.targets, strict=True):
            self.network.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.network(torch.from_numpy(image[None])), torch.from_numpy(np.array([target])))
            loss.backward()
            made = {n: p.grad.numpy().astype(np.float64) for n, p in self.network.named_parameters()}
            norm = np.sqrt(sum(np.square(g).sum() for g in made.values()))
            factor = 1.0 if clip is None else min(1.0, clip / norm)
            total = {n: t + factor * made[n] for n, t in total.items()}
        return {n: -rate * t / (divisor or len(images)) for n, t in total.items()}

    def seen(self, sites: int, mean: dict[str, np.ndarray], round: int = 1) -> Seen:
        names = tuple(f"site_{i + 1}" for i in range(sites))
        sight = Sight(names, {n: u.astype(np.float32) for n, u in mean.items()}, float(sites))
        return Seen(round, self.weights, {}, names, (sight,))

    def view(self, *rounds: Seen) -> AdversaryView:
        return AdversaryView(Vantage("server", server=True), rounds)


def one_hot_world(pixels: int) -> World:
    """A linear layer without a bias at weights 0: the update of an image with one bright pixel lies in that pixel's column."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, 2, bias=False))
    torch.nn.init.zeros_(network[1].weight)
    return World(network, (1, pixels))


def bright(pixels: int, places: np.ndarray, strength: np.ndarray) -> Images:
    images = np.zeros((len(places), 1, 1, pixels), np.float32)
    images[np.arange(len(places)), 0, 0, places] = strength
    return Images(images, np.zeros(len(places), np.int64))


@pytest.fixture
def one_hot():
    return one_hot_world, bright


@pytest.fixture
def convolutional():
    """``make(seed)``: a small convolutional network with random weights, of images of 12 x 12, and images that resemble each other."""

    def make(seed: int, smooth: int = 3) -> tuple[World, np.random.Generator]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = torch.nn.Sequential(
                torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.Sigmoid(), torch.nn.Flatten(), torch.nn.Linear(150, 3)
            )  # fmt: skip
        return World(network, (12, 12), 3), np.random.default_rng(seed)

    return make


@pytest.fixture
def images():
    """``draw(generator, count)``: a common shape, a few ways in which patients differ, a little noise; 3 labels."""
    base = np.random.default_rng(123).random((8, 1, 12, 12))

    def draw(generator: np.random.Generator, count: int, label: int | None = None) -> Images:
        ways = generator.normal(0, 0.3, (count, 7))
        pictures = base[0] + np.tensordot(ways, base[1:], 1) + generator.normal(0, 0.05, (count, 1, 12, 12))
        labels = generator.integers(0, 3, count) if label is None else np.full(count, label)
        return Images(np.clip(pictures, 0, 2).astype(np.float32) / 2, labels.astype(np.int64))

    return draw


@pytest.fixture
def world_of():
    return World
