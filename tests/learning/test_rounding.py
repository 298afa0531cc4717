"""The variance of rounding, against the real encoder and decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from pppml_core.builtin.none import NoPrivacyPlan
from pppml_core.federation.pipeline import Pipeline, contribution_layout
from pppml_core.interfaces.attack import Defence, Images, Knowledge, Sight
from pppml_core.learning.rounding import error_variance, rounding_variance
from pppml_core.testing.attacked import Attacked
from pppml_core.values import FixedPoint, Layout, TensorSpec

COORDINATES, LIMIT, BITS = 100_000, 0.5, 12
#: of a test, on both sides together.
FALSE_ALARM = 1e-9


def about(defence: Defence, *, adaptive: bool = True) -> Knowledge:
    nothing = Images(np.zeros((0, 1, 4, 4), np.float32), np.zeros(0, np.int64))
    return Attacked(torch.nn.Identity(), 2).knowledge(nothing, defence=defence, adaptive=adaptive)


def errors(values: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Error of the mean of ``values`` ``(sites, coordinates)`` that went through the encoding and an integer sum; and the step."""
    point, generator = FixedPoint(Layout((TensorSpec("w", (values.shape[1],)),)), (LIMIT,), BITS), np.random.default_rng(seed)
    integers = np.zeros(values.shape[1], np.int64)
    for one in values:
        encoded, saturated = point.encode(one, generator)
        assert not saturated
        integers += encoded
    return point.decode(integers) / len(values) - values.mean(axis=0), point.step(0)


def room(step: float, sites: int, places: bool) -> float:
    """How far a mean square over all coordinates may be from the variance.

    Of one site the mean square of the error over a uniform place ``f`` has the variance ``E f (1 - f) (1 - 3 f (1 - f)) - 1 / 36`` times
    ``step^4``: 1/15 - 1/36. A mean over n sites has the fourth moment ``m4 / n^3 + 3 (n - 1) v^2 / n^3``. By the central limit theorem:
    100,000 terms, each at most ``step^2``.
    """
    fourth, variance = (1 / 15, 1 / 6) if places else (1 / 16, 1 / 4)
    spread = fourth / sites**3 + 3 * (sites - 1) * variance**2 / sites**3 - (variance / sites) ** 2
    return float(norm.isf(FALSE_ALARM / 2) * np.sqrt(max(spread, 0.0) / COORDINATES) * step**2)


@pytest.mark.parametrize("sites", [1, 2, 7])
def test_of_updates_that_span_many_steps(sites):
    """A sixth of the squared step by the number of sites; a third, a twelfth and a quarter are far outside."""
    values = np.random.default_rng(sites).uniform(-0.9 * LIMIT, 0.9 * LIMIT, (sites, COORDINATES))
    found, step = errors(values, seed=10 + sites)
    expected = rounding_variance(step, sites)
    assert np.square(found).mean() == pytest.approx(expected, abs=room(step, sites, places=True))
    assert room(step, sites, places=True) < 0.05 * expected
    # Unbiased.
    assert abs(found.mean()) < norm.isf(FALSE_ALARM / 2) * np.sqrt(expected / COORDINATES)


@pytest.mark.parametrize("sites", [1, 7])
def test_the_bound_is_reached_in_the_middle_between_two_points(sites):
    """All coordinates share one value, as dark pixels do."""
    step = LIMIT / (2 ** (BITS - 1) - 1)
    found, _ = errors(np.full((sites, COORDINATES), 10.5 * step), seed=sites)
    assert np.square(found).mean() == pytest.approx(
        rounding_variance(step, sites, at_most=True), abs=1e-9 * step**2 + room(step, sites, False)
    )


def test_an_update_smaller_than_a_step_meets_less():
    """``|x| g - x^2``."""
    step = LIMIT / (2 ** (BITS - 1) - 1)
    found, _ = errors(np.full((1, COORDINATES), 0.01 * step), seed=3)
    # Bernoulli: 1,000 expected of 100,000; 6.2 deviations of 31.5.
    assert np.square(found).mean() == pytest.approx(0.0099 * step**2, rel=0.2)
    assert np.square(found).mean() < rounding_variance(step)


def test_through_the_whole_encoding_of_a_round():
    """Weights and all: what a site sends, summed and decoded as a mean. Every site counts fully, as in a held round."""
    spec = TensorSpec("w", (COORDINATES,))
    layout = contribution_layout((spec,), metrics=False)
    pipeline = Pipeline(layout, (LIMIT,), BITS, 1, NoPrivacyPlan())
    values = np.random.default_rng(1).uniform(-0.4, 0.4, (3, COORDINATES)).astype(np.float32)
    total = np.zeros(layout.length, np.int64)
    for number, one in enumerate(values):
        total += pipeline.encode({"w": one}, 1, {}, np.random.default_rng(100 + number))[0]
    mean, _, _ = pipeline.decode(total)
    step = pipeline.fixed_point.step(0)
    sight = Sight(("a", "b", "c"), mean, 3.0)
    found = np.square(mean["w"] - values.astype(np.float64).mean(axis=0)).mean()
    assert found == pytest.approx(error_variance(sight, about(Defence(grid={"w": step})), "w"), abs=room(step, 3, places=True))


def test_noise_comes_on_top_and_only_what_is_told_counts():
    sight, defence = Sight(("a", "b"), {}, 2.0), Defence(noise=0.2, grid={"w": 0.6})
    assert error_variance(sight, about(defence), "w") == pytest.approx(0.01 + 0.03)
    assert error_variance(sight, about(defence), "w", at_most=True) == pytest.approx(0.01 + 0.045)
    assert error_variance(sight, about(defence), "other") == pytest.approx(0.01)
    assert error_variance(sight, about(defence, adaptive=False), "w") == 0.0
