"""The suites can fail: each deliberately broken component is caught by the test that is named beside it."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.plain import Plain, PlainSession
from pppml_core.builtin.plugin import pppml_aggregators, pppml_personalizations, pppml_tasks
from pppml_core.builtin.tiny import TinyTask
from pppml_core.interfaces.aggregation import Exposure, Sum, WireField
from pppml_core.interfaces.personalization import Update
from pppml_core.interfaces.task import SiteData, SiteInfo
from pppml_core.learning.arrays import difference, snapshot
from pppml_core.learning.data.examples import ArrayExamples, Subset
from pppml_core.testing import AggregatorSuite, PersonalizationSuite, PluginSuite, TaskSuite, overrides_suite_test
from pppml_core.testing.insecure import InsecureMaskedSession, InsecureMaskedSum, InsecureRing, InsecureRingSession
from pppml_core.testing.suite import Suite, silent_overrides
from pppml_core.wire.messages import Exchange


def caught(suite: type[Suite], build: Callable[..., Any], component: Any, test: str, *arguments: Any, **settings: Any) -> None:
    """The suite's test fails for what ``build`` makes."""
    members = {"component": component, "build": lambda self, config: build(config), **settings}
    broken = type("Broken", (suite,), members)()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(broken, test)(*arguments)


# -- sums -----------------------------------------------------------------------------------------------------------------------------


def aggregator(base: type, session: type) -> type:
    class Broken(base):
        def plan(self, value, cohort):
            return session(value, cohort)

    return Broken


class ForgetsDropouts(InsecureMaskedSession):
    """Does not take a vanished site's masks out of the sum."""

    def _masks(self, site, seeds):
        return super()._masks(site, seeds) if len(seeds) == len(self.cohort) - 1 else np.zeros(self.value.length, np.uint64)


class Overflows(PlainSession):
    def coordinate(self, ctx):
        total = yield from super().coordinate(ctx)
        return replace(total, total=total.total.astype(np.int16 if self.value.bound < 2**15 else np.int32).astype(np.int64))


class Remembers(InsecureMaskedSession):
    """Keeps its seeds in an attribute."""

    def open(self, ctx):
        self.kept = super().open(ctx)
        return {}

    def handle(self, state, message, ctx):
        state, body = super().handle({**getattr(self, "kept", {"drawn": {}}), **state}, message, ctx)
        return {k: v for k, v in state.items() if k != "drawn"}, body


class SaysMore(PlainSession):
    def handle(self, state, message, ctx):
        state, body = super().handle(state, message, ctx)
        return state, {**body, "norm": float(np.linalg.norm(body["values"]))}


class Anything(PlainSession):
    @property
    def fields(self):
        values = WireField("contribute", "values", "int16", (None,), 10**9, "in the clear", "update")
        return values, WireField("contribute", "*", "float64", (None,), 99, "in the clear", "more")


class PromisesTooMuch(PlainSession):
    @property
    def guarantees(self):
        return replace(super().guarantees, sees_update=(), coalition_curious=1)


class PromisesNonsense(PlainSession):
    @property
    def guarantees(self):
        return replace(super().guarantees, sees_sum=("the cloud",), coalition_curious=len(self.cohort))


class HidesExposure(InsecureRingSession):
    def exposed(self, view):
        return []


class InventsExposure(InsecureRingSession):
    def exposed(self, view):
        return [Exposure((self.cohort[0],), np.zeros(self.value.length, np.int64))]


class InOrderOnly(PlainSession):
    """Adds what comes in the order of the cohort and forgets the rest."""

    def coordinate(self, ctx):
        total, turn = np.zeros(self.value.length, np.int64), list(ctx.cohort)

        def fold(site, body):
            if turn and turn[0] == site:
                turn.pop(0)
                total[:] += body["values"]

        outcome = yield Exchange("contribute", {site: {} for site in ctx.cohort}, fold)
        return Sum(total, outcome.answered)


class CountsEverybody(PlainSession):
    """Says that all sites are in the sum."""

    def coordinate(self, ctx):
        total = yield from super().coordinate(ctx)
        return replace(total, survivors=ctx.cohort)


class NotMeasured(PlainSession):
    def predicted_bytes(self):
        return {"contribute": self.value.length}


class DeclaresMore(PlainSession):
    @property
    def fields(self):
        return (*super().fields, WireField("contribute", "signature", "bytes", (), 64, "clear", "never sent"))


class SpoilsItsContribution(PlainSession):
    """Works in place on an array that a retry would use again."""

    def handle(self, state, message, ctx):
        values = ctx.contribution()
        values += 0
        return super().handle(state, message, ctx)


class TrustsReplies(InsecureMaskedSession):
    """A site that meets a vanished peer it has no seed for crashes instead of refusing."""

    def handle(self, state, message, ctx):
        if message.stage == "reveal":
            raise KeyError("seed")
        return super().handle(state, message, ctx)


PLAIN = pppml_aggregators()[0]
SUMS = [
    (InsecureMaskedSum, ForgetsDropouts, "test_every_single_dropout", ("drop", "p2p")),
    (Plain, Overflows, "test_extremes_do_not_overflow", ()),
    (InsecureMaskedSum, Remembers, "test_amnesia", ("p2p",)),
    (Plain, SaysMore, "test_sum_is_exact", ("p2p",)),
    (Plain, Anything, "test_an_undeclared_field_is_refused", ()),
    (Plain, PromisesTooMuch, "test_a_coalition_learns_only_the_sum", ()),
    (Plain, PromisesNonsense, "test_guarantees_are_sensible", ()),
    (InsecureRing, HidesExposure, "test_a_larger_coalition_learns_more", ()),
    (InsecureRing, InventsExposure, "test_a_larger_coalition_learns_more", ()),
    (Plain, InOrderOnly, "test_order_of_sites_is_irrelevant", ()),
    (Plain, CountsEverybody, "test_every_single_dropout", ("drop-reply", "star")),
    (Plain, CountsEverybody, "test_damaged_replies_never_give_a_wrong_sum", ("tamper", "p2p")),
    (Plain, NotMeasured, "test_predicted_bytes", ()),
    (Plain, DeclaresMore, "test_declared_is_what_is_sent", ()),
    (Plain, SpoilsItsContribution, "test_sum_is_exact", ("p2p",)),
    (InsecureMaskedSum, TrustsReplies, "test_every_single_dropout", ("drop", "p2p")),
]


@pytest.mark.parametrize(("base", "session", "test", "arguments"), SUMS, ids=[f"{s.__name__}-{t}" for _, s, t, _ in SUMS])
def test_a_broken_sum_is_caught(base, session, test, arguments):
    caught(AggregatorSuite, aggregator(base, session), PLAIN, test, *arguments)


def test_what_the_mutant_keeps_is_all_that_breaks_it():
    """Without amnesia the forgetful session works: it is amnesia that finds it."""
    suite = type("Works", (AggregatorSuite,), {"component": PLAIN, "build": lambda self, c: aggregator(InsecureMaskedSum, Remembers)(c)})()
    suite.test_sum_is_exact("p2p")


# -- learning rules -------------------------------------------------------------------------------------------------------------------


class Decays(FedAvg):
    """Moves without a learning rate."""

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)
        metrics = data.train(model, gradients)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.999)
        return Update(difference(model, start), metrics), state


class KeepsMomentum(FedAvg):
    """Its momentum lives in the object."""

    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        previous = getattr(self, "previous", {})
        self.previous = {n: d + 0.5 * previous.get(n, 0) for n, d in update.delta.items()}
        return Update(self.previous, update.metrics), state


class Aliases(FedAvg):
    """The state is the model's own memory."""

    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        return update, {"weights": {n: p.detach() for n, p in model.named_parameters()}}


class EditsItsState(FedAvg):
    def init(self, model):
        return {"seen": torch.zeros(1)}

    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        state["seen"].add_(1)
        return update, state


class Noisy(FedAvg):
    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        return Update({n: d + 0.01 * torch.randn(d.shape) for n, d in update.delta.items()}), state


class OwnAutograd(FedAvg):
    """Goes round the gradient rule, and so round clipping and noise."""

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)
        for images, targets in data.batches():
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.1 * parameter.grad)
        return Update(difference(model, start)), state


class TwiceAsOften(FedAvg):
    """Two gradients a step, one declared."""

    def local_update(self, model, data, gradients, state):
        start = snapshot(model)
        data.train(model, gradients)
        metrics = data.train(model, gradients)
        return Update(difference(model, start), metrics), state


class Drifts(FedAvg):
    def server_update(self, weights, mean, state):
        return {n: 0.99 * w + mean[n] for n, w in weights.items()}, state


class EditsWeights(FedAvg):
    def server_update(self, weights, mean, state):
        for name, w in weights.items():
            w.add_(mean[name])
        return weights, state


class Forgets(FedAvg):
    """Shares everything, but sends parameters only."""

    def local_update(self, model, data, gradients, state):
        update, state = super().local_update(model, data, gradients, state)
        return replace(update, delta={n: d for n, d in update.delta.items() if "running" not in n}), state


class AdaptsTheArgument(FedAvg):
    """Says that it does not personalize, and does."""

    def adapt(self, model, data, gradients, state):
        data.train(model, gradients)
        return model


class ObjectsInState(FedAvg):
    def local_update(self, model, data, gradients, state):
        update, _ = super().local_update(model, data, gradients, state)
        return update, {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}


RULES = [
    (Decays, "test_zero_rates_give_a_zero_update"),
    (KeepsMomentum, "test_no_state_in_attributes"),
    (KeepsMomentum, "test_sites_share_no_state"),
    (Aliases, "test_update_is_a_snapshot"),
    (EditsItsState, "test_state_handed_in_is_not_changed"),
    (Noisy, "test_deterministic"),
    (OwnAutograd, "test_gradients_come_from_the_rule"),
    (TwiceAsOften, "test_gradient_calls_are_declared"),
    (Drifts, "test_a_zero_mean_keeps_the_weights"),
    (EditsWeights, "test_the_server_changes_nothing_in_place"),
    (Forgets, "test_update_covers_what_is_shared"),
    (AdaptsTheArgument, "test_adapting_leaves_the_site_as_it_was"),
    (ObjectsInState, "test_state_is_plain_data"),
]


@pytest.mark.parametrize(("rule", "test"), RULES, ids=[f"{r.__name__}-{t}" for r, t in RULES])
def test_a_broken_rule_is_caught(rule, test):
    caught(PersonalizationSuite, rule, pppml_personalizations()[0], test)


# -- tasks ----------------------------------------------------------------------------------------------------------------------------


class OnePatientTwice(TinyTask):
    def load(self, site):
        data = super().load(site)
        data.test.groups = np.array([data.train.groups[0], *data.test.groups[1:]])
        return data


class TestsOnTraining(TinyTask):
    def load(self, site):
        data = super().load(site)
        return SiteData(data.train, data.validation, Subset(data.train, range(4)))


class Doubles(TinyTask):
    def load(self, site):
        data = super().load(site)
        data.train.to_image = lambda array: array.astype(np.float64)
        return data


class ExtraClass(TinyTask):
    def load(self, site):
        data = super().load(site)
        data.train.targets[0] = 7
        return data


class Flickers(TinyTask):
    def load(self, site):
        data = super().load(site)
        data.train.images[0] += random.random()
        return data


class Shuffles(TinyTask):
    """Draws from numpy's global stream while loading."""

    def load(self, site):
        np.random.random()  # noqa: NPY002
        return super().load(site)


class OneForAll(TinyTask):
    def load(self, site):
        return super().load("site_1")


class Upper(TinyTask):
    def sites(self):
        return tuple(SiteInfo(f"Site {i}", f"Site {i}") for i in range(3))


class Backwards(TinyTask):
    def score(self, predictions):
        return {name: 1 - value for name, value in super().score(predictions).items()}


class ScoresMore(TinyTask):
    def score(self, predictions):
        return {**super().score(predictions), "kappa": 1.0}


class Detached(TinyTask):
    def loss(self, outputs, targets, class_weights=None):
        return super().loss(outputs, targets, class_weights).detach().requires_grad_()


class NoLicence(TinyTask):
    def card(self):
        return replace(super().card(), licence="")


class WrongLabels(TinyTask):
    def load(self, site):
        data = super().load(site)
        data.train.labels = lambda: np.zeros(len(data.train), np.int64)
        return data


class StoredAugmentation(TinyTask):
    """Augmentation in place spoils the stored image."""

    def load(self, site):
        def augment(image, target, generator):
            image += generator.random(dtype=np.float32)
            return image, target

        def part(examples):
            return ArrayExamples(examples.images, examples.targets, examples.groups, to_image=lambda array: array, augment=augment)

        data = super().load(site)
        return SiteData(part(data.train), part(data.validation), part(data.test))


TASKS = [
    (OnePatientTwice, "test_splits_share_no_group"),
    (TestsOnTraining, "test_splits_share_no_group"),
    (Doubles, "test_examples_are_as_declared"),
    (ExtraClass, "test_examples_are_as_declared"),
    (Flickers, "test_loading_is_deterministic"),
    (Shuffles, "test_loading_is_deterministic"),
    (OneForAll, "test_sites_differ"),
    (Upper, "test_sites_have_slugs"),
    (Backwards, "test_scores_of_perfect_and_worst_predictions"),
    (ScoresMore, "test_scores_of_perfect_and_worst_predictions"),
    (Detached, "test_loss_is_finite_and_differentiable"),
    (NoLicence, "test_card_is_complete"),
    (WrongLabels, "test_labels_fit_the_targets"),
    (StoredAugmentation, "test_augmentation_draws_from_its_generator"),
]
TestsOnTraining.__test__ = False


@pytest.mark.parametrize(("task", "test"), TASKS, ids=[f"{t.__name__}-{n}" for t, n in TASKS])
def test_a_broken_task_is_caught(task, test):
    caught(TaskSuite, task, pppml_tasks()[0], test)


# -- plugins --------------------------------------------------------------------------------------------------------------------------

GOOD = """
from pydantic import Field
from pppml_core import Component, ComponentConfig, hookimpl

class Settings(ComponentConfig):
    speed: int = Field(1, description="how fast")

@hookimpl
def pppml_tasks():
    return [Component("some-task", Settings, "pppml_core.builtin.tiny:TinyTask", "a task")]
"""
PLUGINS = [
    ("import torch" + GOOD, "test_import_is_light_and_local"),
    ("import socket; socket.socket().close()" + GOOD, "test_import_is_light_and_local"),
    (GOOD.replace("pppml_tasks", "pppml_task"), "test_hooks_return_components"),
    (GOOD.replace("return [", "return iter([").replace('"a task")]', '"a task")])'), "test_hooks_return_components"),
    (GOOD.replace("some-task", "Some Task"), "test_components_are_described"),
    (GOOD.replace('"a task"', '""'), "test_components_are_described"),
    (GOOD.replace("pppml_tasks", "pppml_attacks"), "test_components_are_described"),
    (GOOD.replace("pppml_tasks", "pppml_attacks"), "test_targets_load"),
    (GOOD.replace('Field(1, description="how fast")', "1"), "test_settings_have_defaults_and_descriptions"),
    (GOOD.replace("speed", "haste"), "test_readme_mentions_every_setting"),
    (GOOD.replace("    speed", '    model_config = {"extra": "ignore"}\n    speed'), "test_unknown_settings_are_refused"),
]


@pytest.fixture
def plugin_of(tmp_path, monkeypatch):
    def suite(source: str, name: str) -> PluginSuite:
        (tmp_path / f"{name}.py").write_text(source)
        (tmp_path / "README.md").write_text("`some-task` has the setting `speed`.")
        monkeypatch.syspath_prepend(tmp_path)
        return type("Broken", (PluginSuite,), {"plugin": name, "readme": tmp_path / "README.md"})()

    return suite


@pytest.mark.parametrize(("number", "test"), [(i, test) for i, (_, test) in enumerate(PLUGINS)])
def test_a_broken_plugin_is_caught(plugin_of, number, test):
    suite = plugin_of(PLUGINS[number][0], f"broken_plugin_{number}")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(suite, test)()


def test_the_same_plugin_passes_unbroken(plugin_of):
    suite = plugin_of(GOOD, "sound_plugin")
    for name in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, name)()


# -- the guard ------------------------------------------------------------------------------------------------------------------------


def test_a_silent_override_is_caught():
    class Silent(TaskSuite):
        def test_splits_share_no_group(self):
            pass

    class Nothing(TaskSuite):
        test_spec = None

    class Mixin:
        def test_spec(self):
            pass

    class ByMixin(Mixin, TaskSuite):
        pass

    assert silent_overrides(Silent) == ["test_splits_share_no_group"]
    assert silent_overrides(Nothing) == ["test_spec"]
    assert silent_overrides(ByMixin) == ["test_spec"]
    with pytest.raises(AssertionError, match="test_splits_share_no_group"):
        Silent().test_no_silent_overrides()


def test_an_override_with_a_reason_passes():
    class Reasoned(TaskSuite):
        @overrides_suite_test(reason="this task has one site")
        def test_sites_differ(self):
            pass

    class More(Reasoned):
        def test_another_thing(self):
            pass

    More().test_no_silent_overrides()
    with pytest.raises(TypeError, match="needs a reason"):
        overrides_suite_test(reason=" ")


def test_the_guard_cannot_be_overridden():
    with pytest.raises(TypeError, match="cannot be overridden"):
        type("Sly", (TaskSuite,), {"test_no_silent_overrides": lambda self: None})


@pytest.mark.parametrize("suite", [AggregatorSuite, PersonalizationSuite, PluginSuite, TaskSuite])
def test_every_inherited_test_says_what_to_do(suite):
    tests = [name for name in dir(suite) if name.startswith("test_")]
    assert len(tests) > 5
    for name in tests:
        assert (getattr(suite, name).__doc__ or "").startswith("If this fails: "), name
