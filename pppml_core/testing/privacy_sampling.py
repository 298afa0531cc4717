"""The sampler against exact probabilities: accountants take it at its word."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.testing.chances import as_often, binomial_distance, distance_limit
from pppml_core.testing.privacy_bench import PrivacyBench, alike, claims

#: at a rate of 0.1, so many that an example which is drawn twice as often, or with its neighbour, is not overlooked once in a million.
EXAMPLES, DRAWS = 200, 3000


class PrivacySampling(PrivacyBench):
    """The part of :class:`~pppml_core.testing.PrivacySuite` about batches."""

    def sampling(self) -> tuple[PrivacyPlan, float]:
        """The usual plan and its rate; skips where no batch is drawn."""
        plan = self.plan()
        if plan.sample_rate is None:
            pytest.skip("it draws no batches")
        return plan, plan.sample_rate

    def many(self, plan: PrivacyPlan) -> npt.NDArray[np.bool_]:
        """Which examples are in each of ``DRAWS`` batches, drawn once for all tests: ``(DRAWS, EXAMPLES)``."""
        inside: npt.NDArray[np.bool_] = self.once("drawn", lambda: self.drawn(plan, DRAWS))
        return inside

    def drawn(self, plan: PrivacyPlan, draws: int) -> npt.NDArray[np.bool_]:
        """Which examples are in each batch: ``(draws, EXAMPLES)``. Each example is a patient of its own."""
        groups = np.arange(EXAMPLES)
        inside = np.zeros((draws, EXAMPLES), bool)
        for row in inside:
            indices = plan.sample(groups).indices
            assert len(set(indices.tolist())) == len(indices), "an example is in a batch twice"
            row[indices] = True
        return inside

    def test_each_example_is_drawn_with_the_stated_probability(self) -> None:
        """If this fails: some examples are drawn more often than ``sample_rate`` says, or all are."""
        plan, rate = self.sampling()
        inside = self.many(plan)
        for index, seen in enumerate(inside.sum(axis=0).tolist()):
            assert as_often(seen, DRAWS, rate, EXAMPLES + 1), f"example {index} was in {seen} of {DRAWS} batches, at a rate of {rate:.4g}"
        assert as_often(int(inside.sum()), inside.size, rate, EXAMPLES + 1), f"{inside.mean():.4g} of all examples, at a rate of {rate:.4g}"

    def test_the_size_of_a_batch_is_binomial(self) -> None:
        """If this fails: batches have a fixed size, or one that varies in another way. Shuffled batches are no Poisson samples."""
        plan, rate = self.sampling()
        sizes = self.many(plan).sum(axis=1)
        distance = binomial_distance(sizes, EXAMPLES, rate)
        assert distance < distance_limit(DRAWS), f"distance {distance:.3g} to the binomial distribution"

    def test_examples_and_draws_are_independent(self) -> None:
        """If this fails: what was drawn tells what is drawn next (an example waits for its turn), or examples are drawn together."""
        plan, rate = self.sampling()
        inside = self.many(plan)
        again = int((inside[0::2] & inside[1::2]).sum())
        beside = int((inside[:, 0::2] & inside[:, 1::2]).sum())
        for name, seen in (("an example twice in a row", again), ("two neighbours together", beside)):
            assert as_often(seen, inside.size // 2, rate**2, 2), f"{name}: {seen} of {inside.size // 2} times, at a rate of {rate:.4g}"

    def test_batches_do_not_come_from_the_seed(self) -> None:
        """If this fails: the sampler draws from generators that the run seeds, or a plan begins with the same batches each time.

        An accountant relies on batches that nobody can foresee: they come from ``pppml_core.randomness.entropy``.
        """
        plan, rate = self.sampling()
        if rate == 1:
            pytest.skip("every batch is all examples")
        first, again = (alike(lambda: self.drawn(plan, 20)) for _ in range(2))
        assert not np.array_equal(first, again), "the same seeds gave the same batches"
        other = alike(lambda: self.drawn(self.plan(), 20))
        assert not np.array_equal(first, other), "two plans draw the same batches"

    def test_one_patient_has_one_clip(self) -> None:
        """If this fails: ``shares`` are no numbers in (0, 1], or with unit patient those of one patient's images exceed 1 together."""
        plan, rate = self.sampling()
        groups = np.repeat(np.arange(40), 5)
        patients, trials = 0, 200
        for _ in range(trials):
            sample = plan.sample(groups)
            assert sample.indices.dtype == np.int64
            assert sample.indices.shape == sample.shares.shape
            assert ((sample.shares > 0) & (sample.shares <= 1)).all()
            if plan.statement.unit == "patient":
                assert (np.bincount(groups[sample.indices], sample.shares) <= 1 + 1e-9).all(), "a patient has more than one clip"
                patients += len(set(groups[sample.indices].tolist()))
        if plan.statement.unit == "patient":
            assert as_often(patients, 40 * trials, rate), f"{patients / trials:.3g} of 40 patients a batch, at a rate of {rate:.4g}"

    def test_the_charge_is_for_the_rate_that_is_drawn(self) -> None:
        """If this fails: the ledger is charged for a smaller sampling rate than the plan draws with, or for one where nothing is drawn."""
        plan = self.plan()
        charge = plan.charge(1)
        if charge is None or not claims(plan.statement):
            pytest.skip("it claims nothing")
        assert self.charged(charge).sample_rate >= (1.0 if plan.sample_rate is None else plan.sample_rate) * (1 - 1e-9)
