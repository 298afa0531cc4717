"""The suite of learning rules can fail: each wrong rule is caught by the tests named beside it, and by no other. Most by one.

The rules they are made of are sound, and pass all of it: FedAvg, a head that stays at the site, and Per-FedAvg's steps by hand.
"""

import copy
import os

import numpy as np
import pytest
import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.plugin import pppml_personalizations
from pppml_core.interfaces.personalization import Update
from pppml_core.learning.arrays import difference, load_state, snapshot
from pppml_core.testing import PersonalizationSuite

LOSS = torch.nn.functional.cross_entropy


def suite_of(rule, **settings):
    members = {"component": pppml_personalizations()[0], "build": lambda self, config: rule(config), **settings}
    return type("Tried", (PersonalizationSuite,), members)()


def failing(rule, **settings):
    """Names of the suite's tests that fail for a rule; where nothing stays at a site the one about the wire is left out, to save time.

    A test that fails says so by an assertion. Any other exception is an accident, of the suite or of the rule, and is not caught here.
    """
    suite, out = suite_of(rule, **settings), set()
    names = {name for name in dir(suite) if name.startswith("test_")}
    for name in names - (set() if issubclass(rule, Head) else {"test_personal_parameters_never_leave"}):
        try:
            getattr(suite, name)()
        except pytest.skip.Exception:
            pass
        except AssertionError:
            out.add(name)
    return out


# -- sound rules ----------------------------------------------------------------------------------------------------------------------


class Head(FedAvg):
    """A head that stays at the site, and its training once more to adapt."""

    personalizes = True
    has_global_model = False
    shares_one_gradient = False

    def shared(self, name, model):
        return not name.startswith("head.")

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)
        metrics = data.train(model, gradients)
        return Update({n: d for n, d in difference(model, start).items() if self.shared(n, model)}, metrics), state

    def adapt(self, model, data, gradients, state):
        data.train(model, gradients, parameters=list(model.head.parameters()), purpose="adapt")
        return model


class FineTuned(FedAvg):
    personalizes = True

    def adapt(self, model, data, gradients, state):
        data.train(model, gradients, purpose="adapt")
        return model


class Meta(FedAvg):
    """A gradient after an inner step, the step on one batch and the gradient on another."""

    batches_per_step = gradient_calls = 2
    shares_one_gradient = False
    alpha = 0.05

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)

        def rule(network, batches):
            before = {p: p.detach().clone() for p in network.parameters()}
            self.inner_step(network, gradients, batches[0])
            loss = gradients(network, batches[-1])
            with torch.no_grad():
                for p, w in before.items():
                    p.copy_(w)
            return loss

        metrics = data.train(model, rule, batches_per_step=self.batches_per_step)
        return Update(difference(model, start), metrics), state

    def inner_step(self, network, gradients, batch):
        gradients(network, batch)
        with torch.no_grad():
            for p in network.parameters():
                p.sub_(self.alpha * p.grad)


class Curved(FedAvg):
    """One Newton-like correction: a gradient, less a little of the Hessian times it, on one batch."""

    gradient_calls = 2
    needs_hessian = True
    shares_one_gradient = False

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)

        def rule(network, batch):
            loss = gradients(network, batch)
            product = gradients.hessian_vector(network, batch, {n: p.grad.clone() for n, p in network.named_parameters()})
            for name, p in network.named_parameters():
                p.grad -= 0.01 * product[name]
            return loss

        metrics = data.train(model, rule)
        return Update(difference(model, start), metrics), state


class Counts(FedAvg):
    """Remembers how many rounds it took part in."""

    def init(self, model):
        return {"rounds": 0}

    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        return update, {"rounds": state["rounds"] + 1}


@pytest.mark.parametrize("rule", [FedAvg, Head, FineTuned, Meta, Curved, Counts])
def test_sound_rules_pass(rule):
    assert failing(rule) == set()


# -- what moves -----------------------------------------------------------------------------------------------------------------------


class Weightless(FedAvg):
    """No site counts."""

    def weight(self, examples):
        return 0


class HeadAtItsOwnRate(Head):
    """The head has a rate that ``zero_rates`` does not name."""

    gradient_calls = 2

    def local_update(self, model, data, gradients, state):
        data.train(model, gradients, parameters=list(model.head.parameters()), lr=0.05, purpose="head")
        return super().local_update(model, data, gradients, state)


class NeverQuiteStill(FedAvg):
    """Shares a little more than the difference, whatever the rate."""

    shares_one_gradient = False

    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        return Update({**update.delta, "head.bias": update.delta["head.bias"] + 1e-6}, update.metrics), state


class MeasuredFromTheFirst(FedAvg):
    """The difference to the weights of the site's first round."""

    def local_update(self, model, data, gradients, state):
        state = state or {"start": {n: t for n, t in snapshot(model).items() if t.is_floating_point()}}
        metrics = data.train(model, gradients)
        return Update(difference(model, {**snapshot(model), **state["start"]}), metrics), state


class PutBackByAdding(Meta):
    """Takes the inner step back by adding what it subtracted: not the same number in the last bit."""

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)

        def rule(network, batches):
            self.inner_step(network, gradients, batches[0])
            inner = {p: p.grad.clone() for p in network.parameters()}
            loss = gradients(network, batches[1])
            with torch.no_grad():
                for p, g in inner.items():
                    p.add_(self.alpha * g)
            return loss

        metrics = data.train(model, rule, batches_per_step=2)
        return Update(difference(model, start), metrics), state


class Overshoots(FedAvg):
    """Goes further than the optimizer did, in the middle of its steps."""

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)

        def rule(network, batch):
            with torch.no_grad():
                for name, p in network.named_parameters():
                    p.copy_(start[name] + 1.1 * (p - start[name]))
            return gradients(network, batch)

        metrics = data.train(model, rule)
        return Update(difference(model, start), metrics), state


class ForgetsWhatItLearned(FedAvg):
    shares_one_gradient = False

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)
        metrics = data.train(model, gradients)
        load_state(model, start)
        return Update(difference(model, start), metrics), state


class SharesByValue(FedAvg):
    """What is shared changes with the first step."""

    def shared(self, name, model):
        return name != "conv.bias" or int(model.norm.num_batches_tracked) == 0


class Doubles(FedAvg):
    """Sends numbers of another type than the weights have."""

    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        return Update({n: d.double() if n == "conv.bias" else d for n, d in update.delta.items()}, update.metrics), state


MOVES = [
    (Weightless, {"test_is_a_personalization"}),
    (HeadAtItsOwnRate, {"test_zero_rates_give_a_zero_update", "test_zero_rates_adapt_nothing"}),
    (NeverQuiteStill, {"test_zero_rates_give_a_zero_update", "test_the_update_is_measured_from_the_weights_handed_in"}),
    (MeasuredFromTheFirst, {"test_the_update_is_measured_from_the_weights_handed_in"}),
    (
        PutBackByAdding,
        {
            "test_zero_rates_give_a_zero_update",
            "test_the_update_is_measured_from_the_weights_handed_in",
            "test_a_step_moves_no_shared_weight",
        },
    ),
    (Overshoots, {"test_a_step_moves_no_shared_weight"}),
    (ForgetsWhatItLearned, {"test_it_learns"}),
    (SharesByValue, {"test_shared_is_fixed"}),
    (Doubles, {"test_update_covers_what_is_shared"}),
]

# -- sites apart ----------------------------------------------------------------------------------------------------------------------

MOMENTUM = {}


class ModuleMomentum(FedAvg):
    """Its momentum is a global of the module: one for all sites."""

    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        for name, d in update.delta.items():
            MOMENTUM[name] = d + 0.5 * MOMENTUM.get(name, 0)
        return Update(dict(MOMENTUM), update.metrics), state


class ClassCount(FedAvg):
    """Its class counts the rounds of all sites, and their learning rate falls with it."""

    rounds = 0

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)
        metrics = data.train(model, gradients, lr=0.1 / (1 + ClassCount.rounds))
        ClassCount.rounds += 1
        return Update(difference(model, start), metrics), state


class OnTheNetwork(FedAvg):
    """The network, which all sites of a process take in turns, belongs to the site that had it first."""

    def local_update(self, model, data, gradients, state):
        me = float(next(data.sample("who", 1))[0].sum())
        model.owner = getattr(model, "owner", me)
        start = snapshot(model)
        metrics = data.train(model, gradients, lr=None if model.owner == me else 0.05)
        return Update(difference(model, start), metrics), state


class KeepsItsStart(FedAvg):
    """The weights it began with are an attribute of the rule."""

    def local_update(self, model, data, gradients, state):
        self.start = snapshot(model)
        metrics = data.train(model, gradients)
        return Update(difference(model, self.start), metrics), state


class StepsOnItsState(Counts):
    def local_update(self, model, data, gradients, state):
        update, after = super().local_update(model, data, gradients, dict(state))
        state["rounds"] += 1
        return update, after


SITES = [
    (OnTheNetwork, {"test_sites_share_no_state"}),
    (KeepsItsStart, {"test_two_sites_at_a_time"}),
    (StepsOnItsState, {"test_state_handed_in_is_not_changed"}),
]
#: these are remembered by the process, so other tests notice too.
LASTING = [(ModuleMomentum, "test_sites_share_no_state"), (ClassCount, "test_sites_share_no_state")]

# -- declared needs -------------------------------------------------------------------------------------------------------------------


class AsksForMore(Meta):
    """Two batches a step, one declared."""

    batches_per_step = 1

    def local_update(self, model, data, gradients, state):
        return Meta.local_update(Meta(self.config), model, data, gradients, state)


class LeavesABatch(Meta):
    """Three batches a step, the one in the middle for nothing."""

    batches_per_step = 3


class DrawsForItself(Meta):
    """Its inner step is on a batch of its own drawing, which has examples in common with the step's."""

    batches_per_step = 1

    def local_update(self, model, data, gradients, state):
        own = data.sample("inner", 1000)
        start = snapshot(model)

        def rule(network, batch):
            before = {p: p.detach().clone() for p in network.parameters()}
            self.inner_step(network, gradients, next(own))
            loss = gradients(network, batch)
            with torch.no_grad():
                for p, w in before.items():
                    p.copy_(w)
            return loss

        metrics = data.train(model, rule)
        return Update(difference(model, start), metrics), state


class LooksForTests(FineTuned):
    """Adapts on held-out images where it finds any."""

    def adapt(self, model, data, gradients, state):
        held = getattr(data, "test", None) or getattr(data, "_examples", None)
        return super().adapt(model, held or data, gradients, state)


class CountsOneOfTwo(Meta):
    gradient_calls = 1


class ProductsAreFree(Curved):
    gradient_calls = 1


class HeadTwice(Head):
    """Trains its head for two epochs more than it declares."""

    gradient_calls = 2

    def local_update(self, model, data, gradients, state):
        data.train(model, gradients, parameters=list(model.head.parameters()), epochs=2, purpose="head")
        return super().local_update(model, data, gradients, state)


class HeadByItself(Head):
    """Trains its head past the gradient rule."""

    def local_update(self, model, data, gradients, state):
        def rule(network, batch):
            network.zero_grad()
            loss = LOSS(network(batch[0]), batch[1])
            loss.backward()
            return float(loss.detach())

        data.train(model, rule, parameters=list(model.head.parameters()), steps=1, purpose="head")
        return super().local_update(model, data, gradients, state)


class StatisticsForWeights(FedAvg):
    """Adds to a gradient what it has read off the images itself."""

    shares_one_gradient = False

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)

        def rule(network, batch):
            loss = gradients(network, batch)
            network.head.bias.grad += 0.1 * batch[0].mean()
            return loss

        metrics = data.train(model, rule)
        return Update(difference(model, start), metrics), state


class UndeclaredCurvature(Curved):
    needs_hessian = False


class DecayedGradient(FedAvg):
    """A term of its own beside the gradient it declares to be all."""

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)

        def rule(network, batch):
            loss = gradients(network, batch)
            for p in network.parameters():
                p.grad += 0.01 * p.detach()
            return loss

        metrics = data.train(model, rule)
        return Update(difference(model, start), metrics), state


class LooksAhead(Meta):
    """A gradient at other weights than the shared ones."""

    shares_one_gradient = True


class SharesMomentum(FedAvg):
    """The last round's update comes along."""

    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        new = {n: d for n, d in update.delta.items() if "running" not in n}
        both = {n: d + 0.001 * state.get(n, 0) * bool(d.any()) for n, d in new.items()}
        return Update({**update.delta, **both}, update.metrics), new


NEEDS = [
    (AsksForMore, {"test_batches_per_step_are_declared"}),
    (LeavesABatch, {"test_every_batch_of_a_step_is_used"}),
    (DrawsForItself, {"test_gradients_of_a_step_share_no_example"}),
    (LooksForTests, {"test_nothing_but_local_data_is_asked_for"}),
    (CountsOneOfTwo, {"test_gradient_calls_are_declared"}),
    (ProductsAreFree, {"test_gradient_calls_are_declared"}),
    (HeadTwice, {"test_gradient_calls_are_declared"}),
    (HeadByItself, {"test_gradients_come_from_the_rule", "test_every_batch_of_a_step_is_used"}),
    (StatisticsForWeights, {"test_gradients_come_from_the_rule"}),
    (UndeclaredCurvature, {"test_hessian_products_are_declared"}),
    (DecayedGradient, {"test_one_gradient_is_shared_where_that_is_declared"}),
    (LooksAhead, {"test_one_gradient_is_shared_where_that_is_declared"}),
    (SharesMomentum, {"test_one_gradient_is_shared_where_that_is_declared"}),
]

# -- adapting -------------------------------------------------------------------------------------------------------------------------


class AdaptsNothing(FedAvg):
    """Says that it personalizes, and hands the shared model back."""

    personalizes = True


class ClimbsAtNewSites(FineTuned):
    """Where it has never trained it goes uphill."""

    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        return update, {"trained": True}

    def adapt(self, model, data, gradients, state):
        start = snapshot(model)
        super().adapt(model, data, gradients, state)
        if not state:
            load_state(model, {n: 2 * start[n] - p.detach() for n, p in model.named_parameters()})
        return model


class AdaptsAtItsOwnRate(FineTuned):
    """A rate that ``zero_rates`` does not name."""

    def adapt(self, model, data, gradients, state):
        data.train(model, gradients, lr=0.05, purpose="adapt")
        return model


class NotesInItsState(Counts):
    """Counts its adaptations, in the site's state."""

    personalizes = False

    def adapt(self, model, data, gradients, state):
        state["rounds"] = state["rounds"] + 0.0
        state["adapted"] = 1
        return model


class GoesOnWhereItWas(Counts):
    """Asked again in one round, it adapts the model it made before a little further."""

    personalizes = True

    def adapt(self, model, data, gradients, state):
        now = (state["rounds"], float(next(data.sample("who", 1))[0].sum()))
        again = state["rounds"] and getattr(self, "last", None) == now
        self.last = now
        data.train(model, gradients, steps=6 if again else 4, purpose="adapt")
        return model


class AdaptsInTheOrderOfTraining(FineTuned):
    def adapt(self, model, data, gradients, state):
        data.train(model, gradients)
        return model


class AdaptsByTheDice(FineTuned):
    """Noise that no seed gives."""

    def adapt(self, model, data, gradients, state):
        model = super().adapt(model, data, gradients, state)
        with torch.no_grad():
            dice = np.frombuffer(os.urandom(8 * len(model.head.bias)), np.uint64) / 2**64
            model.head.bias.add_(torch.from_numpy(dice).float())
        return model


class LearnsFromWhatItPredicts(FineTuned):
    """Follows the images it predicts, in evaluation mode too."""

    def adapt(self, model, data, gradients, state):
        model = super().adapt(copy.deepcopy(model), data, gradients, state)

        def follow(norm, inputs, output):
            if not norm.training:
                norm.running_mean.add_(0.001 * inputs[0].mean((0, 2, 3)))

        model.norm.register_forward_hook(follow)
        return model


ADAPTING = [
    (AdaptsNothing, {"test_adapting_lowers_the_support_loss"}),
    (ClimbsAtNewSites, {"test_a_site_that_comes_later_can_adapt"}),
    (AdaptsAtItsOwnRate, {"test_zero_rates_adapt_nothing"}),
    (NotesInItsState, {"test_adapting_leaves_the_site_as_it_was", "test_adapting_often_changes_nothing"}),
    (GoesOnWhereItWas, {"test_adapting_often_changes_nothing"}),
    (AdaptsInTheOrderOfTraining, {"test_adapting_has_an_order_of_its_own"}),
    (LearnsFromWhatItPredicts, {"test_predicting_changes_nothing"}),
]

# -- the wire -------------------------------------------------------------------------------------------------------------------------


class SendsTheHeadAlong(Head):
    """The change of its personal head, in the place of a shared tensor's."""

    scale = 1.0

    def local_update(self, model, data, gradients, state):
        before = model.head.weight.detach().clone()
        update, state = super().local_update(model, data, gradients, state)
        kernel = update.delta["conv.weight"]
        hidden = (model.head.weight.detach() - before).flatten()[: kernel.numel()]
        return Update({**update.delta, "conv.weight": self.scale * hidden.reshape(kernel.shape)}, update.metrics), state


class SendsItScaled(SendsTheHeadAlong):
    scale = -0.3


class SendsTheBias(Head):
    """Three numbers only."""

    def local_update(self, model, data, gradients, state):
        before = model.head.bias.detach().clone()
        update, state = super().local_update(model, data, gradients, state)
        bias = update.delta["conv.bias"].clone()
        bias[:3] = model.head.bias.detach() - before
        return Update({**update.delta, "conv.bias": bias}, update.metrics), state


WIRE = [(rule, {"test_personal_parameters_never_leave"}) for rule in (SendsTheHeadAlong, SendsItScaled, SendsTheBias)]

EXACT = [*MOVES, *SITES, *NEEDS, *ADAPTING, *WIRE]


@pytest.mark.parametrize(("rule", "tests"), EXACT, ids=[rule.__name__ for rule, _ in EXACT])
def test_a_broken_rule_is_caught_by_its_tests_alone(rule, tests):
    assert failing(rule) == tests


@pytest.mark.parametrize(("rule", "test"), [*LASTING, (AdaptsByTheDice, "test_adapting_is_deterministic")])
def test_a_broken_rule_is_caught(rule, test):
    with pytest.raises(AssertionError):
        getattr(suite_of(rule), test)()
