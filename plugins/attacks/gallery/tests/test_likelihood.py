"""The likelihood against other ways to compute it, and its hit rate against the closed form."""

import numpy as np
from scipy.integrate import quad
from scipy.stats import binom, multivariate_normal, norm

from pppml_gallery.likelihood import Likelihood, Others, others_like


def orthogonal_hit_rate(mu: float, candidates: int) -> float:
    """Of the best guess among orthogonal signals of length ``mu`` in noise of deviation 1 (Proakis, Digital Communications, M-ary)."""
    return quad(lambda t: norm.pdf(t - mu) * norm.cdf(t) ** (candidates - 1), mu - 12, mu + 12)[0]


def within(hits: int, trials: int, rate: float) -> bool:
    """Two-sided binomial test: correct code fails it with a probability below 1e-6."""
    low, high = binom.ppf(5e-7, trials, rate), binom.isf(5e-7, trials, rate)
    assert low > 0 or rate < 0.2
    return low <= hits <= high


def test_orthogonal_signals_meet_the_closed_form():
    """At three strengths, among 100; false alarm below 3e-6. A rule that is worse by 6 points would be found."""
    generator, candidates = np.random.default_rng(0), 3.0 * np.eye(100, 120)
    for mu in (1.5, 2.5, 4.0):
        hits, trials, deviation = 0, 4000, 3.0 * 0.25 / mu
        for trial in range(trials):
            victim = trial % 100
            seen = 0.25 * candidates[victim] + generator.normal(0, deviation, 120)
            hits += Likelihood(seen, 0.25, np.full(120, deviation**2)).of(candidates).argmax() == victim
        assert within(hits, trials, orthogonal_hit_rate(mu, 100)), (mu, hits)


def test_it_is_a_gaussian_log_density():
    generator = np.random.default_rng(1)
    d, unknown, weight = 12, 3, 0.25
    others = others_like(generator.normal(1, 2, (7, d)) @ generator.normal(0, 1, (d, d)), shrink=True)
    variance, candidates, seen = generator.uniform(0.1, 2, d), generator.normal(0, 3, (5, d)), generator.normal(0, 3, d)
    one = np.diag(others.diagonal) + others.factors.T @ others.factors
    covariance = np.diag(variance) + weight**2 * (unknown + unknown**2 / 7) * one
    wanted = [multivariate_normal.logpdf(seen, weight * c + weight * unknown * others.mean, covariance) for c in candidates]
    found = Likelihood(seen, weight, variance, others, unknown).of(candidates)
    np.testing.assert_allclose(np.diff(found), np.diff(wanted), rtol=1e-9)


def test_the_covariance_is_shrunk_as_published():
    """Against the same formulas with every d x d matrix written out."""
    generator = np.random.default_rng(2)
    x = generator.normal(0, 1, (9, 15)) * generator.uniform(0.5, 3, 15) + generator.normal(0, 1, (9, 1))
    n, w = len(x), np.einsum("ki,kj->kij", x - x.mean(0), x - x.mean(0))
    s = w.sum(0) / (n - 1)
    variance = n / (n - 1) ** 3 * np.square(w - w.mean(0)).sum(0)
    off = ~np.eye(15, dtype=bool)
    intensity = variance[off].sum() / np.square(s[off]).sum()
    assert 0.01 < intensity < 0.99
    found = others_like(x, shrink=True)
    np.testing.assert_allclose(
        np.diag(found.diagonal) + found.factors.T @ found.factors, np.where(off, (1 - intensity) * s, s), rtol=1e-9, atol=1e-12
    )


def test_without_shrinking_only_the_diagonal_is_left():
    x = np.random.default_rng(3).normal(0, 1, (9, 15))
    found = others_like(x, shrink=False)
    assert found.factors.shape == (0, 15)
    np.testing.assert_allclose(found.diagonal, x.var(0, ddof=1))


def test_what_others_add_is_known_from_few_images_only():
    """Of two public images nobody knows the mean of nine others exactly."""
    few = Others(np.zeros(3), np.ones(3), np.zeros((0, 3)), 2)
    many = Others(np.zeros(3), np.ones(3), np.zeros((0, 3)), 10_000)
    a, b = (Likelihood(np.zeros(3), 0.1, np.full(3, 1e-9), o, 9).of(np.array([[0.0, 0, 0], [1, 0, 0]])) for o in (few, many))
    np.testing.assert_allclose((a[0] - a[1]) / (b[0] - b[1]), (9 + 81 / 10_000) / (9 + 81 / 2), rtol=1e-6)
