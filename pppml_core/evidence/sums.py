"""From what a coalition decodes to mean updates: its own part subtracted, sums put together, doublets and empty sets left out.

Everything a coalition knows of a round is linear: a weighted sum of updates over a set of sites, and the sum of their weights. So what it
can work out from several sums is found by elimination over which sites are in which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError
from pppml_core.federation.pipeline import WEIGHT, Pipeline
from pppml_core.interfaces.attack import Arrays, Sight

#: the weighted sum of the shared coordinates, then the summed weight as a share of the largest: float64, shape ``(shared + 1,)``.
Flat = npt.NDArray[np.float64]
Known = tuple[frozenset[str], Flat]


def flat_of_total(pipeline: Pipeline, total: npt.NDArray[Any]) -> Flat:
    """Of a sum (or of one contribution) as the session has it: integers, or floating where the arithmetic is approximate or real."""
    values = total.astype(np.float64) if pipeline.real else pipeline.fixed_point.decode(total)
    where = {tensor.name: place for tensor, place in pipeline.layout.slices()}
    return np.concatenate([values[: pipeline.shared.length], values[where[WEIGHT]]])


def flat_of_step(pipeline: Pipeline, weights: Arrays, after: Arrays, examples: float) -> Flat:
    """Of two consecutive models, where the second is the first plus the mean; ``examples``: the weight of all sites of the mean."""
    share = examples / pipeline.max_weight
    moved = {t.name: np.asarray(after[t.name], np.float64) - np.asarray(weights[t.name], np.float64) for t in pipeline.shared.tensors}
    return np.concatenate([share * pipeline.shared.flatten(moved, np.float64), [share]])


def sights_of(
    pipeline: Pipeline,
    known: Iterable[Known],
    members: Collection[str],
    contributions: Mapping[str, npt.NDArray[Any]],
    order: Sequence[str],
    rough: Known | None = None,
) -> tuple[Sight, ...]:
    """All sums over others than ``members`` that follow from the ``known`` ones, smallest first.

    Args:
        pipeline: the round's.
        known: sites and their sum; of two over the same sites the first is taken.
        members: of the coalition; what is theirs is subtracted.
        contributions: site -> what it put into the sum, as the session has it; only the members' are looked at.
        order: of the sites in a sight.
        rough: one more, less exact and with the noise that a server adds, which is passed over where it follows from the others; what it
            is in is ``released``.

    Raises ConfigError where a member's own contribution is needed and missing.
    """
    sums: dict[frozenset[str], Flat] = {}
    for sites, flat in known:
        rest = sites.difference(members)
        if rest and rest not in sums:
            sums[rest] = _without(pipeline, sites & set(members), flat, contributions)
    held, exact = list(sums.items()), len(sums)
    released: set[frozenset[str]] = set()
    if rough is not None and (rest := rough[0].difference(members)) and rest not in sums:
        factors = combination([sites for sites, _ in held], rest, order)
        if factors is None:
            held.append((rest, _without(pipeline, rough[0] & set(members), rough[1], contributions)))
            sums[rest] = held[-1][1]
            released.add(rest)
        else:
            sums[rest] = _combined(held, factors)
    for sites, factors in eliminated([sites for sites, _ in held], order).items():
        if sites not in sums:
            sums[sites] = _combined(held, factors)
            if exact in factors:
                released.add(sites)
    found = [_sight(pipeline, [site for site in order if site in sites], flat, sites in released) for sites, flat in sums.items()]
    return tuple(sorted((sight for sight in found if sight is not None), key=lambda sight: len(sight.sites)))


def eliminated(sets: Sequence[frozenset[str]], order: Sequence[str]) -> dict[frozenset[str], Factors]:
    """Which sums over other sets of sites follow from sums over these, and with which factors: ``{set: {index in sets: factor}}``.

    By Gauss-Jordan elimination; only plain sums, in which each site is once or not at all. Every site that can be singled out is.
    """
    return {
        frozenset(site for site, inside in zip(order, row, strict=True) if inside): factors
        for _, (row, factors) in _reduced(sets, order)
        if set(row) <= {0, 1}
    }


def combination(sets: Sequence[frozenset[str]], wanted: frozenset[str], order: Sequence[str]) -> Factors | None:
    """Factors with which sums over ``sets`` make the one over ``wanted``; None: it does not follow from them."""
    left: _Row = ([Fraction(site in wanted) for site in order], {})
    for pivot, row in _reduced(sets, order):
        left = _plus(left, row, -left[0][pivot])
    return None if any(left[0]) else {i: -factor for i, factor in left[1].items()}


Factors = dict[int, Fraction]
_Row = tuple[list[Fraction], Factors]


def _reduced(sets: Sequence[frozenset[str]], order: Sequence[str]) -> list[tuple[int, _Row]]:
    """The reduced rows of the matrix of which site is in which set, each with its pivot column and the factors that make it."""
    rows: list[_Row] = [([Fraction(site in one) for site in order], {i: Fraction(1)}) for i, one in enumerate(sets)]
    pivots: list[int] = []
    for column in range(len(order)):
        done = len(pivots)
        found = next((r for r in range(done, len(rows)) if rows[r][0][column]), None)
        if found is None:
            continue
        rows[done], rows[found] = rows[found], rows[done]
        rows[done] = _plus(([Fraction(0)] * len(order), {}), rows[done], 1 / rows[done][0][column])
        rows = [_plus(row, rows[done], -row[0][column]) if r != done and row[0][column] else row for r, row in enumerate(rows)]
        pivots.append(column)
    return list(zip(pivots, rows, strict=False))


def _plus(row: _Row, other: _Row, factor: Fraction) -> _Row:
    factors = {i: row[1].get(i, Fraction(0)) + factor * other[1].get(i, Fraction(0)) for i in row[1].keys() | other[1].keys()}
    return [a + factor * b for a, b in zip(row[0], other[0], strict=True)], {i: f for i, f in factors.items() if f}


def _without(pipeline: Pipeline, own: Collection[str], flat: Flat, contributions: Mapping[str, npt.NDArray[Any]]) -> Flat:
    for member in sorted(own):
        if member not in contributions:
            text = f"what {member} itself added to the sum was not recorded"
            raise ConfigError(text, place="vantage", hint="run with `run.transcript: secrets`")
        flat = flat - flat_of_total(pipeline, contributions[member])
    return flat


def _combined(held: Sequence[Known], factors: Factors) -> Flat:
    total: Flat = np.sum([float(factor) * held[i][1] for i, factor in sorted(factors.items())], axis=0)
    return total


def _sight(pipeline: Pipeline, sites: Sequence[str], flat: Flat, released: bool) -> Sight | None:
    """None where the weight is none: a site lied, or the scheme's error is all there is."""
    weight = float(flat[-1])
    if not weight > 0:
        return None
    update = pipeline.shared.unflatten((flat[:-1] / weight).astype(np.float32))
    return Sight(tuple(sites), update, weight * pipeline.max_weight, released)
