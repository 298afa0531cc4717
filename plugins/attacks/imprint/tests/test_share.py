"""How much of a secure sum a planted layer gives away: as much as the bins say, through fixed point and four sites.

The oracle is the exact distribution of the number of images that are alone in their bin, from its generating function.
"""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pppml_imprint.attack import Imprint
from pppml_imprint.bins import bin_probabilities, expected_share, query_of, sampled_share, thresholds_of
from pppml_imprint.config import ImprintConfig

SITES = ("a", "b", "c", "d")
#: of each side of each interval below.
FALSE_ALARMS = 1e-8


def alone(probabilities, n):
    """P(s of n images are alone in their bin), s = 0 to n: n! [z^n u^s] of the product over bins of e^(pz) - pz + upz."""
    table = np.zeros((n + 1, n + 1))
    table[0, 0] = 1.0
    lost = max(0.0, 1.0 - float(np.sum(probabilities)))
    for p, counts in [(lost, False), *((float(p), True) for p in probabilities)]:
        new = np.zeros_like(table)
        for c in range(n + 1):
            term = p**c / math.factorial(c)
            if term == 0.0:
                break
            shifted = table[: n + 1 - c] * term
            if c == 1 and counts:
                new[c:, 1:] += shifted[:, :-1]
            else:
                new[c:] += shifted
        table = new
    return table[n] * math.factorial(n)


def test_the_expected_share_is_the_mean_of_the_exact_distribution():
    for bins, n in ((7, 5), (64, 16)):
        p = np.random.default_rng(bins).dirichlet(np.ones(bins)) * 0.97
        chances = alone(p, n)
        assert chances.sum() == pytest.approx(1, abs=1e-9)
        assert chances @ np.arange(n + 1) == pytest.approx(n * expected_share(p, n), rel=1e-9)
    assert expected_share(np.full(64, 1 / 64), 8) == pytest.approx((1 - 1 / 64) ** 7)
    # Facts about equal bins: 90 % of 8 in 64, 78 % of 64 in 256.
    assert expected_share(np.full(64, 1 / 64), 8) == pytest.approx(0.90, abs=0.005)
    assert expected_share(np.full(256, 1 / 256), 64) == pytest.approx(0.78, abs=0.005)


def test_the_share_that_a_sample_tells_is_that_of_all_its_parts():
    """By counting: every choice of four of nine images, in three bins and below all."""
    values, thresholds = np.array([0.1, 0.2, 0.3, 1.1, 1.2, 2.5, 2.6, 2.7, -5.0]), np.array([0.0, 1.0, 2.0])
    bins = np.searchsorted(thresholds, values) - 1
    alone_in = [sum(b >= 0 and chosen.count(b) == 1 for b in chosen) / 4 for chosen in combinations(bins.tolist(), 4)]
    assert sampled_share(values, thresholds, 4) == pytest.approx(np.mean(alone_in))
    # Few images a bin: what is expected of their counts is far too little.
    truth, rng = np.full(128, 1 / 128), np.random.default_rng(0)
    samples = rng.integers(0, 128, (300, 200)) + 0.5
    made = [sampled_share(s, np.arange(128.0), 32) for s in samples]
    assert np.mean(made) == pytest.approx(expected_share(truth, 32), abs=6 * np.std(made) / np.sqrt(300))
    assert np.mean([expected_share(bin_probabilities(s, np.arange(128.0)), 32) for s in samples]) < expected_share(truth, 32) - 0.05
    assert sampled_share(samples[0][:3], np.arange(128.0), 32) == expected_share(bin_probabilities(samples[0][:3], np.arange(128.0)), 32)


def test_bins(draw):
    images = draw(500, np.random.default_rng(0))
    for kind in ("empirical", "normal"):
        query = query_of(images, "brightness", 0)
        values = images.reshape(500, -1).astype(np.float64) @ query
        assert values.std() == pytest.approx(1)
        thresholds = thresholds_of(values, 50, kind)
        assert (np.diff(thresholds) > 0).all()
        p = bin_probabilities(values, thresholds)
        assert p.sum() == pytest.approx(1)
        assert p.shape == (50,)
        if kind == "empirical":
            assert abs(p - 1 / 50).max() <= 1 / 500 + 1e-12
        # By hand: an image is in bin i between its two thresholds.
        assert p[3] == ((values > thresholds[3]) & (values <= thresholds[4])).mean()
    # All principal components alike: the query's variance is shared by those of any half, whatever their size.
    centred = images.reshape(500, -1).astype(np.float64) - images.reshape(500, -1).mean(axis=0)
    _, spreads, components = np.linalg.svd(centred, full_matrices=False)
    shares = np.square(components[:10] @ query_of(images, "whitened", 0) * spreads[:10]) / 500
    assert spreads[0] > 3 * spreads[9]
    assert shares.max() < 0.5
    assert abs(query_of(images, "random", 0).mean()) < 1e-12
    # Images that are all equally bright are sorted by a random direction.
    flat = images - images.mean(axis=(1, 2, 3), keepdims=True)
    assert len(np.unique(query_of(flat, "brightness", 0))) > 100
    assert (query_of(flat, "brightness", 0) == query_of(flat, "random", 0)).all()


@pytest.mark.parametrize(
    ("n", "rows", "bits", "batches", "settings"),
    [
        (8, 64, 16, 16, {"query": "brightness", "bins": "empirical"}),
        (16, 64, 24, 10, {"query": "brightness"}),
        (32, 128, 20, 6, {"query": "random", "bins": "empirical"}),
        (64, 256, 16, 4, {}),
        (64, 256, 20, 4, {}),
        (64, 256, 24, 4, {}),
    ],
)
def test_recovered_through_a_sum_of_four_sites(world, draw, fixed_point_mean, n, rows, bits, batches, settings):
    """Recovered: mean squared error below 1e-3. The interval has 1e-8 on each side, by the exact distribution for the actual bins."""
    rng = np.random.default_rng([n, rows, bits])
    here = world(rows=rows, batch=n // 4)
    attack = Imprint(ImprintConfig(**settings))
    weights = attack.plant(here.weights(), here.ctx)
    query, thresholds = weights["front.weight"][0].astype(np.float64), -weights["front.bias"].astype(np.float64)
    population = draw(20_000, rng).reshape(20_000, -1).astype(np.float64) @ query
    p = bin_probabilities(population, thresholds)
    chances, recovered, single = np.ones(1), 0, 0
    for _ in range(batches):
        images = draw(n, rng)
        updates = [here.update(weights, part) for part in np.split(images, 4)]
        mean, grid = fixed_point_mean(updates, bits, rng)
        ctx = replace(here.ctx, defence=replace(here.defence, grid=grid))
        view = here.view(weights, mean, SITES)
        assert attack.misfit(view, ctx) == ""
        answer = attack.run(view, None, ctx)
        found = answer.guess["images"]
        assert len(found) <= n
        # What it says itself, of 400 public images; more where the thresholds were counted from these.
        assert -0.08 < answer.effort["expected_share"] - expected_share(p, n) < (0.12 if attack.config.bins == "empirical" else 0.08)
        errors = np.square(found[:, None] - images[None]).mean(axis=(2, 3, 4)).min(axis=0)
        recovered += int((errors < 1e-3).sum())
        bins = np.searchsorted(thresholds, images.reshape(n, -1).astype(np.float64) @ query)
        single += int((np.bincount(bins) == 1).sum())
        chances = np.convolve(chances, alone(p, n))
    tail = np.cumsum(chances)
    low, high = int(np.searchsorted(tail, FALSE_ALARMS)), int(np.searchsorted(tail, 1 - FALSE_ALARMS))
    expected = expected_share(p, n) * n * batches
    print(n, rows, bits, "recovered", recovered, "alone", single, "expected", round(expected, 1), "of", n * batches, (low, high))
    assert low <= recovered <= high
    assert low < expected < high
    # The bins' own count: nearly all that are alone are read, and hardly any that are not.
    assert 0.93 * single <= recovered <= single + 0.05 * n * batches
