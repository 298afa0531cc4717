"""Intervals against closed forms and scipy's own routines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from pppml_core.errors import PppmlError
from pppml_core.learning.stats import (
    Interval,
    bootstrap_interval,
    clopper_pearson,
    mean_interval,
    paired_difference,
    stratified_bootstrap,
    wilson,
)
from pppml_core.randomness import Seeds


def test_mean_interval_is_the_t_interval():
    values = [0.61, 0.64, 0.58, 0.66, 0.60]
    got = mean_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (got.estimate, got.low, got.high) == pytest.approx((np.mean(values), low, high))
    assert (got.n, got.level, got.method) == (5, 0.9, "student-t")


def test_mean_interval_by_hand():
    # two values 0 and 2: mean 1, standard error 1, t(0.975, 1) = tan(0.475 pi)
    got = mean_interval([0.0, 2.0])
    assert got.high == pytest.approx(1 + math.tan(0.475 * math.pi))


def test_mean_interval_covers_at_its_level():
    draws = Seeds(1).generator("coverage").normal(3.0, 2.0, size=(2000, 4))
    covered = sum(i.low <= 3.0 <= i.high for i in map(mean_interval, draws))
    assert 0.93 < covered / 2000 < 0.97


def test_one_value_has_no_interval():
    got = mean_interval([0.5])
    assert got.estimate == 0.5
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert str(got) == "0.500"


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [[1.0, 2.0]], [math.inf]])
def test_what_has_no_mean_is_refused(bad):
    with pytest.raises(PppmlError):
        mean_interval(bad)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_impossible_levels_are_refused(level):
    with pytest.raises(PppmlError, match="level"):
        mean_interval([1.0, 2.0], level)
    with pytest.raises(PppmlError, match="level"):
        wilson(1, 2, level)


def test_formatting():
    assert f"{Interval(0.6123, 0.5, 0.7, 0.95, 3, 'x'):.2f}" == "0.61 [0.50, 0.70]"
    assert str(Interval(math.nan, math.nan, math.nan, 0.95, 0, "x")) == "n/a"


def test_bootstrap_of_values_is_scipys_bca():
    values = Seeds(2).generator("values").gamma(2.0, size=40)
    got = bootstrap_interval(values, np.mean, Seeds(2).generator("resample"), resamples=999)
    oracle = stats.bootstrap((values,), np.mean, n_resamples=999, method="BCa", rng=Seeds(2).generator("resample"), vectorized=False)
    assert (got.low, got.high) == pytest.approx((oracle.confidence_interval.low, oracle.confidence_interval.high), rel=1e-9)
    assert got.method == "bootstrap-bca"
    assert got.n == 40


def test_bootstrap_is_decided_by_its_generator():
    values = np.arange(12.0)
    first, again, other = (bootstrap_interval(values, np.median, Seeds(s).generator("b"), resamples=300) for s in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_bootstrap_resamples_whole_groups():
    """Ten patients of 50 equal slices each: only ten independent values, so the interval is as wide as that of the ten."""
    patients = Seeds(3).generator("patients").normal(size=10)
    grouped = bootstrap_interval([np.full(50, p) for p in patients], np.mean, Seeds(3).generator("b"), resamples=999)
    ten = bootstrap_interval(patients, np.mean, Seeds(3).generator("b"), resamples=999)
    assert (grouped.low, grouped.high) == pytest.approx((ten.low, ten.high))
    slices = bootstrap_interval(np.repeat(patients, 50), np.mean, Seeds(3).generator("b"), resamples=300)
    assert slices.high - slices.low < (grouped.high - grouped.low) / 3


def test_bootstrap_of_pairs():
    """Rows of a 2-D array stay together: here the statistic is a ratio of column sums."""
    rows = Seeds(4).generator("rows").uniform(1, 2, size=(30, 2))
    got = bootstrap_interval(rows, lambda r: r[:, 0].sum() / r[:, 1].sum(), Seeds(4).generator("b"), resamples=300)
    assert got.estimate == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    assert got.low < got.estimate < got.high


def test_bootstrap_where_bca_is_undefined_says_so():
    same = bootstrap_interval(np.ones(8), np.mean, Seeds(5).generator("b"), resamples=100)
    assert (same.low, same.high, same.method) == (1.0, 1.0, "bootstrap-percentile")
    largest = bootstrap_interval(np.arange(8.0), np.max, Seeds(5).generator("b"), resamples=100)
    assert largest.method == "bootstrap-percentile"
    one = bootstrap_interval([np.arange(5.0)], np.mean, Seeds(5).generator("b"))
    assert one.estimate == 2.0
    assert math.isnan(one.low)
    with pytest.raises(PppmlError):
        bootstrap_interval([], np.mean, Seeds(5).generator("b"))


def test_paired_difference_is_the_paired_t_test():
    a, b = [0.7, 0.8, 0.75, 0.9], [0.6, 0.78, 0.7, 0.8]
    got = paired_difference(a, b)
    oracle = stats.ttest_rel(a, b)
    interval = oracle.confidence_interval(0.95)
    assert (got.low, got.high, got.p_value) == pytest.approx((interval.low, interval.high, oracle.pvalue))
    assert got.estimate == pytest.approx(np.mean(a) - np.mean(b))


def test_paired_difference_at_its_edges():
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).p_value == 0.0
    assert paired_difference([2.0], [1.0]).p_value is None
    with pytest.raises(PppmlError, match="paired"):
        paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 200)])
def test_wilson_solves_its_quadratic(k, n):
    got, z = wilson(k, n), stats.norm.ppf(0.975)
    centre, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert (got.low, got.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert got.estimate == k / n


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 200)])
def test_clopper_pearson_inverts_the_binomial_tails(k, n):
    got = clopper_pearson(k, n, 0.9)
    low = 0.0 if k == 0 else optimize.brentq(lambda p: stats.binom.sf(k - 1, n, p) - 0.05, 1e-9, 1 - 1e-9)
    high = 1.0 if k == n else optimize.brentq(lambda p: stats.binom.cdf(k, n, p) - 0.05, 1e-9, 1 - 1e-9)
    assert (got.low, got.high) == pytest.approx((low, high), abs=1e-7)
    if k == 0:
        assert got.high == pytest.approx(1 - 0.05 ** (1 / n))


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(k, n):
    for interval in (wilson, clopper_pearson):
        with pytest.raises(PppmlError, match="not a proportion"):
            interval(k, n)


def site_means(samples):
    """The mean over sites of each site's mean, for :func:`stratified_bootstrap`."""
    return lambda drawn: np.mean([x[at].mean(axis=-1) for x, at in zip(samples, drawn, strict=True)], axis=0)


def test_stratified_bootstrap_has_the_closed_form_variance():
    # The bootstrap variance of the mean of site means is the mean of s_i^2 / n_i (s with divisor n) over sites, divided by their number.
    rng = np.random.default_rng(3)
    samples = [rng.normal(0.2, 1.0, 400), rng.normal(0.9, 0.1, 25), rng.normal(0.5, 0.4, 100)]
    found = stratified_bootstrap([400, 25, 100], site_means(samples), np.random.default_rng(0), resamples=20_000)
    variance = np.mean([x.var() / len(x) for x in samples]) / 3
    assert found.estimate == pytest.approx(np.mean([x.mean() for x in samples]))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=0.03)
    assert (found.n, found.method) == (525, "bootstrap-bca")
    # One pool of all patients would mix the sites' levels into the width and move the estimate towards the large site.
    pooled = bootstrap_interval(np.concatenate(samples), np.mean, np.random.default_rng(0))
    assert pooled.estimate < found.estimate - 0.2


def test_stratified_bootstrap_of_one_stratum_is_the_plain_one():
    values = np.random.default_rng(1).random(30)
    one = stratified_bootstrap([30], lambda drawn: values[drawn[0]].mean(axis=-1), np.random.default_rng(0), resamples=4000)
    plain = bootstrap_interval(values, np.mean, np.random.default_rng(0), resamples=4000)
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_stratified_bootstrap_keeps_pairs_together():
    rng = np.random.default_rng(2)
    a = [rng.random(20), rng.random(12)]
    b = [x - 0.1 for x in a]
    difference = stratified_bootstrap([20, 12], lambda d: site_means(a)(d) - site_means(b)(d), np.random.default_rng(0), resamples=500)
    assert (difference.low, difference.estimate, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_stratum_of_one_unit_is_kept_as_it_is():
    a, single = np.random.default_rng(4).random(50), np.array([0.7])
    both = stratified_bootstrap([50, 1], site_means([a, single]), np.random.default_rng(0))
    alone = stratified_bootstrap([50], site_means([a]), np.random.default_rng(0))
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2, rel=1e-6)
    nothing = stratified_bootstrap([1, 1], site_means([single, single]), np.random.default_rng(0))
    assert nothing.estimate == pytest.approx(0.7)
    assert np.isnan(nothing.low)
    for wrong in ([], [3, 0]):
        with pytest.raises(PppmlError, match="at least one unit"):
            stratified_bootstrap(wrong, site_means([a]), np.random.default_rng(0))
