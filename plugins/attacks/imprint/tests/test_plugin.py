"""The descriptions, and the network ``imprint-front``."""

import re

import numpy as np
import pytest
import torch

from pppml_core.config import resolve
from pppml_core.errors import PppmlError
from pppml_core.registry import Registry
from pppml_core.testing import PluginSuite
from pppml_imprint import plugin
from pppml_imprint.config import ImprintFrontConfig
from pppml_imprint.front import ImprintFrontModel


class TestPlugin(PluginSuite):
    plugin = "pppml_imprint.plugin"


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize("size", [(12, 16), (6, 8, 4)], ids=["flat", "volume"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_network(spec, kind, size, skip):
    model = ImprintFrontModel(ImprintFrontConfig(rows=10, skip=skip)).build(spec(size, kind))
    images = torch.rand(2, 1, *size)
    assert model(images).shape == ((2, 3) if kind == "classification" else (2, 3, *size))
    assert model.front.weight.shape == (10, np.prod(size))
    with torch.no_grad():
        model.back.weight.zero_()
        model.back.bias.zero_()
    wanted = model.inner(images if skip else torch.zeros_like(images))
    assert torch.equal(model(images), wanted)


def test_another_network_behind(spec):
    factory = ImprintFrontModel(ImprintFrontConfig(rows=10, of="tiny-net", args={"width": 3}))
    assert factory.misfits(spec()) == []
    assert next(tuple(p.shape) for p in factory.build(spec()).inner.parameters()) == (3, 1, 3, 3)
    by_path = ImprintFrontModel(ImprintFrontConfig(of="torch.nn:Identity"))
    assert torch.equal(by_path._another().build(spec())(torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"of": "no-such-net"}, "no-such-net"),
        ({"of": "imprint-front"}, "before another network"),
        ({"of": "tiny-net", "args": {"width": 0}}, "model.args.width"),
        ({"of": "no_such_module:Net"}, "no_such_module"),
    ],
)
def test_no_such_network(spec, settings, said):
    factory = ImprintFrontModel(ImprintFrontConfig(**settings))
    (reason,) = factory.misfits(spec())
    assert said in reason
    with pytest.raises(PppmlError, match=re.escape(said.rpartition(".")[2])):
        factory.build(spec())


def test_settings_of_nothing():
    with pytest.raises(ValueError, match="name it with `of`"):
        ImprintFrontConfig(args={"width": 3})


def test_one_dimension_is_none_of_its_own(spec):
    (reason,) = ImprintFrontModel(ImprintFrontConfig()).misfits(spec((32,)))
    assert "2-D and 3-D" in reason


def test_a_config_names_it():
    config = resolve({"task": "tiny", "model": {"use": "imprint-front", "rows": 12}}, registry=Registry.only(plugin))
    assert config.model.rows == 12
