"""Shapes, sizes, normalization, seeding, gradients and refusals of the networks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pppml_core.config import resolve
from pppml_core.errors import ConfigError
from pppml_core.interfaces.task import TaskSpec
from pppml_core.randomness import seeded
from pppml_core.registry import Registry
from pppml_core.testing import PluginSuite
from pppml_monai_nets import plugin
from pppml_monai_nets.any_monai import MonaiModel
from pppml_monai_nets.config import DenseNetConfig, MonaiConfig, SmallCNNConfig, UNetConfig
from pppml_monai_nets.densenet import DenseNetModel
from pppml_monai_nets.norms import groups_for
from pppml_monai_nets.small_cnn import SmallCNNModel
from pppml_monai_nets.unet import UNetModel


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec(kind: str, size: tuple[int, ...], channels: int = 1, classes: int = 2) -> TaskSpec:
    names = tuple(f"c{index}" for index in range(classes))
    metric = "dice" if kind == "segmentation" else "accuracy"
    return TaskSpec(kind, channels, size, names, "unet", metric, {metric: (0.0, 1.0)})  # type: ignore[arg-type]


FLAT, VOLUME = spec("segmentation", (32, 32)), spec("segmentation", (16, 16, 16))
CELLS, SCANS = spec("classification", (28, 28), 3, 8), spec("classification", (32, 32, 32), 1, 3)

WORKING: dict[str, tuple[Any, TaskSpec]] = {
    "unet 2-D": (UNetModel(UNetConfig()), FLAT),
    "unet 3-D": (UNetModel(UNetConfig()), VOLUME),
    "unet group": (UNetModel(UNetConfig(norm="group")), spec("segmentation", (32, 48), 3, 4)),
    "unet batch plain": (UNetModel(UNetConfig(norm="batch", num_res_units=0, channels=(4, 8, 12), strides=(1, 2))), FLAT),
    "densenet 2-D": (DenseNetModel(DenseNetConfig()), CELLS),
    "densenet 3-D": (DenseNetModel(DenseNetConfig()), SCANS),
    "densenet group": (DenseNetModel(DenseNetConfig(norm="group")), CELLS),
    "small-cnn 28": (SmallCNNModel(SmallCNNConfig()), CELLS),
    "small-cnn 64": (SmallCNNModel(SmallCNNConfig()), spec("classification", (64, 64), 1, 2)),
    "monai SwinUNETR": (
        MonaiModel(MonaiConfig(name="SwinUNETR", args={"feature_size": 12, "depths": [1, 1, 1, 1]})),
        spec("segmentation", (64, 64)),
    ),
    "monai SegResNet": (MonaiModel(MonaiConfig(name="SegResNet")), FLAT),
    "monai resnet18": (MonaiModel(MonaiConfig(name="resnet18", norm="group")), CELLS),
    "monai EfficientNetBN": (MonaiModel(MonaiConfig(name="EfficientNetBN", args={"model_name": "efficientnet-b0"})), SCANS),
}


@pytest.mark.parametrize("name", WORKING)
def test_logits_gradients_and_state(name):
    if "Swin" in name:
        pytest.importorskip("einops")
    factory, task = WORKING[name]
    assert factory.misfits(task) == []
    with seeded(1):
        network = factory.build(task)
        images = torch.randn(2, task.channels, *task.size)
    logits = network.train()(images)
    assert logits.shape == (2, len(task.classes), *(task.size if task.kind == "segmentation" else ()))
    assert logits.dtype == torch.float32
    logits.square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
    assert sum(float(p.grad.abs().sum()) for p in network.parameters()) > 0
    not_float = {n for n, t in network.state_dict().items() if not t.is_floating_point()}
    assert all(n.endswith(("num_batches_tracked", "relative_position_index")) for n in not_float), not_float


@pytest.mark.parametrize("name", ["unet 2-D", "densenet group", "small-cnn 28", "monai SegResNet"])
def test_the_seed_decides_the_weights(name):
    factory, task = WORKING[name]

    def weights(seed: int) -> dict[str, torch.Tensor]:
        with seeded(seed):
            return factory.build(task).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize(
    ("factory", "task", "millions"),
    [
        (UNetModel(UNetConfig()), FLAT, 0.2055),
        (UNetModel(UNetConfig()), VOLUME, 0.3376),
        (UNetModel(UNetConfig(num_res_units=2)), FLAT, 0.4016),
        (DenseNetModel(DenseNetConfig()), spec("classification", (28, 28), 1, 2), 0.1965),
        (DenseNetModel(DenseNetConfig()), spec("classification", (32, 32, 32), 1, 2), 0.4085),
        (DenseNetModel(DenseNetConfig(variant="121")), spec("classification", (64, 64), 1, 2), 6.9496),
        (DenseNetModel(DenseNetConfig(variant="121")), spec("classification", (64, 64, 64), 1, 2), 11.2447),
        (SmallCNNModel(SmallCNNConfig()), CELLS, 0.1498),
    ],
)
def test_parameter_counts_are_the_documented_ones(factory, task, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in factory.build(task).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.0001)


def test_groups_for_divides():
    assert [groups_for(c, 8) for c in (16, 12, 92, 7, 1, 48)] == [8, 6, 4, 7, 1, 8]
    assert groups_for(30, 4) == 3


@pytest.mark.parametrize("name", ["unet group", "densenet group", "small-cnn 28", "monai resnet18"])
def test_group_norm_is_everywhere(name):
    factory, task = WORKING[name]
    network = factory.build(task)
    assert not [n for n, m in network.named_modules() if isinstance(m, _BatchNorm)]
    groups = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert len(groups) >= 4
    assert all(m.num_groups > 1 for m in groups if m.num_channels % 2 == 0)
    # Independent of the module list: in training mode one image's logits must not depend on the others of its batch.
    images = torch.randn(3, task.channels, *task.size)
    with torch.no_grad():
        alone, among = network.train()(images[:1]), network.train()(images)[:1]
    assert torch.allclose(alone, among, atol=1e-5)


def test_batch_norm_is_where_it_is_asked_for():
    network = DenseNetModel(DenseNetConfig()).build(CELLS)
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert any(n.endswith("running_mean") for n in network.state_dict())
    flat = UNetModel(UNetConfig(norm="batch")).build(FLAT)
    assert any(isinstance(m, nn.BatchNorm2d) for m in flat.modules())


def test_the_default_unet_keeps_no_statistics():
    network = UNetModel(UNetConfig()).build(FLAT)
    assert list(network.buffers()) == []


@pytest.mark.parametrize("name", ["small-cnn 28", "densenet group"])
def test_per_example_gradients_exist(name):
    """What differential privacy needs: vmap over examples gives the same gradients as one backward pass for each."""
    factory, task = WORKING[name]
    network = factory.build(task).train()
    parameters = {n: p.detach() for n, p in network.named_parameters()}
    images, targets = torch.randn(2, task.channels, *task.size), torch.tensor([0, 1])

    def loss(weights, image, target):
        return nn.functional.cross_entropy(torch.func.functional_call(network, weights, (image[None],)), target[None])

    fast = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, images, targets)
    for index in range(2):
        network.zero_grad()
        nn.functional.cross_entropy(network(images[index : index + 1]), targets[index : index + 1]).backward()
        for key, parameter in network.named_parameters():
            assert torch.allclose(fast[key][index], parameter.grad, atol=1e-4), key


def test_small_cnn_changes_nothing_in_place_and_runs_in_float64():
    network = SmallCNNModel(SmallCNNConfig()).build(CELLS)
    assert not [m for m in network.modules() if getattr(m, "inplace", False)]
    assert network.double()(torch.zeros(2, 3, 28, 28, dtype=torch.float64)).dtype == torch.float64


REFUSED = [
    (UNetModel(UNetConfig()), CELLS, "unet is for segmentation"),
    (UNetModel(UNetConfig()), spec("segmentation", (60, 64)), r"not divisible by 8.*use size \(64, 64\)"),
    (UNetModel(UNetConfig()), spec("segmentation", (8, 8)), "single point"),
    (UNetModel(UNetConfig()), spec("segmentation", (64,)), "2-D and 3-D"),
    (DenseNetModel(DenseNetConfig()), FLAT, "densenet is for classification"),
    (DenseNetModel(DenseNetConfig(variant="121")), CELLS, "at least 29 px"),
    (SmallCNNModel(SmallCNNConfig()), SCANS, "2-D network"),
    (SmallCNNModel(SmallCNNConfig()), FLAT, "small-cnn is for classification"),
    (SmallCNNModel(SmallCNNConfig()), spec("classification", (4, 4)), "at least 8 px"),
    (MonaiModel(MonaiConfig(name="SwinUNTER")), VOLUME, "did you mean 'SwinUNETR'"),
    (MonaiModel(MonaiConfig(name="nothing_like_it_at_all")), VOLUME, "docs.monai.io"),
    (MonaiModel(MonaiConfig(name="SegResNet", args={"init_filter": 4})), FLAT, "did you mean 'init_filters'"),
    (MonaiModel(MonaiConfig(name="SegResNet", args={"upsample_mode": "sideways"})), FLAT, r"model\.args: SegResNet refuses"),
    (MonaiModel(MonaiConfig(name="resnet18")), FLAT, r"gives \(2,\).*segmentation task needs"),
    (MonaiModel(MonaiConfig(name="SegResNet", args={"spatial_dims": 3})), FLAT, "SegResNet cannot take images"),
    (MonaiModel(MonaiConfig(name="UNet")), FLAT, "channels"),
]


@pytest.mark.parametrize(("factory", "task", "reason"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_misfits_say_why(factory, task, reason):
    misfits = factory.misfits(task)
    assert len(misfits) == 1, misfits
    assert misfits[0].startswith("model")
    assert re.search(reason, misfits[0]), misfits[0]


def test_the_smallest_densenet_image_is_exact():
    """One pixel more than what is refused really trains."""
    for variant, smallest in (("small", 13), ("121", 29)):
        factory = DenseNetModel(DenseNetConfig(variant=variant))
        assert factory.misfits(spec("classification", (smallest, smallest))) == []
        assert factory.misfits(spec("classification", (smallest - 1, smallest))) != []


def test_several_outputs_become_the_first():
    factory = MonaiModel(MonaiConfig(name="BasicUNetPlusPlus", args={"features": [4, 4, 8, 8, 8, 4]}))
    assert factory.misfits(FLAT) == []
    assert isinstance(factory.build(FLAT)(torch.zeros(1, 1, 32, 32)), torch.Tensor)


def test_a_plan_does_not_disturb_the_random_state():
    state = torch.get_rng_state()
    UNetModel(UNetConfig()).misfits(FLAT)
    assert torch.equal(state, torch.get_rng_state())


def test_vit_gives_unbounded_logits():
    pytest.importorskip("einops")
    factory = MonaiModel(MonaiConfig(name="ViT", args={"patch_size": 7, "hidden_size": 24, "mlp_dim": 32, "num_layers": 1, "num_heads": 2}))
    assert factory.misfits(CELLS) == []
    assert not [m for m in factory.build(CELLS).modules() if isinstance(m, nn.Tanh)]


def test_an_unknown_network_is_an_error_on_build():
    with pytest.raises(ConfigError, match=r"model\.name.*no network 'Unnet'"):
        MonaiModel(MonaiConfig(name="Unnet")).build(FLAT)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (UNetConfig, {"channels": [8, 16], "strides": [2, 2]}),
        (UNetConfig, {"channels": [8]}),
        (UNetConfig, {"norm": "layer"}),
        (UNetConfig, {"chanels": [8, 16]}),
        (DenseNetConfig, {"variant": "122"}),
        (DenseNetConfig, {"dropout": 1.0}),
        (SmallCNNConfig, {"channels": [8, 8]}),
        (MonaiConfig, {}),
    ],
)
def test_bad_settings_are_refused(config, values):
    with pytest.raises(ValidationError):
        config(**values)


def test_a_variant_may_be_written_as_a_number():
    assert DenseNetConfig(variant=121).variant == "121"


class TestPlugin(PluginSuite):
    plugin = "pppml_monai_nets.plugin"


@pytest.mark.parametrize(
    ("section", "network"),
    [
        ("unet", "UNet"),
        ({"use": "densenet", "variant": 121}, "DenseNet"),
        ("small-cnn", "SmallCNN"),
        ({"use": "monai", "name": "VNet"}, "VNet"),
    ],
)
def test_a_line_of_a_config_becomes_a_network(section, network):
    registry = Registry.only(plugin)
    config = resolve({"task": "tiny", "model": section}, registry=registry)
    factory = registry.build("model", config.model)
    task = {"UNet": FLAT, "VNet": VOLUME}.get(network, spec("classification", (32, 32)))
    assert type(factory.build(task)).__name__ == network
