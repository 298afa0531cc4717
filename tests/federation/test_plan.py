"""The plan: every misfit at once, and what it says of a run that fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pppml_core.builtin.configs import TinyTaskConfig
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import DataError, PlanRefused
from pppml_core.interfaces.task import SiteData
from pppml_core.learning.data.examples import ArrayExamples, Subset


def misfits(experiment, **sections):
    return experiment(**sections).plan().misfits


def test_a_run_that_fits(experiment):
    plan = experiment().plan().to_dict()
    assert plan["misfits"] == []
    assert plan["warnings"] == []
    assert plan["headline"] == "The server sees every update; no differential privacy."
    assert [s["name"] for s in plan["stages"]] == ["train (fedavg)", "weight", "encode", "sum (plain)", "decode and update", "evaluate"]
    assert plan["guarantees"]["sees_update"] == ("server",)
    assert [(s["slug"], s["train"], s["validation"], s["test"]) for s in plan["sites"]] == [
        ("site_1", 24, 6, 12),
        ("site_2", 25, 6, 12),
        ("site_3", 26, 6, 12),
    ]
    assert plan["model"] == {"name": "tiny-net", "parameters": 2035}
    assert plan["training"]["steps"] == {"site_1": 3, "site_2": 4, "site_3": 4}


class Broken(TinyTask):
    """Data with a fault at one site, chosen by name."""

    def __init__(self, fault):
        super().__init__(TinyTaskConfig())
        self.fault = fault

    def load(self, site):
        data = super().load(site)
        if site != "site_2":
            return data
        if self.fault == "unreadable":
            raise DataError("the file ends early", place="scans.npz", hint="copy it again")
        if self.fault == "empty":
            return SiteData(Subset(data.train, np.arange(0)), data.validation, data.test)
        if self.fault == "leak":
            return SiteData(data.train, data.train, data.test)
        images, labels = data.train.images.copy(), data.train.targets.copy()
        if self.fault == "nan":
            images[0, 0, 0, 0] = np.nan
        if self.fault == "label":
            labels[0] = 7
        return SiteData(ArrayExamples(images, labels, data.train.groups), data.validation, data.test)


FAULTS = {
    "unreadable": "scans.npz: the file ends early Hint: copy it again",
    "empty": "no training examples",
    "leak": "a patient must be in one part only",
    "nan": "NaN",
    "label": "7",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_cannot_be_used(experiment, fault):
    found = misfits(experiment, task=Broken(fault))
    assert found
    assert all(text.startswith("task:") for text in found)
    assert any(FAULTS[fault] in text for text in found), found


def test_misfits_of_settings_data_and_model_come_together(experiment):
    found = misfits(
        experiment,
        task=Broken("leak"),
        model=lambda: torch.nn.Linear(3, 3),
        run={"cohort": 9, "min_cohort": 8, "stop": {"metric": "dice"}, "metrics": "none"},
        training={"class_weights": [1.0, 2.0]},
    )
    for part in (
        "run.cohort: 9",
        "run.min_cohort: 8",
        "no metric 'dice'",
        "run.metrics: none",
        "class_weights: 2 numbers",
        "one part only",
        "model:",
    ):
        assert any(part in text for text in found), (part, found)
    with pytest.raises(PlanRefused) as caught:
        experiment(task=Broken("leak"), run={"cohort": 9}).run("unused", reporters=False)
    assert len(caught.value.misfits) == 2
    assert caught.value.exit_code == 2


def test_the_same_faults_do_not_hide_each_other(experiment):
    class All(Broken):
        def load(self, site):
            self.fault = {"site_1": "unreadable", "site_2": "empty", "site_3": "leak"}[site]
            return Broken.load(self, "site_2")

    found = misfits(experiment, task=All(""))
    assert [any(FAULTS[f] in text for text in found) for f in ("unreadable", "empty", "leak")] == [True] * 3


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)), "gives (5,) for one image, the task needs (3,)"),
        (lambda: torch.nn.Conv2d(3, 3, 3), "does not go through it"),
        (lambda: torch.nn.Flatten(), "no parameters"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LSTM(8, 8)), "model:"),
    ],
    ids=["classes", "channels", "no-parameters", "not-a-tensor"],
)
def test_models_that_do_not_serve(experiment, model, text):
    found = misfits(experiment, model=model)
    assert len(found) == 1
    assert text in found[0]


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"encoding": {"max_weight": 20}}, "encoding.max_weight: 20 is below the largest site's weight 26"),
        ({"encoding": {"range": {"9.*": 1.0}}}, "encoding.range: '9.*' matches no shared tensor; the first is '0.weight'"),
        ({"encoding": {"range": {"0.*": 1.0}}, "personalization": "local-only"}, "the first is 'none'"),
        ({"run": {"metrics": "none", "select": "best-validation"}}, "needs validation results"),
        ({"task": Broken(""), "engine": {"use": "local", "workers": 2}}, "live Python objects (task)"),
        ({"training": {"device": "cuda"}}, "no usable GPU"),
        ({"training": {"init": "nowhere.safetensors"}}, "there is no file nowhere.safetensors"),
    ],
    ids=lambda v: v if isinstance(v, str) else next(iter(v)),
)
def test_settings_that_do_not_fit(experiment, sections, text):
    if "cuda" in str(sections) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = misfits(experiment, **sections)
    assert len(found) == 1
    assert text in found[0]


def test_selection_needs_validation_data(experiment):
    class Without(TinyTask):
        def load(self, site):
            data = super().load(site)
            return SiteData(data.train, Subset(data.validation, np.arange(0)), data.test)

    assert "no site has validation data" in misfits(experiment, task=Without(TinyTaskConfig()), run={"select": "best-validation"})[0]
    assert misfits(experiment, task=Without(TinyTaskConfig())) == []


def test_warnings(experiment):
    class NoTest(TinyTask):
        def load(self, site):
            data = super().load(site)
            return SiteData(data.train, data.validation, Subset(data.test, np.arange(0))) if site == "site_2" else data

    view = experiment(task=NoTest(TinyTaskConfig()), model={"use": "tiny-net", "norm": "batch"}, training={"batch_size": 8}).plan()
    assert view.misfits == []
    assert any("Site 2" in text and "no test examples" in text for text in view.plan.warnings)
    assert any("a batch of one example" in text for text in view.plan.warnings)
    run = experiment(task=NoTest(TinyTaskConfig()))
    assert run.plan().misfits == []


@pytest.mark.parametrize(
    ("encoding", "warned"), [({"bits": 4}, True), ({"bits": 16}, False), ({"max_weight": 10**6}, True), ("float", False)]
)
def test_bits_that_round_weights_are_told(experiment, encoding, warned):
    texts = experiment(encoding=encoding).plan().plan.warnings
    assert any("bits change the weight of site" in text for text in texts) == warned


def test_measuring_times_a_batch_and_a_sum(experiment):
    measured = experiment().plan(measure=True).to_dict()["measured"]
    assert set(measured) == {"one batch", "one sum"}
    assert all(0 < v < 60 for v in measured.values())
    assert set(experiment(personalization="local-only").plan(measure=True).to_dict()["measured"]) == {"one batch"}
