"""The suite of privacy mechanisms can fail: each broken mechanism is caught by the tests named beside it, most by no other.

The sound ones they are made of are small and slow: gradients in a loop, rounded normal noise, epsilon by the formulas of the suite.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch

from pppml_core.component import Component, ComponentConfig
from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import DrawnBatch
from pppml_core.interfaces.privacy import Encoding, PrivacyMechanism, PrivacyPlan, PrivacyStatement, Sample
from pppml_core.randomness import entropy
from pppml_core.testing import PrivacySuite
from pppml_core.testing.exact_epsilon import gaussian_epsilon, sampled_epsilon
from pppml_core.testing.privacy_runs import PrivacyRuns

DELTA = 1e-5
BITS = 24
LEVELS = 2 ** (BITS - 1) - 1


class Config(ComponentConfig):
    """Of the sound mechanisms."""

    placement: Literal["local", "distributed", "server"] = "distributed"
    noise_multiplier: float = 1.5
    clip: float = 0.7


def secret():
    return np.random.Generator(np.random.PCG64(int.from_bytes(entropy(16))))


# -- sound mechanisms -----------------------------------------------------------------------------------------------------------------


class Plan(PrivacyPlan):
    """What a plan for examples and one for sites have in common: the grid, its noise, what is charged and claimed."""

    constant_weight, admits_metrics = 1, False
    unit, adjacency = "example", "add-remove"

    def __init__(self, config, setting):
        self.config, self.setting, self.placement = config, setting, config.placement
        self.sample_rate = setting.sample_rate
        root = math.sqrt(setting.coordinates)
        self.steps = math.ceil(100 * root)
        self.sensitivity = 1.001 * self.steps + root
        self.min_survivors = setting.min_survivors if config.placement == "distributed" else 1
        self.share_variance = self.needed() / self.shares()
        self.noise_bound = 0 if self.in_rule() else math.ceil(16 * math.sqrt(self.share_variance))

    def in_rule(self):
        return False

    def needed(self):
        return (self.config.noise_multiplier * self.sensitivity) ** 2

    def shares(self):
        return self.min_survivors

    def clip_in_update(self):
        return self.config.clip

    @property
    def statement(self):
        if not self.config.noise_multiplier:
            return PrivacyStatement("sound", math.inf, unit=self.unit, details={"clip": self.config.clip, **self.says()})
        return PrivacyStatement(
            "sound", self.claim(), DELTA, self.unit, self.adjacency, self.placement, "formulas", "whoever sees sums",
            {"clip": self.config.clip, **self.says()},
        )  # fmt: skip

    def claim(self):
        return self.spent([self.entry()] * self.setting.rounds)

    def says(self):
        return {"integer_sensitivity": self.sensitivity, "share_variance": self.share_variance}

    def encoding(self, round):
        return None if self.in_rule() else Encoding(self.clip_in_update() / self.steps * LEVELS, BITS)

    def draw(self, count):
        return np.rint(secret().standard_normal(count) * math.sqrt(self.share_variance))

    def noise(self, values):
        return values if self.in_rule() or not self.config.noise_multiplier else (values + self.draw(values.size)).astype(values.dtype)

    def entry(self):
        return {"sample_rate": self.sample_rate or 1.0, "noise_multiplier": self.config.noise_multiplier, "count": self.each()}

    def each(self):
        return 1

    def charge(self, round):
        return self.entry() if self.config.noise_multiplier else None

    def spent(self, charges):
        own = self.entry()
        read = [c if "noise_multiplier" in c else own for c in charges]
        paid = sorted((c["sample_rate"], c["noise_multiplier"]) for c in read for _ in range(c["count"]))
        if all(rate == 1 for rate, _ in paid):
            return gaussian_epsilon([z for _, z in paid], DELTA)
        return sum(sampled_epsilon(z, q, DELTA / len(paid)) * len(list(same)) for (q, z), same in itertools.groupby(paid))


class ExamplePlan(Plan):
    """DP-SGD."""

    def in_rule(self):
        return self.placement == "local"

    @property
    def divisor(self):
        return self.sample_rate * sum(self.setting.examples.values()) / len(self.setting.examples)

    def clip_in_update(self):
        return self.setting.learning_rates[0] * self.config.clip / self.divisor

    def each(self):
        return max(self.setting.local_steps.values()) * self.setting.gradient_calls if self.in_rule() else 1

    def sample(self, groups):
        indices = np.flatnonzero(secret().random(len(groups)) < self.sample_rate)
        return Sample(indices, np.ones(len(indices)))

    def gradient_rule(self, plain):
        def rule(model, batch):
            self.check(batch)
            parameters = [p for p in model.parameters() if p.requires_grad]
            flat = self.summed(self.gradients(model, plain.loss, batch, parameters), batch)
            if self.in_rule() and self.config.noise_multiplier:
                grain = self.config.clip / self.steps
                rounded = np.floor(flat / grain + secret().random(flat.size))
                flat = (rounded + self.draw(flat.size)) * grain
            flat = torch.from_numpy(flat / self.over(batch))
            for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                p.grad = part.view_as(p).to(p.dtype)
            return 0.0

        return rule

    def check(self, batch):
        if not isinstance(batch, DrawnBatch) or batch.used:
            raise PppmlError("not a fresh sample", place="sound")
        batch.used = True

    def gradients(self, model, loss, batch, parameters):
        """Of single examples: float64 ``(n, coordinates)``."""
        images, targets = batch
        rows = [np.zeros((0, sum(p.numel() for p in parameters)))]
        for image, target in zip(images, targets, strict=True):
            parts = torch.autograd.grad(loss(model(image[None]), target[None]), parameters)
            rows.append(torch.cat([g.flatten() for g in parts]).double().numpy()[None])
        return np.concatenate(rows)

    def over(self, batch):
        return self.divisor

    def summed(self, gradients, batch):
        kept = gradients[np.isfinite(gradients).all(axis=1)]
        shares = np.asarray(batch.shares)[np.isfinite(gradients).all(axis=1)]
        return (kept * (shares * self.factors(kept))[:, None]).sum(axis=0)

    def factors(self, gradients):
        norms = np.linalg.norm(gradients, axis=1)
        return np.minimum(1.0, self.config.clip / np.maximum(norms, 1e-300))


class SitePlan(Plan):
    """Noise on whole updates."""

    unit, adjacency = "site", "zero-out"

    def constrain(self, flat):
        wide = flat.astype(np.float64)
        norm = np.linalg.norm(wide)
        return np.zeros_like(flat) if not np.isfinite(norm) else (wide * min(1.0, self.config.clip / max(norm, 1e-300))).astype(flat.dtype)


class Examples(PrivacyMechanism):
    plans = ExamplePlan

    def sample_rate(self, examples, batch_size):
        return min(1.0, batch_size * len(examples) / sum(examples.values()))

    def plan(self, setting):
        return self.plans(self.config, setting)


class Sites(Examples):
    plans = SitePlan

    def sample_rate(self, examples, batch_size):
        return None


# -- trying them ----------------------------------------------------------------------------------------------------------------------


def suite_of(plans, **config):
    """A suite for a mechanism with these plans."""
    target = type("Tried", (Sites if issubclass(plans, SitePlan) else Examples,), {"plans": plans})
    members = {
        "component": Component("tried", Config, "unused:unused", "tried"),
        "config": config,
        "build": lambda self, settings: target(settings),
        "quiet": {"noise_multiplier": 0.0},
        "noisier": {"noise_multiplier": 3.0},
        "noise_in_rule": config.get("placement") == "local" and issubclass(plans, ExamplePlan),
    }
    if members["noise_in_rule"]:
        members["step"] = lambda self, plan: plan.config.clip / plan.steps / plan.divisor
    return type("TriedSuite", (PrivacySuite,), members)


IN_RUNS = {name for name in vars(PrivacyRuns) if name.startswith("test_")}


def failing(plans, *, runs=True, **config):
    """Names of the suite's tests that fail. Only a failed assertion counts: any other exception is an accident.

    Without ``runs`` those that hold whole runs are left out, to save time.
    """
    suite, out = suite_of(plans, **config), set()
    for name in sorted({name for name in dir(suite) if name.startswith("test_")} - (set() if runs else IN_RUNS)):
        try:
            getattr(suite(), name)()
        except pytest.skip.Exception:
            pass
        except AssertionError:
            out.add(name)
    return out


SOUND = [
    *((ExamplePlan, {"placement": placement}) for placement in ("local", "distributed", "server")),
    *((SitePlan, {"placement": placement}) for placement in ("local", "distributed", "server")),
    (ExamplePlan, {"noise_multiplier": 0.0, "placement": "distributed"}),
]


@pytest.mark.parametrize(("plans", "config"), SOUND, ids=[f"{p.__name__}-{'-'.join(map(str, c.values()))}" for p, c in SOUND])
def test_sound_mechanisms_pass(plans, config):
    assert failing(plans, **config) == set()


# -- noise ----------------------------------------------------------------------------------------------------------------------------


class ThrownAway(ExamplePlan):
    """Noise is drawn, and the result is not used: Opacus' ``generate_noise`` without the addition."""

    def noise(self, values):
        values + super().noise(values)
        return values


class ThrownAwayInTheRule(ExamplePlan):
    def draw(self, count):
        return 0.0 * super().draw(count)


class Half(ExamplePlan):
    """Half the standard deviation."""

    def draw(self, count):
        return np.rint(super().draw(count) / 2)


class OfAMean(ExamplePlan):
    """Noise for the sensitivity of a mean, on a sum."""

    def needed(self):
        return super().needed() / self.divisor**2


class ForAllSites(ExamplePlan):
    """Shares that are enough where nobody drops out."""

    def shares(self):
        return self.setting.cohort


class AsksForOne(ExamplePlan):
    """Shares for seven survivors, and any sum may be opened."""

    def shares(self):
        return self.setting.min_survivors

    def __init__(self, config, setting):
        super().__init__(config, setting)
        self.min_survivors = 1


class Uniform(ExamplePlan):
    """Of the right variance, and bounded, so that some values tell everything."""

    def draw(self, count):
        return np.rint((secret().random(count) - 0.5) * math.sqrt(12 * self.share_variance))


class TwiceEach(ExamplePlan):
    """Each number is used for two coordinates."""

    def draw(self, count):
        return np.repeat(super().draw(count), 2)[:count]


class Reused(ExamplePlan):
    """Drawn once for the whole run."""

    def draw(self, count):
        self.kept = getattr(self, "kept", None)
        if self.kept is None or self.kept.size < count:
            self.kept = super().draw(count)
        return self.kept[:count]


class FromTheSeed(ExamplePlan):
    """numpy's global generator, which the run seeds."""

    def draw(self, count):
        return np.rint(np.random.standard_normal(count) * math.sqrt(self.share_variance))  # noqa: NPY002


class FromThePlan(ExamplePlan):
    """A generator that begins with public numbers."""

    def draw(self, count):
        if not hasattr(self, "stream"):
            self.stream = np.random.default_rng(self.setting.coordinates)
        return np.rint(self.stream.standard_normal(count) * math.sqrt(self.share_variance))


class OnlyWhereThereIsSomething(ExamplePlan):
    """No noise on zeros, to save time."""

    def noise(self, values):
        return np.where(values == 0, values, super().noise(values))


class BoundTooSmall(ExamplePlan):
    def __init__(self, config, setting):
        super().__init__(config, setting)
        self.noise_bound //= 16


SIZE = {"test_the_noise_has_the_stated_variance", "test_the_noise_has_the_stated_distribution", "test_the_noise_is_enough_for_its_charge"}
THERE = {"test_the_noise_is_in_what_leaves_the_sites", "test_the_noise_is_in_the_decoded_sum"}
NEW = {"test_the_noise_is_new_each_time", "test_two_plans_are_not_the_same_stream", "test_noise_of_rounds_sites_and_runs_is_unrelated"}
VALUES = {"test_the_noise_does_not_depend_on_the_values"}
LOCAL = {"placement": "local"}

NOISE = [
    (ThrownAway, {}, SIZE | THERE | NEW | VALUES),
    (ThrownAwayInTheRule, LOCAL, SIZE | THERE | NEW),
    (Half, {}, SIZE | THERE | VALUES),
    (Half, LOCAL, SIZE | THERE),
    (Uniform, {}, {"test_the_noise_has_the_stated_distribution"}),
    (BoundTooSmall, {}, {"test_the_noise_stays_within_its_bound"}),
]
#: chance decides whether others fail too: the same numbers several times are fewer numbers.
NOISE_AT_LEAST = [
    (OfAMean, {}, {"test_the_noise_is_enough_for_its_charge", "test_the_noise_is_in_the_decoded_sum", "test_too_few_sites_are_not_summed"}),
    (OfAMean, LOCAL, {"test_the_noise_is_enough_for_its_charge", "test_the_noise_is_in_the_decoded_sum"}),
    (ForAllSites, {}, {"test_the_noise_is_enough_for_its_charge", "test_too_few_sites_are_not_summed"}),
    (AsksForOne, {}, {"test_the_noise_is_enough_for_its_charge", "test_too_few_sites_are_not_summed"}),
    (TwiceEach, {}, {"test_the_noise_is_new_each_time"}),
    (Reused, {}, {"test_the_noise_is_new_each_time", "test_noise_of_rounds_sites_and_runs_is_unrelated"}),
    (Reused, LOCAL, {"test_the_noise_is_new_each_time"}),
    (FromTheSeed, {}, {"test_the_noise_is_new_each_time", "test_two_plans_are_not_the_same_stream"}),
    (FromTheSeed, LOCAL, {"test_the_noise_is_new_each_time", "test_two_plans_are_not_the_same_stream"}),
    (FromThePlan, {}, {"test_two_plans_are_not_the_same_stream", "test_noise_of_rounds_sites_and_runs_is_unrelated"}),
    (OnlyWhereThereIsSomething, {}, VALUES),
]

# -- sampling -------------------------------------------------------------------------------------------------------------------------


class Seeded(ExamplePlan):
    """Batches from numpy's global generator."""

    def sample(self, groups):
        indices = np.flatnonzero(np.random.random(len(groups)) < self.sample_rate)  # noqa: NPY002
        return Sample(indices, np.ones(len(indices)))


class Shuffled(ExamplePlan):
    """Passes over shuffled data, cut into batches of a fixed size, called Poisson."""

    order = np.zeros(0, np.int64)

    def sample(self, groups):
        size = round(self.sample_rate * len(groups))
        if len(self.order) < size:
            self.order = secret().permutation(len(groups))
        taken, self.order = self.order[:size], self.order[size:]
        return Sample(taken, np.ones(size))


class FixedSize(ExamplePlan):
    """A new choice each time, but always of as many."""

    def sample(self, groups):
        size = round(self.sample_rate * len(groups))
        return Sample(secret().permutation(len(groups))[:size], np.ones(size))


class FirstMoreOften(ExamplePlan):
    """The first example is in twice as many batches."""

    def sample(self, groups):
        rates = np.full(len(groups), self.sample_rate)
        rates[0] *= 2
        indices = np.flatnonzero(secret().random(len(groups)) < rates)
        return Sample(indices, np.ones(len(indices)))


class InPairs(ExamplePlan):
    """Neighbours are drawn together."""

    def sample(self, groups):
        indices = np.flatnonzero(np.repeat(secret().random((len(groups) + 1) // 2), 2)[: len(groups)] < self.sample_rate)
        return Sample(indices, np.ones(len(indices)))


class TwiceOfOne(ExamplePlan):
    """Makes as many gradients of a sample as it is asked for."""

    def check(self, batch):
        pass


class SharesOfAll(ExamplePlan):
    """Shares that are no part of a clip."""

    def sample(self, groups):
        sample = super().sample(groups)
        return Sample(sample.indices, 2 * sample.shares)


class ChargedForLess(ExamplePlan):
    """The ledger hears of half the rate."""

    def entry(self):
        return {**super().entry(), "sample_rate": self.sample_rate / 2}


SAMPLING = [
    (Seeded, {}, {"test_batches_do_not_come_from_the_seed"}),
    (Shuffled, {}, {"test_the_size_of_a_batch_is_binomial", "test_examples_and_draws_are_independent"}),
    (FirstMoreOften, {}, {"test_each_example_is_drawn_with_the_stated_probability"}),
    (InPairs, {}, {"test_the_size_of_a_batch_is_binomial", "test_examples_and_draws_are_independent"}),
    (TwiceOfOne, {}, {"test_a_sample_pays_for_one_gradient"}),
    (SharesOfAll, {}, {"test_one_patient_has_one_clip"}),
    (ChargedForLess, {}, {"test_the_charge_is_for_the_rate_that_is_drawn"}),
]
#: fewer neighbours are drawn together than by chance, and once in a million runs that shows too.
SAMPLING_AT_LEAST = [(FixedSize, {}, {"test_the_size_of_a_batch_is_binomial"})]

# -- clip -----------------------------------------------------------------------------------------------------------------------------


class ClipsTheSum(ExamplePlan):
    """The batch's sum is clipped, not each example."""

    def summed(self, gradients, batch):
        total = gradients[np.isfinite(gradients).all(axis=1)].sum(axis=0)
        return total * self.factors(total[None])[0]


class ClipsTheMean(ExamplePlan):
    """The batch's mean is clipped, and counted as often as there are examples."""

    def summed(self, gradients, batch):
        mean = gradients[np.isfinite(gradients).all(axis=1)].sum(axis=0) / max(1, len(gradients))
        return len(gradients) * mean * self.factors(mean[None])[0]


class RealisedBatch(ExamplePlan):
    """Divides by the number of examples that were drawn."""

    def over(self, batch):
        return max(1, len(batch[0]))


class LetsNaNThrough(ExamplePlan):
    """A gradient that is not finite is not noticed."""

    def summed(self, gradients, batch):
        with np.errstate(invalid="ignore"):
            return (gradients * (np.asarray(batch.shares) * self.factors(gradients))[:, None]).sum(axis=0)


class DropsTheBatch(ExamplePlan):
    """One bad example silences all the others."""

    def summed(self, gradients, batch):
        return super().summed(gradients, batch) if np.isfinite(gradients).all() else np.zeros(gradients.shape[1])


class OverlooksShares(ExamplePlan):
    def summed(self, gradients, batch):
        kept = gradients[np.isfinite(gradients).all(axis=1)]
        return (kept * self.factors(kept)[:, None]).sum(axis=0)


class WithoutRounding(ExamplePlan):
    """The stated sensitivity is that of real numbers."""

    def __init__(self, config, setting):
        super().__init__(config, setting)
        self.sensitivity = self.steps
        self.share_variance = self.needed() / self.shares()


class LosesSmallOnes(ExamplePlan):
    """Only gradients above the clip count."""

    def factors(self, gradients):
        return np.where(np.linalg.norm(gradients, axis=1) > 1.01 * self.config.clip, super().factors(gradients), 0.0)


class MovesWeights(ExamplePlan):
    def gradient_rule(self, plain):
        made = super().gradient_rule(plain)

        def rule(model, batch):
            value = made(model, batch)
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(0.1 * p.grad)
            return value

        return rule


class SitesUnclipped(SitePlan):
    """Updates beyond the clip are cut at the range of the grid, and there alone."""

    def constrain(self, flat):
        return np.nan_to_num(flat)


class SitesLetNaNThrough(SitePlan):
    def constrain(self, flat):
        return (flat * min(1.0, self.config.clip / max(np.linalg.norm(flat.astype(np.float64)), 1e-300))).astype(flat.dtype)


ONE, LOOP, SHARES = (
    "test_one_example_moves_the_sum_by_no_more_than_is_stated",
    "test_gradients_equal_a_loop_over_examples",
    "test_the_shares_of_a_patient_are_one_clip",
)
SITE = "test_one_site_moves_the_sum_by_no_more_than_is_stated"

CLIP = [
    (ClipsTheSum, {}, {ONE, LOOP}),
    (ClipsTheSum, LOCAL, {ONE, LOOP}),
    (ClipsTheMean, {}, {ONE, LOOP, SHARES}),
    (RealisedBatch, {}, {ONE, LOOP, SHARES}),
    (LetsNaNThrough, {}, {ONE, SHARES}),
    (LetsNaNThrough, LOCAL, {ONE, SHARES}),
    (DropsTheBatch, {}, {ONE}),
    (OverlooksShares, {}, {SHARES}),
    (WithoutRounding, {}, {ONE, SHARES}),
    (LosesSmallOnes, {}, {LOOP, "test_an_ordinary_unit_counts"}),
    (MovesWeights, {}, {"test_the_rule_leaves_the_weights_alone"}),
    (SitesUnclipped, LOCAL, {SITE}),
    (SitesLetNaNThrough, LOCAL, {SITE}),
]

# -- what is claimed and charged ------------------------------------------------------------------------------------------------------


class Forgotten(ExamplePlan):
    """Nothing is charged."""

    def charge(self, round):
        return None


class Afterwards(ExamplePlan):
    """Each round pays for the one before, when it has long left."""

    def charge(self, round):
        return None if round == 1 else super().charge(round)


class OneOfFour(ExamplePlan):
    """A round is charged as one gradient, however many it makes."""

    def each(self):
        return 1


class PerRound(ExamplePlan):
    """The epsilon of a single round is claimed for the run."""

    def claim(self):
        return self.spent([self.entry()])

    def affords(self, charges):
        return True


class LastEntryOnly(ExamplePlan):
    """Only the last charge is composed, as often as there are entries."""

    def spent(self, charges):
        return super().spent([charges[-1]] * len(charges)) if charges else 0.0


class TornIsNothing(ExamplePlan):
    def spent(self, charges):
        return super().spent([c for c in charges if "noise_multiplier" in c])


class TooLittle(ExamplePlan):
    """An accountant that is off by three percent."""

    def spent(self, charges):
        return 0.97 * super().spent(charges)


class FreeRounds(ExamplePlan):
    """Further rounds cost nothing."""

    def spent(self, charges):
        return super().spent(charges[:1])


class ClaimsWithoutNoise(ExamplePlan):
    @property
    def statement(self):
        claim = super().statement
        return claim if self.config.noise_multiplier else PrivacyStatement("sound", 8.0, DELTA, "example", details=claim.details)


class AgainstNobody(ExamplePlan):
    """An epsilon without an adversary."""

    @property
    def statement(self):
        return PrivacyStatement(**{**super().statement.__dict__, "adversary": ""})


class OfItsOwn(ExamplePlan):
    """Each party draws a number of its own for the statement."""

    def says(self):
        return {**super().says(), "number": int.from_bytes(entropy(8))}


class Metrics(ExamplePlan):
    """Training loss and saturation go with the update, without noise."""

    admits_metrics = True


class Counts(ExamplePlan):
    """A site weighs as much as it has examples."""

    constant_weight = None


CLAIMS = [
    (OneOfFour, LOCAL, {"test_every_gradient_is_charged"}),
    (PerRound, {}, {"test_the_claim_covers_the_whole_run", "test_a_ledger_beyond_the_claim_is_not_affordable"}),
    (LastEntryOnly, {}, {"test_spent_does_not_depend_on_order"}),
    (TornIsNothing, {}, {"test_a_damaged_entry_counts_in_full"}),
    (TooLittle, {}, {"test_epsilon_is_right_where_there_is_a_formula"}),
    (ClaimsWithoutNoise, {}, {"test_without_noise_epsilon_is_infinite"}),
    (AgainstNobody, {}, {"test_the_claim_names_everything"}),
    (
        Metrics,
        {},
        {
            "test_nothing_that_depends_on_data_enters_beside_the_noised_numbers",
            "test_only_noised_numbers_and_a_constant_weight_leave",
        },
    ),
]
CLAIMS_AT_LEAST = [
    (OfItsOwn, {}, {"test_all_parties_plan_the_same"}),
    (Forgotten, {}, {"test_each_contribution_is_charged_before_it_leaves", "test_resume_forgets_nothing_and_new_noise_costs_again"}),
    (Afterwards, {}, {"test_each_contribution_is_charged_before_it_leaves", "test_the_claim_covers_the_whole_run"}),
    (FreeRounds, {}, {"test_epsilon_grows_with_rounds_and_rate_and_shrinks_with_noise"}),
    (
        Counts,
        {},
        {
            "test_nothing_that_depends_on_data_enters_beside_the_noised_numbers",
            "test_only_noised_numbers_and_a_constant_weight_leave",
        },
    ),
]

EXACT = [*NOISE, *SAMPLING, *CLIP, *CLAIMS]
AT_LEAST = [*NOISE_AT_LEAST, *SAMPLING_AT_LEAST, *CLAIMS_AT_LEAST]


def names(mutants):
    return ["-".join([plans.__name__, *map(str, config.values())]) for plans, config, _ in mutants]


@pytest.mark.parametrize(("plans", "config", "tests"), EXACT, ids=names(EXACT))
def test_a_broken_mechanism_is_caught_by_its_tests_alone(plans, config, tests):
    assert failing(plans, runs=bool(tests & IN_RUNS), **config) == tests


@pytest.mark.parametrize(("plans", "config", "tests"), AT_LEAST, ids=names(AT_LEAST))
def test_a_broken_mechanism_is_caught(plans, config, tests):
    suite = suite_of(plans, **config)
    for name in sorted(tests):
        with pytest.raises(AssertionError):
            getattr(suite(), name)()


def test_every_test_of_the_suite_has_caught_something():
    """But for those that only name what is missing."""
    there = {name for name in dir(PrivacySuite) if name.startswith("test_")} - {"test_no_silent_overrides", "test_is_a_privacy_mechanism"}
    assert there == set().union(*(tests for _, _, tests in (*EXACT, *AT_LEAST)))
