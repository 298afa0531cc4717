"""Whoever tries to adapt on held-out images through the API does not get at them: not a method, not a caller of ``Run.adapt``."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from pppml_core.builtin.configs import FedAvgConfig, TinyTaskConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import ConfigError, DataError
from pppml_core.interfaces.personalization import Personalization
from pppml_core.interfaces.task import SiteData, Task
from pppml_core.learning.data.collection import Collection, site_data
from pppml_core.learning.data.examples import ArrayExamples, Subset
from pppml_core.registry import Registry

#: added to every held-out pixel, so that it is known wherever it turns up.
MARK = 7777.0
METHODS = [c.name for c in Registry.discover().components("personalization") if not c.missing()]


class Touched(AssertionError):
    """A held-out image was read while it should not be."""


class Guard:
    """Says when held-out images may not be read."""

    def __init__(self):
        self.closed, self.read = False, 0

    def __call__(self, function):
        """``function`` with the guard closed."""

        @functools.wraps(function)
        def closed(*args, **kwargs):
            before, self.closed = self.closed, True
            try:
                return function(*args, **kwargs)
            finally:
                self.closed = before

        return closed


class Held(ArrayExamples):
    """Held-out examples under a guard."""

    guard = None

    def example(self, index, augment=None):
        self.guard.read += 1
        if self.guard.closed:
            raise Touched
        return super().example(index, augment)

    def labels(self):
        if self.guard.closed:
            raise Touched
        return super().labels()


class Guarded(TinyTask):
    """The tiny task; ``site_3`` may have no training images."""

    def __init__(self, guard, only_test=()):
        super().__init__(TinyTaskConfig())
        self.guard, self.only_test = guard, only_test

    def load(self, site):
        data = super().load(site)
        held = []
        for part in (data.validation, data.test):
            examples = Held(part.images + np.float32(MARK), part.targets, part.groups, np.asarray)
            examples.guard = self.guard
            held.append(examples)
        return SiteData(Subset(data.train, np.arange(0)) if site in self.only_test else data.train, *held)


def watched(registry, name, guard):
    """An installed method whose every access to held-out images is an error."""
    from pppml_core.api import Experiment

    config = Experiment(task="tiny", personalization=name, registry=registry).config.personalization
    rule = registry.build("personalization", config)
    rule.local_update, rule.adapt = guard(rule.local_update), guard(rule.adapt)
    return rule


@pytest.mark.parametrize("name", METHODS)
def test_no_installed_method_reads_held_out_images(experiment, name, tmp_path):
    guard = Guard()
    rule = watched(Registry.discover(), name, guard)
    made = experiment(task=Guarded(guard), personalization=rule, run={"rounds": 1}, training={"batch_size": 6}, model=BATCH_NORM)
    run = made.run(tmp_path / "r", reporters=False, report=False)
    assert guard.read, "evaluation reads them"
    assert run.result["metrics"]["personalized" if rule.personalizes else "global"]["sites"]
    if rule.shares:
        guard(run.adapt)("site_2", 6)


BATCH_NORM = {"use": "tiny-net", "norm": "batch"}


# -- Run.adapt ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapting(experiment, tmp_path_factory):
    """A run without ``site_3``, which has test images only, and without ``site_2``; and its guard."""
    guard = Guard()
    sections = {"task": {"use": "object", "leave_out": ["site_2", "site_3"]}, "objects": {"task": Guarded(guard, only_test=("site_3",))}}
    made = experiment(**sections, personalization=OneEpoch())
    return made.run(tmp_path_factory.mktemp("adapting") / "r", reporters=False, report=False), guard


class OneEpoch(FedAvg):
    """FedAvg whose adaptation is one epoch, and which notes how many examples it got."""

    personalizes = True

    def __init__(self):
        super().__init__(FedAvgConfig())
        self.got = []

    def adapt(self, model, data, gradients, state):
        self.got.append(data.examples)
        data.train(model, gradients, epochs=1, purpose="adapt")
        return model


@pytest.mark.parametrize(
    ("site", "examples", "got"),
    [("site_1", None, 24), ("site_1", 5, 5), ("site_2", None, 25), ("site_2", 25, 25), ("site_2", 1, 1)],
)
def test_only_training_images_are_adapted_to(adapting, site, examples, got):
    run, guard = adapting
    network = guard(run.adapt)(site, examples)
    assert run._assembly.personalization.got[-1] == got
    assert not network.training


@pytest.mark.parametrize(
    ("site", "examples"), [("site_1", 25), ("site_2", 26), ("site_2", 0), ("site_2", -1), ("site_3", None), ("site_3", 1), ("site_3", 12)]
)
def test_more_than_there_are_is_an_error_and_no_loan_from_the_test_images(adapting, site, examples):
    run, guard = adapting
    reason = "it has no training examples" if site == "site_3" else "training examples cannot be taken"
    with pytest.raises(DataError, match=reason) as caught:
        guard(run.adapt)(site, examples)
    assert site in str(caught.value)


@pytest.mark.parametrize("site", ["site_1/test", "site_1#test", "test", "../site_1", "site_1:test", ""])
def test_a_part_of_a_site_has_no_name(adapting, site):
    run, guard = adapting
    with pytest.raises(ConfigError, match="there is no site"):
        guard(run.adapt)(site)


@pytest.mark.parametrize("attempt", [{"split": "test"}, {"data": None}, {"part": "validation"}, {"splits": ["test"]}])
def test_no_argument_names_a_split(adapting, attempt):
    run, guard = adapting
    with pytest.raises(TypeError, match=next(iter(attempt))):
        guard(run.adapt)("site_1", **attempt)


# -- a method that looks everywhere ---------------------------------------------------------------------------------------------


def reachable(*roots):
    """Every object that can be reached from ``roots`` by attributes, items, closures, bound objects, views and waiting generators.

    Modules and classes are not entered: through them all of Python can be reached, from anywhere.
    """
    found, todo = {}, list(roots)
    while todo:
        thing = todo.pop()
        if id(thing) in found or isinstance(thing, type | types.ModuleType | str | bytes | int | float | bool | type(None)):
            continue
        found[id(thing)] = thing
        if isinstance(thing, Mapping):
            todo += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            todo += list(thing)
        elif isinstance(thing, np.ndarray):
            todo.append(thing.base)
        elif isinstance(thing, torch.Tensor):
            todo += [thing._base, thing.grad if thing.is_leaf else None]
        elif isinstance(thing, types.GeneratorType):
            todo += [thing.gi_yieldfrom, *(thing.gi_frame.f_locals.values() if thing.gi_frame else ())]
        elif isinstance(thing, types.FunctionType):
            todo += [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
            todo += [thing.__defaults__, thing.__kwdefaults__]
        for name in ("__self__", "__func__", "__wrapped__", "func", "args", "keywords"):
            todo.append(getattr(thing, name, None))
        todo.append(getattr(thing, "__dict__", None))
        for kind in type(thing).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            todo += [getattr(thing, name, None) for name in ([slots] if isinstance(slots, str) else slots)]
    return list(found.values())


def _filled(cell):
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def held_out_among(things):
    """Those that are, hold or lead to held-out images."""
    out = []
    for thing in things:
        array = thing
        if isinstance(thing, torch.Tensor):  # with all of what it is a view of
            array = torch.empty(0, dtype=thing.dtype).set_(thing.untyped_storage()).numpy()
        numbers = isinstance(array, np.ndarray) and array.dtype.kind in "fiu" and array.size
        marked = numbers and np.abs(array.astype(float)).max() >= MARK / 2
        if marked or isinstance(thing, SiteData | Task):
            out.append(thing)
    return out


class Nosy(FedAvg):
    """Looks through everything it is handed, and reports what it should not have found."""

    personalizes = True

    def __init__(self):
        super().__init__(FedAvgConfig())
        self.looked, self.found = [], []

    def look(self, where, *handed):
        data = handed[1]
        begun = [data.batches(), data.sample("look", 3)]
        for iterator in begun:
            next(iterator)
        things = reachable(*handed, *begun)
        self.looked.append((where, len(things)))
        self.found += [(where, thing) for thing in held_out_among(things)]

    def init(self, model):
        self.found += [("init", thing) for thing in held_out_among(reachable(model))]
        return {"seen": 0}

    def local_update(self, model, data, gradients, state):
        self.look("before training", model, data, gradients, state)
        update, _ = super().local_update(model, data, gradients, state)
        self.look("after training", model, data, gradients, state)
        return update, {"seen": state["seen"] + 1}

    def adapt(self, model, data, gradients, state):
        self.look("adapt", model, data, gradients, state)
        return super().adapt(model, data, gradients, state)


class OneArray(TinyTask):
    """All parts are cut out of one array, the worst case; ``how`` it is cut."""

    def __init__(self, how):
        super().__init__(TinyTaskConfig(examples=12))
        self.how, self.kept = how, {}

    def load(self, site):
        if site in self.kept:
            return self.kept[site]
        parts = super().load(site)
        whole = [parts.train, parts.validation, parts.test]
        images = np.concatenate([(p.images + np.float32(MARK if i else 0)) for i, p in enumerate(whole)])
        targets, groups = (np.concatenate([getattr(p, n) for p in whole]) for n in ("targets", "groups"))
        stops = np.cumsum([0, *map(len, whole)])
        places = {s: np.arange(stops[i], stops[i + 1]) for i, s in enumerate(("train", "validation", "test"))}
        if self.how == "subsets":
            everything = ArrayExamples(images, targets, groups, np.asarray)
            self.kept[site] = SiteData(*(Subset(everything, places[s]) for s in places))
        else:
            collection = Collection(
                "here", "classification", ("a", "b", "c"), 1, (8, 8), np.zeros(len(images), int), ("a",), groups,
                np.ones(len(images), bool), None, targets, lambda where: (images[where], targets[where]),
            )  # fmt: skip
            self.kept[site] = site_data(collection, places, np.asarray)
        return self.kept[site]


@pytest.mark.parametrize(
    ("how", "training"),
    [
        ("subsets", {}),
        ("read together", {}),
        ("read together", {"cache": False}),
        ("read together", {"augment": True, "class_weights": "balanced"}),
    ],
)
def test_nothing_that_is_handed_to_a_method_leads_to_held_out_images(experiment, how, training, tmp_path):
    nosy = Nosy()
    made = experiment(
        task=OneArray(how),
        personalization=nosy,
        run={"rounds": 2},
        training={"optimizer": {"momentum": 0.5}, "keep_optimizer": True, **training},
    )
    run = made.run(tmp_path / "r", reporters=False, report=False)
    run.adapt("site_1", 5)
    assert {where for where, _ in nosy.looked} == {"before training", "after training", "adapt"}
    assert nosy.looked[-1][0] == "adapt"
    assert min(count for _, count in nosy.looked) > 30
    assert not nosy.found, nosy.found[:3]


def test_the_look_would_find_them():
    """The control: what a careless hand-over would lead to is found, by each way that is searched."""
    task = OneArray("subsets")
    data = task.load("site_1")

    def waiting():
        kept = data.test
        yield
        del kept

    generator = waiting()
    next(generator)
    view = torch.from_numpy(data.test.examples.images)[:12]
    ways = [
        task.loss,
        lambda outputs: data.test.example(outputs),
        functools.partial(print, data),
        data.train,
        {"deep": [(data.test,)]},
        data.test.examples.images[:12],
        view,
        generator,
    ]
    for way in ways:
        assert held_out_among(reachable(way)), way
    assert not held_out_among(reachable(OneArray("read together").load("site_1").train))


def test_a_method_is_told_the_sizes_of_the_training_parts_only(experiment):
    told = []

    class Asked(FedAvg):
        def misfits(self, model, examples, training):
            told.append((dict(examples), dict(training)))
            return []

    experiment(personalization=Asked(FedAvgConfig())).plan()
    ((examples, training),) = told
    assert examples == {"site_1": 24, "site_2": 25, "site_3": 26}
    assert not held_out_among(reachable(training))


def test_the_contract_has_no_door():
    """What a method is handed has no name for another part than the training part."""
    from pppml_core.interfaces.personalization import LocalData
    from pppml_core.learning.training import LocalTraining

    public = {n for n in dir(LocalTraining) if not n.startswith("_")}
    assert {n for n in vars(LocalData) if not n.startswith("_")} | {"examples"} == {"batches", "sample", "train", "examples"}
    assert public | {"examples", "optimizer_state"} == {"batches", "sample", "train", "order", "examples", "optimizer_state"}
    assert Personalization.adapt.__code__.co_varnames[:5] == ("self", "model", "data", "gradients", "state")
