"""Grids, seeds, points and their names."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pppml_core.config.overrides import apply_overrides
from pppml_core.errors import ConfigError
from pppml_core.sweeps import Point, as_settings, expand, parse_grid, parse_seeds


def test_every_combination_and_seed_once_seeds_last():
    points = expand({"personalization": ["fedavg", "local-only"], "training.optimizer.lr": [0.1, 0.01]}, range(1, 4))
    assert len(points) == 12
    assert [p.seed for p in points] == [1] * 4 + [2] * 4 + [3] * 4
    found = {(p.settings["personalization"], p.settings["training.optimizer.lr"], p.seed) for p in points}
    assert found == set(itertools.product(["fedavg", "local-only"], [0.1, 0.01], [1, 2, 3]))
    assert points[0].name == "personalization=fedavg,training.optimizer.lr=0.1,seed=1"


def test_an_empty_grid_is_one_cell():
    assert [p.name for p in expand({}, [4])] == ["seed=4"]


def test_a_section_is_set_before_settings_inside_it():
    (point,) = expand({"model.norm": ["group"], "model": ["unet"]}, [1])
    assert list(point.overrides) == ["model", "model.norm", "run.seed"]
    data = apply_overrides({"task": "tiny", "model": {"use": "densenet", "variant": "121"}}, as_settings(point.overrides))
    assert data["model"] == {"use": "unet", "norm": "group"}
    assert data["run"]["seed"] == 1


def test_a_map_as_value_replaces_the_whole_section():
    (point,) = expand({"personalization": [{"use": "per-fedavg", "inner_lr": 0.1}]}, [2])
    assert point.name == "personalization=per-fedavg+inner_lr=0.1,seed=2"
    data = apply_overrides({"personalization": {"use": "fedavg", "optimizer": "adam"}}, as_settings(point.overrides))
    assert data["personalization"] == {"use": "per-fedavg", "inner_lr": 0.1}


def test_names_are_safe_short_and_distinct():
    class MyNet:
        pass

    values = ["a/b", "a:b", "../../up", "x" * 300, "x" * 299 + "y", MyNet, None, True, [1, 2]]
    names = [p.name for p in expand({"model": values}, [0])]
    assert len(set(names)) == len(values)
    assert all(("/" not in n and ".." not in n.split("=")[1].split(",")[0][:2]) or "model=..-" in n for n in names)
    assert all(len(n) < 130 for n in names)
    assert "model=MyNet,seed=0" in names


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=3), st.integers(0, 2**63 - 1))
def test_any_setting_makes_one_plain_folder_name(settings, seed):
    name = Point(settings, seed).name
    assert name not in (".", "..")
    assert "/" not in name
    assert "\0" not in name
    assert len(name.encode()) < 200


def test_grids_and_seeds_are_read_from_text():
    grid = parse_grid(["personalization=fedavg, local-only", "training.optimizer.lr=1e-2,0.1", "model={use: unet, norm: group},densenet"])
    assert grid == {
        "personalization": ["fedavg", "local-only"],
        "training.optimizer.lr": [0.01, 0.1],
        "model": [{"use": "unet", "norm": "group"}, "densenet"],
    }
    assert parse_seeds("1..5") == [1, 2, 3, 4, 5]
    assert parse_seeds("3,1") == [3, 1]
    assert parse_seeds("0..1, 7") == [0, 1, 7]


@pytest.mark.parametrize("text", ["", "a", "1..", "5..1", "1-5", "-1", "1.5", "1,,2"])
def test_bad_seeds_are_refused(text):
    with pytest.raises(ConfigError, match="--seeds") as caught:
        parse_seeds(text)
    assert caught.value.hint


@pytest.mark.parametrize("texts", [["a.b"], ["=1,2"], ["a="], ["a=1", "a=2"], ["a=[1,"], ["a={b: 1, b: 2}"]])
def test_bad_grids_are_refused(texts):
    with pytest.raises(ConfigError):
        parse_grid(texts)


@pytest.mark.parametrize(
    ("grid", "seeds", "place"),
    [
        ({"a": [1]}, [], "seeds"),
        ({"a": [1]}, [1, 1], "seeds"),
        ({"a": [1]}, [-1], "seeds"),
        ({"a": []}, [1], "grid: a"),
        ({"a": [1, 2, 1]}, [1], "grid: a"),
        ({"run.seed": [1, 2]}, [1], "run.seed"),
    ],
)
def test_bad_sweeps_are_refused(grid, seeds, place):
    with pytest.raises(ConfigError) as caught:
        expand(grid, seeds)
    assert caught.value.place == place
    assert caught.value.hint
