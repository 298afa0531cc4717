"""Small networks whose updates are known, and images to tell apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import Images
from pppml_core.testing.attacked import Attacked, one_thread  # noqa: F401


def one_hot_world(pixels: int) -> Attacked:
    """A linear layer without a bias at weights 0: the update of an image with one bright pixel lies in that pixel's column."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels, 2, bias=False))
    torch.nn.init.zeros_(network[1].weight)
    return Attacked(network, 2)


def bright(pixels: int, places: np.ndarray, strength: np.ndarray) -> Images:
    images = np.zeros((len(places), 1, 1, pixels), np.float32)
    images[np.arange(len(places)), 0, 0, places] = strength
    return Images(images, np.zeros(len(places), np.int64))


@pytest.fixture
def one_hot():
    return one_hot_world, bright


@pytest.fixture
def convolutional():
    """``make(seed)``: a small convolutional network with random weights, of images of 12 x 12, and a generator for these."""

    def make(seed: int) -> tuple[Attacked, np.random.Generator]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = torch.nn.Sequential(
                torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.Sigmoid(), torch.nn.Flatten(), torch.nn.Linear(150, 3)
            )  # fmt: skip
        return Attacked(network, 3), np.random.default_rng(seed)

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
