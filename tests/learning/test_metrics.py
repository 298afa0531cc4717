"""Default metrics against values worked out by hand, scikit-learn and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pppml_core.interfaces.task import Predictions, TaskSpec
from pppml_core.learning.metrics import CLASSIFICATION_METRICS, SEGMENTATION_METRICS, default_score, group_dice, score_groups

CLASSES = TaskSpec("classification", 1, (8, 8), ("a", "b", "c"), "m", "accuracy", CLASSIFICATION_METRICS)
MASKS = TaskSpec("segmentation", 1, (8, 8), ("background", "x", "y"), "m", "dice", SEGMENTATION_METRICS)


def classified(truth: list[int], predicted: list[int], classes: int = 3) -> Predictions:
    probabilities = np.full((len(truth), classes), 0.1, np.float32)
    probabilities[np.arange(len(truth)), predicted] = 0.8
    return Predictions(probabilities, np.array(truth), np.array([f"p{i // 2}" for i in range(len(truth))]))


def segmented(truth: np.ndarray, predicted: np.ndarray, groups: list[int], classes: int = 3) -> Predictions:
    probabilities = np.moveaxis(np.eye(classes, dtype=np.float32)[predicted], -1, 1)
    return Predictions(probabilities, truth.astype(np.int64), np.array(groups))


def test_classification_by_hand() -> None:
    score = default_score(CLASSES, classified([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2, 2]))
    assert set(score) == set(CLASSIFICATION_METRICS)
    assert score["accuracy"] == 6 / 8
    assert score["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert score["macro_f1"] == pytest.approx((6 / 7 + 1 / 2 + 4 / 5) / 3)


def test_auc_and_balanced_accuracy_agree_with_sklearn() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 200)
    logits = generator.normal(size=(200, 3)) + np.eye(3)[truth]
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    score = default_score(CLASSES, Predictions(probabilities, truth, np.arange(200)))
    assert score["auc"] == pytest.approx(roc_auc_score(truth, probabilities.astype(float), multi_class="ovr", average="macro"), abs=1e-6)
    assert score["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probabilities.argmax(1)))
    two = Predictions(probabilities[:, :2] / probabilities[:, :2].sum(1, keepdims=True), truth % 2, np.arange(200))
    assert default_score(CLASSES, two)["auc"] == pytest.approx(roc_auc_score(truth % 2, two.probabilities[:, 1]), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_undefined_is_nan_without_exception_or_warning() -> None:
    one_class = default_score(CLASSES, classified([1, 1, 1], [1, 0, 2]))
    assert math.isnan(one_class["auc"])
    assert one_class["balanced_accuracy"] == pytest.approx(1 / 3)
    assert all(math.isnan(v) for v in default_score(CLASSES, classified([], [])).values())
    diverged = classified([0, 1], [0, 1])
    diverged.probabilities[0, 0] = np.nan
    assert all(math.isnan(v) for v in default_score(CLASSES, diverged).values())
    empty = Predictions(np.zeros((0, 3, 8, 8), np.float32), np.zeros((0, 8, 8), np.int64), np.zeros(0))
    assert all(math.isnan(v) for v in default_score(MASKS, empty).values())


def test_auc_leaves_out_absent_classes() -> None:
    predictions = classified([0, 0, 1, 1], [0, 0, 1, 1])
    assert default_score(CLASSES, predictions)["auc"] == 1.0


def test_dice_sums_over_the_slices_of_a_group() -> None:
    truth, predicted = np.zeros((3, 8, 8), int), np.zeros((3, 8, 8), int)
    truth[0, :2] = 1  # 16 pixels
    predicted[0, :1] = 1  # 8 of them
    predicted[1, 0, :4] = 1  # 4 false ones in a slice without truth
    values = group_dice(segmented(truth, predicted, [7, 7, 9]))
    assert values == {7: pytest.approx(2 * 8 / (16 + 12)), 9: 1.0}  # group 9: nothing there, nothing found
    assert default_score(MASKS, segmented(truth, predicted, [7, 7, 9]))["dice"] == pytest.approx((16 / 28 + 1) / 2)


def test_dice_averages_the_classes_that_occur() -> None:
    truth, predicted = np.zeros((1, 8, 8), int), np.zeros((1, 8, 8), int)
    truth[0, 0] = predicted[0, 0] = 1
    assert group_dice(segmented(truth, predicted, [0])) == {0: 1.0}
    predicted[0, 5, :3] = 2  # a class that is not there
    assert group_dice(segmented(truth, predicted, [0])) == {0: 0.5}


def percentile_distance(p: np.ndarray, t: np.ndarray, spacing: tuple[float, float]) -> float:
    """95th percentile Hausdorff distance of two masks' borders, by scipy: the larger of both directions."""
    borders = [np.argwhere(m & ~binary_erosion(m, border_value=0)) * spacing for m in (p, t)]
    return max(np.percentile(cKDTree(borders[1 - i]).query(borders[i])[0], 95) for i in (0, 1))


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0), (0.5, 2.0)])
def test_hd95_agrees_with_scipy(spacing: tuple[float, float] | None) -> None:
    generator = np.random.default_rng(1)
    truth, predicted = np.zeros((6, 32, 32), int), np.zeros((6, 32, 32), int)
    expected = []
    for i in range(6):
        for masks in (truth, predicted):
            r, c = generator.integers(3, 15, 2)
            masks[i, r : r + 9, c : c + 12] = 1 + i % 2
        c = 1 + i % 2
        expected.append(percentile_distance(predicted[i] == c, truth[i] == c, spacing or (1.0, 1.0)))
    spec = TaskSpec("segmentation", 1, (32, 32), ("background", "x", "y"), "m", "dice", SEGMENTATION_METRICS, spacing_mm=spacing)
    score = default_score(spec, segmented(truth, predicted, list(range(6))))
    assert score["hd95"] == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.filterwarnings("error")
def test_hd95_skips_slices_where_one_side_is_empty() -> None:
    truth, predicted = np.zeros((2, 8, 8), int), np.zeros((2, 8, 8), int)
    truth[0, 2:4, 2:4] = 1
    assert math.isnan(default_score(MASKS, segmented(truth, predicted, [0, 1]))["hd95"])
    predicted[0, 2:4, 5:7] = 1
    predicted[1, 2:4, 2:4] = 1
    assert default_score(MASKS, segmented(truth, predicted, [0, 1]))["hd95"] == pytest.approx(3.0)


def test_group_values_give_back_the_score() -> None:
    predictions = classified([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2, 2])
    assert score_groups(CLASSES, predictions) == {"p0": 1.0, "p1": 0.5, "p2": 0.5, "p3": 1.0}
    truth = np.random.default_rng(0).integers(0, 3, (4, 8, 8))
    masks = segmented(truth, truth[::-1], [1, 1, 2, 2])
    assert np.mean(list(score_groups(MASKS, masks).values())) == pytest.approx(default_score(MASKS, masks)["dice"])
