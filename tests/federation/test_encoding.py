"""What the encoding does to weights, metrics and saturated coordinates."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError

from pppml_core.builtin.configs import ServerOptimizer, TinyTaskConfig
from pppml_core.builtin.none import NoPrivacyPlan
from pppml_core.builtin.tiny import TinyTask
from pppml_core.config.run_config import OptimizerSection, TrainingSection
from pppml_core.errors import PppmlError
from pppml_core.federation.pipeline import Pipeline, contribution_layout, weight_error
from pppml_core.interfaces.task import SiteData
from pppml_core.learning.data.examples import Subset
from pppml_core.values import TensorSpec


def pipeline(size=4, bits=16, max_weight=100, *, metrics=True, real=False):
    layout = contribution_layout((TensorSpec("w", (size,)),), metrics=metrics)
    return Pipeline(layout, (1.0,), bits, max_weight, NoPrivacyPlan(), real)


def encoded(pipe, values, weight, metrics=None):
    return pipe.encode({"w": values}, weight, metrics or {}, np.random.default_rng(0))


def test_the_update_is_multiplied_by_the_rounded_weight():
    """8 of 10 in four bits is k = 6 of 7. At the end of the range the integer is then exactly 6: nothing is left to round."""
    pipe = pipeline(1000, bits=4, max_weight=10)
    integers, _ = encoded(pipe, np.ones(1000), 8)
    assert set(integers[:1000].tolist()) == {6}
    assert integers[1000] == 6
    mean, _, examples = pipe.decode(integers)
    np.testing.assert_array_equal(mean["w"], 1.0)
    assert examples == pytest.approx(10 * 6 / 7)
    assert weight_error(8, 10, 4) == pytest.approx((6 / 7 - 0.8) / 0.8)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_one_saturated_coordinate_of_many_is_told(bits):
    pipe = pipeline(100_000, bits=bits)
    values = np.zeros(100_000)
    values[7] = 2.0
    integers, saturated = encoded(pipe, values, 100)
    assert saturated == 1
    assert integers[-1] == 1
    assert pipe.decode(integers)[1]["saturated"] >= 1e-5


def test_a_weight_that_would_vanish_is_an_error_and_not_made_larger():
    with pytest.raises(PppmlError, match="max_weight"):
        encoded(pipeline(max_weight=10**6), np.zeros(4), 15)
    assert encoded(pipeline(max_weight=10**6), np.zeros(4), 16)[0][4] == 1
    assert encoded(pipeline(max_weight=10**6, real=True), np.zeros(4), 1)[0][4] == np.float32(1e-6)


@pytest.mark.parametrize("real", [False, True])
def test_the_mean_loss_is_over_sites_that_have_one(real):
    pipe = pipeline(real=real)
    contributions = [
        encoded(pipe, np.zeros(4), w, m)[0].astype(float if real else int) for w, m in ((100, {"loss": 2.0}), (50, {"loss": 0.5}), (80, {}))
    ]
    assert pipe.decode(sum(contributions))[1]["loss"] == pytest.approx((100 * 2 + 50 * 0.5) / 150, abs=2e-3)
    metrics = pipe.decode(contributions[2])[1]
    assert metrics == {"saturated": 0.0}


def test_a_loss_beyond_its_range_counts_as_saturated():
    pipe = pipeline()
    integers, saturated = encoded(pipe, np.zeros(4), 100, {"loss": 40.0})
    assert saturated == 1
    metrics = pipe.decode(integers)[1]
    assert metrics["loss"] == pytest.approx(16.0)
    assert metrics["saturated"] == pytest.approx(0.25, abs=1e-4)
    everything, saturated = encoded(pipe, np.full(4, 9.0), 100, {"loss": 40.0})
    assert saturated == 5
    assert pipe.decode(everything)[1]["saturated"] == 1.0


class Uneven(TinyTask):
    """Site 1 has three training examples."""

    def load(self, site):
        data = super().load(site)
        return SiteData(Subset(data.train, np.arange(3)), data.validation, data.test) if site == "site_1" else data


@pytest.mark.parametrize(
    ("encoding", "refused", "warned"),
    [
        ({}, False, False),
        ({"bits": 4}, False, True),  # 3 of 26: k = 1 of 7, 24 % too much
        ({"bits": 2}, True, False),  # k = 0 of 1
        ({"max_weight": 10**5}, False, True),
        ({"max_weight": 10**6}, True, False),
        ({"use": "float", "max_weight": 10**6}, False, False),
    ],
    ids=str,
)
def test_weights_that_collapse_are_told_and_refused(experiment, encoding, refused, warned):
    view = experiment(task=Uneven(TinyTaskConfig()), encoding=encoding).plan()
    about = [
        text for text in view.misfits if "'site_1'" in text and text.startswith("encoding.max_weight") and "more encoding.bits" in text
    ]
    assert bool(about) == refused
    assert bool(view.misfits) == refused
    told = [text for text in view.plan.warnings if "'site_1'" in text and "lower encoding.max_weight" in text]
    assert bool(told) == warned


@pytest.mark.parametrize(
    ("encoding", "warned"), [({"range": 1e6}, True), ({"range": {"*": 1e6}}, True), ({"range": 1.0}, False), ({"bits": 4}, False)], ids=str
)
def test_a_range_too_wide_for_the_learning_rate_is_told(experiment, encoding, warned):
    assert any("encoding.range: one step is" in text for text in experiment(encoding=encoding).plan().plan.warnings) == warned


@pytest.mark.parametrize("training", [{"epochs": 0}, {"steps": 0}], ids=str)
def test_no_training_has_no_loss(experiment, tmp_path, training):
    run = experiment(run={"rounds": 1}, reporters=["jsonl"], training=training).run(tmp_path / "r", report=False)
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    (done,) = [e for e in events if e["event"] == "round-finished"]
    assert done["training"] == {"saturated": 0.0}


@pytest.mark.parametrize("weights", [[-1.0, 1.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], []], ids=str)
def test_class_weights_that_make_no_loss(weights):
    with pytest.raises(ValidationError, match="class_weights"):
        TrainingSection(class_weights=weights)
    assert TrainingSection(class_weights=[0.0, 2.0]).class_weights == [0.0, 2.0]


@pytest.mark.parametrize("betas", [(1.0, 0.9), (-0.1, 0.9), (0.9, 1.0), (0.9, float("nan"))], ids=str)
@pytest.mark.parametrize("section", [OptimizerSection, ServerOptimizer])
def test_betas_lie_below_one(section, betas):
    with pytest.raises(ValidationError, match="betas"):
        section(use="adam", betas=betas)
    assert section(use="adam", betas=(0.0, 0.5)).betas == (0.0, 0.5)


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_the_smallest_tiny_task_can_be_planned(experiment, kind):
    assert experiment(task={"use": "tiny", "size": 4, "kind": kind}).plan().misfits == []
