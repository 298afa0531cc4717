"""Batch into group normalization: what is kept, what changes, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pppml_core.config import resolve
from pppml_core.errors import ConfigError, PluginError
from pppml_core.registry import Registry
from pppml_dpresnet import plugin
from pppml_dpresnet.config import GroupNormedConfig
from pppml_dpresnet.convert import group_norm, groups_for
from pppml_dpresnet.group_normed import GroupNormedModel


def test_groups_divide_and_have_two_channels():
    for channels in range(1, 200):
        groups = groups_for(channels)
        assert channels % groups == 0
        assert groups <= 32
        assert channels == 1 or channels // groups >= 2
    assert [groups_for(c) for c in (64, 48, 92, 32, 16, 7, 2)] == [32, 16, 4, 16, 8, 1, 1]
    assert [groups_for(c, 8) for c in (64, 12, 8)] == [8, 4, 4]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d, (3, 12)),
        (nn.BatchNorm1d, (3, 12, 5)),
        (nn.BatchNorm2d, (3, 12, 5, 4)),
        (nn.BatchNorm3d, (3, 12, 3, 4, 2)),
        (nn.SyncBatchNorm, (3, 12, 5, 4)),
    ],
)
def test_every_kind_with_its_affine_weights(norm, shape):
    old = norm(12, eps=1e-3).double()
    nn.init.normal_(old.weight)
    nn.init.normal_(old.bias)
    x = torch.randn(shape, dtype=torch.float64)
    new = group_norm(nn.Sequential(old))[0]
    assert isinstance(new, nn.GroupNorm)
    assert list(new.state_dict()) == ["weight", "bias"]
    assert new.num_groups == 4
    grouped = x.reshape(3, 4, -1)
    mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, unbiased=False, keepdim=True)
    along = (1, 12, *[1] * (x.ndim - 2))
    wanted = ((grouped - mean) / (variance + 1e-3).sqrt()).reshape(shape) * old.weight.view(along) + old.bias.view(along)
    assert torch.allclose(new(x), wanted)
    assert new(x).std() > 0.1, "a vector is not normalized to zero"


def test_names_stay_and_changes_are_told():
    inner = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    network = nn.ModuleDict({"a": inner, "b": nn.BatchNorm2d(6, affine=False), "c": nn.GELU(), "d": nn.Dropout(0.1, inplace=True)})
    names, changes = [n for n, _ in network.named_parameters()], []
    assert group_norm(network, changes=changes) is network
    assert [n for n, _ in network.named_parameters()] == names
    assert changes == [
        "a.1: BatchNorm2d is now GroupNorm, 32 groups over 64 channels",
        "a.2: ReLU no longer works in place",
        "b: BatchNorm2d is now GroupNorm, 2 groups over 6 channels",
        "d: Dropout no longer works in place",
    ]
    again: list[str] = []
    group_norm(network, changes=again)
    assert again == [], "the second time there is nothing to do"


def test_a_layer_with_two_names_stays_one_and_the_root_is_converted():
    shared = nn.BatchNorm2d(8)
    network = group_norm(nn.ModuleDict({"one": nn.Sequential(shared), "two": shared}))
    assert network["one"][0] is network["two"]
    assert isinstance(network["two"], nn.GroupNorm)
    assert isinstance(group_norm(nn.BatchNorm2d(8)), nn.GroupNorm)


def test_frozen_and_evaluated_stay_so():
    old = nn.BatchNorm2d(8).eval().requires_grad_(False)
    new = group_norm(nn.Sequential(old))[0]
    assert not new.training
    assert not any(p.requires_grad for p in new.parameters())


def test_unknown_channels_are_refused(spec):
    with pytest.raises(ValueError, match="does not know its channels"):
        group_norm(nn.Sequential(nn.LazyBatchNorm2d()))


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("DenseNet121", {"in_channels": 3, "out_channels": 8}, (32, 32)),
        ("resnet10", {"n_input_channels": 3, "num_classes": 8}, (32, 32)),
        ("SEResNet50", {"in_channels": 3, "num_classes": 8}, (32, 32)),
        ("EfficientNetBN", {"model_name": "efficientnet-b0", "in_channels": 3, "num_classes": 8, "pretrained": False}, (32, 32)),
    ],
)
def test_monai_networks(name, args, size):
    nets = pytest.importorskip("monai.networks.nets")
    network = group_norm(getattr(nets, name)(spatial_dims=len(size), **args)).eval()  # evaluation: some draw dropout
    assert not [n for n, m in network.named_modules() if isinstance(m, _BatchNorm) or getattr(m, "inplace", False)]
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        alone, among = network(images[:1])[0], network(images)[0]
    assert alone.std() > 1e-3
    assert torch.allclose(alone, among, atol=1e-4)


# -- the component --------------------------------------------------------------------------------------------------------------------


def test_group_normed_of_an_installed_network(spec):
    pytest.importorskip("pppml_monai_nets")
    registry = Registry.only(plugin)
    section = {"use": "group-normed", "of": "densenet", "args": {"variant": "small"}, "groups": 8}
    factory = registry.build("model", resolve({"task": "tiny", "model": section}, registry=registry).model)
    for task in (spec((28, 28)), spec((16, 16, 16), 1, 2)):
        assert factory.misfits(task) == []
        network = factory.build(task)
        assert network(torch.zeros(1, task.channels, *task.size)).shape == (1, len(task.classes))
        assert {m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)} <= {1, 2, 4, 8}
    (misfit,) = factory.misfits(spec((4, 4)))
    assert "at least 13 px" in misfit


@pytest.mark.parametrize(
    ("of", "args", "reason"),
    [
        ("densnet", {}, "did you mean 'densenet'"),
        ("dp-resnet9", {"group": 4}, "settings of `dp-resnet9`: groups"),
        ("group-normed", {"of": "dp-resnet9"}, "made from another network itself"),
        ("no_such_module:net", {}, "cannot import"),
    ],
)
def test_what_is_no_network_is_said(of, args, reason, spec):
    factory = GroupNormedModel(GroupNormedConfig(of=of, args=args))
    (misfit,) = factory.misfits(spec((28, 28)))
    assert reason in misfit
    with pytest.raises((ConfigError, PluginError)):
        factory.build(spec((28, 28)))
