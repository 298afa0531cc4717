"""What each site, or each group of sites that the adversary cannot tell apart, put into a round."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pppml_core.interfaces.attack import Seen

Parts = dict[frozenset[str], npt.NDArray[np.float64]]


def parts_of(seen: Seen, names: tuple[str, ...]) -> Parts:
    """Mean updates by group, each ``(coordinates,)``: the decoded sums, and what is left of one when a smaller one in it is taken off.

    Of every site the smallest group it is in is kept. ``names``: which tensors, one after another.
    """
    weights: dict[frozenset[str], float] = {}
    means: Parts = {}
    for sight in seen.sights:
        group = frozenset(sight.sites)
        weights[group] = float(sight.weight)
        means[group] = np.concatenate([np.asarray(sight.update[n], np.float64).ravel() for n in names])
    grown = True
    while grown:
        grown = False
        for large in sorted(means, key=_order):
            for small in sorted(means, key=_order):
                rest, left = large - small, weights[large] - weights[small]
                if small < large and rest not in means and left > 0:
                    weights[rest] = left
                    means[rest] = (weights[large] * means[large] - weights[small] * means[small]) / left
                    grown = True
    return {group: means[group] for group in sorted(_smallest(means), key=_order)}


def groups_of(seen: Seen) -> set[frozenset[str]]:
    """Those groups alone."""
    empty = Seen(seen.round, {}, {}, seen.cohort, tuple(type(s)(s.sites, {"": np.zeros(1)}, s.weight) for s in seen.sights))
    return set(parts_of(empty, ("",)))


def _smallest(groups: Iterable[frozenset[str]]) -> set[frozenset[str]]:
    ordered = sorted(groups, key=_order)
    return {next(g for g in ordered if site in g) for group in ordered for site in group}


def _order(group: frozenset[str]) -> tuple[int, list[str]]:
    return len(group), sorted(group)
