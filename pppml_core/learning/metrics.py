"""Default metrics, by scikit-learn and MONAI. A metric that the data leave undefined is NaN, never an exception."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.task import Predictions, TaskSpec

#: Names and ranges for ``TaskSpec.metrics`` of classification tasks.
CLASSIFICATION_METRICS: Mapping[str, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "balanced_accuracy": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "auc": (0.0, 1.0),
}
#: Names and ranges for ``TaskSpec.metrics`` of segmentation tasks; ``hd95`` in mm where the spacing is known, else in pixels.
SEGMENTATION_METRICS: Mapping[str, tuple[float, float]] = {"dice": (0.0, 1.0), "hd95": (0.0, 1000.0)}


def default_score(spec: TaskSpec, predictions: Predictions) -> dict[str, float]:
    """Every default metric of the task's kind; all are NaN where there is no example or a probability is not finite.

    Classification: ``accuracy``; ``balanced_accuracy``, mean recall over the classes present; ``macro_f1``, mean F1 over the classes
    present or predicted; ``auc``, area under the ROC curve, one class against the rest, mean over the classes for which both outcomes
    occur.

    Segmentation: ``dice``, mean over groups of :func:`group_dice`; ``hd95``, 95th percentile Hausdorff distance of each example
    and foreground class where prediction and truth are both non-empty, mean over these.
    """
    names = CLASSIFICATION_METRICS if spec.kind == "classification" else SEGMENTATION_METRICS
    if len(predictions.targets) == 0 or not np.isfinite(predictions.probabilities).all():
        return dict.fromkeys(names, float("nan"))
    if spec.kind == "classification":
        return _classification(predictions)
    values = group_dice(predictions)
    return {"dice": float(np.mean(list(values.values()))), "hd95": _hd95(predictions, spec.spacing_mm)}


def score_groups(spec: TaskSpec, predictions: Predictions) -> dict[Any, float]:
    """A value for each group (patient, smear, volume), in sorted order of groups, for bootstrap intervals over groups.

    Segmentation: :func:`group_dice`. Classification: the share of the group's examples whose class is right; weighting groups by their
    examples gives back ``accuracy``. (Balanced accuracy, F1 and AUC are no means over groups.)
    """
    if spec.kind == "segmentation":
        return group_dice(predictions)
    right = predictions.probabilities.argmax(axis=1) == predictions.targets
    return {group: float(right[members].mean()) for group, members in _members(predictions.groups)}


def group_dice(predictions: Predictions) -> dict[Any, float]:
    """Dice of each group's slices taken together: ``2 |P and T| / (|P| + |T|)`` with pixels summed over the group.

    The mean over foreground classes that occur in truth or prediction; 1.0 for a group where none occurs in either.
    """
    predicted, classes = predictions.probabilities.argmax(axis=1), predictions.probabilities.shape[1]
    dice: dict[Any, float] = {}
    for group, members in _members(predictions.groups):
        p, t = predicted[members], predictions.targets[members]
        sizes = np.array([(np.count_nonzero(p == c) + np.count_nonzero(t == c)) for c in range(1, classes)], dtype=np.float64)
        common = np.array([np.count_nonzero((p == c) & (t == c)) for c in range(1, classes)], dtype=np.float64)
        occurs = sizes > 0
        dice[group] = float(np.mean(2 * common[occurs] / sizes[occurs])) if occurs.any() else 1.0
    return dice


def _members(groups: npt.NDArray[Any]) -> list[tuple[Any, npt.NDArray[np.int64]]]:
    found, inverse = np.unique(groups, return_inverse=True)
    return [(group, np.flatnonzero(inverse == i)) for i, group in enumerate(found.tolist())]


def _classification(predictions: Predictions) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

    truth, probabilities = predictions.targets, predictions.probabilities
    predicted = probabilities.argmax(axis=1)
    counts = np.bincount(truth, minlength=probabilities.shape[1])
    both = [c for c in range(probabilities.shape[1]) if 0 < counts[c] < len(truth)]
    areas = [roc_auc_score(truth == c, probabilities[:, c]) for c in both]
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "balanced_accuracy": float(recall_score(truth, predicted, labels=np.flatnonzero(counts), average="macro", zero_division=0)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
        "auc": float(np.mean(areas)) if areas else float("nan"),
    }


def _hd95(predictions: Predictions, spacing: tuple[float, ...] | None) -> float:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    predicted, classes = predictions.probabilities.argmax(axis=1), predictions.probabilities.shape[1]
    distances: list[float] = []
    for p, t in zip(predicted, predictions.targets, strict=True):
        present = [c for c in range(1, classes) if (p == c).any() and (t == c).any()]
        if not present:
            continue
        p_hot, t_hot = (torch.from_numpy(np.stack([mask == c for c in present]))[None] for mask in (p, t))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI warns of cases that are filtered out above
            values = compute_hausdorff_distance(
                p_hot, t_hot, include_background=True, percentile=95, spacing=list(spacing) if spacing else None
            )
        distances += values.ravel().tolist()
    return float(np.mean(distances)) if distances else float("nan")
