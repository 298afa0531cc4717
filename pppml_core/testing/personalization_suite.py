"""``PersonalizationSuite``: what every local learning rule must do. Its state is handed in and out, and it moves only when it learns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pppml_core.interfaces.personalization import Batch, GradientRule, Personalization, PersonalState, Tensors, Update
from pppml_core.learning.arrays import load_state, snapshot
from pppml_core.learning.gradients import plain_gradients
from pppml_core.testing.local_data import FixedData, small_network
from pppml_core.testing.streams import random_streams
from pppml_core.testing.suite import Suite


class PersonalizationSuite(Suite):
    """Subclass it with ``component`` and, where the rule has rates of its own, ``zero_rates``: settings that turn them all off.

    ``zero_rates`` are set without validation, because a config may well forbid a rate of zero. ``network`` may be overridden where the
    rule needs another one; it must take images ``(batch, 1, 8, 8)`` and give logits ``(batch, 3)``.
    """

    zero_rates: ClassVar[Mapping[str, Any]] = {}

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def network(self) -> torch.nn.Module:
        """A small network with BatchNorm and a head named ``head``."""
        return small_network()

    def data(self, site: str = "a", **options: Any) -> FixedData:
        """A site's training data."""
        return FixedData(site, **options)

    def gradients(self) -> GradientRule:
        """Autograd on the cross-entropy."""
        return plain_gradients(torch.nn.functional.cross_entropy)

    def updated(self, rule: Personalization, site: str = "a", **options: Any) -> tuple[Update, PersonalState, torch.nn.Module]:
        """A first round of a site, from the network's initial weights."""
        model = self.network()
        update, state = rule.local_update(model, self.data(site, **options), self.gradients(), rule.init(self.network()))
        return update, state, model

    def rounds(self, rule: Any, count: int, site: str = "a") -> list[Update]:
        """Several rounds of a site; ``rule`` is called for the rule of each round, and its state passes through plain data."""
        model, updates = self.network(), []
        state: Any = rule().init(self.network())
        for _ in range(count):
            load_state(model, {n: t for n, t in self.network().state_dict().items() if rule().shared(n, model)})
            update, state = rule().local_update(model, self.data(site), self.gradients(), state)
            updates.append(update)
            state = _through_data(state)
        return updates

    # -- tests ------------------------------------------------------------------------------------------------------------------------

    def test_is_a_personalization(self) -> None:
        """If this fails: ``target`` must name a subclass of ``Personalization``."""
        rule = self.make()
        assert isinstance(rule, Personalization)
        assert rule.gradient_calls >= 1
        assert rule.weight(40) >= 1

    def test_zero_rates_give_a_zero_update(self) -> None:
        """If this fails: the update is not the difference to the received weights, or a rate is missing in ``zero_rates``."""
        rule = self.make(**self.zero_rates)
        update, _, _ = self.updated(rule, lr=0.0)
        for name, _ in self.network().named_parameters():
            if name in update.delta:
                assert torch.count_nonzero(update.delta[name]) == 0, f"{name} moved at a learning rate of zero"

    def test_it_learns(self) -> None:
        """If this fails: neither the update nor the personal part of the model moves at an ordinary learning rate."""
        _, _, model = self.updated(self.make())
        start = self.network().state_dict()
        moved = [n for n, p in model.named_parameters() if not torch.equal(p.detach(), start[n])]
        update, state, _ = self.updated(self.make())
        assert moved or any(torch.count_nonzero(t) for t in update.delta.values()) or state, "nothing was learned"

    def test_update_covers_what_is_shared(self) -> None:
        """If this fails: every shared floating tensor needs an entry in the update, of the same shape and dtype, on the CPU."""
        rule = self.make()
        update, _, _ = self.updated(rule)
        floating = {n: t for n, t in self.network().state_dict().items() if t.is_floating_point()}
        shared = {n for n in floating if rule.shared(n, self.network())}
        assert rule.shares or not shared, "shares is False, but shared() says otherwise"
        assert not rule.shares or shared, "shares is True, but nothing is shared"
        assert shared <= set(update.delta), f"not in the update: {sorted(shared - set(update.delta))}"
        for name in shared:
            delta = update.delta[name]
            assert delta.shape == floating[name].shape, name
            assert delta.dtype == floating[name].dtype, name
            assert delta.device.type == "cpu", name
            assert torch.isfinite(delta).all(), name
        assert all(isinstance(v, float) and np.isfinite(v) for v in update.metrics.values()), update.metrics

    def test_shared_is_fixed(self) -> None:
        """If this fails: ``shared(name)`` must depend on the name only, before and after training, in every instance."""
        rule = self.make()
        names = list(self.network().state_dict())
        before = [rule.shared(name, self.network()) for name in names]
        _, _, trained = self.updated(rule)
        assert all(isinstance(answer, bool) for answer in before)
        assert before == [rule.shared(name, trained) for name in names] == [self.make().shared(name, self.network()) for name in names]

    def test_update_is_a_snapshot(self) -> None:
        """If this fails: clone what you return; the update or the state shares memory with the model, which the next site overwrites."""
        update, state, model = self.updated(self.make())
        held = copy.deepcopy(dict(update.delta)), copy.deepcopy(state)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(7)
        assert _equal(update.delta, held[0]), "the update changed with the model"
        assert _equal(state, held[1]), "the state changed with the model"

    def test_state_is_plain_data(self) -> None:
        """If this fails: keep tensors, numbers, strings and maps of these in the state; it is written to disk between rounds."""
        _, state, _ = self.updated(self.make())
        _check_plain(state, "state")
        _check_plain(self.make().server_init(self.weights()), "server state")

    def test_no_state_in_attributes(self) -> None:
        """If this fails: something is kept in an attribute of the rule; a site rebuilt between rounds would lose it."""
        rule = self.make()
        same = self.rounds(lambda: rule, 3)
        fresh = self.rounds(self.make, 3)
        for number, (one, other) in enumerate(zip(same, fresh, strict=True), 1):
            assert _equal(one.delta, other.delta), f"round {number} differs when the rule is rebuilt"

    def test_sites_share_no_state(self) -> None:
        """If this fails: what one site did changes what another computes; nothing may be kept outside the state."""
        rule = self.make()
        self.updated(rule, "b")
        one, state, model = self.updated(rule, "a")
        other, fresh_state, fresh_model = self.updated(self.make(), "a")
        assert _equal(one.delta, other.delta)
        assert _equal(state, fresh_state)
        assert _equal(model.state_dict(), fresh_model.state_dict())

    def test_state_handed_in_is_not_changed(self) -> None:
        """If this fails: return a new state; a round that is retried starts again from the old one."""
        rule = self.make()
        _, state, model = self.updated(rule)
        held = copy.deepcopy(state)
        rule.local_update(model, self.data(), self.gradients(), state)
        assert _equal(state, held)

    def test_deterministic(self) -> None:
        """If this fails: randomness must come from the data's batches only, not from torch, numpy or random."""
        torch_stream = torch.get_rng_state()
        one, _, _ = self.updated(self.make())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12345)
            other, _, _ = self.updated(self.make())
        torch.set_rng_state(torch_stream)
        assert _equal(one.delta, other.delta)
        assert one.metrics == other.metrics

    def test_gradient_calls_are_declared(self) -> None:
        """If this fails: ``gradient_calls`` is what the privacy accountant charges per optimizer step; it must not be too small."""
        rule, calls, plain = self.make(), 0, self.gradients()

        def counted(model: torch.nn.Module, batch: Batch) -> float:
            nonlocal calls
            calls += 1
            return plain(model, batch)

        data = self.data(steps=4)
        rule.local_update(self.network(), data, counted, rule.init(self.network()))
        assert 0 < calls <= rule.gradient_calls * data.steps, f"{calls} in {data.steps} steps, declared {rule.gradient_calls} each"

    def test_gradients_come_from_the_rule(self) -> None:
        """If this fails: call ``gradients(model, batch)`` for every gradient; autograd by another way escapes clipping and noise."""
        rule = self.make()

        def blind(model: torch.nn.Module, batch: Batch) -> float:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            return 0.0

        model = self.network()
        update, _ = rule.local_update(model, self.data(), blind, rule.init(self.network()))
        moved = [n for n, _ in self.network().named_parameters() if n in update.delta and torch.count_nonzero(update.delta[n])]
        assert not moved, f"{moved} moved although every gradient the rule was given is zero"

    # -- adapting and evaluating ------------------------------------------------------------------------------------------------------

    def test_adapting_leaves_the_site_as_it_was(self) -> None:
        """If this fails: ``adapt`` changed the site's state, a global random stream, or (where it returns another model) its argument."""
        rule = self.make()
        _, state, model = self.updated(rule)
        held, weights, streams = copy.deepcopy(state), snapshot(model), random_streams()
        adapted = rule.adapt(model, self.data(), self.gradients(), state)
        assert _equal(state, held), "the state changed"
        assert random_streams() == streams, "a global random stream moved"
        if adapted is not model or not rule.personalizes:
            assert _equal(model.state_dict(), weights), "the model handed in changed"

    def test_adapting_is_deterministic(self) -> None:
        """If this fails: the personalized model depends on something other than weights, data and state."""
        states = []
        for _ in range(2):
            rule = self.make()
            _, state, model = self.updated(rule)
            states.append(snapshot(rule.adapt(model, self.data(), self.gradients(), state)))
        assert _equal(*states)

    def test_predicting_changes_nothing(self) -> None:
        """If this fails: the adapted model changes parameters, buffers or a random stream when it predicts in evaluation mode."""
        rule = self.make()
        _, state, model = self.updated(rule)
        adapted = rule.adapt(model, self.data(), self.gradients(), state)
        adapted.eval()
        images = next(self.data("held-out").sample("predict", 1))[0]
        weights, streams = snapshot(adapted), random_streams()
        with torch.no_grad():
            first, second = adapted(images), adapted(images)
        assert torch.equal(first, second)
        assert _equal(adapted.state_dict(), weights)
        assert random_streams() == streams

    # -- the server -------------------------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, torch.Tensor]:
        """The shared weights as the server holds them."""
        rule = self.make()
        return {n: t.clone() for n, t in self.network().state_dict().items() if t.is_floating_point() and rule.shared(n, self.network())}

    def test_a_zero_mean_keeps_the_weights(self) -> None:
        """If this fails: the server moves although no site did."""
        rule, weights = self.make(), self.weights()
        if not rule.shares:
            pytest.skip("nothing is shared")
        zero = {n: torch.zeros_like(w) for n, w in weights.items()}
        after, _ = rule.server_update(weights, zero, rule.server_init(weights))
        assert set(after) == set(weights)
        for name, w in weights.items():
            assert torch.equal(after[name], w), name

    def test_the_server_changes_nothing_in_place(self) -> None:
        """If this fails: return new tensors; an aborted round goes back to the old ones. (And keep every name, shape and dtype.)"""
        rule, weights = self.make(), self.weights()
        if not rule.shares:
            pytest.skip("nothing is shared")
        mean: Tensors = {n: torch.full_like(w, 0.01) for n, w in weights.items()}
        state = rule.server_init(weights)
        held = copy.deepcopy((weights, dict(mean), state))
        after, state_after = rule.server_update(weights, mean, state)
        assert _equal(weights, held[0])
        assert _equal(mean, held[1])
        assert _equal(state, held[2])
        assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in weights.items()}
        again, _ = self.make().server_update(weights, mean, _through_data(state))
        assert _equal(after, again), "the second time gives something else"
        _check_plain(state_after, "server state")


def _through_data(state: Any) -> Any:
    """As a checkpoint: tensors to arrays and back."""
    if isinstance(state, torch.Tensor):
        return torch.from_numpy(state.detach().cpu().numpy().copy())
    return {k: _through_data(v) for k, v in state.items()} if isinstance(state, Mapping) else state


def _check_plain(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert isinstance(key, str), f"{place}: the key {key!r} is no str"
            _check_plain(item, f"{place}.{key}")
    else:
        assert value is None or isinstance(value, torch.Tensor | bool | int | float | str), f"{place} is a {type(value).__name__}"


def _equal(one: Any, other: Any) -> bool:
    """Equal bit for bit, in every name and value."""
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    return bool(one == other)
