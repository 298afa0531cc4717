"""Binding, saving, comparing, and the JSON Schema."""

import copy

import jsonschema
import pytest
import yaml

from pppml_core.config import RunConfig, bind, diff, json_schema, resolve, save_resolved, to_plain
from pppml_core.registry import Registry

GOOD = {
    "least": "task: cells",
    "attribute": "task: 'my.module:Task'\nmodel: {use: 'my.module:Net', args: {depth: 3}}",
    "pooled": "task: {use: cells, pool: true}",
    "pooled attribute": "task: {use: 'my.module:Task', pool: true}",
    "model left to the task": "task: cells\nmodel: null",
    "model with settings": "task: cells\nmodel: {use: small-net, channels: [1, 2], norm: batch}",
    "nested by name": "task: cells\naggregator: {use: ring, backend: toy-he}",
    "nested with settings": "task: cells\naggregator: {use: ring, rings: 3, backend: {use: toy-he, scheme: ckks}}",
    "nested default": "task: cells\naggregator: {use: ring, backend: {scheme: ckks}}",
    "default with no settings": "task: cells\naggregator: {}",
    "attacks": "task: cells\nattacks: [{use: gradients, vantage: server, rounds: [1, 2]}]",
    "attack of your own": "task: cells\nattacks: [{use: 'my.module:Look', args: {depth: 3}, vantage: 'site:a', rounds: [1], victims: 5, "
    "seconds: 2.5}]",
    "no reporters": "task: cells\nreporters: []",
    "range by pattern": "task: {use: cells, partition: {by: dirichlet, alpha: 0.1}}\nencoding: {bits: 8, range: {'conv*': 0.5}}",
    "much": "task: cells\nrun: {rounds: 5, seed: 3, stop: {patience: 2}}\ntraining: {steps: 3, optimizer: {use: adam, lr: 1.0e-3}}\n"
    "personalization: local-only\nprivacy: none\nengine: {use: local}\nextends: []",
}
BAD = {
    "nothing": "{}",
    "unknown name": "task: cellss",
    "unknown section": "task: cells\nmodle: small-net",
    "unknown key of a component": "task: {use: cells, poool: true}",
    "unknown nested name": "task: cells\naggregator: {use: ring, backend: tenseal}",
    "key of another component": "task: cells\naggregator: {use: plain, rings: 2}",
    "pool outside the task": "task: cells\nmodel: {use: 'a:b', pool: true}",
    "what an attack takes at a model": "task: cells\nmodel: {use: 'a:b', victims: 3}",
    "no victims": "task: cells\nattacks: [{use: 'a:b', victims: 0}]",
    "out of range": "task: cells\nrun: {rounds: 0}",
    "out of a component's range": "task: {use: cells, sites: 0}",
    "wrong type": "task: cells\nrun: {rounds: ten}",
    "required and missing": "task: cells\nattacks: [{use: gradients}]",
    "name for a list": "task: cells\nreporters: console",
    "not one of the words": "task: cells\nmodel: {use: small-net, norm: layer}",
    "component of another kind": "task: cells\nmodel: fedavg",
}


@pytest.fixture(scope="module")
def validator(registry):
    schema = json_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("case", GOOD)
def test_good_configs(case, registry, validator, tmp_path):
    config = resolve(GOOD[case] + "\n", (), registry)
    assert isinstance(config, RunConfig)
    # An editor has nothing to complain about, neither in the config nor in the resolved one.
    assert [error.message for error in validator.iter_errors(yaml.safe_load(GOOD[case]))] == []
    assert [error.message for error in validator.iter_errors(to_plain(config))] == []
    # The resolved config is the same run.
    save_resolved(config, tmp_path / "config.resolved.yaml")
    again = resolve(tmp_path / "config.resolved.yaml", (), registry)
    assert again == config
    assert diff(again, config) == []
    assert to_plain(again) == to_plain(config) == to_plain(bind(registry).model_validate(to_plain(config)))


@pytest.mark.parametrize("case", BAD)
def test_the_schema_refuses(case, validator):
    assert not validator.is_valid(yaml.safe_load(BAD[case]))


def test_defaults_are_the_contract(registry):
    config = resolve("task: cells", (), registry)
    assert (config.personalization.use, config.privacy.use, config.aggregator.use, config.engine.use) == (
        "fedavg",
        "none",
        "plain",
        "local",
    )
    assert [reporter.use for reporter in config.reporters] == ["console", "jsonl"]
    assert (config.model, config.attacks, config.pool) == (None, [], False)
    assert resolve({}, ["task=cells"], registry) == resolve({"task": {"use": "cells"}}, (), registry) == config


def test_pool_belongs_to_the_task_and_stays(registry):
    config = resolve("task: {use: cells, pool: true}\n", (), registry)
    assert config.pool
    assert resolve(to_plain(config), ["run.rounds=3"], registry).pool
    assert not resolve(to_plain(config), ["task.pool=false"], registry).pool
    assert resolve("task: cells", ["task.pool=true"], registry).pool


def test_a_bound_config_is_still_the_plugins_own(registry):
    config = resolve("task: {use: cells, sites: 4}\n", (), registry)
    component = registry.get("task", "cells")
    assert isinstance(config.task, component.config)
    assert config.task.sites == 4
    # The plugin's class itself is untouched.
    assert "use" not in component.config.model_fields
    assert component.config() == component.config()


def test_data_given_is_not_changed(registry):
    data = {"task": {"use": "cells", "pool": True}, "attacks": [{"use": "gradients", "vantage": "x"}], "run": {"rounds": 3}}
    before = copy.deepcopy(data)
    resolve(data, ["run.rounds=4"], registry)
    assert data == before


def test_diff_names_each_entry(registry):
    before = resolve("task: cells\nattacks: [{use: gradients, vantage: a}]\n", (), registry)
    after = resolve("task: cells\ntraining: {optimizer: {lr: 0.1}}\naggregator: ring\n", (), registry)
    assert [str(one) for one in diff(before, after)] == [
        "training.optimizer.lr: 0.01 -> 0.1",
        "aggregator.use: 'plain' -> 'ring'",
        "aggregator.rings: None -> 2",
        "aggregator.backend: None -> {'use': 'toy-he', 'scheme': 'bfv'}",
        "attacks: [{'use': 'gradients', 'vantage': 'a', 'rounds': [1], 'victims': None, 'seconds': None}] -> []",
    ]
    assert [one.path for one in diff(to_plain(before), after)] == [one.path for one in diff(before, after)]


def test_nothing_is_left_when_saving_fails(registry, tmp_path, monkeypatch):
    config = resolve("task: cells", (), registry)
    save_resolved(config, tmp_path / "c.yaml")
    kept = (tmp_path / "c.yaml").read_text()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_resolved(resolve("task: chest", (), registry), tmp_path / "c.yaml")
    assert (tmp_path / "c.yaml").read_text() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_schema_shows_an_editor_what_there_is(registry):
    schema = json_schema(registry)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["required"] == ["task"]
    assert schema["x-pppml-versions"] == {"given": "0"}
    (names,) = [form["enum"] for form in schema["properties"]["aggregator"]["anyOf"] if "enum" in form]
    assert names == ["plain", "ring"]
    text = str(schema)
    assert "number of sites" in text
    assert "the ring" in text
    assert "ChoiceSchema" not in text


def test_the_core_alone_binds():
    registry = Registry.only()
    config = resolve("task: tiny", (), registry)
    assert config.engine.use == "local"
    jsonschema.Draft202012Validator(json_schema(registry)).validate(to_plain(config))
