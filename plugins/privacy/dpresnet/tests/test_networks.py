"""The two residual networks, layer by layer: counts, shapes, seeds, independence of examples, refusals, export."""

from __future__ import annotations

import json
import re

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pppml_core.config import resolve
from pppml_core.randomness import seeded
from pppml_core.registry import Registry
from pppml_core.testing import PluginSuite
from pppml_dpresnet import plugin
from pppml_dpresnet.blocks import Residual
from pppml_dpresnet.config import DPResNet9Config, ScaleResNet9Config
from pppml_dpresnet.dp_resnet9 import DPResNet9Model, dp_resnet9
from pppml_dpresnet.scale_resnet9 import ScaleResNet9Model, scale_resnet9

FACTORIES = {
    "dp-resnet9": DPResNet9Model(DPResNet9Config()),
    "scale-resnet9": ScaleResNet9Model(ScaleResNet9Config()),
    "scale-resnet9 plain": ScaleResNet9Model(ScaleResNet9Config(activation="relu", scale_norm=False, groups=8)),
}
each = pytest.mark.parametrize("name", FACTORIES)


class TestPlugin(PluginSuite):
    plugin = "pppml_dpresnet.plugin"


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def by_kind(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(p.numel() for m in network.modules() if isinstance(m, kind) for p in m.parameters(recurse=False))


# -- against the published networks ---------------------------------------------------------------------------------------------------


def test_dp_resnet9_has_the_published_number_of_parameters():
    network = dp_resnet9(3, 8)
    assert (by_kind(network, nn.Conv2d), by_kind(network, nn.GroupNorm), by_kind(network, nn.Linear)) == (4_794_048, 3_968, 4_104)
    assert count(network) == 4_802_120


@pytest.mark.parametrize(("classes", "scale_norm", "published"), [(10, False, 2_447_946), (10, True, 2_448_714), (8, True, 2_446_664)])
def test_scale_resnet9_has_the_published_number_of_parameters(classes, scale_norm, published):
    assert count(scale_resnet9(3, classes, scale_norm=scale_norm)) == published
    # ScaleNorm is one weight and one bias for each channel of both sums, and so at 8 classes:
    assert count(scale_resnet9(3, 8)) - count(scale_resnet9(3, 8, scale_norm=False)) == 2 * (128 + 256)


#: Stage, shape of its output for 28 px, and its layers: "conv in>out /stride", "gn groups", or the class.
DP_TABLE = [
    ("conv1", (64, 28, 28), ["conv 3>64 /1", "gn 32", "ReLU"]),
    ("conv2", (128, 28, 28), ["conv 64>128 /1", "gn 32", "ReLU"]),
    ("res1", (128, 28, 28), ["+", "conv 128>128 /1", "gn 32", "ReLU", "conv 128>128 /1", "gn 32"]),
    ("res2", (256, 14, 14), ["conv 128>256 /2", "gn 32", "ReLU", "conv 256>256 /1", "gn 32"]),
    ("res3", (512, 7, 7), ["conv 256>512 /2", "gn 32", "ReLU", "conv 512>512 /1", "gn 32"]),
    ("pool", (512, 1, 1), ["AdaptiveAvgPool2d"]),
    ("flat", (512,), ["Flatten"]),
    ("head", (8,), ["Linear"]),
]
SCALE_TABLE = [
    ("conv1", (64, 28, 28), ["conv 3>64 /1", "gn 32", "Mish"]),
    ("conv2", (128, 14, 14), ["conv 64>128 /1", "gn 32", "Mish", "MaxPool2d"]),
    ("res1", (128, 14, 14), ["+", "conv 128>128 /1", "gn 32", "Mish", "conv 128>128 /1", "gn 32", "Mish"]),
    ("scale_norm1", (128, 14, 14), ["gn 32"]),
    ("conv3", (256, 7, 7), ["conv 128>256 /1", "gn 32", "Mish", "MaxPool2d"]),
    ("conv4", (256, 3, 3), ["conv 256>256 /1", "gn 32", "Mish", "MaxPool2d"]),
    ("res2", (256, 3, 3), ["+", "conv 256>256 /1", "gn 32", "Mish", "conv 256>256 /1", "gn 32", "Mish"]),
    ("scale_norm2", (256, 3, 3), ["gn 32"]),
    ("pool", (256, 2, 2), ["AdaptiveMaxPool2d"]),
    ("flat", (1024,), ["Flatten"]),
    ("head", (8,), ["Linear"]),
]


def layer(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        assert (module.kernel_size, module.padding, module.bias) == ((3, 3), (1, 1), None)
        return f"conv {module.in_channels}>{module.out_channels} /{module.stride[0]}"
    if isinstance(module, nn.GroupNorm):
        assert module.affine
        return f"gn {module.num_groups}"
    return "+" if isinstance(module, Residual) else type(module).__name__


@pytest.mark.parametrize(("make", "table"), [(dp_resnet9, DP_TABLE), (scale_resnet9, SCALE_TABLE)])
def test_stage_by_stage(make, table):
    with torch.device("meta"):
        network, x = make(3, 8), torch.zeros(2, 3, 28, 28)
    found = []
    for name, stage in network.named_children():
        x = stage(x)
        found.append((name, tuple(x.shape[1:]), [layer(m) for m in stage.modules() if not isinstance(m, nn.Sequential)]))
    assert found == table


def written_out_dp(network: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """The network as functions, with the weights in the order of its parameters."""
    p = iter(network.parameters())

    def conv_norm(x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return nn.functional.group_norm(nn.functional.conv2d(x, next(p), stride=stride, padding=1), 32, next(p), next(p))

    x = conv_norm(conv_norm(x).relu()).relu()
    x = x + conv_norm(conv_norm(x).relu())
    x = conv_norm(conv_norm(x, 2).relu())
    x = conv_norm(conv_norm(x, 2).relu())
    return nn.functional.linear(x.mean((2, 3)), next(p), next(p))


def written_out_scale(network: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    p = iter(network.parameters())

    def norm(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.group_norm(x, 32, next(p), next(p))

    def block(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.mish(norm(nn.functional.conv2d(x, next(p), padding=1)))

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(x, 2)

    x = pooled(block(block(x)))
    x = norm(x + block(block(x)))
    x = pooled(block(pooled(block(x))))
    x = norm(x + block(block(x)))
    return nn.functional.linear(nn.functional.adaptive_max_pool2d(x, 2).flatten(1), next(p), next(p))


@pytest.mark.parametrize(("make", "written_out"), [(dp_resnet9, written_out_dp), (scale_resnet9, written_out_scale)])
def test_the_network_is_what_is_written_out(make, written_out):
    with seeded(0):
        network = make(3, 5).double()
        for parameter in network.parameters():  # normalizations begin as 1 and 0, which would hide them
            nn.init.normal_(parameter, std=0.3)
        images = torch.randn(2, 3, 16, 20, dtype=torch.float64)
    assert torch.allclose(network(images), written_out(network, images), rtol=1e-10, atol=1e-10)


# -- fit for differential privacy -----------------------------------------------------------------------------------------------------


@each
def test_no_batch_norm_nothing_in_place_no_statistics(name, spec):
    network = FACTORIES[name].build(spec((28, 28)))
    assert not [n for n, m in network.named_modules() if isinstance(m, _BatchNorm) or getattr(m, "inplace", False)]
    assert list(network.buffers()) == []
    versions = []
    for module in network.modules():
        module.register_forward_hook(lambda m, i, o: versions.append((o, o._version, i[0], i[0]._version)))
    network.train()(torch.randn(2, 3, 28, 28))
    assert len(versions) >= 30
    assert all(o._version == before and i._version == given for o, before, i, given in versions), "no output is changed after it was made"


@each
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 64])
def test_sizes_and_channels(name, size, channels, spec):
    task = spec((size, size), channels, 4)
    assert FACTORIES[name].misfits(task) == []
    with torch.device("meta"):
        assert FACTORIES[name].build(task)(torch.zeros(3, channels, size, size)).shape == (3, 4)


@each
def test_an_example_does_not_depend_on_the_others(name, spec):
    with seeded(0):
        network = FACTORIES[name].build(spec((16, 16))).double().train()
        images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        among, others = network(images), network(torch.cat([images[:1], 1e3 * images[1:]]))
        alone = network(images[:1])
    assert torch.allclose(among[0], alone[0], rtol=1e-12)
    assert torch.allclose(among[0], others[0], rtol=1e-12)


@each
def test_the_seed_decides_the_weights(name, spec):
    def weights(seed):
        with seeded(seed):
            return FACTORIES[name].build(spec((28, 28))).state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


# -- settings, refusals, export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "size", "kind", "reason"),
    [
        ("dp-resnet9", (28, 28, 28), "classification", "dp-resnet9 is a 2-D network.*3-D images"),
        ("dp-resnet9", (7, 28), "classification", "at least 8 px"),
        ("dp-resnet9", (28, 28), "segmentation", "dp-resnet9 is for classification"),
        ("scale-resnet9", (28, 28, 28), "classification", "scale-resnet9 is a 2-D network"),
        ("scale-resnet9", (28, 15), "classification", "at least 16 px"),
        ("scale-resnet9", (28, 28), "segmentation", "scale-resnet9 is for classification"),
    ],
)
def test_misfits_say_why(factory, size, kind, reason, spec):
    (found,) = FACTORIES[factory].misfits(spec(size, kind=kind))
    assert re.search(reason, found), found


@each
def test_the_smallest_image_trains(name, spec):
    smallest = 8 if name == "dp-resnet9" else 16
    network = FACTORIES[name].build(spec((smallest, smallest)))
    network(torch.randn(1, 3, smallest, smallest)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in network.parameters())


def test_settings_are_used(spec):
    network = FACTORIES["scale-resnet9 plain"].build(spec((28, 28)))
    assert {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)} == {8}
    assert not [m for m in network.modules() if isinstance(m, nn.Mish)]
    assert count(network) == 2_446_664 - 2 * (128 + 256)


@pytest.mark.parametrize(("config", "values"), [(DPResNet9Config, {"groups": 24}), (ScaleResNet9Config, {"activation": "gelu"})])
def test_bad_settings_are_refused(config, values):
    with pytest.raises(ValidationError):
        config(**values)


@pytest.mark.parametrize("section", ["dp-resnet9", {"use": "scale-resnet9", "activation": "relu"}])
def test_a_line_of_a_config_becomes_a_network(section, spec):
    registry = Registry.only(plugin)
    factory = registry.build("model", resolve({"task": "tiny", "model": section}, registry=registry).model)
    assert count(factory.build(spec((28, 28)))) in (4_802_120, 2_446_664)


@each
def test_exported_it_needs_torch_and_monai_only(name, spec):
    pytest.importorskip("monai")
    from pppml_core.learning.bundle.network import describe

    task = spec((16, 16), 1, 3)
    with seeded(1):
        model = FACTORIES[name].build(task)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    found = describe(FACTORIES[name], task, model.eval())  # refuses a network of other names, shapes or outputs
    assert found.script is None
    assert "pppml" not in json.dumps(found.sections)
