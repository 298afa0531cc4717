"""Bad configs: the exit code, the place and the hint of each."""

import pytest

from pppml_core.config import InvalidConfig, resolve
from pppml_core.errors import ConfigError, PluginConflict, PluginError, PppmlError

# name: (text after the first line `task: cells`, exit code, place, reason, hint); the text begins in line 2.
BAD = {
    "unknown section": ("modle: small-net", 2, "c.yaml:2: modle", "unknown key 'modle'", "did you mean 'model'?"),
    "unknown key": ("run:\n  ronds: 3", 2, "c.yaml:3: run.ronds", "unknown key 'ronds'", "did you mean 'rounds'?"),
    "unknown key far from any": ("run: {zzz: 3}", 2, "c.yaml:2: run.zzz", "unknown key", "known here: cohort, "),
    "unknown component": ("model: smal-net", 2, "c.yaml:2: model", "there is no model 'smal-net'", "did you mean 'small-net' (given)?"),
    "component of another kind": ("model: fedavg", 2, "c.yaml:2: model", "there is no model 'fedavg'", "of kind 'personalization'"),
    "unknown key of a component": ("model: {use: small-net, chanels: [8]}", 2, "c.yaml:2: model.chanels", "unknown key", "'channels'"),
    "unknown nested component": (
        "aggregator:\n  use: ring\n  backend: toyhe",
        2,
        "c.yaml:4: aggregator.backend",
        "there is no he-backend",
        "'toy-he'",
    ),
    "unknown key of a nested component": (
        "aggregator: {use: ring, backend: {use: toy-he, shceme: bfv}}",
        2,
        "c.yaml:2: aggregator.backend.shceme",
        "unknown key",
        "did you mean 'scheme'?",
    ),
    "component without use": ("model: {channels: [8]}", 2, "c.yaml:2: model", "`use` is missing", "one of small-net, wide-net"),
    "use that is a number": ("model: {use: 3}", 2, "c.yaml:2: model", "`use` must be a name", "use: one of small-net"),
    "component that is a number": ("personalization: 3", 2, "c.yaml:2: personalization", "must be a name or a map", "fedavg"),
    "empty component": ("engine:", 2, "c.yaml:2: engine", "must be a name or a map with `use`, not null", "local"),
    "not installed": ("aggregator: cyclic-he", 3, "c.yaml:2: aggregator", "not installed", "pip install pppml-cyclic-he"),
    "plugin broken": ("attacks: [idlg, {use: gradients, vantage: server}]", 3, "c.yaml:2: attacks[0]", "not installed", "pppml-idlg"),
    "offered twice": ("model: twice", 3, "c.yaml:2: model", "is offered by given and given", "PPPML_PLUGINS"),
    "text for a number": ("run: {rounds: ten}", 2, "c.yaml:2: run.rounds", "must be a whole number, not 'ten'", "communication rounds"),
    "fraction for a whole number": ("run: {rounds: 1.5}", 2, "c.yaml:2: run.rounds", "must be a whole number, not 1.5", "rounds"),
    "negative rounds": ("run: {rounds: -1}", 2, "c.yaml:2: run.rounds", "must be at least 1, not -1", "communication rounds"),
    "map for a number": ("run: {seed: {a: 1}}", 2, "c.yaml:2: run.seed", "must be a whole number, not a map", "root of all"),
    "list for a text": ("run: {name: [a]}", 2, "c.yaml:2: run.name", "must be a text, not a list", "name in reports"),
    "bad pattern": ("run: {name: a/b}", 2, "c.yaml:2: run.name", "a text that matches", "letters, digits and"),
    "number for a map": ("run: 3", 2, "c.yaml:2: run", "must be a map of settings, not 3", "settings of `run`"),
    "section left empty": ("training:", 2, "c.yaml:2: training", "must be a map of settings, not null", "settings of `training`"),
    "word not in the list": ("run: {select: bestvalidation}", 2, "c.yaml:2: run.select", "must be one of 'last' or", "'best-validation'?"),
    "beyond a bound of a component": (
        "task: {use: cells, sites: 501}",
        2,
        "c.yaml:1: task.sites",
        "at most 500, not 501",
        "number of sites",
    ),
    "infinite": ("training: {optimizer: {lr: .inf}}", 2, "c.yaml:2: training.optimizer.lr", "must be finite", "learning rate"),
    "not a number": ("training: {optimizer: {lr: .nan}}", 2, "c.yaml:2: training.optimizer.lr", "not nan", "learning rate"),
    "yes or no": ("training: {augment: perhaps}", 2, "c.yaml:2: training.augment", "must be true or false", "augmentation"),
    "two that exclude each other": ("training: {epochs: 1, steps: 2}", 2, "c.yaml:2: training", "epochs or steps, not both", "settings of"),
    "one of several forms": (
        "encoding: {range: -1}",
        2,
        "c.yaml:2: encoding.range",
        "'auto' or more than 0 or a map, not -1",
        "64 x the RMS",
    ),
    "inside one of several forms": ("encoding:\n  range:\n    conv: 0", 2, "c.yaml:4: encoding.range.conv", "must be more than 0", "range"),
    "inside a list": ("training: {class_weights: [1, x]}", 2, "c.yaml:2: training.class_weights[1]", "a number, not 'x'", "loss weights"),
    "too few": ("model: {use: small-net, channels: []}", 2, "c.yaml:2: model.channels", "a list of at least 1", "channels of each"),
    "too many": ("task: {use: cells, size: [1, 2, 3]}", 2, "c.yaml:1: task.size", "a list of at most 2", "(28, 28) by default"),
    "a plugin's own check": ("task: {use: cells, path: a.nii}", 2, "c.yaml:1: task.path", "must be an npz file", "path: npz file"),
    "required and missing": ("attacks: [gradients]", 2, "c.yaml:2: attacks[0].vantage", "is missing", "whose view it reads"),
    "name for a list": ("reporters: console", 2, "c.yaml:2: reporters", "must be a list, not 'console'", "[console]"),
    "pool that is no yes": ("task: {use: cells, pool: perhaps}", 2, "c.yaml:1: task.pool", "must be true or false", "centralized"),
    "unknown recipe": ("extends: pppml-x/paper", 2, "c.yaml:2: extends", "there is no recipe 'pppml-x/paper'", "installed recipes"),
    "missing base": ("extends: base.yaml", 2, "c.yaml:2: extends", "there is no file", "folder of this file"),
    "extends a number": ("extends: 3", 2, "c.yaml:2: extends", "must be a recipe, a path", "base.yaml"),
    "duplicate key": ("run: {rounds: 1}\nrun: {seed: 2}", 2, "c.yaml:3", "the key 'run' is given twice, in lines 2 and 3", "keep one"),
    "duplicate key below": ("run:\n  seed: 1\n  seed: 2", 2, "c.yaml:4", "'run.seed' is given twice, in lines 3 and 4", "keep one"),
    "tab": ("run:\n\trounds: 1", 2, "c.yaml:3", "not valid YAML", "no tabs"),
    "open bracket": ("run: {rounds: 1\n", 2, "c.yaml:3", "not valid YAML", "quotes"),
    "undefined alias": ("run: *base", 2, "c.yaml:2", "undefined alias 'base'", "colons"),
    "foreign tag": ("run: !!python/object:os.system {}", 2, "c.yaml:2", "the tag", "only maps, lists, texts and numbers"),
    "alias into itself": ("run: &a {stop: *a}", 2, "c.yaml:2", "nested too deeply", "alias contain itself"),
    "control character": ("run: \x00", 2, "c.yaml", "not valid YAML", "control characters"),
    "key that is a list": ("? [a]\n: 1", 2, "c.yaml:2", "a key must be a text", "quote"),
    "object without the API": ("model: object", 2, "c.yaml:2: model", "a Python object is needed", 'objects={"model"'),
}


def refused(text, registry, folder, overrides=()):
    file = folder / "c.yaml"
    file.write_text(text)
    with pytest.raises(PppmlError) as caught:
        resolve(file, overrides, registry, objects={})
    return caught.value


@pytest.mark.parametrize("case", BAD)
def test_bad_config(case, registry, tmp_path):
    text, code, place, reason, hint = BAD[case]
    # A case about the task replaces the first line.
    error = refused(text if text.startswith("task:") else f"task: cells\n{text}", registry, tmp_path)
    assert not isinstance(error, InvalidConfig), error
    assert error.exit_code == code
    assert place in error.place
    assert reason in error.message
    assert hint in (error.hint or "")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("override", "place", "reason", "hint"),
    [
        ("run.rounds", "--set run.rounds", "there is no '='", "PATH=VALUE"),
        ("=3", "--set =3", "no path before '='", "PATH=VALUE"),
        ("run..rounds=3", "--set run..rounds=3", "cannot be read at '..rounds'", "PATH=VALUE"),
        ("0.a=3", "--set 0.a=3", "begins with a section", "PATH=VALUE"),
        ("run.rounds.x=3", "--set run.rounds.x=3", "run.rounds is 2, which has no settings", "set run.rounds itself"),
        ("attacks[1].use=x", "--set attacks[1].use=x", "attacks is a list of 0", "index from 0 to 0"),
        ("run.seed=[1", "--set run.seed=[1", "not valid YAML", "quote values"),
        ("run.rounds=-3", "--set run.rounds=-3: run.rounds", "must be at least 1, not -3", "communication rounds"),
        ("modle=x", "--set modle=x: modle", "unknown key 'modle'", "did you mean 'model'?"),
    ],
)
def test_bad_override(override, place, reason, hint, registry, tmp_path):
    error = refused("task: cells\nrun: {rounds: 2}\nattacks: []\n", registry, tmp_path, [override])
    assert isinstance(error, ConfigError)
    assert error.place == place
    assert reason in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "place", "reason", "hint"),
    [
        ("", "c.yaml:1: task", "is missing", "task: one of cells, chest"),
        ("# nothing\n", "c.yaml:1: task", "is missing", "task: one of cells, chest"),
        ("run: {rounds: 3}", "c.yaml:1: task", "is missing", "task: one of cells, chest"),
        ("- task: cells", "c.yaml:1", "must be a map of sections", "begin with `task: ...`"),
        ("cells", "c.yaml:1", "must be a map of sections", "begin with `task: ...`"),
        ("task: cells\n---\ntask: cells", "c.yaml:2", "another document", ""),
    ],
)
def test_bad_whole(text, place, reason, hint, registry, tmp_path):
    error = refused(text, registry, tmp_path)
    assert error.exit_code == 2
    assert error.place == str(tmp_path / place)
    assert reason in error.message
    assert hint in error.hint


def test_bad_files(registry, tmp_path):
    (tmp_path / "other.yaml").write_text("task: cells")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for path, reason, hint in (
        (tmp_path / "othr.yaml", "no such file", "other.yaml"),
        (tmp_path, "cannot be read", "path of a YAML file"),
        (tmp_path / "binary.yaml", "not a text in UTF-8", "path of a YAML file"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            resolve(path, (), registry)
        assert caught.value.place == str(path)
        assert hint in caught.value.hint


def test_a_broken_plugin_is_named_where_its_component_is_wanted(registry, tmp_path):
    error = refused("task: blood-cells", registry, tmp_path)
    assert type(error) is PluginError
    assert "pppml-blood-cells 0.1.0 is broken: ImportError: no module" in error.message
    assert type(refused("task: cells\nmodel: twice", registry, tmp_path)) is PluginConflict


def test_all_problems_at_once_in_the_order_of_the_file(registry, tmp_path):
    text = (
        "task: {use: cels, sites: 0}\nrun: {rounds: 0, name: 3}\nmodel: {use: small-net, norm: x, y: 1}\naggregator: cyclic-he\nmodl: 1\n"
    )
    error = refused(text, registry, tmp_path, ["engine=lokal"])
    assert isinstance(error, InvalidConfig)
    places = [problem.place.removeprefix(str(tmp_path / "c.yaml")) for problem in error.problems]
    # What is inside a component that is not known cannot be judged.
    assert places == [
        "--set engine=lokal: engine",
        ":1: task",
        ":2: run.name",
        ":2: run.rounds",
        ":3: model.norm",
        ":3: model.y",
        ":4: aggregator",
        ":5: modl",
    ]
    assert all(problem.hint for problem in error.problems)
    assert error.exit_code == 2


def test_only_missing_plugins_is_exit_code_3(registry, tmp_path):
    error = refused("task: cells\naggregator: cyclic-he\nengine: nvflare\n", registry, tmp_path)
    assert isinstance(error, PluginError)
    assert error.exit_code == 3
    assert "pppml-cyclic-he" in str(error)
    assert "pppml-nvflare" in str(error)


def test_a_billion_laughs_end_soon(registry, tmp_path):
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10))
    error = refused(f"l0: &l0 [ha]\n{levels}\n", registry, tmp_path)
    assert "more than 100,000 values" in error.message
