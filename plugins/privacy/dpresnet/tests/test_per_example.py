"""Per-example gradients by torch.func and by Opacus (hooks, functorch, ghost) equal one backward pass for each example."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pppml_core.randomness import seeded
from pppml_core.registry import Registry
from pppml_dpresnet.config import DPResNet9Config, GroupNormedConfig, LinearHeadConfig, ScaleResNet9Config
from pppml_dpresnet.dp_resnet9 import DPResNet9Model
from pppml_dpresnet.group_normed import GroupNormedModel
from pppml_dpresnet.linear_head import LinearHeadModel
from pppml_dpresnet.scale_resnet9 import ScaleResNet9Model

Gradients = dict[str, torch.Tensor]


class Normed(nn.Module):
    """A network as many are: batch normalization, activations in place."""

    def __init__(self, spec) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(spec.channels, 12, 3, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 20, 3, stride=2),
            nn.BatchNorm2d(20),
            nn.LeakyReLU(inplace=True),
        )
        self.head = nn.Linear(20, len(spec.classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3)))


def small_cnn():
    """By name, since it is another plugin's."""
    pytest.importorskip("pppml_monai_nets")
    component = Registry.only(importlib.import_module("pppml_monai_nets.plugin")).get("model", "small-cnn")
    return component.load()(component.config())


def densenet():
    pytest.importorskip("pppml_monai_nets")
    return GroupNormedModel(GroupNormedConfig(of="densenet"))


NETWORKS: dict[str, Callable] = {
    "dp-resnet9": lambda: DPResNet9Model(DPResNet9Config()),
    "scale-resnet9": lambda: ScaleResNet9Model(ScaleResNet9Config()),
    "scale-resnet9 relu": lambda: ScaleResNet9Model(ScaleResNet9Config(activation="relu", scale_norm=False)),
    "linear-head": lambda: LinearHeadModel(LinearHeadConfig(features="scale-resnet9", weights="random")),
    "group-normed": lambda: GroupNormedModel(GroupNormedConfig(of=f"{__name__}:Normed")),
    "group-normed densenet": densenet,
    "small-cnn": small_cnn,
}
BATCH, CLASSES = 3, 4


@pytest.fixture(scope="module", params=NETWORKS)
def case(request, spec):
    """Network in training mode, images, targets, and the gradients of each example by itself."""
    with seeded(5):
        model = NETWORKS[request.param]().build(spec((16, 16), 3, CLASSES)).double().train()
        for parameter in model.parameters():  # a head that starts at zero would hide what is behind it
            if parameter.requires_grad and parameter.ndim < 3:
                nn.init.normal_(parameter, std=0.5)
        images, targets = torch.randn(BATCH, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2, 3])
    oracle: list[Gradients] = []
    for index in range(BATCH):
        model.zero_grad()
        nn.functional.cross_entropy(model(images[index : index + 1]), targets[index : index + 1]).backward()
        oracle.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    assert set(oracle[0]) == {n for n, p in model.named_parameters() if p.requires_grad}
    return model, images, targets, {n: torch.stack([one[n] for one in oracle]) for n in oracle[0]}


def agree(found: Gradients, oracle: Gradients) -> None:
    assert set(found) == set(oracle)
    for name, wanted in oracle.items():
        assert wanted.norm() > 1e-12, name
        assert float((found[name] - wanted).norm() / wanted.norm()) < 1e-10, name


def test_torch_func(case):
    model, images, targets, oracle = case
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(weights: Gradients, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, weights, (image[None],)), target[None])

    agree(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images, targets), oracle)


@pytest.mark.parametrize("functorch", [False, True], ids=["hooks", "functorch"])
def test_opacus(case, functorch):
    opacus = pytest.importorskip("opacus.grad_sample")
    model, images, targets, oracle = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = opacus.GradSampleModule(copy.deepcopy(model), loss_reduction="sum", force_functorch=functorch)
        nn.functional.cross_entropy(watched(images), targets, reduction="sum").backward()
    found = {n.removeprefix("_module."): p.grad_sample for n, p in watched.named_parameters() if p.requires_grad}
    agree(found, oracle)


def test_opacus_ghost_clipping(case):
    opacus = pytest.importorskip("opacus.grad_sample.grad_sample_module_fast_gradient_clipping")
    model, images, targets, oracle = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = opacus.GradSampleModuleFastGradientClipping(copy.deepcopy(model), loss_reduction="sum", use_ghost_clipping=True)
        nn.functional.cross_entropy(watched(images), targets, reduction="sum").backward()
        norms = watched.get_norm_sample()
    wanted = torch.stack([g.flatten(1).square().sum(1) for g in oracle.values()]).sum(0).sqrt()
    assert torch.allclose(norms, wanted, rtol=1e-10)


def test_opacus_finds_nothing_to_fix(case):
    opacus = pytest.importorskip("opacus.validators")
    assert opacus.ModuleValidator.validate(case[0], strict=False) == []


def test_small_cnn_is_fit_as_it_is(spec):
    """Its group normalization and out-of-place activations make a form of its own for differential privacy needless."""
    network = small_cnn().build(spec((28, 28)))
    assert not [n for n, m in network.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) or getattr(m, "inplace", False)]
    assert list(network.buffers()) == []
