"""What a clipped sum leaves behind: nothing but the gradients. Kept activations would fill the memory of a run within minutes."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from pppml_core.interfaces.personalization import DrawnBatch
from pppml_dp.per_example import Clipping, clipped_sum


@pytest.fixture(scope="module", autouse=True)
def of_these_tests_alone():
    """What is there before is not looked at: counting all objects of a whole test run takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensors() -> int:
    """How many are alive."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


@pytest.mark.parametrize("method", ["book-keeping", "functional", "loop"])
def test_no_tensor_outlives_the_sum(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    batch = DrawnBatch(torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1]), torch.ones(5, dtype=torch.float64))
    alive = []
    for _ in range(4):
        clipped_sum(network, nn.functional.cross_entropy, batch, Clipping("flat", 1.0), method=method)
        alive.append(tensors())
    assert alive[1:] == [alive[1]] * 3
