"""What has no noise and bears on what is released: scores that choose, and weights that a run begins with. Said by the plan, or refused."""

from __future__ import annotations

import numpy as np
import pytest

import pppml_core.builtin.tiny as tiny
from pppml_core.learning.data.examples import ArrayExamples

pytestmark = pytest.mark.usefixtures("stated_epsilon_alone")

CHOICES = [{"select": "best-validation"}, {"stop": {"metric": "accuracy", "patience": 1}}]
LAST = {"select": "last"}


def planned(experiment, privacy, run, **options):
    return (
        experiment({"delta": 1e-3, "epsilon": 6, "placement": "local", **privacy}, sites=3, examples=60, run=run, **options)
        .plan()
        .to_dict()
    )


@pytest.mark.parametrize("run", CHOICES, ids=["select", "stop"])
def test_unit_site(experiment, run):
    (misfit,) = planned(experiment, {"use": "dp-update"}, run)["misfits"]
    assert "privacy.unit is site" in misfit
    assert "use run.select: last" in misfit
    assert planned(experiment, {"use": "dp-update"}, LAST)["misfits"] == []


@pytest.mark.parametrize("run", CHOICES, ids=["select", "stop"])
def test_unit_example_says_that_the_choice_is_outside(experiment, run):
    plan = planned(experiment, {"use": "dp-sgd"}, run)
    assert plan["misfits"] == []
    said = "the choice of the round by validation images"
    assert any("outside the claim: " in text and said in text for text in plan["warnings"])
    assert said not in str(planned(experiment, {"use": "dp-sgd"}, LAST)["warnings"])


@pytest.fixture
def shared_patient(monkeypatch):
    """Patients of two images each; one who trains at site_1 is a validation patient of site_2."""
    load = tiny.TinyTask.load

    def named(part, names):
        images, targets = zip(*(part.example(i) for i in range(len(part))), strict=True)
        return ArrayExamples(np.stack(images), np.array(targets), np.array(names), to_image=np.asarray)

    def loaded(self, site):
        data = load(self, site)
        train = named(data.train, [f"{site}-{i // 2}" for i in range(len(data.train))])
        mine = ["site_1-0" if site == "site_2" else f"{site}-validation-{i}" for i in range(len(data.validation))]
        return type(data)(train, named(data.validation, mine), data.test)

    monkeypatch.setattr(tiny.TinyTask, "load", loaded)


def test_unit_patient_looks_at_validation_patients_of_other_sites(experiment, shared_patient):
    privacy = {"use": "dp-sgd", "unit": "patient", "images_per_patient": 2}
    (misfit,) = planned(experiment, privacy, CHOICES[0])["misfits"]
    assert "'site_1-0' trains at 'site_1' and is a validation patient of 'site_2'" in misfit
    assert planned(experiment, privacy, LAST)["misfits"] == []


def test_what_the_first_weights_were_trained_on_is_outside(experiment, tmp_path):
    run = experiment({"use": "none"}, sites=3, examples=60, run={"rounds": 1}).run(tmp_path / "a", reporters=False, report=False)
    said = "what training.init was trained on"
    begun = {"init": str(run.folder / "model.safetensors")}
    plan = planned(experiment, {"use": "dp-sgd"}, LAST, training=begun)
    assert plan["misfits"] == []
    assert any("outside the claim: " in text and said in text for text in plan["warnings"])
    assert said not in str(planned(experiment, {"use": "dp-sgd"}, LAST)["warnings"])
