"""Train, validation and test parts: by the data's own split column, or held out by whole groups.

The rule everywhere: examples of one group (patient, smear, volume) never lie in two parts. Where groups are unknown, neighbours in the
file are the likeliest to come from one patient, so contiguous runs are held out instead of single examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError
from pppml_core.interfaces.task import SPLITS, Split

Indices = npt.NDArray[np.int64]

#: Names a split may have in a file -> the name used here.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
#: Contiguous runs in which examples without groups are held out.
RUNS = 3


def units_of(groups: npt.NDArray[Any] | None, indices: Indices) -> list[Indices]:
    """What is moved as a whole: the indices of each group, in order of first appearance; single indices where groups are unknown."""
    if groups is None:
        return [indices[i : i + 1] for i in range(len(indices))]
    chosen = np.asarray(groups)[indices]
    _, first, inverse = np.unique(chosen, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    pieces = np.split(indices[order], np.cumsum(np.bincount(inverse))[:-1])
    return [pieces[i] for i in np.argsort(first, kind="stable")]


def majority(labels: npt.NDArray[np.integer], units: Sequence[Indices]) -> npt.NDArray[np.int64]:
    """The most frequent label of each unit (the smallest of equals), shape ``(len(units),)``."""
    return np.array([np.bincount(labels[unit]).argmax() for unit in units], dtype=np.int64)


def hold_out(
    indices: npt.NDArray[np.integer],
    groups: npt.NDArray[Any] | None,
    fraction: float,
    generator: np.random.Generator,
    *,
    labels: npt.NDArray[np.integer] | None = None,
    place: str | None = None,
) -> tuple[Indices, Indices]:
    """``(rest, held)``: about ``fraction`` of the groups of ``indices`` held out, both in ascending order of place in ``indices``.

    Args:
        indices: the examples to divide, as indices into ``groups`` and ``labels``.
        groups: group of each example of the whole data; None where unknown: then ``RUNS`` contiguous runs of ``indices`` are held out.
        fraction: in (0, 1); of the groups, or of the examples where groups are unknown. At least one is held and one is left.
        generator: the only source of chance.
        labels: class of each example of the whole data; when given, the choice is made class by class (a group counts for its most
            frequent class), so that small classes stay in both parts where they can.
        place: file or site, for the error.

    Raises DataError where there are fewer than two groups (or examples) to divide.

    """
    if not 0 < fraction < 1:
        raise DataError(f"a fraction of {fraction} cannot be held out", place=place, hint="give a fraction between 0 and 1")
    order: Indices = np.asarray(indices, dtype=np.int64)
    units = units_of(groups, order)
    what = "examples" if groups is None else "groups (patients)"
    if len(units) < 2:
        raise DataError(
            f"only {len(units)} {what}: nothing can be held out without dividing a group",
            place=place,
            hint="add data to this site, merge it with another, or give the file a `split` array",
        )
    kinds = np.zeros(len(units), np.int64) if labels is None else majority(np.asarray(labels), units)
    strata = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    strata.sort(key=len)
    chosen: list[int] = []
    wanted = 0.0
    for members in strata:
        wanted += fraction * len(members)
        # The rounding error is carried to the next, larger class; one unit of a class always stays in the rest.
        count = min(len(members) - 1, max(0, round(wanted - len(chosen))))
        if members is strata[-1] and not chosen and count == 0:
            count = 1
        chosen += _runs(members, count, generator) if groups is None else generator.permutation(members)[:count].tolist()
    held = np.zeros(len(units), dtype=bool)
    held[chosen] = True
    in_held = np.isin(order, np.concatenate([units[i] for i in np.flatnonzero(held)]))
    return order[~in_held], order[in_held]


def _runs(members: Indices, count: int, generator: np.random.Generator) -> list[int]:
    """``count`` of ``members`` in up to ``RUNS`` contiguous runs, one in each equal stretch, at a random offset."""
    runs = max(1, min(RUNS, count))
    chosen: list[int] = []
    for part, stretch in enumerate(np.array_split(members, runs)):
        length = count * (part + 1) // runs - count * part // runs
        start = int(generator.integers(len(stretch) - length + 1)) if length <= len(stretch) else 0
        chosen += stretch[start : start + length].tolist()
    return chosen


def by_split_column(split: npt.NDArray[Any], names: Sequence[str] | None = None, *, place: str | None = None) -> dict[Split, Indices]:
    """Indices of each part from a split column.

    Args:
        split: ``(N,)`` integers into ``names``, or strings such as ``train``, ``val``, ``test``.
        names: name of each integer; default train, val, test.
        place: file, for the error.

    Raises DataError on a value or name that is none of ``SPLIT_NAMES``.

    """
    split = np.asarray(split)
    if np.issubdtype(split.dtype, np.integer):
        names = ("train", "val", "test") if names is None else tuple(str(n) for n in names)
        wrong = np.flatnonzero((split < 0) | (split >= len(names)))
        if len(wrong):
            raise DataError(
                f"`split` of example {wrong[0]} is {split[wrong[0]]}, but only 0 to {len(names) - 1} have a name",
                place=place,
                hint="0 is train, 1 is val, 2 is test",
            )
        words = np.array(names, dtype=np.str_)[split] if len(split) else np.zeros(0, np.str_)
    else:
        words = split.astype(np.str_)
    lowered = np.char.lower(words) if len(words) else words
    unknown = sorted(set(lowered.tolist()) - set(SPLIT_NAMES))
    if unknown:
        raise DataError(f"`split` has the unknown part {unknown[0]!r}", place=place, hint="name the parts train, val and test")
    parts = np.array([SPLITS.index(SPLIT_NAMES[w]) for w in lowered.tolist()], dtype=np.int64)
    return {name: np.flatnonzero(parts == i) for i, name in enumerate(SPLITS)}


def check_groups_disjoint(
    groups: npt.NDArray[Any], parts: Mapping[str, npt.NDArray[np.integer]], *, place: str | None = None, what: str = "patient"
) -> None:
    """Raise DataError naming the first group that lies in two of ``parts`` (name -> indices into ``groups``)."""
    owner: dict[Any, str] = {}
    for part, indices in parts.items():
        for group in np.unique(np.asarray(groups)[indices]).tolist():
            if group in owner:
                raise DataError(
                    f"{what} {group!r} lies in both {owner[group]} and {part}",
                    place=place,
                    hint=f"move all examples of this {what} into one part of `split`",
                )
            owner[group] = part
