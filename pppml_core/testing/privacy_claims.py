"""What is claimed and charged: complete, the same for every party, for the whole run, and right where there is a formula."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.testing.exact_epsilon import gaussian_epsilon, sampled_epsilon
from pppml_core.testing.privacy_bench import SITES, PrivacyBench, claims

#: relative; epsilon is computed by searches and on grids.
CLOSE = 1e-3
Charges = list[Mapping[str, Any]]


class PrivacyClaims(PrivacyBench):
    """The part of :class:`~pppml_core.testing.PrivacySuite` about epsilon."""

    def exact(self, charges: Sequence[Mapping[str, Any]], delta: float) -> float | None:
        """Epsilon of charges by an independent computation; None: there is none. Override it for other noise than Gaussian.

        By default: exactly, for noise on everything and for one sampled sum.
        """
        paid = [self.charged(charge) for charge in charges]
        if all(p.sample_rate == 1 for p in paid):
            return gaussian_epsilon([p.noise_multiplier for p in paid for _ in range(p.count)], delta)
        if len(paid) == 1 and paid[0].count == 1:
            return sampled_epsilon(paid[0].noise_multiplier, paid[0].sample_rate, delta)
        return None

    def charges(self, plan: PrivacyPlan, rounds: int) -> Charges:
        """What a ledger holds after so many rounds, as the core writes it."""
        made: Charges = []
        for round in range(1, rounds + 1):
            charge = plan.charge(round)
            assert charge is not None, f"round {round} of a claim is not charged"
            made.append({"round": round, "site": "a", "contribution": "00", **json.loads(json.dumps(dict(charge)))})
        return made

    def spent(self, plan: PrivacyPlan, charges: Sequence[Mapping[str, Any]]) -> float:
        """Epsilon of these charges."""
        epsilon = plan.spent(charges)
        assert epsilon is not None, "charges have no epsilon"
        return epsilon

    # -- the statement ------------------------------------------------------------------------------------------------------------------

    def test_the_claim_names_everything(self) -> None:
        """If this fails: an epsilon means nothing without its unit, adjacency, delta, accountant, placement and adversary."""
        plan = self.plan()
        claim = plan.statement
        assert claim.mechanism
        json.dumps(claim.to_dict(), allow_nan=False)
        if not claims(claim):
            assert claim.epsilon is None or math.isinf(claim.epsilon)
            assert "no differential privacy" in claim.words()
            return
        assert claim.epsilon is not None
        assert claim.epsilon > 0
        assert claim.unit in ("example", "patient", "site")
        assert claim.adjacency
        assert claim.delta is not None
        assert 0 < claim.delta < 1
        assert claim.accountant
        assert claim.adversary.strip()
        assert claim.placement == plan.placement != "none"

    def test_all_parties_plan_the_same(self) -> None:
        """If this fails: two parties that plan for the same public numbers have another statement, grid or charge; nothing may be drawn."""
        one = self.plan()
        other = self.plan(examples=dict.fromkeys(reversed(SITES), 200), local_steps=dict.fromkeys(reversed(SITES), 1))
        for name in ("placement", "constant_weight", "admits_metrics", "noise_bound", "sample_rate", "min_survivors", "statement"):
            assert getattr(one, name) == getattr(other, name), name
        for round in (1, 2):
            assert one.encoding(round) == other.encoding(round)
            assert one.charge(round) == other.charge(round)

    def test_nothing_that_depends_on_data_enters_beside_the_noised_numbers(self) -> None:
        """If this fails: weights count a site's examples, and metrics and saturation tell of its images: none of them is noised."""
        plan = self.noised()
        assert plan.constant_weight is not None, "the weight of a site is its number of examples: set constant_weight"
        assert plan.constant_weight >= 1
        assert not plan.admits_metrics, "training metrics enter the sum without noise: set admits_metrics = False"

    # -- the budget ---------------------------------------------------------------------------------------------------------------------

    def test_the_claim_covers_the_whole_run(self) -> None:
        """If this fails: epsilon is of one round or one step. It is of all charges of the run together."""
        self.noised()
        for rounds, steps in ((3, 1), (12, 1), (3, 4)):
            plan = self.plan(rounds=rounds, local_steps=dict.fromkeys(SITES, steps))
            charges = self.charges(plan, rounds)
            spent, claimed = self.spent(plan, charges), plan.statement.epsilon
            assert claimed is not None
            text = f"{rounds} rounds of {steps} steps: {spent:.4g} is spent, and {claimed:.4g} claimed"
            assert spent <= claimed * (1 + 1e-9), text
            assert plan.affords(charges), "the planned rounds cannot be paid"

    def test_every_gradient_is_charged(self) -> None:
        """If this fails: a round of four noised gradients is charged as one."""
        self.noised()
        if not self.noise_in_rule:
            pytest.skip("the noise is added once a round, to what is released")
        counted = [
            self.charged(self.charges(self.plan(local_steps=dict.fromkeys(SITES, steps), gradient_calls=calls), 1)[0]).count
            for steps, calls in ((1, 1), (4, 1), (3, 2))
        ]
        assert all(c >= made for c, made in zip(counted, (1, 4, 6), strict=True)), f"{counted} gradients are charged, and 1, 4, 6 made"

    def test_a_ledger_beyond_the_claim_is_not_affordable(self) -> None:
        """If this fails: ``affords`` lets a run go on although its ledger exceeds the claim, or disagrees with ``spent``."""
        plan = self.noised()
        charges = self.charges(plan, 1) * 64
        claimed = plan.statement.epsilon
        assert claimed is not None
        for rounds in (0, 1, 3, 4, 10, 64):
            within = self.spent(plan, charges[:rounds]) <= claimed * (1 + 1e-9)
            assert plan.affords(charges[:rounds]) == within, f"{rounds} charges"
        assert not plan.affords(charges), "64 rounds are within the claim of three"

    def test_spent_does_not_depend_on_order(self) -> None:
        """If this fails: the same ledger in another order has another epsilon."""
        plan = self.noised()
        other = self.plan(self.noisier, batch_size=40)
        mixed = [*self.charges(plan, 2), *self.charges(other, 3)]
        found = [self.spent(plan, charges) for charges in (mixed, mixed[::-1], mixed[2:] + mixed[:2])]
        assert max(found) - min(found) <= 1e-9 * max(found), found
        assert self.spent(plan, mixed) > max(self.spent(plan, mixed[:2]), self.spent(plan, mixed[2:])), "other charges are not counted"

    def test_a_damaged_entry_counts_in_full(self) -> None:
        """If this fails: a torn line of the ledger is forgotten. It may have been a charge: it counts as one."""
        plan = self.noised()
        charges = self.charges(plan, 3)
        whole = self.spent(plan, charges)
        for torn in ({"damaged": '{"round": 2, "eps'}, {}, {"damaged": ""}):
            for place in range(3):
                found = self.spent(plan, [*charges[:place], torn, *charges[place + 1 :]])
                assert found >= whole * (1 - 1e-9), f"{found:.4g} with a damaged entry, {whole:.4g} without"

    # -- epsilon ------------------------------------------------------------------------------------------------------------------------

    def test_epsilon_is_right_where_there_is_a_formula(self) -> None:
        """If this fails: epsilon of one sampled sum, or of noise on all examples, is not what an independent computation gives.

        Not below it, and not above by more than ``slack``.
        """
        self.noised()
        compared = 0
        for rounds, batch_size in ((1, 20), (1, 200), (7, 200), (40, 200)):
            plan = self.plan(rounds=rounds, batch_size=batch_size)
            charges, delta = self.charges(plan, rounds), plan.statement.delta
            assert delta is not None
            if (exact := self.exact(charges, delta)) is None:
                continue
            found = self.spent(plan, charges)
            text = f"{rounds} rounds, expected batch {batch_size}: epsilon {found:.6g}, and exactly it is {exact:.6g}"
            assert exact * (1 - CLOSE) <= found <= exact * (1 + self.slack) + CLOSE, text
            compared += 1
        assert compared, "there was nothing to compare: override exact"

    def test_epsilon_grows_with_rounds_and_rate_and_shrinks_with_noise(self) -> None:
        """If this fails: more rounds, larger batches or less noise cost nothing."""
        plan = self.noised()
        charges = self.charges(plan, 12)
        by_rounds = [self.spent(plan, charges[:rounds]) for rounds in (0, 1, 3, 12)]
        assert by_rounds[0] == 0
        assert all(b > a for a, b in itertools.pairwise(by_rounds)), f"after 0, 1, 3, 12 rounds: {by_rounds}"
        multiplier = self.charged(charges[0]).noise_multiplier
        larger = self.plan(batch_size=60)
        one = self.charged(self.charges(larger, 1)[0])
        if plan.sample_rate is not None and one.noise_multiplier == multiplier:
            assert self.spent(larger, self.charges(larger, 3)) > by_rounds[2], "larger batches cost nothing"
        if self.noisier is not None:
            noisier = self.plan(self.noisier)
            assert self.charged(self.charges(noisier, 1)[0]).noise_multiplier > multiplier
            assert self.spent(noisier, self.charges(noisier, 3)) < by_rounds[2], "more noise does not help"

    def test_without_noise_epsilon_is_infinite(self) -> None:
        """If this fails: a mechanism whose noise is turned off still claims something."""
        if self.quiet is None and claims(self.plan().statement):
            pytest.skip("its noise cannot be turned off (quiet)")
        plan = self.plan(self.quiet)
        assert plan.statement.epsilon is None or math.isinf(plan.statement.epsilon)
        assert plan.charge(1) is None or self.spent(plan, [plan.charge(1) or {}]) == math.inf

    def test_too_few_sites_are_not_summed(self) -> None:
        """If this fails: shares of noise are sized for more sites than ``min_survivors`` asks to be in every sum, or than there are."""
        plan = self.noised()
        if plan.placement != "distributed":
            pytest.skip("one party adds all of the noise")
        assert self.colluders < plan.min_survivors <= 7, "of ten sites seven are guaranteed to survive"
        fewer = self.plan(min_survivors=4)
        assert fewer.min_survivors <= 4
        least = [self.stated(p).share_variance * (p.min_survivors - self.colluders) for p in (plan, fewer)]
        needed = (self.charged(self.charges(fewer, 1)[0]).noise_multiplier * self.stated(fewer).sensitivity) ** 2
        assert least[1] >= needed * (1 - 1e-9), "with four survivors the shares are too small"
