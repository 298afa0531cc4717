"""``--set`` and ``extends``."""

import pytest

from pppml_core.config import apply_overrides, resolve, to_plain
from pppml_core.errors import ConfigError

BASE = {
    "model": "unet",
    "run": {"rounds": 3},
    "attacks": [{"use": "idlg", "rounds": [1]}],
    "training": {"optimizer": {"use": "sgd", "lr": 1}},
}


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["run.rounds=5"], ["run"], {"rounds": 5}),
        (["run.name=a b"], ["run", "name"], "a b"),
        (["task=lung-lesions"], ["task"], "lung-lesions"),
        (["model.channels=[8, 16]"], ["model"], {"use": "unet", "channels": [8, 16]}),
        (["model=densenet"], ["model"], "densenet"),
        (["model.channels=8", "model.use=densenet"], ["model"], {"use": "densenet"}),
        (["model.use=unet", "model.channels=8"], ["model"], {"use": "unet", "channels": 8}),
        (["training.optimizer.use=adam"], ["training", "optimizer"], {"use": "adam", "lr": 1}),
        (["attacks.0.rounds.1=4"], ["attacks", 0, "rounds"], [1, 4]),
        (["attacks[0].rounds[0]=4"], ["attacks", 0, "rounds"], [4]),
        (["attacks.1=dlg", "attacks.1.lr=1e-3"], ["attacks", 1], {"use": "dlg", "lr": 0.001}),
        (["reporters.0=console"], ["reporters"], ["console"]),
        (['encoding.range."conv.0"=0.1'], ["encoding", "range"], {"conv.0": 0.1}),
        (["encoding.range=auto", "encoding.range.conv=0.1"], ["encoding", "range"], {"conv": 0.1}),
        (["aggregator.backend.scheme=bfv"], ["aggregator"], {"backend": {"scheme": "bfv"}}),
        (["run.stop={metric: dice}"], ["run", "stop"], {"metric": "dice"}),
        (["model=null"], ["model"], None),
        (["run.name=a=b"], ["run", "name"], "a=b"),
    ],
)
def test_overrides(overrides, path, value):
    found = apply_overrides(BASE, overrides)
    for part in path:
        found = found[part]
    assert found == value


def test_the_original_is_left_alone():
    before = repr(BASE)
    apply_overrides(BASE, ["run.rounds=9", "attacks.0.rounds.0=9"])
    assert repr(BASE) == before


def test_a_default_component_takes_settings_without_use(registry):
    config = resolve("task: cells", ["aggregator.use=ring", "aggregator.backend.scheme=ckks"], registry)
    assert to_plain(config)["aggregator"] == {"use": "ring", "rings": 2, "backend": {"use": "toy-he", "scheme": "ckks"}}


def test_extends_files_in_order_relative_to_the_file(registry, tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "base.yaml").write_text("task: cells\nrun: {rounds: 5, seed: 1}\nmodel: {use: small-net, channels: [4]}\n")
    (tmp_path / "below" / "more.yaml").write_text("extends: base.yaml\nrun: {seed: 2}\naggregator: {use: ring, rings: 3}\n")
    (tmp_path / "last.yml").write_text("run: {name: last}\nattacks: [{use: gradients, vantage: a}, {use: gradients, vantage: b}]\n")
    (tmp_path / "c.yaml").write_text(
        "extends: [below/more.yaml, last.yml]\nrun: {rounds: 6}\nmodel: {norm: batch}\naggregator: plain\n"
        "attacks: [{use: gradients, vantage: c}]\n"
    )
    plain = to_plain(resolve(tmp_path / "c.yaml", (), registry))
    assert (plain["run"]["rounds"], plain["run"]["seed"], plain["run"]["name"]) == (6, 2, "last")
    assert plain["model"] == {"use": "small-net", "channels": [4], "norm": "batch"}
    assert plain["aggregator"] == {"use": "plain"}
    assert [attack["vantage"] for attack in plain["attacks"]] == ["c"]
    assert "extends" not in plain


def test_another_component_takes_nothing_from_the_base(registry, tmp_path):
    (tmp_path / "base.yaml").write_text(
        "task: cells\nmodel: {use: small-net, channels: [4]}\ntraining: {optimizer: {use: adam, lr: 0.5}}\n"
    )
    (tmp_path / "c.yaml").write_text("extends: base.yaml\nmodel: {use: wide-net}\ntraining: {optimizer: {use: sgd}}\n")
    config = resolve(tmp_path / "c.yaml", (), registry)
    assert to_plain(config)["model"] == {"use": "wide-net"}
    assert (config.training.optimizer.use, config.training.optimizer.lr) == ("sgd", 0.5)


def test_an_error_names_the_file_it_is_in(registry, tmp_path):
    (tmp_path / "base.yaml").write_text("\nrun: {rounds: x}\n")
    (tmp_path / "c.yaml").write_text("extends: base.yaml\ntask: cells\n")
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path / "c.yaml", (), registry)
    assert caught.value.place.endswith("base.yaml:2: run.rounds")


def test_a_cycle_is_refused(registry, tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {base}.yaml\ntask: cells\n")
    with pytest.raises(ConfigError, match=r"extends itself: b\.yaml -> c\.yaml -> a\.yaml -> b\.yaml"):
        resolve(tmp_path / "a.yaml", (), registry)


def test_the_same_base_twice_is_no_cycle(registry, tmp_path):
    (tmp_path / "base.yaml").write_text("task: cells\n")
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("extends: base.yaml\n")
    (tmp_path / "c.yaml").write_text("extends: [a.yaml, b.yaml]\n")
    assert resolve(tmp_path / "c.yaml", (), registry).task.use == "cells"


def test_a_recipe_of_a_plugin(registry, tmp_path, monkeypatch):
    (tmp_path / "paper.yaml").write_text("task: cells\nrun: {rounds: 7}\n")
    monkeypatch.setattr(type(registry), "recipes", lambda self: {"pppml-paper/paper": tmp_path / "paper.yaml"})
    assert resolve("extends: pppml-paper/paper\n", ["run.seed=3"], registry).run.rounds == 7
    with pytest.raises(ConfigError) as caught:
        resolve("extends: pppml-paper/papers\n", (), registry)
    assert caught.value.hint == "did you mean 'pppml-paper/paper'?"
