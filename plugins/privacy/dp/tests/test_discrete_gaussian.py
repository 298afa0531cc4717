"""The discrete Gaussian and the staircase it is drawn from. Statistical tests raise a false alarm with probability below 1e-7 each."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from scipy import stats

from pppml_core.errors import PppmlError
from pppml_dp import bits, staircase
from pppml_dp.discrete_gaussian import DiscreteGaussian
from pppml_dp.noise import integer_noise
from pppml_dp.skellam import Skellam

ALARM = 1e-9
SMALL = [0.25, 1.0, 16.0, 123.456]
LARGE = [1e4, 1e8, 3.3e10, 1e12, 1e18]


def probabilities(variance, reach):
    """Of -reach .. reach, with 200 bits, straight from the definition."""
    with mp.workprec(200):
        heights = [mpmath.exp(-(mpf(x) ** 2) / (2 * mpf(variance))) for x in range(-2 * reach, 2 * reach + 1)]
        total = mpmath.fsum(heights)
        return [float(h / total) for h in heights[reach:-reach]]


@pytest.mark.parametrize("variance", SMALL)
def test_small_variances_follow_the_definition(variance, assert_counts_fit):
    noise = DiscreteGaussian(variance)
    x = noise.sample(300_000)
    reach = noise.bound
    assert np.abs(x).max() <= reach
    assert_counts_fit(np.bincount(x + reach, minlength=2 * reach + 1), probabilities(variance, reach))


@pytest.mark.parametrize("variance", LARGE)
def test_large_variances_follow_the_normal_curve(variance, assert_counts_fit):
    """Up to ``x + 1/2`` a discrete Gaussian of variance 1e4 or more has a normal's probability within 1e-5 of a cell's expectation."""
    noise, sd = DiscreteGaussian(variance), math.sqrt(variance)
    x = noise.sample(400_000)
    edges = np.ceil(sd * stats.norm.ppf(np.arange(1, 200) / 200)).astype(np.int64)
    cells = np.diff(np.concatenate([[0.0], stats.norm.cdf((edges - 0.5) / sd), [1.0]]))
    assert_counts_fit(np.bincount(np.searchsorted(edges, x, side="right"), minlength=200), cells)
    # Kolmogorov-Smirnov, where steps of the true distribution are far below the statistic's own size of 1e-3.
    if sd > 1e4:
        assert stats.kstest(x, lambda v: stats.norm.cdf((v + 0.5) / sd)).pvalue > ALARM


@pytest.mark.parametrize("variance", [1e4, 1e10, 1e18])
def test_the_lowest_bits_are_uniform(variance, assert_counts_fit):
    """No grid coarser than the integers, and every place in a bin: exact within exp(-2 pi**2 variance / 64**2)."""
    assert_counts_fit(np.bincount(DiscreteGaussian(variance).sample(200_000) % 64, minlength=64), np.full(64, 1 / 64))


@pytest.mark.parametrize("variance", [2.5, 1e10])
def test_moments(variance):
    """Mean, variance and fourth moment (0, V and 3 V**2 within 1e-15 and 1e-12), each within 6.2 standard errors."""
    n = 1_000_000
    z = DiscreteGaussian(variance).sample(n) / math.sqrt(variance)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 6.2 * math.sqrt(spread / n), power


def test_tails_and_symmetry():
    n, sd = 2_000_000, 1e5
    x = DiscreteGaussian(sd**2).sample(n)
    for far in (1, 2, 3, 4, 4.5):
        assert stats.binomtest(int((np.abs(x) > far * sd).sum()), n, 2 * stats.norm.sf(far)).pvalue > ALARM, far
        assert stats.binomtest(int((x > far * sd).sum()), int((np.abs(x) > far * sd).sum()), 0.5).pvalue > ALARM, far


def test_samples_are_not_correlated_within_or_between_calls():
    noise, n = DiscreteGaussian(1e10), 400_000
    a, b = noise.sample(n) / 1e5, noise.sample(n) / 1e5
    for u, v in ((a, b), (a[1:], a[:-1]), (a[staircase.BLOCK :], a[: -staircase.BLOCK]), (np.abs(a[1:]) - 0.8, np.abs(a[:-1]) - 0.8)):
        assert abs(np.mean(u * v)) < 6.2 / math.sqrt(len(u))


@pytest.mark.parametrize("kind", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize("variance", [0.25, 16.0, 777.7, 1e8, 1e18])
def test_the_staircase_lies_above_and_what_is_sure_below(kind, variance):
    """With integer bounds of f, which have oracles of their own: exactness needs nothing more than this and the bits."""
    noise = integer_noise(kind, variance)
    stairs = noise._stairs
    width, side = 1 << stairs._shift, noise.bound >> stairs._shift
    assert stairs._weights.sum() == len(stairs._cells) == 2**16
    assert np.array_equal(np.bincount(stairs._cells, minlength=2 * side), stairs._weights)
    assert len(stairs._weights) == 2 * side <= 1024
    # No bit decides twice: cell, offset and uniform number are different bits of the word.
    assert stairs._used == 16 + stairs._shift
    assert not (stairs._sure % np.uint64(2**16 * width)).any()
    for i in np.unique(np.r_[0, 1, side - 2 : side + 2, 2 * side - 1, np.linspace(0, 2 * side - 1, 6).astype(int)]):
        inside = range((i - side) * width, (i - side + 1) * width)
        values = inside if width <= 4 else [*inside[:2], *inside[-2:]]
        tops, floors = zip(*(noise._enclosed(x, 128)[::-1] for x in values), strict=True)
        assert stairs._scale * max(tops) <= int(stairs._weights[i]) << 128
        ratio = Fraction(stairs._scale * min(floors), int(stairs._weights[i]) << 128)
        assert Fraction(int(stairs._sure[i]), 2**64) <= max(ratio, Fraction(0))


def test_most_proposals_are_decided_by_their_first_word():
    for variance in (1e8, 1e12):
        stairs = DiscreteGaussian(variance)._stairs
        assert float(stairs._sure / 2.0**64 @ stairs._weights) / 2**16 > 0.95


@pytest.mark.parametrize("variance", [0.25, 1.0, 17.3, 1e8, 1e18])
def test_float_values_and_integer_bounds_agree_with_mpmath(variance):
    noise = DiscreteGaussian(variance)
    sd = math.sqrt(variance)
    for x in {0, 1, -1, -noise.bound, noise.bound - 1, *(int(k * sd) for k in (-5, -0.7, 0.01, 1, 3, 9))}:
        with mp.workprec(600):
            true = mpmath.exp(-(mpf(x) ** 2) / (2 * mpf(variance)))
            for wanted in (60, 128, 300):
                low, high = noise._enclosed(x, wanted)
                assert low <= true * mpf(2) ** wanted <= high
                assert high - low <= 4
            assert abs(mpf(float(noise._f(np.array([x]))[0])) - true) < staircase.ERROR / 100


@pytest.mark.parametrize("kind", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize(("variance", "count"), [(200.0, 6000), (1e10, 1500)])
def test_decisions_in_float_are_the_exact_ones(monkeypatch, kind, variance, count):
    """The same key, once with float decisions and once with integers alone, gives the same samples."""
    monkeypatch.setattr(bits, "entropy", lambda length: b"\7" * length)
    noise = integer_noise(kind, variance)
    fast = noise.sample(count)
    calls = []
    exact = noise._stairs._enclosed
    monkeypatch.setattr(noise._stairs, "_enclosed", lambda *a: calls.append(a) or exact(*a))
    monkeypatch.setattr(staircase, "MARGIN", 2.0)
    assert np.array_equal(noise.sample(count), fast)
    assert len(calls) >= 5


class _Words:
    def __init__(self, *words):
        self.left = list(words)

    def take(self, count):
        assert count == 1
        return [self.left.pop(0)]


@pytest.mark.parametrize("kind", ["discrete-gaussian", "skellam"])
def test_ties_draw_bits_until_they_are_decided(kind):
    """A uniform number that agrees with the acceptance probability in its first 1, 2 or 3 words."""
    noise = integer_noise(kind, 1e6)
    stairs = noise._stairs
    x = 777
    weight = int(stairs._weights[(x + noise.bound) >> stairs._shift])
    known = 128 - stairs._used
    low, high = noise._enclosed(x, 600)
    digits = stairs._scale * low // weight  # the acceptance probability in 600 bits, the last few not sure
    assert digits >> 10 == stairs._scale * high // weight >> 10
    for words in range(3):
        told = known + 64 * words
        below = digits >> (600 - told - 64) & (2**64 - 1)
        tied = [digits >> (600 - known - 64 * (i + 1)) & (2**64 - 1) for i in range(words)]
        for last, accepted in ((below - 2**20, True), (below + 2**20, False)):
            stream = _Words(*tied, last, 5)
            assert stairs._decided(x, weight, digits >> (600 - known), stream) is accepted
            assert stream.left == [5]


def test_noise_is_fresh_and_from_the_operating_system(monkeypatch):
    for noise in (DiscreteGaussian(1e8), Skellam(1e8)):
        asked = []
        with monkeypatch.context() as patch:
            real = bits.entropy
            patch.setattr(bits, "entropy", lambda length, asked=asked, real=real: asked.append(length) or real(length))
            drawn = []
            for _ in range(2):
                np.random.seed(3)  # noqa: NPY002
                torch.manual_seed(3)
                drawn.append(noise.sample(100))
        assert asked == [32, 32]
        assert (drawn[0] == drawn[1]).sum() < 5


def test_words_are_the_keystream_of_aes_ctr(monkeypatch):
    """NIST SP 800-38A has no zero counter; FIPS-197 appendix C.3 gives one block: here the second, of counter 1, by ECB."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes(range(32))
    monkeypatch.setattr(bits, "entropy", lambda length: key[:length])
    words = bits.Words()
    got = np.concatenate([words.take(3), words.take(0), words.take(40_000)]).tobytes()
    blocks = b"".join(i.to_bytes(16, "big") for i in range(20_002))
    assert got == Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks)[: len(got)]


@pytest.mark.parametrize("count", [0, 1, 5, staircase.BLOCK, staircase.BLOCK + 1])
def test_shapes_and_bounds(count):
    for noise in (DiscreteGaussian(0.25), DiscreteGaussian(1e18), Skellam(0.25), Skellam(1e18)):
        x = noise.sample(count)
        assert x.shape == (count,)
        assert x.dtype == np.int64
        assert np.all((x >= -noise.bound) & (x < noise.bound))


@pytest.mark.parametrize("variance", [0.25, 1.0, 1e3, 1e10, 1e18])
def test_the_bound_is_where_two_to_minus_100_begins(variance):
    noise = DiscreteGaussian(variance)
    with mp.workprec(200):
        if variance <= 1e3:
            heights = [mpmath.exp(-(mpf(x) ** 2) / (2 * mpf(variance))) for x in range(2 * noise.bound)]
            outside = mpmath.fsum(heights[noise.bound :]) / mpmath.fsum(heights)
        else:
            outside = mpmath.erfc(noise.bound / mpmath.sqrt(2 * mpf(variance)))
        assert outside < mpf(2) ** -100
    assert noise.bound <= 12 * math.sqrt(variance) + 1


@pytest.mark.parametrize("variance", [0.0, 0.249, -1.0, 1.01e18, math.nan, math.inf])
@pytest.mark.parametrize("kind", ["discrete-gaussian", "skellam"])
def test_variances_that_cannot_be_sampled_are_refused(kind, variance):
    with pytest.raises(PppmlError, match="cannot be sampled exactly"):
        integer_noise(kind, variance)


def test_unknown_noise_is_refused():
    assert isinstance(integer_noise("discrete-gaussian", 4.0), DiscreteGaussian)
    with pytest.raises(PppmlError, match="gaussain"):
        integer_noise("gaussain", 4.0)
