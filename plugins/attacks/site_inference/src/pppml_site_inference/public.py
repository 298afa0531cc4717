"""Public images, and how much what was seen of a site agrees with the update of an image beyond what all images have in common."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.attack import Images, Knowledge
from pppml_core.learning.single import spread
from pppml_core.learning.usual import Usual

Numbers = npt.NDArray[np.float64]


def own(usual: Usual, update: Numbers) -> Numbers:
    """The metric times an update less the mean, ``(coordinates,)``."""
    return usual.metric(update - usual.mean)


def agreement(usual: Usual, update: Numbers, directions: Numbers) -> Numbers:
    """Cosine, in the metric and up to a direction's length, of an update with ``directions`` (:func:`own` of each): ``(directions,)``."""
    rest = update - usual.mean
    return np.asarray(directions @ rest / usual.length(rest))


def pool(ctx: Knowledge, count: int) -> Images:
    """Public images that scores are held against: of all sites alike where these are known, at most ``count``, evenly spread."""
    of_sites = [ctx.sites_public[s] for s in ctx.sites if s in ctx.sites_public and len(ctx.sites_public[s])]
    if len(of_sites) < len(ctx.sites) or not of_sites:
        return spread(ctx.public, count)
    each = min(max(1, count // len(of_sites)), *(len(images) for images in of_sites))
    chosen = [spread(images, each) for images in of_sites]
    return Images(np.concatenate([c.images for c in chosen]), np.concatenate([c.targets for c in chosen]))
