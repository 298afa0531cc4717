"""The bound against published-style figures, exact enumeration, and its own promise on randomized response."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from pppml_dp_audit.one_run import combined, epsilon_ceiling, epsilon_lower, guesses_for, p_value


@pytest.mark.parametrize(
    ("right", "guesses", "canaries", "expected"),
    [
        (100, 100, 100, 3.49), (200, 200, 1000, 4.17), (180, 200, 1000, 1.80),
        (140, 200, 1000, 0.58), (550, 1000, 1000, 0.09), (1000, 1000, 1000, 5.78),
    ],
)  # fmt: skip
def test_known_figures(right, guesses, canaries, expected):
    assert epsilon_lower(right, guesses, canaries, 1e-5) == pytest.approx(expected, abs=0.0051)


def slow_p_value(right, guesses, canaries, epsilon, delta):
    """The theorem's formula read aloud."""
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    beta = sum(mass[right:])
    alpha = max((sum(mass[right - i : right]) / i for i in range(1, right + 1)), default=0.0)
    return min(1.0, beta + 2 * canaries * delta * alpha)


@pytest.mark.parametrize(("guesses", "canaries", "delta"), [(12, 12, 0.0), (12, 40, 1e-3), (30, 500, 1e-4), (7, 9, 0.2)])
def test_the_p_value_is_the_formula(guesses, canaries, delta):
    for right, epsilon in product(range(guesses + 1), (0.0, 0.3, 1.0, 4.0)):
        slow = slow_p_value(right, guesses, canaries, epsilon, delta)
        assert p_value(right, guesses, canaries, epsilon, delta) == pytest.approx(slow if right else 1.0, rel=1e-10)


def test_the_bound_is_where_the_p_value_crosses():
    for right in (150, 170, 190, 200):
        bound = epsilon_lower(right, 200, 20_000, 1e-5, 0.95)
        if bound > 0:
            assert p_value(right, 200, 20_000, bound, 1e-5) <= 0.05 < p_value(right, 200, 20_000, bound + 1e-6, 1e-5)
    assert epsilon_lower(100, 200, 20_000, 1e-5) == 0.0


def test_it_grows_with_right_guesses_and_shrinks_with_delta_and_confidence():
    bounds = [epsilon_lower(v, 200, 1000, 1e-5) for v in range(0, 201, 10)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == epsilon_ceiling(200, 1000, 1e-5)
    assert epsilon_lower(190, 200, 1000, 1e-4) < epsilon_lower(190, 200, 1000, 0.0)
    assert epsilon_lower(190, 200, 1000, 1e-5, 0.99) < epsilon_lower(190, 200, 1000, 1e-5, 0.95)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
def test_coverage_on_randomized_response(epsilon):
    """Every coin is told truly with probability e^eps / (1 + e^eps): exactly epsilon-DP, and the worst case of the theorem.

    Exact, without sampling: the probability of all outcomes whose bound is above epsilon is at most 5 %, and not far below.
    """
    r, q = 200, 1 / (1 + math.exp(-epsilon))
    above = [v for v in range(r + 1) if epsilon_lower(v, r, r, 0.0) > epsilon]
    wrong = binom.pmf(above, r, q).sum()
    assert 0.01 < wrong <= 0.05


def test_coverage_with_delta_against_a_mechanism_that_gives_coins_away():
    """With probability ``m delta / i`` randomized response also tells ``i`` coins outright: (eps, delta)-DP, built to defeat the bound."""
    m = r = 200
    epsilon, delta, q = 1.0, 1e-3, 1 / (1 + math.exp(-1.0))
    above = next(v for v in range(r + 1) if epsilon_lower(v, r, m, delta) > epsilon)
    for told in range(5, 101, 5):
        plainly, given = binom.sf(above - 1, r, q), binom.sf(above - told - 1, r - told, q)
        chance = m * delta / told
        assert (1 - chance) * plainly + chance * given <= 0.05


def test_coverage_in_simulation():
    """5,000 runs of randomized response with 100 coins: no more wrong bounds than the exact rate gives but with probability 1e-7."""
    rng = np.random.default_rng()
    q = 1 / (1 + math.exp(-1.0))
    bounds = {v: epsilon_lower(v, 100, 100, 0.0) for v in range(101)}
    exact = binom.sf(next(v for v in bounds if bounds[v] > 1.0) - 1, 100, q)
    truth = rng.integers(0, 2, (5000, 100), dtype=np.int8)
    told = np.where(rng.random(truth.shape) < q, truth, 1 - truth)
    wrong = sum(bounds[int(v)] > 1.0 for v in (truth == told).sum(1))
    assert wrong <= binom.isf(1e-7, 5000, exact)


def test_several_p_values_make_one():
    assert combined([0.3]) == pytest.approx(0.3)
    # Fisher's for two: p q (1 - ln(p q)).
    assert combined([0.02, 0.1]) == pytest.approx(0.002 * (1 - math.log(0.002)))
    assert combined([0.5, 0.0]) == 0.0
    # One run refutes at best at 2 m delta / v, however clear it is; a few do.
    alone = p_value(200, 200, 20_000, 1.0, 1e-5)
    assert alone > 1e-3
    assert combined([alone] * 4) < 1e-4


def test_enough_guesses_for_the_claim_where_there_are():
    assert guesses_for(1.0, 20_000, 1e-5, 0.025, 200) == 200
    many = guesses_for(6.0, 20_000, 1e-5, 0.025, 200)
    assert epsilon_ceiling(many, 20_000, 1e-5) > 6.0
    assert epsilon_ceiling(round(many / 1.2), 20_000, 1e-5, 0.975) < 6.0
    assert guesses_for(50.0, 500, 1e-5, 0.025, 20) == 20
