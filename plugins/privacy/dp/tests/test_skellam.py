"""Skellam noise against Bessel functions and Poisson numbers. Statistical tests raise a false alarm with probability below 1e-7 each."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf
from scipy import special, stats

from pppml_dp import staircase
from pppml_dp.skellam import Skellam, _reach

ALARM = 1e-9


def probability(x, variance):
    """exp(-V) I_x(V): mpmath's Bessel function, and for large V the asymptotic series in powers of 1 / V (DLMF 10.40.1)."""
    x, variance = abs(x), mpf(variance)
    if variance < 2e4:
        return mpmath.besseli(x, variance) * mpmath.exp(-variance)
    total = term = mpf(1)
    for k in range(1, 1000):
        term *= -mpf(4 * x**2 - (2 * k - 1) ** 2) / (8 * k * variance)
        total += term
        if abs(term) < abs(total) * mpf(2) ** -mp.prec:
            break
    return total / mpmath.sqrt(2 * mpmath.pi * variance)


@pytest.mark.parametrize("variance", [0.25, 1.0, 16.0, 1234.5])
def test_small_variances_are_differences_of_poisson_numbers(variance, assert_counts_fit):
    """The convolution of two Poisson distributions, from their definition."""
    noise = Skellam(variance)
    x = noise.sample(300_000)
    reach = noise.bound
    assert np.abs(x).max() <= reach
    k = np.arange(int(variance / 2 + 20 * math.sqrt(variance) + 60))
    one = stats.poisson.pmf(k, variance / 2)
    both = np.convolve(one, one[::-1])
    middle = len(k) - 1
    both = np.pad(both, reach)[middle : middle + 2 * reach + 1]
    assert_counts_fit(np.bincount(x + reach, minlength=2 * reach + 1), both)


def test_thousands_follow_the_bessel_function(assert_counts_fit):
    variance = 1e5
    x = Skellam(variance).sample(1_000_000)
    k = np.arange(-2000, 2001)
    assert_counts_fit(np.bincount(x[np.abs(x) <= 2000] + 2000, minlength=4001), special.ive(np.abs(k), variance))


@pytest.mark.parametrize("variance", [1e8, 1e12, 1e18])
def test_large_variances_follow_the_normal_curve(variance, assert_counts_fit):
    """Kurtosis 3 + 1/V: no difference that this many samples could show."""
    noise, sd = Skellam(variance), math.sqrt(variance)
    x = noise.sample(300_000)
    edges = np.ceil(sd * stats.norm.ppf(np.arange(1, 100) / 100)).astype(np.int64)
    cells = np.diff(np.concatenate([[0.0], stats.norm.cdf((edges - 0.5) / sd), [1.0]]))
    assert_counts_fit(np.bincount(np.searchsorted(edges, x, side="right"), minlength=100), cells)
    assert_counts_fit(np.bincount(x % 64, minlength=64), np.full(64, 1 / 64))
    if sd > 1e4:
        assert stats.kstest(x, lambda v: stats.norm.cdf((v + 0.5) / sd)).pvalue > ALARM


@pytest.mark.parametrize("variance", [0.25, 2.0, 1e10])
def test_moments(variance):
    """Mean 0, variance V, fourth moment 3 V**2 + V; errors from the moments of twice the order, 6.2 standard errors wide."""
    n = 400_000
    x = Skellam(variance).sample(n).astype(float)
    second, fourth = variance, 3 * variance**2 + variance
    sixth = 15 * variance**3 + 15 * variance**2 + variance
    eighth = 105 * variance**4 + 210 * variance**3 + 63 * variance**2 + variance
    for power, moment, double in ((1, 0, second), (2, second, fourth), (3, 0, sixth), (4, fourth, eighth)):
        assert abs((x**power).mean() - moment) < 6.2 * math.sqrt((double - moment**2) / n), power


def test_a_sum_of_skellams_is_a_skellam(assert_counts_fit):
    parts = [0.25, 0.75, 3.0]
    x = sum(Skellam(v).sample(300_000) for v in parts)
    k = np.arange(-40, 41)
    assert_counts_fit(np.bincount(x + 40, minlength=81), special.ive(np.abs(k), sum(parts)))


@pytest.mark.parametrize("variance", [0.25, 17.3, 1e4, 123456.789, 1e8, 1e18])
def test_float_values_and_integer_bounds_agree_with_bessel_functions(variance):
    noise = Skellam(variance)
    sd = math.sqrt(variance)
    with mp.workprec(900):
        for x in {0, 1, -noise.bound, noise.bound - 1, *(int(k * sd) for k in (-5, 0.3, 1, 9))}:
            true = probability(x, variance) * mpf(noise._factor)
            for wanted in (40, 128, 200):
                low, high = noise._enclosed(x, wanted)
                assert low <= true * mpf(2) ** wanted <= high
                assert high - low <= 4
            assert abs(mpf(float(noise._f(np.array([x]))[0])) - true) < staircase.ERROR / 8


def test_probabilities_by_fractions_alone():
    """At variance 1 the power series of the Bessel function in exact fractions, against the bounds' ratio."""
    noise = Skellam(1.0)

    def bessel(x):
        return sum(Fraction(1, 2 ** (2 * m + x) * math.factorial(m) * math.factorial(m + x)) for m in range(45))

    zero_low, zero_high = noise._enclosed(0, 200)
    for x in (1, 2, 7, 20):
        low, high = noise._enclosed(x, 200)
        ratio = bessel(x) / bessel(0)
        assert Fraction(low, zero_high) <= ratio <= Fraction(high, zero_low)


@pytest.mark.parametrize("variance", [0.25, 16.0, 100.0, 1000.0])
def test_the_bound_is_beyond_two_to_minus_100(variance):
    noise = Skellam(variance)
    with mp.workprec(300):
        outside = 2 * mpmath.fsum(probability(x, variance) for x in range(noise.bound, noise.bound + 60))
        assert outside < mpf(2) ** -100
    assert noise.bound <= 1.01 * _reach(variance, 102) + 1
