"""`target: lesion`: the same slices, asked whether they have a lesion."""

import numpy as np
import pytest

from pppml_core.learning.metrics import CLASSIFICATION_METRICS
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.task import LungLesions


@pytest.fixture(scope="module")
def tasks():
    return [LungLesions(LungLesionsConfig(patients=12, size=32, target=t)) for t in ("mask", "lesion")]


def test_a_class_says_whether_the_mask_has_any_pixel(tasks):
    masks, classes = (task.load("scanner_5") for task in tasks)
    for part in ("train", "validation", "test"):
        with_masks, with_classes = masks.part(part), classes.part(part)
        assert len(with_masks) == len(with_classes)
        assert (with_masks.groups == with_classes.groups).all()
        for i in range(len(with_masks)):
            image, mask = with_masks.example(i)
            same, label = with_classes.example(i)
            assert (image == same).all()
            assert label.shape == ()
            assert label.dtype == np.int64
            assert int(label) == int((mask > 0).any()) == with_classes.labels()[i]
    assert set(np.concatenate([classes.part(p).labels() for p in ("train", "validation", "test")])) == {0, 1}


def test_its_spec_is_of_classification(tasks):
    spec = tasks[1].spec()
    assert (spec.kind, spec.classes, spec.model) == ("classification", ("no_lesion", "lesion"), "small-cnn")
    assert spec.metrics == CLASSIFICATION_METRICS
    assert tasks[0].spec().kind == "segmentation"
