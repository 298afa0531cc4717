"""Simulated sites: complete and disjoint, skewed as asked, the DPResNet authors' sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pppml_core.errors import DataError
from pppml_core.learning.data.partitions import (
    AuthorsDraw,
    PartitionConfig,
    by_source,
    dirichlet,
    iid,
    quantity,
    quantity_sizes,
    rounded,
    shares,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 200), st.integers(1, 10), st.integers(0, 3), st.sampled_from(["iid", "dirichlet", "quantity"]))
def test_every_example_goes_to_one_site(n: int, sites: int, seed: int, by: str) -> None:
    labels = rng(seed).integers(0, 4, n)
    parts = {
        "iid": lambda: iid(labels, sites, rng(seed)),
        "dirichlet": lambda: dirichlet(labels, sites, 1.0, rng(seed)),
        "quantity": lambda: quantity(n, sites, rng(seed)),
    }[by]()
    assert len(parts) == sites
    assert all(len(part) for part in parts)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(n))
    assert all((np.diff(part) > 0).all() for part in parts)


def test_by_source_keeps_empty_sources() -> None:
    assert [part.tolist() for part in by_source(np.array([2, 0, 2]), 4)] == [[1], [], [0, 2], []]


def test_iid_sizes_differ_by_at_most_one_and_classes_are_mixed() -> None:
    labels = np.repeat(np.arange(4), 1000)
    parts = iid(labels, 3, rng())
    assert {len(part) for part in parts} <= {1333, 1334}
    for part in parts:
        assert np.abs(np.bincount(labels[part]) / len(part) - 0.25).max() < 0.05


def test_small_alpha_skews_and_large_alpha_does_not() -> None:
    labels = np.repeat(np.arange(8), 500)

    def skew(alpha: float) -> float:
        parts = dirichlet(labels, 10, alpha, rng(), minimum=10)
        return float(np.mean([np.bincount(labels[part], minlength=8).max() / len(part) for part in parts]))

    assert skew(1e4) < 0.15
    assert skew(0.1) > 0.35


def test_dirichlet_shares_have_the_stated_spread() -> None:
    # One class share of one site is Beta(alpha, (sites - 1) alpha): mean 1/5, variance (1/5)(4/5) / (5 alpha + 1).
    labels = np.zeros(1000, int)
    drawn = np.array([[len(p) / 1000 for p in dirichlet(labels, 5, 1.0, rng(seed), minimum=0)] for seed in range(400)])
    assert drawn.mean() == pytest.approx(0.2)
    assert drawn.var() == pytest.approx(0.16 / 6, rel=0.15)


def test_given_shares_are_followed() -> None:
    train = np.repeat([0, 1], [80, 40])
    parts = dirichlet(train, 4, 0.5, rng(1))
    wanted = shares(train, parts, 3)
    test = np.repeat([0, 1, 2], [40, 20, 8])
    dealt = shares(test, dirichlet(test, 4, 0.5, rng(2), proportions=wanted), 3)
    assert np.abs(dealt[:2] - wanted[:2]).max() <= 1 / 20
    np.testing.assert_allclose(wanted[2], [len(p) / 120 for p in parts])  # a class training lacks: by site size


def test_a_minimum_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(DataError, match="at least 30 of 100") as caught:
        dirichlet(np.zeros(100, int), 3, 0.01, rng(), minimum=30)
    assert "alpha" in str(caught.value.hint)


def test_too_few_examples_are_refused() -> None:
    for call in (lambda: iid(np.zeros(3), 4, rng()), lambda: quantity(3, 4, rng()), lambda: dirichlet(np.zeros(3, int), 4, 1.0, rng())):
        with pytest.raises(DataError, match="too few"):
            call()
    with pytest.raises(DataError, match="alpha must be positive"):
        dirichlet(np.zeros(9, int), 2, 0.0, rng())


@pytest.mark.parametrize(
    ("sites", "smallest", "largest", "sizes"),
    [
        (5, 1265, 3518, [1265, 3518, 1532, 3252, 2392]),
        (10, 761, 1631, None),
        (20, 328, 868, None),
    ],
)
def test_seed_42_gives_the_site_sizes_of_the_authors_code(sites: int, smallest: int, largest: int, sizes: list[int] | None) -> None:
    # Sizes reproduced by running the authors' code on the 11,959 training images of BloodMNIST.
    found = quantity_sizes(11_959, sites, AuthorsDraw(42))
    assert (min(found), max(found), sum(found)) == (smallest, largest, 11_959)
    assert sizes is None or found == sizes


def test_quantity_moves_at_most_half_within_pairs() -> None:
    for seed in range(30):
        sizes = quantity_sizes(1003, 7, rng(seed))
        assert all(sizes[i] + sizes[i + 1] in (286, 287, 288) for i in (0, 2, 4))
        assert all(143 - 71 <= size <= 144 + 71 for size in sizes)
        assert sizes[6] == 144


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.integers(0, 500))
def test_rounding_keeps_the_sum_and_is_off_by_less_than_one(weights: list[float], total: int) -> None:
    share = np.array(weights) / np.sum(weights)
    counts = rounded(share, total)
    assert counts.sum() == total
    assert np.abs(counts - share * total).max() < 1 + 1e-9


@pytest.mark.parametrize(
    "settings_", [{"by": "iid"}, {"by": "source", "sites": 3}, {"by": "dirichlet", "sites": 3, "alpha": 0}, {"by": "x"}]
)
def test_settings_that_do_not_fit_are_refused(settings_: dict) -> None:
    with pytest.raises(ValidationError):
        PartitionConfig(**settings_)
