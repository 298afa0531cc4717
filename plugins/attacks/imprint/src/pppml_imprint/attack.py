"""``imprint``: no optimization, one pass over the first layer's update."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from pppml_core.interfaces.attack import AdversaryView, Arrays, Attack, Knowledge, Reconstruction, Sight
from pppml_imprint.bins import sampled_share
from pppml_imprint.config import ImprintConfig
from pppml_imprint.first_layer import FirstLayer, first_layer, missing
from pppml_imprint.passive import read_rows
from pppml_imprint.planting import is_planted, planted
from pppml_imprint.rows import Rows
from pppml_imprint.staircase import read_staircase


class Imprint(Attack):
    """The attack of that name."""

    answers = "images"
    batch = 8
    cheap = True
    config: ImprintConfig

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """No sum, no linear layer on the whole image, or one that stays at the sites."""
        if said := super().misfit(view, ctx):
            return said
        layer = _layer(ctx)
        return layer if isinstance(layer, str) else missing(layer, _sight(view, ctx).update)

    def plant(self, weights: Arrays, ctx: Knowledge) -> Arrays:
        """The query and its thresholds in the first layer; the true weights where the network has no layer to plant, or by settings."""
        layer = _layer(ctx)
        if isinstance(layer, str) or not self.config.planted:
            return weights
        return planted(weights, layer, self.config, ctx)

    def run(self, view: AdversaryView, budget: Any, ctx: Knowledge) -> Reconstruction:
        """Every image it can read out of the sum, in the task's units and range; there may be none. It takes milliseconds.

        Of a planted layer the effort also tells ``expected_share``: which share of the images in the sum would be alone in their bin, and
        so be read, if they were like the public ones. Those of one site are more alike, so fewer of them are.
        """
        began = time.perf_counter()
        layer, sight = _layer(ctx), _sight(view, ctx)
        if isinstance(layer, str):
            raise TypeError(f"not for this network: {layer}")
        rows = Rows.of(sight, layer, ctx)
        weights, count = view.last.weights, ctx.training.batch * ctx.training.steps * len(sight.sites)
        expected = {}
        if is_planted(weights, layer):
            query, biases = (np.asarray(weights[name], np.float64) for name in (layer.weight, layer.bias))
            flat = read_staircase(rows, query, biases)
            public = ctx.public.images.reshape(len(ctx.public.images), -1).astype(np.float64) @ query.mean(axis=0)
            expected = {"expected_share": sampled_share(public, np.sort(-biases), count)}
        else:
            flat = read_rows(rows, alone=count == 1)
        images = flat.reshape(len(flat), *ctx.public.images.shape[1:])
        images = np.clip(images, ctx.low.astype(np.float64), ctx.high.astype(np.float64))
        return Reconstruction({"images": images}, {"evaluations": 0, "seconds": time.perf_counter() - began, **expected})


def _sight(view: AdversaryView, ctx: Knowledge) -> Sight:
    found = view.of(ctx.site)
    if found is None:
        raise TypeError("this view has no sum that the watched site is in")
    return found


def _layer(ctx: Knowledge) -> FirstLayer | str:
    return first_layer(ctx.network().eval(), torch.from_numpy(np.array(ctx.public.images[:1], np.float32)))
