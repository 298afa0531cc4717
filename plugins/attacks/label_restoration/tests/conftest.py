"""A small classifier, and images that show their label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import Images
from pppml_core.testing.attacked import Attacked, one_thread  # noqa: F401


@pytest.fixture
def classifier():
    """``make(seed, classes)``: a small convolutional network with random weights."""

    def make(seed: int, classes: int = 4) -> Attacked:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = torch.nn.Sequential(
                torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(96, classes)
            )  # fmt: skip
        return Attacked(network, classes)

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
