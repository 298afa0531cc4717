"""Parts by split column, by whole groups, by contiguous runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import DataError
from pppml_core.learning.data.splits import RUNS, by_split_column, check_groups_disjoint, hold_out


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=80), st.floats(0.05, 0.9), st.integers(0, 5), st.booleans())
def test_held_groups_are_whole_and_nothing_is_lost(groups: list[int], fraction: float, seed: int, labelled: bool) -> None:
    column = np.array(groups)
    indices = np.arange(len(column))
    labels = column % 3 if labelled else None
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match="only 1 groups"):
            hold_out(indices, column, fraction, rng(seed))
        return
    rest, held = hold_out(indices, column, fraction, rng(seed), labels=labels)
    assert sorted([*rest, *held]) == indices.tolist()
    assert len(rest)
    assert len(held)
    assert not set(column[rest]) & set(column[held])
    assert abs(len(set(column[held])) - fraction * len(set(groups))) <= 1 + (3 if labelled else 0)


def test_fifteen_percent_of_groups_of_unequal_size() -> None:
    groups = np.repeat(np.arange(40), np.arange(40) % 5 + 1)
    _, held = hold_out(np.arange(len(groups)), groups, 0.15, rng())
    assert len(set(groups[held])) == 6


def test_without_groups_contiguous_runs_are_held_out() -> None:
    rest, held = hold_out(np.arange(100), None, 0.15, rng())
    assert len(held) == 15
    assert len(rest) == 85
    assert np.count_nonzero(np.diff(held) != 1) <= RUNS - 1


def test_without_groups_each_class_of_a_sorted_folder_is_in_both_parts() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    rest, held = hold_out(np.arange(100), None, 0.2, rng(), labels=labels)
    assert np.bincount(labels[held]).tolist() == [12, 6, 2]
    assert set(labels[rest]) == {0, 1, 2}


def test_the_last_group_of_a_class_stays_in_training() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1])
    for seed in range(20):
        rest, _ = hold_out(np.arange(7), np.arange(7), 0.5, rng(seed), labels=labels)
        assert 6 in rest


def test_holding_out_is_seeded() -> None:
    groups = np.arange(50)
    first = hold_out(groups, groups, 0.2, rng(3))[1]
    np.testing.assert_array_equal(first, hold_out(groups, groups, 0.2, rng(3))[1])
    assert not np.array_equal(first, hold_out(groups, groups, 0.2, rng(4))[1])


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(DataError, match=r"site 'a': only 1 examples") as caught:
        hold_out(np.arange(1), None, 0.2, rng(), place="site 'a'")
    assert caught.value.hint


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="fraction"):
        hold_out(np.arange(5), None, fraction, rng())


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (np.array([0, 1, 2, 0], np.uint8), None),
        (np.array([0, 1, 2, 0]), ("train", "val", "test")),
        (np.array([2, 1, 0, 2]), ("test", "validation", "train")),
        (np.array(["train", "Val", "TEST", "training"]), None),
    ],
)
def test_split_columns(split: np.ndarray, names: tuple[str, ...] | None) -> None:
    parts = by_split_column(split, names)
    assert {name: where.tolist() for name, where in parts.items()} == {"train": [0, 3], "validation": [1], "test": [2]}


def test_wrong_split_values_are_named() -> None:
    with pytest.raises(DataError, match="example 1 is 7"):
        by_split_column(np.array([0, 7]), place="x.npz")
    with pytest.raises(DataError, match="'holdout'"):
        by_split_column(np.array(["train", "holdout"]))


def test_a_patient_in_two_parts_is_named() -> None:
    groups = np.array(["p1", "p2", "p2", "p3"])
    check_groups_disjoint(groups, {"train": np.array([0]), "test": np.array([1, 2, 3])})
    with pytest.raises(DataError, match="patient 'p2' lies in both train and test"):
        check_groups_disjoint(groups, {"train": np.array([0, 1]), "test": np.array([2, 3])}, place="x.npz")
