"""Integer sensitivity: what one example moves in the integers, for any vector and any rounding bits, against what the grid says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import ConfigError
from pppml_core.federation.pipeline import Pipeline, contribution_layout
from pppml_core.values import FixedPoint, Layout, TensorSpec
from pppml_dp.config import DpSgdConfig
from pppml_dp.dp_sgd import make_sgd_plan
from pppml_dp.grid import BITS, LEAST_SHARE, LEVELS, Grid, make_grid, share_variance, variance_for


class Script:
    """A generator whose rounding bits a test has written."""

    def __init__(self, bits):
        self.bits = np.asarray(bits, np.float64)

    def random(self, out):
        out[:] = self.bits


def integers(grid, clip, vector, generator):
    """As a site makes them: one range for all coordinates."""
    layout = Layout((TensorSpec("w", (grid.coordinates,)),))
    return FixedPoint(layout, (clip * grid.range_in_clips,), BITS).encode(vector, generator)[0].astype(np.float64)


@settings(max_examples=150, deadline=None)
@given(
    d=st.integers(1, 400),
    expected=st.sampled_from([0.5, 8.0, 1e3, 3e4]),
    clip=st.sampled_from([1e-6, 0.3, 1.0, 50.0]),
    others=st.floats(0, 1e5),
    sparse=st.floats(0.01, 1),
    seed=st.integers(0, 2**32),
)
def test_no_example_moves_the_integers_by_more_than_the_sensitivity(d, expected, clip, others, sparse, seed):
    """Neighbours get the same rounding bits: they do not depend on data, so each draw of them is a mechanism of its own."""
    grid = make_grid(d, expected, 1.0)
    draw = np.random.default_rng(seed)
    base = draw.normal(size=d) * others * clip / math.sqrt(d)  # the sum of all others, which may be beyond the range
    example = draw.normal(size=d) * (draw.random(d) < sparse)
    example *= clip / max(np.linalg.norm(example), 1e-300)
    bits = np.random.SeedSequence(seed)
    with_it, without = (integers(grid, clip, v, np.random.default_rng(bits)) for v in (base + example, base))
    moved = with_it - without
    assert np.linalg.norm(moved) <= grid.l2
    assert np.abs(moved).sum() <= grid.l1


@pytest.mark.parametrize("d", [1, 16, 900, 10_000])
def test_the_sensitivity_is_reached_by_an_adversary_who_knows_the_rounding_bits(d):
    """Without the term for rounding the bound would be wrong: this pair of neighbours moves each coordinate to the next integer as well."""
    grid = make_grid(d, 1.0, 1.0)
    bits = np.random.default_rng(1).random(d)
    step = 1 / grid.clip_steps
    least = math.floor(grid.clip_steps / math.sqrt(d) - 1)  # whole steps in each coordinate, and a little more
    base = (np.floor(-bits) - bits + 1 - 1e-6) * step
    example = np.full(d, (least + 1e-5) * step)
    assert np.linalg.norm(example) <= 1
    moved = integers(grid, 1.0, base + example, Script(bits)) - integers(grid, 1.0, base, Script(bits))
    assert np.linalg.norm(moved) == pytest.approx(math.sqrt(d) * (least + 1))
    assert np.linalg.norm(moved) > np.linalg.norm(example) / step + 0.99 * math.sqrt(d)
    assert np.linalg.norm(moved) <= grid.l2


@settings(deadline=None)
@given(d=st.integers(1, 10**8), expected=st.floats(0.01, 1e5), z=st.floats(0, 1e3))
def test_rounding_costs_at_most_a_hundredth_and_integers_fit(d, expected, z):
    try:
        grid = make_grid(d, expected, z)
    except ConfigError:
        assert 100 * math.sqrt(d) > LEVELS or z * math.ceil(100 * math.sqrt(d)) > 2**26
        return
    assert math.sqrt(d) <= 0.01 * grid.clip_steps
    assert grid.l2 <= 1.0111 * grid.clip_steps
    assert grid.clip_steps <= LEVELS
    assert 12 * math.sqrt(variance_for(grid, z)) < 2**31, "a sum of noise stays far from 31 bits"


def test_the_figure_of_the_protocol():
    """2.4 million weights, batches of 1,024: a clip of 155,000 steps, and the sum of ten sites fits 32 bits."""
    grid = make_grid(2_400_000, 1024, 0.7)
    assert 154_900 <= grid.clip_steps <= 156_000
    assert grid.range_in_clips > 50
    assert 10 * LEVELS + 14 * math.sqrt(variance_for(grid, 0.7)) < 2**31


@settings(deadline=None)
@given(z=st.floats(0.01, 100), d=st.integers(1, 10**6), honest=st.integers(1, 200))
def test_honest_shares_are_as_much_as_is_charged(z, d, honest):
    grid = make_grid(d, 1.0, z)
    total = variance_for(grid, z)
    share = share_variance(total, honest)
    assert share >= LEAST_SHARE
    charged = math.sqrt(honest * share - 16) / grid.l2
    assert charged >= z * (1 - 1e-12)


@pytest.mark.parametrize("bad", [{"coordinates": 10**10, "noise_multiplier": 1.0}, {"coordinates": 10_000, "noise_multiplier": 1e5}])
def test_what_does_not_fit_is_refused(bad):
    with pytest.raises(ConfigError, match="does not fit integers of 31 bits"):
        make_grid(expected=1.0, **bad)


@pytest.mark.parametrize("placement", ["distributed", "server"])
def test_sums_may_saturate_before_the_noise_and_never_after(placement, setting):
    """Values at the end of the range keep their noise on both sides: cutting it would show where the sum is."""
    plan = make_sgd_plan(DpSgdConfig(noise_multiplier=1.0, placement=placement), setting(coordinates=4000))
    grid = plan.encoding(1)
    layout = contribution_layout((TensorSpec("w", (4000,)),), metrics=False)
    pipeline = Pipeline(layout, (grid.range,), grid.bits, 1, plan)
    huge = np.full(4000, 10 * grid.range, np.float32)
    values, saturated = pipeline.encode({"w": huge}, 1, {}, np.random.default_rng(0))
    assert saturated == 4000
    values = pipeline.released(values.astype(np.int64))[:4000]
    # A median of 4,000 fair signs is off by 8 percent with probability below 1e-20.
    assert 0.42 < np.mean(values > LEVELS) < 0.58
    spread = np.std(values - LEVELS, dtype=np.float64)
    assert spread == pytest.approx(math.sqrt(plan.statement.details["share_variance"]), rel=0.1)
    assert np.abs(values).max() <= LEVELS + plan.noise_bound
    assert pipeline.spec.bound >= LEVELS + (plan.noise_bound if placement == "distributed" else 0)


def test_a_grid_is_plain_numbers():
    assert Grid(1000, 100).l2 == pytest.approx(1011)
    assert Grid(1000, 100).l1 == pytest.approx(10110)
    assert Grid(LEVELS, 1).range_in_clips == 1.0
