"""Layers that keep something of the images they see, inside one gradient: refused by the plan, and put back between examples and parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pppml_core.interfaces.personalization import DrawnBatch
from pppml_core.learning.carried import carrying
from pppml_dp.clipping import Clipping
from pppml_dp.per_example import clipped_sum

SIZE = (1, 8, 8)


class First(nn.Module):
    """Updates what it keeps, then uses it: a later example of the loop would see the earlier ones."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(SIZE))

    def forward(self, x):
        if self.training:
            self.center.mul_(0.5).add_(0.5 * x.detach().mean(0))
        return x - self.center


class Last(First):
    """Uses it, then updates it: a later part of a batch would see the earlier ones."""

    def forward(self, x):
        y = x - self.center.clone()
        if self.training:
            self.center.mul_(0.5).add_(0.5 * x.detach().mean(0))
        return y


class Plain(nn.Module):
    """Keeps a plain attribute; made from the first batch, and then left."""

    def __init__(self, how):
        super().__init__()
        self.how, self.kept = how, None

    def forward(self, x):
        if self.kept is None:
            self.kept = {"tensor": x.detach().mean(0), "float": float(x.mean()), "list": [x.detach()], "grid": torch.ones(SIZE)}[self.how]
        return x - self.kept if self.how != "list" else x


class FromFirstBatch(nn.Module):
    """Data-dependent initial weights."""

    def __init__(self):
        super().__init__()
        self.shift, self.started = nn.Parameter(torch.zeros(SIZE)), False

    def forward(self, x):
        if not self.started:
            self.shift.data.copy_(x.detach().mean(0))
            self.started = True
        return x - self.shift


def behind(layer):
    torch.manual_seed(0)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3)).train()


CARRYING = {
    "buffer, updated first": (First, "layer `0` (First) changes `center`"),
    "buffer, updated last": (Last, "layer `0` (Last) changes `center`"),
    "tensor": (lambda: Plain("tensor"), "layer `0` (Plain) changes `kept`"),
    "float": (lambda: Plain("float"), "layer `0` (Plain) changes `kept`"),
    "list": (lambda: Plain("list"), "layer `0` (Plain) changes `kept[0]`"),
    "weights": (FromFirstBatch, "layer `0` (FromFirstBatch) changes `shift`"),
}


@pytest.mark.parametrize("name", CARRYING)
def test_the_layer_is_named(name):
    make, said = CARRYING[name]
    assert carrying(behind(make()), torch.randn(2, *SIZE), torch.randn(2, *SIZE)) == [said]


@pytest.mark.usefixtures("stated_epsilon_alone")
@pytest.mark.parametrize("use", ["dp-sgd", "clip-only"])
def test_the_plan_refuses_it(experiment, use):
    privacy = {"use": use, **({"epsilon": 6, "delta": 1e-5} if use == "dp-sgd" else {}), "placement": "local"}
    (misfit,) = experiment(privacy, sites=2, examples=40, model=behind(First())).plan().to_dict()["misfits"]
    assert misfit.startswith("privacy: layer `0` (First) changes `center` in a forward pass")


@pytest.mark.parametrize("name", ["usual", "grid", "weight norm"])
def test_layers_without_a_memory_pass_and_stay_as_they_are(name):
    normed = nn.utils.weight_norm if name == "weight norm" else lambda layer: layer
    torch.manual_seed(0)
    layers = [nn.Dropout(0.5), nn.GroupNorm(1, 1), *([Plain("grid")] if name == "grid" else [])]
    model = nn.Sequential(*layers, nn.Flatten(), normed(nn.Linear(64, 3))).eval()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    first, second = torch.randn(2, 2, *SIZE)
    random = torch.get_rng_state()
    assert carrying(model, first, second) == []
    assert not model.training
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    assert name != "grid" or model[2].kept is None
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("physical_batch", [None, 4])
@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("layer", [First, Last])
def test_one_example_moves_a_clipped_sum_by_one_clip(layer, method, physical_batch):
    """Also where a network is not planned for: in the sum alone."""
    model = behind(layer()).double()
    images = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(1)).double()
    images[0] = 1e6
    targets = torch.arange(16) % 3

    def clipped(which):
        batch = DrawnBatch(images[which], targets[which], np.ones(len(images[which])))
        clipped_sum(model, F.cross_entropy, batch, Clipping("flat", 1.0), method=method, physical_batch=physical_batch)
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert float((clipped(slice(None)) - clipped(slice(1, None))).norm()) <= 1 + 1e-9
    assert not model[0].center.any()
