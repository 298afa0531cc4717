"""A few test images per site with a model's predictions, for the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pppml_core.interfaces.task import Task
from pppml_core.learning.data.examples import Subset
from pppml_core.learning.elsewhere import DataElsewhere
from pppml_core.learning.evaluation import predict_examples
from pppml_core.learning.pool import evaluated_sites, held_out


def sample_predictions(task: Task, model: Callable[[str], torch.nn.Module], out: Path, per_site: int) -> None:
    """Write ``images`` float32 ``(n, C, *size)`` scaled to [0, 1], ``targets``, ``predictions`` (int64), ``sites`` (slugs) as npz.

    The first test examples with foreground are taken (any, for classification): the same for every run of a task, never chosen by how
    well they were predicted. Volumes are left out; where the data are elsewhere, nothing is written.
    """
    if len(task.spec().size) != 2 or isinstance(task, DataElsewhere):
        return
    images, targets, predictions, sites = [], [], [], []
    known = {s.slug for s in evaluated_sites(task)}
    for site in task.sites():
        for slug, part in held_out(task, site.slug, task.load(site.slug)):
            if slug not in known or not len(part.test):
                continue
            shown = [i for i in range(len(part.test)) if task.spec().kind == "classification" or part.test.example(i)[1].any()][
                :: max(1, len(part.test) // 8)
            ]
            chosen = Subset(part.test, np.asarray(shown[:per_site] or [0]))
            found = predict_examples(model(site.slug), chosen, task.spec().size)
            for i in range(len(chosen)):
                image, target = chosen.example(i)
                low, high = float(image.min()), float(image.max())
                images.append((image - low) / (high - low if high > low else 1.0))
                targets.append(target)
                predictions.append(found.probabilities[i].argmax(axis=0))
                sites.append(slug)
    if images and len({i.shape for i in images}) == 1:
        np.savez_compressed(
            out, images=np.stack(images), targets=np.stack(targets), predictions=np.stack(predictions), sites=np.array(sites)
        )
