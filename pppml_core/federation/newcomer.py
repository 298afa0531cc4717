"""A hospital that comes later: it takes the trained weights and adapts them to a few of its own training images."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from pppml_core.errors import ConfigError, DataError, check_site
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.trainer import plain_rule
from pppml_core.learning.arrays import load_state
from pppml_core.learning.data.examples import Subset
from pppml_core.learning.elsewhere import DataElsewhere
from pppml_core.learning.training import LocalTraining, TensorCache, device_of, fits_cache
from pppml_core.learning.wrapped import innermost
from pppml_core.randomness import seeded


def adapted(parts: Assembly, weights: Mapping[str, torch.Tensor], site: str, examples: int | None, draw: int) -> torch.nn.Module:
    """What the run's own method makes of the shared ``weights`` at a site, from ``examples`` of its training data (None: all of them).

    The site has no state of earlier rounds, whether it took part or not. Nothing but its training part is read. ``draw`` names which
    examples are drawn and in which order they are used; the same draw with more examples contains the one with fewer. Returns a network of
    its own, on the training device, in evaluation mode.

    Raises ConfigError on an unknown site, for methods that share no model and where ``draw`` is no whole number from 0 on; DataError where
    so many examples cannot be taken.
    """
    rule = parts.personalization
    if not rule.shares:
        raise ConfigError("nothing is shared in this run, so there is nothing to adapt", place="site")
    task = parts.task if isinstance(parts.task, DataElsewhere) else innermost(parts.task)
    slugs = [s.slug for s in task.sites()]
    check_site(site, slugs, ConfigError, place="site")
    if not (_whole(draw) and draw >= 0):
        raise ConfigError(f"{draw!r} names no draw", place="draw", hint="a whole number, 0 or more")
    own = task.load(site).train
    count = _count(examples, len(own), site)
    picked = parts.seeds.generator("newcomer", site, "draw", draw).permutation(len(own))[:count]
    support = Subset(own, picked)
    model = copy.deepcopy(parts.model)
    load_state(model, parts.initial_state, dict(weights))
    training, rounds = parts.config.training, parts.config.run.rounds
    cached = training.cache and not training.augment and fits_cache(support, len(slugs))
    cache = TensorCache(support, next(model.parameters()).dtype, device_of(training)) if cached else None
    data = LocalTraining(support, training, parts.seeds, site=f"{site}#{draw}", round=rounds, rounds=rounds, cache=cache)
    with seeded(parts.seeds.integer("newcomer", site, "draw", draw, "adapt")):
        return rule.adapt(model, data, plain_rule(parts, support), rule.init(model)).eval()


def _count(examples: int | None, held: int, site: str) -> int:
    """How many examples to take of the ``held`` ones."""
    if held == 0:
        raise DataError("it has no training examples", place=f"site {site}", hint="take a site that has some")
    if examples is None:
        return held
    if not (_whole(examples) and 0 < examples <= held):
        text = f"{examples!r} of {held} training examples cannot be taken"
        raise DataError(text, place=f"site {site}", hint=f"1 to {held}")
    return int(examples)


def _whole(number: object) -> bool:
    """A bool is no number, though Python counts with it."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)
