"""The score of each test unit (patient, smear or image) of each site, as a ratio of sums: what intervals are made of.

A unit has a numerator and a denominator, and a site's score is the mean over its strata of ``sum(numerators) / sum(denominators)``:

* groups, Dice: the group's Dice, and 1; one stratum a site. The mean over patients, as the core scores it.
* groups, accuracy: right examples, and examples; one stratum a site. The share of right examples.
* images, Dice: ``2 |P and T|``, and ``|P| + |T|``; a stratum for each patient. Images resampled within patients, the patient's Dice taken
  over its images together, as the core scores it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.federation.files import write_atomic
from pppml_core.federation.trainer import GROUP_SCORES, group_scores
from pppml_core.interfaces.task import Examples, Predictions, TaskSpec
from pppml_core.learning.evaluation import predict_examples

IMAGE_SCORES = "image-scores.json"
#: site -> weights -> record.
Records = dict[str, dict[str, dict[str, list[Any]]]]


@dataclass(frozen=True)
class Units:
    """One model's scores at one site: names ``(n,)``, stratum of each, numerators and denominators ``(n,)``."""

    names: tuple[str, ...]
    strata: tuple[str, ...]
    numerators: npt.NDArray[np.float64]
    denominators: npt.NDArray[np.float64]

    @property
    def score(self) -> float:
        """The site's score; a stratum where every denominator is 0 (nothing there, nothing found) counts 1."""
        strata = np.array(self.strata)
        return float(np.mean([ratio(self.numerators[strata == s], self.denominators[strata == s]) for s in np.unique(strata)]))


def ratio(numerators: npt.NDArray[Any], denominators: npt.NDArray[Any]) -> Any:
    """``sum / sum`` along the last axis; 1 where both are 0."""
    below = denominators.sum(axis=-1)
    return np.where(below > 0, numerators.sum(axis=-1) / np.where(below > 0, below, 1), 1.0)


def by_groups(metric: str, record: Mapping[str, list[Any]]) -> Units:
    """From the core's record of groups: ``groups``, ``values``, ``counts``."""
    values = np.array(record["values"], np.float64)
    weights = np.ones(len(values)) if metric == "dice" else np.array(record["counts"], np.float64)
    return Units(tuple(record["groups"]), ("",) * len(values), values * weights, weights)


def by_images(record: Mapping[str, list[Any]]) -> Units:
    """From :func:`image_record`."""
    names = tuple(f"{group}, image {i}" for i, group in enumerate(record["groups"]))
    numbers = (np.array(record[name], np.float64) for name in ("common", "sizes"))
    return Units(names, tuple(record["groups"]), *numbers)


def image_record(predictions: Predictions) -> dict[str, list[Any]]:
    """Patient, twice the common pixels, and predicted plus true pixels of each image of a two-class segmentation.

    Raises ValueError with more classes: their Dice is no ratio of sums.
    """
    if predictions.probabilities.shape[1] != 2:
        raise ValueError("images can be resampled where there is one class beside the background; use `units: groups`")
    predicted, true = predictions.probabilities.argmax(axis=1) == 1, predictions.targets == 1
    axes = tuple(range(1, true.ndim))
    return {
        "groups": [str(g) for g in predictions.groups],
        "common": (2 * np.count_nonzero(predicted & true, axis=axes)).tolist(),
        "sizes": (np.count_nonzero(predicted, axis=axes) + np.count_nonzero(true, axis=axes)).tolist(),
    }


def scored(model: Any, spec: TaskSpec, examples: Examples, units: str) -> dict[str, list[Any]]:
    """A model's record on some examples, by groups or by images."""
    predictions = predict_examples(model, examples, spec.size)
    return image_record(predictions) if units == "images" else group_scores(spec, predictions)


def write_image_scores(run: Any) -> None:
    """Score the global and each site's own model of a finished run image by image, into the run's folder."""
    task, own = run.task, (run.folder / "sites")
    out: Records = {}
    for site in task.sites():
        test = task.load(site.slug).test
        models: dict[str, Any] = {}
        kinds = core_records(run.folder)[1][site.slug]
        if "global" in kinds:
            models["global"] = run.model()
        if "personalized" in kinds:
            models["personalized"] = run.model(site.slug)
        out[site.slug] = {kind: scored(model, task.spec(), test, "images") for kind, model in models.items()}
    assert own.exists()
    write_atomic(run.folder / IMAGE_SCORES, json.dumps(out).encode())


def core_records(folder: Path) -> tuple[str, Records]:
    """Metric and test records of every site's ``group-scores.json``."""
    found: Records = {}
    metric = ""
    for path in sorted((folder / "sites").glob(f"*/{GROUP_SCORES}")):
        content = json.loads(path.read_text("utf-8"))
        metric = content["metric"]
        found |= {site: splits["test"] for site, splits in content["sites"].items()}
    return metric, found


def units_of(folder: Path) -> str:
    """What a finished run was scored by: ``images`` or ``groups``."""
    return "images" if (folder / IMAGE_SCORES).exists() else "groups"


def read_units(folder: Path) -> tuple[str, dict[str, dict[str, Units]]]:
    """Metric, and ``site -> weights -> units`` of a finished run; by images where they were scored so."""
    metric, groups = core_records(folder)
    if units_of(folder) == "images":
        content = json.loads((folder / IMAGE_SCORES).read_text("utf-8"))
        return metric, {site: {kind: by_images(r) for kind, r in kinds.items()} for site, kinds in content.items()}
    return metric, {site: {kind: by_groups(metric, r) for kind, r in kinds.items()} for site, kinds in groups.items()}
