"""Names, builds, and components without a plugin."""

import dataclasses
import sys
import tomllib
import types
from pathlib import Path
from typing import Annotated, Any

import pytest

from pppml_core import Choice, Component, ComponentConfig, hookimpl
from pppml_core.config import bind, resolve, split_objects
from pppml_core.errors import ConfigError, PluginError
from pppml_core.interfaces.aggregation import Aggregator
from pppml_core.interfaces.he import HEBackend
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.reporter import Reporter
from pppml_core.interfaces.task import DataCard, SiteInfo, Task, TaskSpec
from pppml_core.known import KNOWN
from pppml_core.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = TaskSpec("classification", 1, (8, 8), ("a", "b"), "net", "accuracy", {"accuracy": (0.0, 1.0)})


class Nothing(ComponentConfig):
    pass


class NetConfig(ComponentConfig):
    width: int = 4


class RingConfig(ComponentConfig):
    rings: int = 1
    backend: Annotated[ComponentConfig, Choice("he-backend", default="toy")]
    spares: list[Annotated[ComponentConfig, Choice("he-backend")]] = []


class ToyTask(Task):
    def spec(self):
        return SPEC

    def sites(self):
        return (SiteInfo("a", "A"),)

    def load(self, site):
        raise NotImplementedError

    def card(self):
        return DataCard("toy", "toy", "none", "made up")


class Net(ModelFactory):
    def build(self, spec):
        import torch

        return torch.nn.Linear(8, self.config.width)


class ToyBackend(HEBackend):
    def plan(self, values, additions):
        raise NotImplementedError

    keygen = encrypt = add = decrypt = plan


ToyBackend.__abstractmethods__ = frozenset()


class Ring(Aggregator):
    def __init__(self, config, *, backend, spares):
        super().__init__(config)
        self.backend, self.spares = backend, spares


Ring.__abstractmethods__ = frozenset()


class Quiet(Reporter):
    def handle(self, event):
        pass


class Loud(Quiet):
    def __init__(self, config: NetConfig) -> None:
        super().__init__(config)


class NoReporter:
    def __init__(self, config):
        pass


def component(name, config, target, **more):
    return Component(name, config, f"{__name__}:{target}", f"the {name}", **more)


@pytest.fixture(scope="module")
def registry():
    # The tests are imported by path, not by name; a target is imported by name.
    sys.modules[__name__] = sys.modules.get(__name__) or types.ModuleType(__name__)
    vars(sys.modules[__name__]).update(globals())
    names = {
        "task": [component("toy", Nothing, "ToyTask")],
        "model": [component("net", NetConfig, "Net")],
        "aggregator": [component("plain", Nothing, "Ring"), component("ring", RingConfig, "Ring")],
        "he-backend": [component("toy", Nothing, "ToyBackend")],
        "personalization": [component("fedavg", Nothing, "Net")],
        "privacy": [component("none", Nothing, "Net")],
        "engine": [component("local", Nothing, "Nowhere"), component("far", Nothing, "Net", needs=("no_such_module_here",))],
        "reporter": [component("console", Nothing, "Quiet"), component("jsonl", Nothing, "Quiet"), component("no", Nothing, "NoReporter")],
    }
    return Registry.only(names, builtin=False)


def test_nearest_spelling_names_the_distribution(registry):
    with pytest.raises(ConfigError, match="there is no reporter 'consol'") as caught:
        registry.get("reporter", "consol")
    assert caught.value.hint == "did you mean 'console' (given)?"
    assert caught.value.exit_code == 2


def test_nearest_spelling_among_what_is_not_installed(registry):
    with pytest.raises(ConfigError) as caught:
        registry.get("model", "densnet")
    assert "'densenet' (pppml-monai-nets, not installed)" in caught.value.hint


def test_a_name_of_another_kind(registry):
    with pytest.raises(ConfigError) as caught:
        registry.get("attack", "fedavg")
    assert "'fedavg' is of kind 'personalization'" in caught.value.hint


def test_known_but_not_installed(registry):
    with pytest.raises(PluginError) as caught:
        registry.get("aggregator", "secagg-plus")
    assert caught.value.exit_code == 3
    assert "pip install pppml-secagg-plus" in caught.value.hint


def test_rows_of_what_is_known_only_when_asked(registry):
    assert all(row.status != "not installed" for row in registry.rows())
    extra = [row for row in registry.rows(everything=True) if row.status == "not installed"]
    assert ("aggregator", "cyclic-he", "pppml-cyclic-he") in [(row.kind, row.name, row.distribution) for row in extra]
    assert not [row for row in extra if (row.kind, row.name) == ("task", "toy")]


def test_a_registry_is_frozen(registry):
    with pytest.raises(dataclasses.FrozenInstanceError):
        registry.offers = ()
    with pytest.raises(TypeError):
        registry._by_name["task", "toy"] = ()


def test_only_takes_modules_objects_maps_and_pairs():
    module = types.ModuleType("plugin_module")
    module.pppml_tasks = hookimpl(lambda: [component("one", Nothing, "ToyTask")])
    module.pppml_tasks.__name__ = "pppml_tasks"

    class Plugin:
        @hookimpl
        def pppml_tasks(self):
            return [component("two", Nothing, "ToyTask")]

    pairs = ("task", component("three", Nothing, "ToyTask"))
    registry = Registry.only([module, Plugin()], pairs, {"task": [component("four", Nothing, "ToyTask")]}, builtin=False)
    assert [found.name for found in registry.components("task")] == ["four", "one", "three", "two"]
    with pytest.raises(PluginError, match="no kind 'taks'"):
        Registry.only({"taks": []}, builtin=False) and Registry.only(("taks", pairs[1]), builtin=False)


def test_build_recurses_into_choices(registry):
    config = resolve("task: toy\naggregator: {use: ring, spares: [toy, toy]}\n", registry=registry)
    ring = registry.build("aggregator", config.aggregator)
    assert isinstance(ring, Ring)
    assert isinstance(ring.config, RingConfig)
    assert ring.config.rings == 1
    assert isinstance(ring.backend, ToyBackend)
    assert [type(spare) for spare in ring.spares] == [ToyBackend, ToyBackend]


def test_a_target_that_is_not_there_and_one_of_another_kind(registry):
    config = resolve("task: toy\nreporters: [no]\n", registry=registry)
    with pytest.raises(PluginError, match="cannot be loaded"):
        registry.build("engine", config.engine)
    with pytest.raises(PluginError, match=r"NoReporter is no Reporter"):
        registry.build("reporter", config.reporters[0])


def test_a_missing_need_is_an_error_at_build(registry):
    config = resolve("task: toy\nengine: far\n", registry=registry)
    with pytest.raises(PluginError, match="needs no_such_module_here") as caught:
        registry.build("engine", config.engine)
    assert caught.value.exit_code == 3


def test_an_unbound_config_is_not_built(registry):
    with pytest.raises(ConfigError, match="without `use`"):
        registry.build("model", NetConfig())


def test_what_another_components_setting_names(registry, monkeypatch):
    """By name with settings, or ``module:attribute`` with arguments; errors name the setting."""
    net = registry.named("model", "net", {"width": 9}, "model.of")
    assert isinstance(net, Net)
    assert net.config.width == 9
    by_path = registry.named("model", "torch.nn:Linear", {"in_features": 8, "out_features": 3}, "model.of")
    assert by_path.build(SPEC).out_features == 3
    for name, args, said in (("nett", {}, "did you mean 'net'"), ("net", {"wide": 1}, "settings of `net`: width"),
                             ("net", {"width": "x"}, "model.args.width"), ("no_such_module:Net", {}, "model.of")):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            registry.named("model", name, args, "model.of")
        assert said in str(caught.value)


OWN = """
import torch
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import Task

class Net(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

def make(spec, depth=1):
    return torch.nn.Sequential(*[torch.nn.Linear(spec.channels, len(spec.classes)) for _ in range(depth)])

def wrong():
    return 3

class outer:
    Net = Net
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_code_for_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_code_for_test", None)


def model_of(registry, text, objects=None):
    config = resolve(f"task: toy\nmodel: {text}\n", registry=registry, objects=objects)
    return registry.build("model", config.model, objects).build(SPEC)


def test_a_model_by_attribute(registry, own):
    assert model_of(registry, "own_code_for_test:Net").layer.in_features == 2
    assert model_of(registry, "{use: 'own_code_for_test:Net', args: {width: 5}}").layer.in_features == 5
    assert model_of(registry, "own_code_for_test:outer.Net").layer.in_features == 2
    made = model_of(registry, "{use: 'own_code_for_test:make', args: {depth: 3}}")
    assert [(layer.in_features, layer.out_features) for layer in made] == [(1, 2)] * 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no_such_module_here:Net", "cannot import"),
        ("own_code_for_test:Nett", "has no attribute 'Nett'"),
        ("{use: 'own_code_for_test:Net', args: {wide: 5}}", "cannot be called with these args"),
        ("own_code_for_test:wrong", "returned int, not a torch.nn.Module"),
        ("own_code_for_test:OWN", "has no attribute"),
        ("pppml_core:__version__", "neither a torch module nor callable"),
    ],
)
def test_a_model_by_attribute_that_cannot_be(registry, own, text, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        model_of(registry, text)
    assert caught.value.exit_code == 2
    assert caught.value.place.startswith("model")


def test_live_objects(registry):
    import torch

    ready = torch.nn.Linear(8, 2)
    data, objects = split_objects({"task": {"use": ToyTask}, "model": ready, "reporters": ["console", Quiet], "run": {"rounds": 2}})
    assert data["model"] == {"use": "object", "key": "model", "about": "torch.nn.modules.linear.Linear"}
    assert objects == {"task": ToyTask, "model": ready, "reporters.1": Quiet}
    config = resolve(data, registry=registry, objects=objects)
    built = registry.build("model", config.model, objects).build(SPEC)
    assert built is not ready
    assert torch.equal(built.weight, ready.weight)
    assert isinstance(registry.build("task", config.task, objects), ToyTask)
    assert [type(registry.build("reporter", one, objects)) for one in config.reporters] == [Quiet, Quiet]
    with pytest.raises(ConfigError, match="a Python object is needed"):
        resolve(data, registry=registry, objects={})
    with pytest.raises(ConfigError, match="is needed that is not here"):
        registry.build("model", config.model)


def test_settings_of_an_own_class_are_checked_where_it_says_which(registry):
    data: Any = {"task": "toy", "reporters": [{"use": Loud, "args": {"width": 7}}]}
    plain, objects = split_objects(data)
    config = resolve(plain, registry=registry)
    assert registry.build("reporter", config.reporters[0], objects).config == NetConfig(width=7)
    plain["reporters"][0]["args"] = {"width": "wide"}
    with pytest.raises(ConfigError) as caught:
        registry.build("reporter", resolve(plain, registry=registry).reporters[0], objects)
    assert caught.value.place == "reporter.args.width"


def test_a_task_from_a_function_and_from_something_else(registry):
    def make(sites=1):
        return ToyTask(ComponentConfig())

    for thing, fits in ((make, True), (lambda: 3, False), (dict, False)):
        plain, objects = split_objects({"task": thing})
        config = resolve(plain, registry=registry)
        if fits:
            assert isinstance(registry.build("task", config.task, objects), ToyTask)
        else:
            with pytest.raises(ConfigError, match="not a Task"):
                registry.build("task", config.task, objects)


def test_one_bound_class_per_registry(registry):
    assert bind(registry) is bind(registry)
    assert bind(Registry.only(builtin=False)) is not bind(registry)


def test_the_catalogue_agrees_with_the_plugins_of_this_repository():
    folders = [path.parent for path in REPOSITORY.glob("plugins/*/*/pyproject.toml")]
    for folder in folders:
        name = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]
        entries = [entry for entry in KNOWN if entry.folder == str(folder.relative_to(REPOSITORY))]
        assert entries, f"{folder} is not in pppml_core/known.py"
        assert {entry.distribution for entry in entries} == {name}
    assert len({(entry.kind, entry.name) for entry in KNOWN}) == len(KNOWN)
