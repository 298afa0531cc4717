"""What breaks per-example clipping is found, with its place, the reason and the remedy; and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pppml_dp.validate import problems


class Body(nn.Module):
    def __init__(self, bn1: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential()
        self.net.add_module("bn1", bn1)
        self.head = nn.Linear(2, 2)


class Averaging(nn.Module):
    """A batch normalization of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))


@pytest.mark.parametrize(
    ("layer", "kind", "why", "instead"),
    [
        (nn.BatchNorm1d(48), "BatchNorm1d", "depends on the other images of the batch", "GroupNorm(16, 48)"),
        (nn.BatchNorm2d(64), "BatchNorm2d", "depends on the other images of the batch", "GroupNorm(32, 64)"),
        (nn.BatchNorm3d(7), "BatchNorm3d", "depends on the other images of the batch", "GroupNorm(1, 7)"),
        (nn.SyncBatchNorm(8), "SyncBatchNorm", "depends on the other images of the batch", "GroupNorm(8, 8)"),
        (nn.LazyBatchNorm2d(), "LazyBatchNorm2d", "depends on the other images of the batch", "GroupNorm(min(32, channels), channels)"),
        (nn.BatchNorm2d(8).eval().requires_grad_(False), "BatchNorm2d", "depends on the other images", "GroupNorm(8, 8)"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "InstanceNorm2d", "keeps statistics", "track_running_stats=False"),
        (Averaging(), "Averaging", "buffer running_mean", "without running statistics"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), "ParametrizedLinear", "every forward pass", "leave it out"),
        (nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)), "Conv2d", "every forward pass", "leave it out"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_layer_is_named_with_reason_and_remedy(layer, kind, why, instead):
    (found,) = problems(Body(layer))
    assert found.startswith(f"layer `net.bn1` ({kind}): ")
    assert why in found
    assert instead in found


def test_the_remedy_is_none_of_the_problems():
    for layer in (
        nn.GroupNorm(16, 48),
        nn.InstanceNorm2d(4, affine=True),
        nn.LayerNorm(3),
        nn.Dropout(0.5),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.LSTM(3, 3),
        nn.LazyConv2d(3, 3),
    ):
        assert problems(Body(layer)) == []


def test_the_network_itself():
    assert problems(nn.BatchNorm2d(4))[0].startswith("the network itself (BatchNorm2d)")


def test_tied_parameters():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    (found,) = problems(tied)
    assert found.startswith("parameter `0.weight` is also `1.weight`: it travels under each name")
    shared = nn.ReLU(), nn.Linear(3, 3)
    assert len(problems(nn.Sequential(*shared, *shared))) == 2  # one module in two places: weight and bias
    same_memory = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    same_memory[1].weight = nn.Parameter(same_memory[0].weight.data)
    assert len(problems(same_memory)) == 1


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(3, 3).requires_grad_(False)], ids=["none", "frozen"])
def test_nothing_trained(model):
    (found,) = problems(model)
    assert "no parameter is trained" in found


def test_all_problems_at_once():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))).requires_grad_(False)
    assert [text.split(":")[0] for text in problems(model)] == [
        "layer `0` (BatchNorm2d)",
        "layer `1.0` (BatchNorm2d)",
        "the network",
    ]
