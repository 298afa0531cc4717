"""ReRo bounds against closed forms and against optimal attackers played many times.

Monte-Carlo tests use :func:`beats` itself (a true bound is refuted with probability 1e-4 over the cells) with 100 cells, so at most 1e-6.
"""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, norm

from pppml_core.errors import PppmlError
from pppml_core.evidence.bounds import (
    Bound,
    Release,
    beats,
    curve_bound,
    gaussian_bound,
    gaussian_dp_bound,
    gaussian_mu,
    kappa,
    pure_bound,
)
from pppml_core.testing.chances import as_often

CELLS = 100
AR = "add-remove"
needs_accounting = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="dp-accounting is not installed")


def rate(bound: Bound) -> float:
    assert bound.rate is not None, bound.reason
    return bound.rate


def test_the_known_figures_of_gaussian_noise() -> None:
    known = {0.5: (0.034, 0.005), 1.0: (0.092, 0.018), 2.0: (0.37, 0.14), 4.0: (0.95, 0.82)}
    for mu, (percent, permille) in known.items():
        assert rate(gaussian_dp_bound(0.01, mu, AR)) == pytest.approx(percent, abs=0.005)
        assert rate(gaussian_dp_bound(0.001, mu, AR)) == pytest.approx(permille, abs=0.005)
    assert rate(gaussian_dp_bound(0.01, 0.0, AR)) == 0.01
    assert rate(gaussian_dp_bound(0.01, 1e6, AR)) == 1.0


def test_every_round_counts_and_the_adjacency_doubles_the_shift() -> None:
    assert gaussian_mu([Release(2.0, 100)], AR) == pytest.approx(5.0)
    assert gaussian_mu([Release(2.0, 100)], "zero-out") == pytest.approx(5.0)
    assert gaussian_mu([Release(2.0, 100)], "replace") == pytest.approx(10.0)
    assert gaussian_mu([Release(1.0, 9), Release(0.5, 4)], AR) == pytest.approx(5.0)
    assert gaussian_mu([], AR) == 0.0
    found = gaussian_bound(0.01, [Release(10.0, 100)], "replace")
    assert (found.rate, found.adjacency) == (pytest.approx(norm.cdf(norm.ppf(0.01) + 2.0)), "replace")


def test_pure_epsilon() -> None:
    assert rate(pure_bound(0.01, 1.0, AR)) == pytest.approx(0.01 * math.e)
    assert rate(pure_bound(0.01, 0.0, AR)) == pytest.approx(0.01)
    # Randomized response is the worst mechanism there is: of a share 1 / (1 + e^epsilon) of false alarms it makes all that is allowed.
    for epsilon in (0.1, 1.0, 5.0):
        lie = 1 / (1 + math.exp(epsilon))
        assert rate(pure_bound(lie, epsilon, AR)) == pytest.approx(1 - lie)
        for coin in (0.1, 0.7):  # and, mixed with a coin, of larger and smaller shares
            assert rate(pure_bound(lie * coin, epsilon, AR)) == pytest.approx((1 - lie) * coin)
            assert rate(pure_bound(lie + coin * (1 - lie), epsilon, AR)) == pytest.approx(1 - lie + coin * lie)
    assert rate(pure_bound(0.01, 1e9, AR)) == 1.0


def test_a_finer_curve_comes_to_the_exact_bound_from_above() -> None:
    mu = 1.3

    def delta(e: float) -> float:
        return float(norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu))

    exact = [rate(gaussian_dp_bound(k, mu, AR)) for k in (0.001, 0.01, 0.3, 0.9)]
    for points, tolerance in ((20, 0.02), (400, 1e-4)):
        curve = [(e, delta(e)) for e in np.linspace(0, 12, points)]
        for k, best in zip((0.001, 0.01, 0.3, 0.9), exact, strict=True):
            assert best - 1e-12 <= rate(curve_bound(k, curve, AR)) <= best + tolerance


def optimal_in_gallery(candidates: int, z: float) -> float:
    """Rate of the most likely of orthogonal candidates of norm 1 under Gaussian noise ``z``: the victim's score is the largest."""
    return float(quad(lambda x: norm.pdf(x - 1 / z) * norm.cdf(x) ** (candidates - 1), -10, 10 + 1 / z, epsabs=1e-10)[0])


@pytest.mark.parametrize("z", [0.3, 1.0, 3.0])
def test_the_bayes_optimal_attacker_meets_its_closed_form_and_not_more_than_the_bound(z: float) -> None:
    candidates, trials = 100, 20_000
    rng = np.random.default_rng(int(10 * z))
    seen = z * rng.standard_normal((trials, candidates))
    seen[:, 0] += 1.0  # the victim's clipped gradient; the order of candidates says nothing
    hits = int((seen.argmax(axis=1) == 0).sum())
    assert as_often(hits, trials, optimal_in_gallery(candidates, z))
    bound = rate(gaussian_bound(1 / candidates, [Release(z)], AR))
    assert optimal_in_gallery(candidates, z) <= bound
    assert not beats(hits, trials, bound, CELLS)
    # A claim of twice the noise is refuted by these very hits wherever there is anything to find.
    if z <= 1:
        assert beats(hits, trials, rate(gaussian_bound(1 / candidates, [Release(2 * z)], AR)), CELLS)


@pytest.mark.parametrize("adjacency", ["add-remove", "replace"])
def test_the_bound_of_many_rounds_is_reached_by_the_most_powerful_test(adjacency: str) -> None:
    k, z, rounds, trials = 0.02, 4.0, 10, 50_000
    shift = 1.0 if adjacency == "add-remove" else 2.0
    seen = shift + z * np.random.default_rng(5).standard_normal((trials, rounds))
    threshold = norm.isf(k) * z / math.sqrt(rounds)  # names the victim in a share k of the worlds without it
    hits = int((seen.mean(axis=1) > threshold).sum())
    assert as_often(hits, trials, rate(gaussian_bound(k, [Release(z, rounds)], adjacency)))


def one_sampled_step(k: float, z: float, q: float) -> tuple[float, float]:
    """Exact rates of the most powerful tests of one Poisson-sampled sum: for the unit, and for its absence."""
    t = z * norm.isf(k)
    present = (1 - q) * k + q * norm.sf((t - 1) / z)
    # The other way round: absence is named below a threshold that holds a share k of the worlds with the unit.
    low, high = -50.0 * z, 50.0 * z
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - q) * norm.cdf(middle / z) + q * norm.cdf((middle - 1) / z) < k else (low, middle)
    return float(present), float(norm.cdf(low / z))


@needs_accounting
@pytest.mark.parametrize(("z", "q", "k"), [(1.0, 0.1, 0.01), (0.5, 0.3, 0.01), (2.0, 0.5, 0.3)])
def test_the_bound_of_one_sampled_step_is_tight_and_not_below_the_exact_one(z: float, q: float, k: float) -> None:
    found = gaussian_bound(k, [Release(z, 1, q)], AR)
    exact = max(one_sampled_step(k, z, q))
    assert exact - 1e-9 <= rate(found) <= 1.02 * exact
    assert rate(found) < rate(gaussian_bound(k, [Release(z)], AR))
    assert "Poisson" in found.method


@needs_accounting
def test_the_optimal_attacker_of_many_sampled_steps_comes_near_the_bound_and_not_beyond() -> None:
    k, z, q, steps, trials = 0.01, 0.8, 0.1, 40, 40_000
    rng = np.random.default_rng(6)
    absent = z * rng.standard_normal((trials, steps))
    present = z * rng.standard_normal((trials, steps)) + (rng.random((trials, steps)) < q)

    def likelihood(x: np.ndarray) -> np.ndarray:
        return np.log1p(q * np.expm1((2 * x - 1) / (2 * z * z))).sum(axis=1)

    # The share of false alarms at this threshold is below the larger share that the data cannot exclude, with 1 - 1e-6.
    threshold = np.quantile(likelihood(absent), 1 - k)
    alarms = int((likelihood(absent) > threshold).sum())
    most = float(beta.ppf(1 - 1e-6, alarms + 1, trials - alarms))
    hits = int((likelihood(present) > threshold).sum())
    found = rate(gaussian_bound(most, [Release(z, steps, q)], AR))
    assert not beats(hits, trials, found, CELLS)
    assert hits / trials > 0.6 * rate(gaussian_bound(k, [Release(z, steps, q)], AR))
    assert beats(hits, trials, rate(gaussian_bound(k, [Release(2 * z, steps, q)], AR)), CELLS)


@needs_accounting
def test_where_sampling_saves_nothing_the_bound_is_that_of_full_batches() -> None:
    assert rate(gaussian_bound(0.01, [Release(0.02, 50, 0.9)], AR)) == pytest.approx(1.0)
    unsampled = rate(gaussian_bound(0.01, [Release(1.0)], AR))
    assert rate(gaussian_bound(0.01, [Release(1.0, 1, 0.9999)], AR)) == pytest.approx(unsampled, rel=2e-3)
    mixed = rate(gaussian_bound(0.01, [Release(2.0), Release(1.0, 10, 0.05)], AR))
    assert rate(gaussian_bound(0.01, [Release(2.0)], AR)) < mixed < rate(gaussian_bound(0.01, [Release(2.0), Release(1.0, 10)], AR))


def test_what_cannot_be_bounded_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = [Release(1.0, 10, 0.1)]
    assert gaussian_bound(0.01, sampled, "replace").rate is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = gaussian_bound(0.01, sampled, AR)
    assert found.rate is None
    assert "dp-accounting" in found.reason
    assert found.to_dict()["adjacency"] == AR
    assert gaussian_bound(0.01, [Release(1.0, 10)], AR).rate is not None, "full batches need no accountant"


@pytest.mark.parametrize("bad", [(0.0, 1, 1.0), (math.nan, 1, 1.0), (1.0, 0, 1.0), (1.0, 1, 0.0), (1.0, 1, 1.1)])
def test_releases_that_are_none_are_refused(bad: tuple[float, int, float]) -> None:
    with pytest.raises(PppmlError, match="no release"):
        Release(*bad)


def test_arguments_that_claim_nothing_are_refused() -> None:
    with pytest.raises(PppmlError, match="adjacency"):
        gaussian_bound(0.01, [Release(1.0)], "swap")  # type: ignore[arg-type]
    for k in (0.0, 1.1, math.nan):
        with pytest.raises(PppmlError, match="probability"):
            gaussian_dp_bound(k, 1.0, AR)
    with pytest.raises(PppmlError, match="claim nothing"):
        pure_bound(0.01, -1.0, AR)


def test_kappa_is_chance_unless_a_blind_rule_is_beyond_doubt_better() -> None:
    assert kappa(100) == 0.01
    assert kappa(100, [(1, 3), (0, 3)]) == 0.01, "a lucky hit is no rule"
    assert kappa(100, [(40, 100), (0, 100)]) == 0.4
    assert kappa(100, [(0, 0)]) == 0.01


def test_a_bound_is_beaten_only_beyond_the_exact_limit() -> None:
    for successes, trials, cells in ((5, 20, 1), (60, 100, 1), (60, 100, 50), (100, 100, 1)):
        limit = beta.ppf(1e-4 / cells, successes, trials - successes + 1)
        assert beats(successes, trials, limit - 1e-6, cells)
        assert not beats(successes, trials, limit + 1e-6, cells)
    assert not beats(0, 100, 0.0)
    assert not beats(0, 0, 0.5)


def test_larger_kappa_and_less_noise_never_lower_a_bound() -> None:
    for series in (
        [rate(gaussian_dp_bound(k, 1.0, AR)) for k in (0.001, 0.01, 0.1, 0.5, 1.0)],
        [rate(gaussian_dp_bound(0.01, mu, AR)) for mu in (0.0, 0.1, 1.0, 3.0)],
        [rate(pure_bound(0.01, e, AR)) for e in (0.0, 0.5, 2.0, 8.0)],
    ):
        assert all(a <= b for a, b in pairwise(series))
