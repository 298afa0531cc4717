"""``read-out``: the watched site's own update, as far as the adversary decodes it.

The plainest attack there is: no network, no guess. What a coalition can compute of a secure sum from its own messages, keys and updates is
decoded already (:class:`.Sight`); this hands in the smallest such sum that the watched site is in. Where a site is alone in one, as
between two neighbours of the published ring, that is its update to the last digit the scheme gives; a mean over more sites is not it.
"""

from __future__ import annotations

import numpy as np

from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Knowledge, Reconstruction


class ReadOut(Attack):
    """The attack of that name."""

    answers = "update"
    cheap = True

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """It needs a sum that the site is in."""
        return "" if view.of(ctx.site) is not None else f"this adversary decodes no sum that {ctx.site} is in"

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """``update``: the mean update of the smallest sum, flat, its tensors in order of name."""
        sight = view.of(ctx.site)
        assert sight is not None
        return Reconstruction(
            {"update": np.concatenate([np.asarray(sight.update[name], np.float64).ravel() for name in sorted(sight.update)])}
        )
