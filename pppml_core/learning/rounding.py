"""What the fixed-point encoding adds to an update, as a variance: for whoever weighs a decoded sum.

A site rounds every coordinate by itself: ``floor(x / g + u) g`` with the step ``g`` and ``u`` uniform in [0, 1)
(:class:`pppml_core.values.FixedPoint`). With ``f`` the place of ``x / g`` between two integers the error is ``(1 - f) g`` with probability
``f`` and ``-f g`` else: mean 0, variance ``f (1 - f) g^2``. That is at most ``g^2 / 4``, where ``x`` lies in the middle, and ``g^2 / 6`` in
the mean over all places, which is what an update that spans many steps meets. (Rounding to the nearest would have ``g^2 / 12``, and
``g^2 / 3`` is that of an even spread over one step to each side; neither is done here.) An update smaller than a step meets less, about
``|x| g``.

The errors of ``n`` sites are independent, so their sum has ``n`` times as much. Where each site counts fully, as in every held round, the
mean divides the sum by ``n``: ``g^2 / (6 n)``.
"""

from __future__ import annotations

from pppml_core.interfaces.attack import Knowledge, Sight


def rounding_variance(step: float, sites: int = 1, *, at_most: bool = False) -> float:
    """Variance of the rounding error of one coordinate of the mean over ``sites`` sites, in squared units of ``step``.

    Args:
        step: of the grid, at least 0.
        sites: of equal, full weight, at least 1.
        at_most: False: the mean over all places between two points of the grid, ``step^2 / (6 sites)``. True: the bound,
            ``step^2 / (4 sites)``, for a test that must hold also where many coordinates share one value, and so one place.
    """
    return step**2 / ((4 if at_most else 6) * sites)


def error_variance(sight: Sight, knowledge: Knowledge, tensor: str, *, at_most: bool = False) -> float:
    """Variance of what stands in one coordinate of a sight's ``tensor`` beside the update: noise and rounding, as far as they are told.

    ``Defence.noise`` is that of a site alone with all the noise of the sum, so the mean over n sites has an n-th of it.
    ``at_most``: see :func:`rounding_variance`.
    """
    told, sites = knowledge.told, len(sight.sites)
    return (told.noise / sites) ** 2 + rounding_variance(told.grid.get(tensor, 0.0), sites, at_most=at_most)
