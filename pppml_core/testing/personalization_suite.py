"""``PersonalizationSuite``: what every local learning rule must do. Its state is handed in and out, and it moves only when it learns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from pppml_core.interfaces.personalization import Batch, Personalization, Tensors
from pppml_core.testing.rule_adapting import RuleAdapting
from pppml_core.testing.rule_needs import RuleNeeds
from pppml_core.testing.rule_suite import equal, through_data
from pppml_core.testing.rule_wire import RuleOnTheWire
from pppml_core.testing.watched import WatchedData, watched


class PersonalizationSuite(RuleNeeds, RuleAdapting, RuleOnTheWire):
    """Subclass it with ``component`` and, where the rule has rates of its own, ``zero_rates``: settings that turn them all off.

    ``zero_rates`` are set without validation, because a config may well forbid a rate of zero. ``zero_outer_rates`` are those of them
    that move what is shared, where that is not the training's learning rate. ``network`` may be overridden where the rule needs another
    one; it must take images ``(batch, 1, 8, 8)`` and give logits ``(batch, 3)``.
    """

    # -- what moves -------------------------------------------------------------------------------------------------------------------

    def test_is_a_personalization(self) -> None:
        """If this fails: ``target`` must name a subclass of ``Personalization``."""
        rule = self.make()
        assert isinstance(rule, Personalization)
        assert rule.gradient_calls >= 1
        assert rule.batches_per_step >= 1
        assert rule.weight(40) >= 1

    def test_zero_rates_give_a_zero_update(self) -> None:
        """If this fails: the update is not the difference to the received weights, or a rate is missing in ``zero_rates``."""
        rule = self.make(**self.zero_rates)
        update, _, model = self.updated(rule, lr=0.0)
        start, shared = self.initial(), self.shared()
        for name, parameter in model.named_parameters():
            if name in update.delta:
                assert torch.count_nonzero(update.delta[name]) == 0, f"{name} moved at a learning rate of zero"
            if name not in shared:
                assert torch.equal(parameter.detach(), start[name]), f"{name}, which stays at the site, moved at a learning rate of zero"

    def test_the_update_is_measured_from_the_weights_handed_in(self) -> None:
        """If this fails: with an outer rate of zero shared weights move, in their last bit or more.

        What a step takes back (an inner step, a look ahead) must be put back from a copy: adding what was subtracted is not the same
        number. And the update is the difference to this round's weights, not to those of an earlier round.
        """
        site = self.site()
        for number, weights in enumerate((self.weights(), self.other_weights(), self.weights()), 1):
            still = site.update(self.make(**self.zero_outer_rates), weights, lr=0.0).delta
            moved = [n for n in self.shared_parameters() if torch.count_nonzero(still[n])]
            assert not moved, f"round {number}: {', '.join(moved)} moved"
            site.update(self.make(), weights)

    def test_a_step_moves_no_shared_weight(self) -> None:
        """If this fails: the rule handed to ``data.train`` moves weights. It sets ``.grad``; moving is the configured optimizer's part."""
        rule, data = self.make(), WatchedData(self.data())
        rule.local_update(self.network(), data, self.gradients(), rule.init(self.network()))
        moved = {name for step in data.steps() for name in step.moved} & set(self.shared())
        assert not moved, ", ".join(sorted(moved))

    def test_it_learns(self) -> None:
        """If this fails: neither the update nor the personal part of the model moves at an ordinary learning rate."""
        _, _, model = self.updated(self.make())
        start = self.network().state_dict()
        moved = [n for n, p in model.named_parameters() if not torch.equal(p.detach(), start[n])]
        update, state, _ = self.updated(self.make())
        assert moved or any(torch.count_nonzero(t) for t in update.delta.values()) or state, "nothing was learned"

    # -- the update -------------------------------------------------------------------------------------------------------------------

    def test_update_covers_what_is_shared(self) -> None:
        """If this fails: every shared floating tensor needs a finite entry in the update, of the same shape and dtype, on the CPU."""
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
        assert equal(update.delta, held[0]), "the update changed with the model"
        assert equal(state, held[1]), "the state changed with the model"

    def test_state_is_plain_data(self) -> None:
        """If this fails: keep tensors, numbers, strings and maps of these in the state; it is written to disk between rounds."""
        _, state, _ = self.updated(self.make())
        _check_plain(state, "state")
        _check_plain(self.make().server_init(self.weights()), "server state")

    # -- the state --------------------------------------------------------------------------------------------------------------------

    def test_no_state_in_attributes(self) -> None:
        """If this fails: something is kept in an attribute of the rule; a site rebuilt between rounds would lose it."""
        kept, rebuilt, rule, weights = self.site(), self.site(), self.make(), self.weights()
        for number in range(1, 3):
            one, other = kept.round(rule, weights), rebuilt.round(self.make(), weights)
            assert equal(tuple(one), tuple(other)), f"round {number} differs when the rule is rebuilt"

    def test_sites_share_no_state(self) -> None:
        """If this fails: what one site did changes what another computes. Nothing may be kept outside the state.

        Not in the rule, its class, its module or on the network, which all sites of a process take in turns.
        """
        alone, weights = self.site("a"), self.weights()
        wanted = [alone.round(self.make(), weights) for _ in range(2)]
        rule, network = self.make(), self.network()
        sites = [self.site(name, network) for name in ("b", "a", "c")]
        for number, moment in enumerate(wanted, 1):
            _, a, _ = [site.round(rule, weights) for site in sites]
            assert equal(tuple(a), tuple(moment)), f"round {number} of a site is another one beside other sites"
        again = self.site("a")
        for number, moment in enumerate(wanted, 1):
            assert equal(tuple(again.round(self.make(), weights)), tuple(moment)), f"round {number} is another one after all that"

    def test_two_sites_at_a_time(self) -> None:
        """If this fails: a rule keeps something in itself during ``local_update``; two sites that train at a time would mix it up."""
        rule, weights = self.make(), self.weights()
        wanted = self.site("a").update(rule, weights)
        other, busy = self.site("b"), False

        def between(kind: str, model: torch.nn.Module, batch: Batch) -> None:
            nonlocal busy
            if not busy:
                busy = True
                other.update(rule, self.other_weights())
                busy = False

        assert equal(self.site("a").update(rule, weights, watched(self.gradients(), between)), wanted)

    def test_state_handed_in_is_not_changed(self) -> None:
        """If this fails: return a new state; a round that is retried starts again from the old one."""
        rule = self.make()
        _, state, model = self.updated(rule)
        held = copy.deepcopy(state)
        rule.local_update(model, self.data(), self.gradients(), state)
        assert equal(state, held)

    def test_deterministic(self) -> None:
        """If this fails: randomness must come from the data's batches only, not from torch, numpy or random."""
        torch_stream = torch.get_rng_state()
        one, _, _ = self.updated(self.make())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12345)
            other, _, _ = self.updated(self.make())
        torch.set_rng_state(torch_stream)
        assert equal(one.delta, other.delta)
        assert one.metrics == other.metrics

    # -- the server -------------------------------------------------------------------------------------------------------------------

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
        assert equal(weights, held[0])
        assert equal(mean, held[1])
        assert equal(state, held[2])
        assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in weights.items()}
        again, _ = self.make().server_update(weights, mean, through_data(state))
        assert equal(after, again), "the second time gives something else"
        _check_plain(state_after, "server state")


def _check_plain(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            assert isinstance(key, str), f"{place}: the key {key!r} is no str"
            _check_plain(item, f"{place}.{key}")
    else:
        assert value is None or isinstance(value, torch.Tensor | bool | int | float | str), f"{place} is a {type(value).__name__}"
