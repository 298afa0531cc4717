"""The audit of a mechanism with known noise: broken ones are flagged, correct ones never fail.

Each test fails correct code with probability below 1e-6. The rates behind the limits are of 30,000 simulated replays of the same noise
without the audit's replay (20,000 canaries, 200 guesses; the claim is exceeded from 159 right guesses on): with half of the noise 166 +- 5
guesses are right, 0.924 of the audits are flagged, and further replays fail to confirm 4e-5 of these; with all of it 137 +- 7 guesses are
right, and 3e-4 of the audits are flagged, of which at most 1e-4 can be confirmed.
"""

import numpy as np
import pytest
from scipy.stats import binom, kstest, norm

from pppml_core.errors import ConfigError
from pppml_dp_audit.audit import audit_plan, coins, right_guesses
from pppml_dp_audit.replay import Schedule, scores


@pytest.mark.parametrize("placement", ["local", "distributed", "server"])
def test_half_noise_is_flagged_in_nine_of_ten_runs(gaussian, placement):
    found = [audit_plan(gaussian(0.5, placement=placement), confirmations=1) for _ in range(60)]
    assert (found[0].canaries, found[0].guesses) == (20_000, 200)
    # The rate is 0.924; even at 0.9 there are fewer than that with probability 1e-6.
    assert sum(r.flagged for r in found) >= binom.ppf(1e-6, 60, 0.9)


@pytest.mark.parametrize("placement", ["local", "distributed", "server"])
def test_half_noise_is_a_violation_when_confirmed(gaussian, placement):
    found = [audit_plan(gaussian(0.5, placement=placement)) for _ in range(10)]
    flagged = [r for r in found if r.flagged]
    # None is flagged with probability 0.08^10; two are not confirmed with probability 45 (4e-5)^2 = 7e-8.
    assert flagged
    assert sum(r.violation for r in flagged) >= len(flagged) - 1


@pytest.mark.parametrize("broken", [{"factor": 0.0}, {"factor": 1 / 64}, {"clips": False}, {"scale": 64.0}], ids=str)
@pytest.mark.parametrize("placement", ["local", "distributed", "server"])
def test_no_noise_noise_for_a_mean_and_no_clip_always_fail(gaussian, placement, broken):
    for _ in range(3):
        found = audit_plan(gaussian(placement=placement, **broken))
        assert found.right == found.guesses
        assert found.epsilon_lower == found.epsilon_ceiling > 3
        assert found.violation
        assert found.p_value <= 1e-4


def test_a_hundred_correct_runs_give_no_failure(gaussian):
    found = [audit_plan(gaussian(placement="local")) for _ in range(100)]
    assert not any(r.violation for r in found)
    # At 95 % at most 5 of 100 may be flagged by chance; in fact about one in a thousand.
    assert sum(r.flagged for r in found) <= binom.isf(1e-6, 100, 0.05)
    assert np.mean([r.right for r in found]) > 120, "the guesses are better than coin flips, so the audit does look"


def test_a_flag_alone_is_no_violation(gaussian):
    """A claim that is a little too low: often flagged by nothing, never failed without its own evidence."""
    found = [audit_plan(gaussian(0.8, placement="local"), confirmations=1) for _ in range(20)]
    assert not any(r.violation for r in found), "one further replay with delta 1e-5 cannot refute at 1e-4"
    assert all((r.p_value is not None) == r.flagged for r in found)


def test_shares_of_noise_add_up_and_missing_ones_show(gaussian):
    plan = gaussian(honest=4)
    assert not audit_plan(plan, Schedule(shares=(4,))).violation, "happens by chance with probability 3e-4 times 1e-4"
    # One audit finds half of the noise with probability 0.924: none of eight does with probability 1e-9.
    found = (audit_plan(plan, Schedule(shares=(1,))) for _ in range(8))
    assert any(r.violation for r in found), "one share where four are claimed is half the noise"


@pytest.mark.parametrize("placement", ["local", "distributed", "server"])
def test_the_statistic_is_canaries_plus_noise_of_the_stated_size(gaussian, placement):
    rates = (0.1, 0.01)
    plan = gaussian(placement=placement, honest=3 if placement == "distributed" else 1, rates=rates)
    included = coins(20_000)
    shares = (3, 3) if placement == "distributed" else (1, 1)
    noise = scores(plan, included, Schedule(shares, rates)) - 2.0 * included
    sd = np.sqrt(2) * plan.multiplier
    assert kstest(noise / sd, "norm").pvalue > 1e-7
    assert abs(np.corrcoef(noise, included)[0, 1]) < norm.isf(1e-7) / np.sqrt(20_000)


def test_rounds_without_a_sum_release_nothing(gaussian):
    included = coins(500)
    assert (scores(gaussian(), included, Schedule((0, 0), (1.0, 1.0))) == 0).all()


def test_every_gradient_of_a_round_counts(gaussian):
    included = coins(500)
    for placement in ("local", "distributed"):
        plan = gaussian(0.0, placement=placement)
        assert scores(plan, included, Schedule(gradients=3)) == pytest.approx(3.0 * included, abs=2e-3)


def test_sampled_canaries_are_in_some_steps(gaussian):
    included = np.ones(2000, bool)
    found = scores(gaussian(0.0, rate=0.25), included, Schedule((1,) * 40, (1.0,) * 40))
    assert kstest(np.rint(found) + np.random.default_rng().random(2000) - 0.5, lambda x: _spread_binomial(x)).pvalue > 1e-7


def _spread_binomial(x):
    """Distribution of Bin(40, 1/4) plus a uniform number in [-1/2, 1/2]."""
    low = np.floor(np.asarray(x) + 0.5)
    return binom.cdf(low - 1, 40, 0.25) + binom.pmf(low, 40, 0.25) * (np.asarray(x) + 0.5 - low)


def test_high_scores_are_guessed_in_and_low_ones_out():
    included = np.array([True, True, False, False, True, False])
    score = np.array([9.0, 8.0, -9.0, 7.0, -8.0, 0.0])
    assert right_guesses(included, score, 2) == 2
    assert right_guesses(included, score, 4) == 3
    assert right_guesses(included, score, 3) == 3
    assert right_guesses(included, score, 6) == 4


def test_coins_are_fair_and_fresh():
    a, b = coins(20_001), coins(20_001)
    assert a.dtype == bool
    assert len(a) == 20_001
    for one in (a, a == b):
        assert binom.cdf(one.sum(), 20_001, 0.5) > 1e-7
        assert binom.sf(one.sum(), 20_001, 0.5) > 1e-7


def test_without_a_claim_or_without_canaries_it_refuses(gaussian):
    with pytest.raises(ConfigError, match="no finite epsilon"):
        audit_plan(gaussian(claim=float("inf")))
    with pytest.raises(ConfigError, match="no artificial examples"):
        audit_plan(gaussian(unit="site"))


def test_a_large_claim_gets_more_guesses(gaussian):
    found = audit_plan(gaussian(0.0, claim=6.0, placement="local"))
    assert found.guesses > 1000
    assert found.violation
    assert found.epsilon_lower > 6
