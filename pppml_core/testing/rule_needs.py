"""What a learning rule declares, held against what it does: batches, gradient calls, Hessians, the one gradient, no other data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from pppml_core.config.run_config import TrainingSection
from pppml_core.interfaces.personalization import Batch, GradientRule
from pppml_core.learning.training import steps_per_round
from pppml_core.testing.local_data import real_training
from pppml_core.testing.rule_suite import RuleSuite
from pppml_core.testing.watched import WatchedData, blind, example_keys, without_products


class RuleNeeds(RuleSuite):
    """The part of :class:`~pppml_core.testing.PersonalizationSuite` about declarations."""

    def watched_round(self, **options: Any) -> WatchedData:
        """What a first round asked for."""
        rule, data = self.make(), WatchedData(self.data(**options))
        rule.local_update(self.network(), data, data.gradients(self.gradients()), rule.init(self.network()))
        return data

    # -- batches ----------------------------------------------------------------------------------------------------------------------

    def test_batches_per_step_are_declared(self) -> None:
        """If this fails: ``batches_per_step`` must be the most that ``data.train`` is asked for; the plan and the accountant rely on it."""
        asked = [training.batches_per_step for training in self.watched_round().trainings]
        assert max(asked, default=1) == self.make().batches_per_step

    def test_every_batch_of_a_step_is_used(self) -> None:
        """If this fails: a step takes a batch into no gradient; ask for fewer, or the site's images are passed over."""
        for number, step in enumerate(self.watched_round().steps()):
            used = frozenset().union(*map(example_keys, step.used))
            for place, batch in enumerate(step.batches):
                assert example_keys(batch) & used, f"step {number}: batch {place} of {len(step.batches)} is in no gradient call"

    def test_gradients_of_a_step_share_no_example(self) -> None:
        """If this fails: two gradients of one step are of different batches with common examples; ask for ``batches_per_step`` instead."""
        for number, step in enumerate(self.watched_round(steps=6).steps()):
            for one, other in itertools.combinations(set(map(example_keys, step.used)), 2):
                assert not one & other, f"step {number}: two batches have {len(one & other)} examples in common"

    def test_nothing_but_local_data_is_asked_for(self) -> None:
        """If this fails: the rule looks for more than ``LocalData`` has: training examples, and nothing that leads to others."""
        rule, data = self.make(), WatchedData(self.data())
        model, gradients = self.network(), data.gradients(self.gradients())
        _, state = rule.local_update(model, data, gradients, rule.init(self.network()))
        rule.adapt(model, data, gradients, state)
        assert not data.reached, f"LocalData has no {', '.join(sorted(set(data.reached)))}"

    # -- gradients --------------------------------------------------------------------------------------------------------------------

    def test_gradient_calls_are_declared(self) -> None:
        """If this fails: ``gradient_calls`` is what the privacy accountant charges for each of the round's steps; it must not be too small.

        The steps are those of :func:`~pppml_core.learning.training.steps_per_round`. A rule that trains twice a round counts both, and
        refuses in ``misfits`` what it has no number for.
        """
        lengths: tuple[dict[str, Any], ...] = ({"steps": 1}, {"steps": 4}, {"epochs": 1}, {"epochs": 2})
        accepted = 0
        for settings in lengths:
            rule, real = self.make(), real_training(**settings)
            training = TrainingSection.model_validate({"batch_size": 8, **settings})
            if rule.misfits(self.network(), {"a": real.examples}, training.model_dump()):
                continue
            data = WatchedData(real)
            rule.local_update(self.network(), data, data.gradients(self.gradients()), rule.init(self.network()))
            steps = steps_per_round(training, real.examples, rule.batches_per_step)
            each, calls = rule.gradient_calls, len(data.calls)
            assert 0 < calls <= each * steps, f"{settings}: {calls} calls in {steps} steps, declared {each} each"
            accepted += 1
        assert accepted, "no usual length of training is accepted"

    def test_gradients_come_from_the_rule(self) -> None:
        """If this fails: call ``gradients(model, batch)`` for every gradient; autograd by another way escapes clipping and noise.

        With gradients that are all zero, weights move by what does not depend on data (weight decay) or not at all: the same at two sites.
        """
        rule, moved = self.make(), []
        for name in ("a", "b"):
            model = self.network()
            update, _ = rule.local_update(model, self.data(name), blind, rule.init(self.network()))
            shared = self.shared()
            own = {n: p.detach() for n, p in model.named_parameters() if n not in shared}
            moved.append({**own, **{n: update.delta[n] for n in self.shared_parameters()}})
        learned = [n for n in moved[0] if not torch.equal(moved[0][n], moved[1][n])]
        assert not learned, f"{', '.join(learned)} depend on the site's data although every gradient the rule was given is zero"

    def test_hessian_products_are_declared(self) -> None:
        """If this fails: ``needs_hessian`` is False, but a Hessian-vector product is taken. No privacy mechanism's rule has any."""
        if self.make().needs_hessian:
            pytest.skip("it declares that it needs them")
        assert "product" not in self.watched_round().calls
        rule = self.make()
        update, _ = rule.local_update(self.network(), self.data(), without_products(self.gradients()), rule.init(self.network()))
        assert all(torch.isfinite(d).all() for d in update.delta.values())

    def test_one_gradient_is_shared_where_that_is_declared(self) -> None:
        """If this fails: ``shares_one_gradient`` is True, but a round of one step shares something else than a rate times the gradient.

        The gradient is any vector at the shared weights, and another one elsewhere. Noise distributed over the sites protects only it.
        """
        rule = self.make()
        if not rule.shares_one_gradient:
            pytest.skip("it does not declare that")
        rates = []
        for name in ("a", "b"):
            site = self.site(name, self.network().double(), dtype=torch.float64)
            weights = self.weights(self.network().double())
            for number, scale in enumerate((1.0, 2.0, 1.0)):
                gradient = {n: scale * _direction(weights[n], number) for n in self.shared_parameters()}
                delta = site.update(rule, weights, _only_at(weights, gradient), steps=1, lr=0.5).delta
                taken = torch.cat([delta[n].flatten() for n in gradient])
                given = torch.cat([g.flatten() for g in gradient.values()])
                rates.append(float(taken @ given / (given @ given)))
                rest = float((taken - rates[-1] * given).abs().max())
                assert rest <= 1e-9 * scale, f"round {number + 1}: what is shared differs from {rates[-1]:.3g} x the gradient by {rest:.3g}"
                site.update(rule, weights, steps=2)  # a real round, whose traces in the state must not be shared later
        assert max(rates) < 0, "what is shared does not point down the gradient"
        assert max(rates) - min(rates) <= 1e-9, f"the rate is not the same in every round and at every site: {rates}"


def _direction(like: torch.Tensor, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(17 + number)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _only_at(weights: Mapping[str, torch.Tensor], gradient: Mapping[str, torch.Tensor]) -> GradientRule:
    """Gives ``gradient`` at these very weights, and another one elsewhere."""

    def rule(model: torch.nn.Module, batch: Batch) -> float:
        parameters = dict(model.named_parameters())
        here = all(torch.equal(parameters[n].detach(), weights[n]) for n in gradient)
        for name, parameter in parameters.items():
            given = gradient[name] if here and name in gradient else _direction(parameter, 99)
            parameter.grad = given.to(parameter).clone()
        return 0.0

    return rule
