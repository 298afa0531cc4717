"""A site's own model: made from its training data alone, the same however often, better on what it was made from, and harmless to use."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import pytest
import torch

from pppml_core.interfaces.personalization import Personalization
from pppml_core.learning.arrays import load_state, snapshot
from pppml_core.testing.rule_suite import RuleSuite, SiteDouble, equal
from pppml_core.testing.streams import random_streams
from pppml_core.testing.watched import WatchedData


class RuleAdapting(RuleSuite):
    """The part of :class:`~pppml_core.testing.PersonalizationSuite` about adapting and predicting."""

    def trained(self, rule: Personalization, sites: Sequence[SiteDouble], rounds: int) -> dict[str, torch.Tensor]:
        """The shared weights after some rounds of these sites."""
        weights: dict[str, torch.Tensor] = self.weights()
        held = rule.server_init(weights)
        for _ in range(rounds):
            deltas = [site.update(rule, weights).delta for site in sites]
            if rule.shares:
                mean = {n: torch.stack([d[n] for d in deltas]).mean(0) for n in weights}
                after, held = rule.server_update(weights, mean, held)
                weights = dict(after)
        return weights

    def support_loss(self, model: torch.nn.Module, site: SiteDouble) -> float:
        """Mean loss over a site's training examples, as a model is used."""
        images, targets = site.data().everything()
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model.eval()(images), targets))

    def without_own_parts(self, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The shared weights, and the initial values of everything else."""
        model = self.network()
        load_state(model, weights)
        return model

    # -- what it does -----------------------------------------------------------------------------------------------------------------

    def test_adapting_lowers_the_support_loss(self) -> None:
        """If this fails: a site's own model is no better on its training examples than the shared one, or than another site's own.

        Two sites contradict each other (:func:`~pppml_core.testing.local_data.differing`), so no model suits both. It is held against the
        shared weights where they make a model, else against the other site's.
        """
        rule = self.make()
        if not rule.personalizes:
            pytest.skip("it does not personalize")
        sites = [self.site(name, differ=True, steps=4) for name in ("a", "b")]
        weights = self.trained(rule, sites, rounds=5)
        own = [site.adapted(rule, weights) for site in sites]
        for site, mine, others in zip(sites, own, reversed(own), strict=True):
            before = self.support_loss(self.without_own_parts(weights) if rule.has_global_model else others, site)
            after = self.support_loss(mine, site)
            whose = "the shared model" if rule.has_global_model else "the other site's model"
            assert after < before, f"site {site.name}: {after:.4f} with its own model, {before:.4f} with {whose}"

    def test_a_site_that_comes_later_can_adapt(self) -> None:
        """If this fails: ``adapt`` needs a state from training. A later hospital has the state of ``init`` at the shared weights."""
        rule = self.make()
        if not rule.shares:
            pytest.skip("nothing is shared")
        weights = self.trained(rule, [self.site(name, differ=True) for name in ("a", "b")], rounds=2)
        later = self.site("c", differ=True)
        losses = []
        for _ in range(2):
            model = self.without_own_parts(weights)
            before = self.support_loss(model, later)
            own = rule.adapt(model.train(), later.data(), self.gradients(), rule.init(self.without_own_parts(weights)))
            losses.append(self.support_loss(own, later))
        assert losses[0] == losses[1], "it is another model the second time"
        assert losses[0] <= before + 1e-6, f"{losses[0]:.4f} after adapting, {before:.4f} with the shared weights"

    def test_zero_rates_adapt_nothing(self) -> None:
        """If this fails: with all rates at zero a site's own model is not the shared one, or a rate is missing in ``zero_rates``.

        To rounding: a mixture of equal weights may differ from them in its last bit. Running statistics may move.
        """
        rule, site, weights = self.make(**self.zero_rates), self.site(lr=0.0), self.weights()
        site.update(rule, weights)
        for name, parameter in site.adapted(rule, weights).named_parameters():
            assert torch.allclose(parameter.detach(), self.initial()[name], rtol=1e-6, atol=0), name

    # -- what it must leave alone -----------------------------------------------------------------------------------------------------

    def test_adapting_leaves_the_site_as_it_was(self) -> None:
        """If this fails: ``adapt`` changed the site's state, a global random stream, or (where it returns another model) its argument."""
        rule = self.make()
        _, state, model = self.updated(rule)
        held, weights, streams = copy.deepcopy(state), snapshot(model), random_streams()
        adapted = rule.adapt(model, self.data(), self.gradients(), state)
        assert equal(state, held), "the state changed"
        assert random_streams() == streams, "a global random stream moved"
        if adapted is not model or not rule.personalizes:
            assert equal(model.state_dict(), weights), "the model handed in changed"

    def test_adapting_often_changes_nothing(self) -> None:
        """If this fails: it matters how often ``adapt`` ran. It runs at every evaluation, and nobody may tell by the result."""
        seldom, often = self.site(), self.site()
        rule, weights = self.make(), self.weights()
        for number in range(1, 4):
            before = self.make()
            moment = seldom.round(before, weights, adapt=number == 3)
            other = often.round(rule, weights)
            assert equal(other[:3], moment[:3]), f"round {number} is another one after adapting {3 * (number - 1)} times"
            again = [snapshot(often.adapted(rule, weights)) for _ in range(2)]
            assert equal(again[0], other.adapted), f"round {number}: the second time gives another model"
            assert equal(again[1], other.adapted), f"round {number}: the third time gives another model"
        assert equal(other.adapted, moment.adapted), "the last model depends on the earlier ones"

    def test_adapting_has_an_order_of_its_own(self) -> None:
        """If this fails: ``adapt`` trains under a purpose of ``local_update``, whose kept optimizer state it would take or overwrite."""
        rule = self.make()
        local, adapting = WatchedData(self.data()), WatchedData(self.data())
        model = self.network()
        _, state = rule.local_update(model, local, self.gradients(), rule.init(self.network()))
        rule.adapt(model, adapting, self.gradients(), state)
        both = {t.purpose for t in local.trainings} & {t.purpose for t in adapting.trainings}
        assert not both, f"both train under {', '.join(sorted(both))}; give purpose= in adapt"

    def test_adapting_is_deterministic(self) -> None:
        """If this fails: the personalized model depends on something other than weights, data and state."""
        states = []
        for _ in range(2):
            rule = self.make()
            _, state, model = self.updated(rule)
            states.append(snapshot(rule.adapt(model, self.data(), self.gradients(), state)))
        assert equal(*states)

    def test_predicting_changes_nothing(self) -> None:
        """If this fails: a model changes parameters, buffers or a random stream when it predicts in evaluation mode."""
        rule = self.make()
        _, state, model = self.updated(rule)
        adapted = rule.adapt(copy.deepcopy(model), self.data(), self.gradients(), state)
        images, _ = self.data("held-out").everything()
        for kind, used in (("trained", model), ("adapted", adapted)):
            used.eval()
            weights, buffers, streams = snapshot(used), [b.clone() for b in used.buffers()], random_streams()
            with torch.no_grad():
                first, second = used(images), used(images)
            assert torch.isfinite(first).all(), kind
            assert torch.equal(first, second), f"the {kind} model predicts something else the second time"
            assert equal(used.state_dict(), weights), f"the {kind} model changed"
            assert all(map(torch.equal, used.buffers(), buffers)), f"a buffer of the {kind} model changed"
            assert random_streams() == streams, f"the {kind} model drew from a global random stream"
