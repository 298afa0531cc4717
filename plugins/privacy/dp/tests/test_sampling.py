"""Poisson sampling against exact probabilities. Statistical tests raise a false alarm with probability below 1e-7 each."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from pppml_core.errors import PppmlError
from pppml_dp import sampling
from pppml_dp.sampling import draw_examples, draw_patients, poisson

ALARM = 1e-9


def scripted(monkeypatch, words):
    """Entropy that gives these 64-bit words and counts how many are left."""
    left = list(words)

    def entropy(length):
        assert length % 8 == 0
        given, left[: length // 8] = left[: length // 8], []
        return np.array(given, "<u8").tobytes()

    monkeypatch.setattr(sampling, "entropy", entropy)
    return left


def test_rate_one_takes_all_and_zero_none():
    assert poisson(7, 1.0).tolist() == list(range(7))
    assert poisson(7, 0.0).tolist() == []
    assert poisson(0, 0.5).tolist() == []
    assert all(poisson(5, rate).dtype == np.int64 for rate in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("rate", [-1e-9, 1 + 1e-9, math.nan, math.inf])
def test_what_is_no_probability_is_refused(rate):
    with pytest.raises(PppmlError, match="probability"):
        poisson(5, rate)


@pytest.mark.parametrize("rate", [0.3, 0.015625, 0.97])
def test_batch_sizes_are_binomial(rate, assert_counts_fit):
    n, draws = 40, 8000
    sizes = [len(poisson(n, rate)) for _ in range(draws)]
    assert_counts_fit(np.bincount(sizes, minlength=n + 1), stats.binom.pmf(np.arange(n + 1), n, rate))


def test_examples_and_draws_are_independent(assert_counts_fit):
    """All 2**8 patterns of four examples in two draws that follow each other."""
    rate, pairs = 0.3, 12_000
    patterns = np.zeros(256, int)
    for _ in range(pairs):
        bits = [*poisson(4, rate), *(4 + poisson(4, rate))]
        patterns[sum(1 << int(b) for b in bits)] += 1
    ones = np.array([bin(p).count("1") for p in range(256)])
    assert_counts_fit(patterns, rate**ones * (1 - rate) ** (8 - ones))


def test_every_one_of_many_has_the_same_chance(assert_counts_fit):
    n, draws, rate = 1_000_000, 5, 0.01
    counts = np.zeros(n, int)
    for _ in range(draws):
        drawn = poisson(n, rate)
        assert np.all(np.diff(drawn) > 0)
        counts[drawn] += 1
    assert_counts_fit(counts.reshape(1000, -1).sum(1), np.full(1000, 1e-3))
    assert stats.binomtest(int(counts.sum()), n * draws, rate).pvalue > ALARM


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(-1, 1), min_size=18, max_size=18))
@example(2.0**-70, [0] * 18)
@example(5e-324, [0] * 16 + [-1, 0])
@example(5e-324, [0] * 18)
@example(0.3, [0, 1] + [0] * 16)
@example(0.3, [0, -1] + [0] * 16)
def test_one_decision_is_exact_whatever_the_bits(rate, steps):
    """The oracle compares fractions. Bits are those of the rate, a word a little more or less here and there, so ties go deep."""
    rest, words = Fraction(rate), []
    for step in steps:
        digit, rest = divmod(rest * 2**64, 1)
        words.append(min(max(int(digit) + step, 0), 2**64 - 1))
    uniform = sum(Fraction(word, 2 ** (64 * (i + 1))) for i, word in enumerate(words))
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch, words)
        assert poisson(1, rate).tolist() == ([0] if uniform < Fraction(rate) else [])


def test_only_ties_draw_more_bits(monkeypatch):
    rate = 0.3 * 2.0**-50
    first, rest = divmod(Fraction(rate) * 2**64, 1)
    second = int(rest * 2**64)
    # Below, tied, above, tied; then for the tied: below, equal to the end of the expansion.
    left = scripted(monkeypatch, [first - 1, first, first + 1, first, second - 1, second, 99])
    assert poisson(4, rate).tolist() == [0, 1]
    assert left == [99]


def test_bits_are_the_operating_systems_and_no_seed_matters(monkeypatch):
    asked = []
    real = sampling.entropy
    monkeypatch.setattr(sampling, "entropy", lambda length: asked.append(length) or real(length))
    drawn = []
    for _ in range(2):
        np.random.seed(5)  # noqa: NPY002
        torch.manual_seed(5)
        state = np.random.get_state()[1].copy()  # noqa: NPY002
        drawn.append(draw_examples(500, 0.5).indices.tolist())
        assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert drawn[0] != drawn[1]
    assert asked == [4000, 4000]


def test_examples_have_the_whole_clip():
    sample = draw_examples(50, 0.5)
    assert sample.shares.dtype == np.float64
    assert sample.shares.tolist() == [1.0] * len(sample.indices)


GROUPS = np.array(["b", "a", "c", "b", "b", "d", "b", "a", "b"])


def test_patients_are_drawn_whole_up_to_the_limit_and_share_one_clip():
    seen = set()
    for _ in range(300):
        sample = draw_patients(GROUPS, 0.5, 3)
        assert sample.indices.dtype == np.int64
        assert np.all(np.diff(sample.indices) > 0)
        owners = GROUPS[sample.indices]
        for patient in np.unique(owners):
            mine = owners == patient
            images = int(mine.sum())
            assert images == min(3, int((patient == GROUPS).sum()))
            assert np.all(sample.shares[mine] == 1 / images)
            assert sample.shares[mine].sum() <= 1 + 1e-12
        seen.add("".join(np.unique(owners)))
    assert len(seen) == 16  # false alarm: 16 * (15/16)**300 < 1e-7


def test_each_patient_has_exactly_the_rate_however_many_images(assert_counts_fit):
    rate, draws = 0.2, 8000
    groups = np.repeat(np.arange(4), [1, 2, 5, 30])
    patterns = np.zeros(16, int)
    for _ in range(draws):
        patterns[sum(1 << int(p) for p in np.unique(groups[draw_patients(groups, rate, 2).indices]))] += 1
    ones = np.array([bin(p).count("1") for p in range(16)])
    assert_counts_fit(patterns, rate**ones * (1 - rate) ** (4 - ones))


def test_every_choice_of_a_patients_images_is_equally_likely(assert_counts_fit):
    groups = np.array([1, 0, 1, 1, 0, 1, 1])
    chosen = {}
    for _ in range(10_000):
        indices = draw_patients(groups, 1.0, 2).indices
        assert {1, 4} <= set(indices.tolist())
        pair = tuple(i for i in indices.tolist() if groups[i] == 1)
        chosen[pair] = chosen.get(pair, 0) + 1
    assert len(chosen) == 10
    assert_counts_fit(list(chosen.values()), np.full(10, 0.1))


def test_equal_keys_of_one_patient_are_drawn_again(monkeypatch):
    owner = np.array([0, 0, 1])
    left = scripted(monkeypatch, [7, 7, 3, 9, 8, 9, 1])
    assert sampling._shuffled(owner).tolist() == [1, 0, 2]
    assert left == [1]


def test_no_patients_and_no_limit():
    empty = draw_patients(np.array([], int), 0.5, 2)
    assert empty.indices.shape == empty.shares.shape == (0,)
    assert draw_patients(GROUPS, 0.0, 2).indices.shape == (0,)
    with pytest.raises(PppmlError, match="cannot be drawn"):
        draw_patients(GROUPS, 0.5, 0)
