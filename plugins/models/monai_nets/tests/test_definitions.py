"""What the networks tell MONAI builds the same networks, and works without this plugin."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.bundle.network import describe
from pppml_core.randomness import seeded
from pppml_core.testing.bundle_alone import predict_alone
from pppml_monai_nets.any_monai import MonaiModel
from pppml_monai_nets.config import DenseNetConfig, MonaiConfig, SmallCNNConfig, UNetConfig
from pppml_monai_nets.densenet import DenseNetModel
from pppml_monai_nets.small_cnn import SmallCNNModel
from pppml_monai_nets.unet import UNetModel


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec(kind, size, channels=1, classes=3):
    metric = "dice" if kind == "segmentation" else "accuracy"
    return TaskSpec(kind, channels, size, tuple(f"c{i}" for i in range(classes)), "unet", metric, {metric: (0.0, 1.0)})


FLAT, CELLS = spec("segmentation", (32, 32)), spec("classification", (28, 28), 3, 8)
NETWORKS = {
    "unet": (UNetModel(UNetConfig()), FLAT),
    "unet 3-D": (UNetModel(UNetConfig(num_res_units=0, dropout=0.3)), spec("segmentation", (16, 16, 16))),
    # (classes and levels for which the layers need different numbers of groups)
    "unet group": (UNetModel(UNetConfig(norm="group", channels=(6, 16, 20), groups=4)), FLAT),
    "unet batch": (UNetModel(UNetConfig(norm="batch", strides=(2, 1, 2))), FLAT),
    "densenet": (DenseNetModel(DenseNetConfig()), CELLS),
    "densenet group 3-D": (DenseNetModel(DenseNetConfig(norm="group")), spec("classification", (32, 32, 32))),
    "small-cnn": (SmallCNNModel(SmallCNNConfig(channels=(8, 12, 10), groups=4)), CELLS),
    "monai class": (MonaiModel(MonaiConfig(name="SegResNet", args={"init_filters": 8})), FLAT),
    "monai function": (MonaiModel(MonaiConfig(name="resnet10")), CELLS),
    "monai group": (MonaiModel(MonaiConfig(name="AttentionUnet", args={"channels": [8, 12], "strides": [2]}, norm="group")), FLAT),
    "monai outputs": (MonaiModel(MonaiConfig(name="BasicUNetPlusPlus", args={"features": [4, 4, 8, 8, 8, 4]})), FLAT),
}
#: Plain settings can be overridden by who uses the bundle; an expression is for what settings cannot say.
EXPRESSIONS = {"unet group", "densenet group 3-D", "small-cnn", "monai group", "monai outputs"}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_told_is_the_network(name):
    factory, task = NETWORKS[name]
    with seeded(1):
        model = factory.build(task)
        for module in model.modules():  # statistics that differ from a new network's
            if hasattr(module, "running_mean") and module.running_mean is not None:
                module.running_mean.normal_()
    found = describe(factory, task, model.eval())  # refuses a network of other names, shapes or outputs
    assert found.script is None
    assert isinstance(found.sections["network_def"], str) == (name in EXPRESSIONS)
    assert "pppml" not in json.dumps(found.sections)


@pytest.mark.parametrize(
    ("kind", "model"), [("segmentation", {"use": "unet", "norm": "group", "channels": [6, 8]}), ("classification", "small-cnn")]
)
def test_a_bundle_without_this_plugin(kind, model, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    task = {"use": "tiny", "kind": kind, "size": 16, "examples": 6, "sites": 2}
    run = pppml.Experiment(task=task, model=model, run={"rounds": 1}, reporters=[]).run(tmp_path / "run", report=False)
    (tmp_path / "in").mkdir()
    pillow.fromarray(np.random.default_rng(0).integers(0, 256, (16, 27), dtype=np.uint8)).save(tmp_path / "in" / "a.png")
    bundle = run.export_bundle(tmp_path / "bundle", "site_1")
    (expected,) = run.predict(tmp_path / "in", site="site_1").probabilities
    np.testing.assert_allclose(predict_alone(bundle, tmp_path / "in")["a"], expected, atol=2e-6)
