"""Skellam noise: its Rényi bound, with sampling, against exact sums over its probabilities; and against Gaussian noise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from scipy.special import logsumexp
from scipy.stats import skellam

from pppml_core.errors import PppmlError
from pppml_dp.accounting import Event, epsilon, epsilon_of_choice
from pppml_dp.skellam_rdp import ORDERS, sampled_rdp, skellam_rdp

EVERY = np.arange(2, 33)


def log_probabilities(variance, shifts):
    """Of Skellam noise without, and with, an integer shift in each coordinate, on a grid that holds all that matters; flat."""
    reach = int(30 * math.sqrt(variance) + 60)
    x = np.arange(-reach, reach + 1)
    without = with_shift = np.zeros(())
    for shift in shifts:
        one, other = (skellam.logpmf(x - by, variance / 2, variance / 2) for by in (0, shift))
        without, with_shift = np.add.outer(without, one), np.add.outer(with_shift, other)
    keep = np.isfinite(without) & np.isfinite(with_shift)
    return without[keep], with_shift[keep]


def divergence(order, log_p, log_q):
    return logsumexp(order * log_p + (1 - order) * log_q) / (order - 1)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("variance", "shifts"), [(4.0, [1]), (9.0, [3]), (30.0, [2]), (100.0, [9]), (6.0, [1, 2]), (12.0, [-3, 1])])
def test_the_bound_holds_for_every_order_and_both_directions(variance, shifts, rate):
    d1, d2 = float(sum(abs(s) for s in shifts)), math.hypot(*shifts)
    bound = sampled_rdp(EVERY, skellam_rdp(EVERY, variance, d1, d2), rate)
    without, with_unit = log_probabilities(variance, shifts)
    mixture = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + with_unit) if rate < 1 else with_unit
    for order, limit in zip(EVERY[:15], bound, strict=False):
        removal, addition = divergence(order, mixture, without), divergence(order, without, mixture)
        assert removal <= limit * (1 + 1e-9) + 1e-12
        assert addition <= removal * (1 + 1e-9) + 1e-12  # symmetric noise: removing is the worse of the two


def test_the_published_bound_in_figures():
    # alpha D2^2 / 2V + min(((2 alpha - 1) D2^2 + 6 D1) / 4V^2, 3 D1 / 2V) of Agarwal, Kairouz and Liu 2021: either term can be the smaller.
    np.testing.assert_allclose(skellam_rdp([2, 5], 100.0, 5.0, 3.0), [0.09 + 57 / 40_000, 0.225 + 111 / 40_000], rtol=1e-12)
    np.testing.assert_allclose(skellam_rdp([2, 5], 0.1, 5.0, 3.0), [90 + 75, 225 + 75], rtol=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0])
def test_with_the_exact_divergences_the_binomial_sum_is_exact(rate):
    without, with_unit = log_probabilities(20.0, [4])
    exact = np.array([divergence(a, with_unit, without) for a in EVERY])
    mixture = np.logaddexp(np.log1p(-rate) + without, math.log(rate) + with_unit) if rate < 1 else with_unit
    expected = np.array([divergence(a, mixture, without) for a in EVERY[:12]])
    np.testing.assert_allclose(sampled_rdp(EVERY[:12], exact, rate), expected, rtol=1e-7)


def test_sampling_always_changes_nothing():
    every = np.arange(2, ORDERS.max() + 1)
    one = skellam_rdp(every, 50.0, 9.0, 5.0)
    np.testing.assert_array_equal(sampled_rdp(ORDERS, one, 1.0), one[ORDERS - 2])
    np.testing.assert_allclose(sampled_rdp(EVERY, skellam_rdp(EVERY, 50.0, 9.0, 5.0), 1 - 1e-12), one[: len(EVERY)], rtol=1e-6)


def test_skellam_costs_more_than_gaussian_noise_of_its_variance_and_less_and_less_more():
    excess = []
    for scale in (3.0, 10.0, 100.0, 1e5):
        d2 = scale
        noise = Event.skellam(0.05, (2.0 * d2) ** 2, 10 * d2, d2, 200)
        # A Gaussian event in the same composition as a Skellam one of no weight: the same integer orders for both.
        weightless = Event.skellam(0.05, 1e30, 1.0, 1.0)
        gaussian = epsilon([Event("gaussian", 0.05, 2.0, 200), weightless], 1e-5, "rdp")
        excess.append(epsilon([noise], 1e-5, "rdp") / gaussian - 1)
    assert all(a > b >= 0 for a, b in pairwise(excess))
    assert excess[-1] < 1e-4


@pytest.mark.parametrize(("rate", "multiplier", "count"), [(0.01, 4.0, 1000), (0.1, 3.0, 1000), (1.0, 10.0, 40)])
def test_gaussian_events_beside_skellam_ones_are_what_dp_accounting_makes_of_them(rate, multiplier, count):
    accountant = RdpAccountant(orders=[int(a) for a in ORDERS])
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier)), count)
    weightless = Event.skellam(0.05, 1e30, 1.0, 1.0)
    assert epsilon([Event("gaussian", rate, multiplier, count), weightless], 1e-5, "rdp") == pytest.approx(
        accountant.get_epsilon(1e-5), rel=1e-8
    )


def test_a_mixed_list_costs_more_than_either_part():
    some, others = Event.skellam(0.1, 4e4, 1000.0, 100.0, 50), Event("gaussian", 0.2, 3.0, 20)
    both = epsilon_of_choice([[some], [others]], 1e-5)
    assert both == epsilon([others, some], 1e-5, "rdp")
    assert both > max(epsilon([some], 1e-5, "rdp"), epsilon([others], 1e-5, "rdp"))


def test_no_noise_is_infinite():
    assert epsilon([Event.skellam(0.1, 0.0, 5.0, 3.0)], 1e-5, "rdp") == math.inf
    assert epsilon([Event.skellam(0.1, 1e-99, 5.0, 3.0)], 1e-5, "rdp") > 1e90


@pytest.mark.parametrize("accountant", ["pld", "prv"])
def test_only_rdp_composes_skellam_noise(accountant):
    with pytest.raises(PppmlError, match="rdp"):
        epsilon([Event.skellam(0.1, 100.0, 5.0, 3.0)], 1e-5, accountant)
