"""What the plan looks at before anything is trained: every image and target of arrays, as many others as time allows."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pppml_core.errors import DataError
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.data import inspection
from pppml_core.learning.data.examples import ArrayExamples, stacked
from pppml_core.learning.evaluation import Remembered

CLASSES = TaskSpec("classification", 1, (6, 6), ("well", "ill"), "", "accuracy", {})
PIXELS = TaskSpec("segmentation", 1, (6, 6), ("background", "lesion"), "", "dice", {})
FOREVER, OVER = float("inf"), 0.0


class OneByOne:
    """Examples that are made when they are asked for."""

    def __init__(self, inner):
        self.made, self._examples, self.groups = [], inner, inner.groups

    def __len__(self):
        return len(self._examples)

    def example(self, index, augment=None):
        self.made.append(index)
        return self._examples.example(index, augment)

    def labels(self):
        return self._examples.labels()


def examples(spec=CLASSES, n=50, **changed):
    images = np.zeros((n, 1, 6, 6), np.float32)
    targets = np.zeros(n if spec is CLASSES else (n, 6, 6), np.int64)
    for (name, index), value in changed.pop("put", {}).items():
        {"image": images, "target": targets}[name][index] = value
    return ArrayExamples(images, targets, np.arange(n), **changed)


def faults(given, spec=CLASSES, until=OVER, training=True):
    return inspection.faults(given, spec, training=training, until=until)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 23, 49])
@pytest.mark.parametrize("block", [16, 100, 1 << 26])
def test_every_pixel_of_an_array_is_looked_at(value, index, block, monkeypatch):
    monkeypatch.setattr(inspection, "BLOCK", block)
    bad = examples(put={("image", (index, 0, 3, 3)): value})
    for given in (bad, Remembered(bad)):
        assert faults(given) == [f"image {index} holds NaN or infinity; remove or repair it"]
    assert faults(examples()) == []


def test_what_the_task_repairs_is_no_fault():
    assert faults(examples(put={("image", 7): np.nan}, to_image=lambda array: np.nan_to_num(array))) == []


def test_images_made_one_by_one_are_looked_at_while_there_is_time():
    bad = examples(put={("image", (30, 0, 0, 0)): np.nan})
    assert faults(OneByOne(bad), until=FOREVER) == ["image 30 holds NaN or infinity; remove or repair it"]
    late = OneByOne(bad)
    assert faults(late, until=OVER) == []
    assert set(late.made) == {0}
    assert faults(OneByOne(examples(put={("image", 0): np.inf})), until=OVER) != []


@pytest.mark.parametrize(("index", "value"), [(0, 2), (49, 7), (20, -1)])
def test_targets_must_be_classes(index, value):
    (text,) = faults(examples(put={("target", index): value}))
    assert text == f"label {value}, but there are only 2 classes, 0 to 1; correct it or name the class"
    masks = examples(PIXELS, put={("target", (index, 2, 2)): value})
    (text,) = faults(masks, PIXELS)
    assert text.startswith(f"a mask with the value {value}, but")
    (text,) = faults(OneByOne(masks), PIXELS, until=FOREVER)
    assert text.startswith(f"a mask with the value {value}, but")


def test_both_faults_are_told():
    assert len(faults(examples(put={("image", 9): np.nan, ("target", 3): 5}))) == 2


def test_shapes():
    small = ArrayExamples(np.zeros((2, 1, 6, 5), np.float32), np.zeros(2, np.int64), np.arange(2))
    assert "shape (1, 6, 5), but the task says (1, 6, 6)" in faults(small)[0]
    assert faults(small, training=False) == []
    colour = ArrayExamples(np.zeros((2, 3, 6, 6), np.float32), np.zeros(2, np.int64), np.arange(2))
    assert faults(colour, training=False) != []
    assert "a target of shape ()" in faults(examples(), PIXELS)[0]
    assert "classification needs ()" in faults(examples(PIXELS), CLASSES)[0]
    empty = ArrayExamples(np.zeros((0, 1, 6, 6), np.float32), np.zeros(0, np.int64), np.zeros(0))
    assert faults(empty) == []


def test_a_batch_with_nan_is_refused():
    image, target = np.full((1, 6, 6), 3e38, np.float32), np.array(0)
    assert stacked([(image, target)] * 40)[0].shape == (40, 1, 6, 6)  # the sum is beyond float32, the values are not
    for value in (np.nan, np.inf):
        with pytest.raises(DataError, match="NaN or infinity"):
            stacked([(image, target), (np.full((1, 6, 6), value, np.float32), target)])


def test_looking_is_affordable():
    """A quarter of a gigabyte in less than two seconds, on one core (measured: 0.1 s)."""
    images = np.zeros((1024, 1, 256, 256), np.float32)
    images[-1, 0, -1, -1] = np.nan
    spec = TaskSpec("classification", 1, (256, 256), ("well", "ill"), "", "accuracy", {})
    began = time.process_time()
    assert faults(ArrayExamples(images, np.zeros(1024, np.int64), np.arange(1024)), spec) != []
    assert time.process_time() - began < 2
