"""Noise by itself: how much there is, of what distribution, and that it is new each time."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.testing.chances import cosine, cosine_limit, distance_limit, normal_distance, variance_interval
from pppml_core.testing.privacy_bench import PrivacyBench, Vector, alike


class PrivacyNoise(PrivacyBench):
    """The part of :class:`~pppml_core.testing.PrivacySuite` about noise."""

    def distance(self, noise: Vector, variance: float) -> float:
        """Kolmogorov-Smirnov distance of integer noise to the stated distribution: rounded normal numbers, unless overridden."""
        return normal_distance(noise, variance)

    def shares_known_to_be_there(self, plan: PrivacyPlan) -> int:
        """Shares that are in every sum which the plan lets be opened, and that no colluder tells."""
        return plan.min_survivors - self.colluders if plan.placement == "distributed" else 1

    def test_the_noise_has_the_stated_variance(self) -> None:
        """If this fails: noise is computed and not used, or of another size than the statement says (chi-square)."""
        noise = np.concatenate(self.noises(8))
        ratio = float(np.mean(noise**2)) / self.stated(self.plan()).share_variance
        low, high = variance_interval(noise.size)
        assert low < ratio < high, f"the variance of what is added is {ratio:.3g} of the stated one"

    def test_the_noise_has_the_stated_distribution(self) -> None:
        """If this fails: the noise has the right variance but another shape, or its mean is not zero (Kolmogorov-Smirnov)."""
        noise = np.concatenate(self.noises(8))
        distance = self.distance(noise, self.stated(self.plan()).share_variance)
        assert distance < distance_limit(noise.size), f"distance {distance:.3g} to the stated distribution"

    def test_the_noise_is_enough_for_its_charge(self) -> None:
        """If this fails: the noise in the smallest sum that may be opened is less than what the ledger is charged for.

        It must be ``noise_multiplier`` times the sensitivity of a sum, not of a mean, with the shares of ``min_survivors`` sites alone and
        without those that colluders tell.
        """
        plan = self.noised()
        charge = plan.charge(1)
        assert charge is not None, "a claim without a charge"
        noise, shares = np.concatenate(self.noises(8)), self.shares_known_to_be_there(plan)
        assert shares >= 1, f"{plan.min_survivors} sites in a sum, {self.colluders} of which may tell their noise"
        needed = (self.charged(charge).noise_multiplier * self.stated(plan).sensitivity) ** 2
        ratio = shares * float(np.mean(noise**2)) / needed
        assert ratio > variance_interval(noise.size)[0], f"{shares} shares have {ratio:.3g} of the variance that is charged"

    def test_the_noise_is_new_each_time(self) -> None:
        """If this fails: noise of two steps, sites or runs is the same or related, or comes from the run's seed.

        It comes from ``pppml_core.randomness.entropy``; numpy's and torch's generators are seeded by the run, and known to everybody.
        """
        several = [*self.noises(3), *self.noises(1)]
        length = several[0].size
        pairs = [*itertools.combinations(several, 2), *((noise[1:], noise[:-1]) for noise in several)]
        for one, other in pairs:
            found = cosine(one, other)
            assert abs(found) < cosine_limit(length - 1, len(pairs)), f"two noises have a correlation of {found:.3g}"

    def test_the_noise_stays_within_its_bound(self) -> None:
        """If this fails: ``noise_bound`` is too small, and a sum could overflow; or dtype, shape or the array handed in are changed."""
        if self.noise_in_rule:
            pytest.skip("the rule adds the noise to gradients")
        plan = self.plan()
        for dtype in (np.int32, np.int64):
            values: npt.NDArray[np.integer] = np.arange(-500, 500).astype(dtype)
            held = values.copy()
            noised = plan.noise(values)
            assert noised.dtype == dtype
            assert noised.shape == values.shape
            assert np.array_equal(values, held), "the values were changed in place"
            assert int(np.abs(noised.astype(np.int64) - values.astype(np.int64)).max()) <= plan.noise_bound

    def test_the_noise_does_not_depend_on_the_values(self) -> None:
        """If this fails: noise is multiplied with what it hides, left out at zeros, or told by the values."""
        if self.noise_in_rule:
            pytest.skip("the rule adds the noise to gradients")
        plan = self.noised()
        variance = self.stated(plan).share_variance
        low, high = variance_interval(1 << 14, 3)
        for number in (0, 1, -100_000):
            values = np.full(1 << 14, number, np.int64)
            noise = (plan.noise(values) - values).astype(np.float64)
            ratio = float(np.mean(noise**2)) / variance
            assert low < ratio < high, f"at {number} the variance is {ratio:.3g} of the stated one"

    def test_two_plans_are_not_the_same_stream(self) -> None:
        """If this fails: two sites, or two runs, plan for the same numbers and then draw the same noise."""
        one, other = (alike(lambda: self.noise_of(self.noised())) for _ in range(2))
        assert abs(cosine(one, other)) < cosine_limit(one.size)
