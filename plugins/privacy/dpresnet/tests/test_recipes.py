"""The recipes: what they wire, and that a task and other numbers can be laid over them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import pppml_core as pppml
from pppml_core.config import RunConfig, load_yaml, resolve
from pppml_core.registry import Registry
from pppml_dpresnet import plugin, recipes

FOLDER = Path(recipes.__file__).parent


@pytest.fixture(scope="module")
def registry() -> Registry:
    """This plugin and, by name, the two others that the recipes wire."""
    others = ["pppml_dp.plugin", "pppml_secagg_plus.plugin"]
    for name in others:
        pytest.importorskip(name.partition(".")[0])
    return Registry.only(plugin, *(importlib.import_module(name) for name in others))


def config(recipe: str, registry: Registry, *overrides: str) -> RunConfig:
    text = f"extends: {FOLDER / recipe}.yaml\ntask: {{use: tiny, sites: 10, size: 16}}\n"
    return resolve(text, overrides, registry=registry)


def test_every_recipe_leaves_the_task_to_the_user():
    files = sorted(FOLDER.glob("*.yaml"))
    assert [file.stem for file in files] == ["dpresnet", "paper"]
    for file in files:
        assert "task" not in load_yaml(file).data
        assert "reporters" not in load_yaml(file).data


def test_dpresnet_is_dp_sgd_with_shared_noise_in_a_secure_sum(registry):
    plain = config("dpresnet", registry).to_dict()
    assert plain["model"] == {"use": "dp-resnet9", "groups": 32}
    privacy = plain["privacy"]
    assert [privacy[key] for key in ("use", "unit", "clip", "epsilon", "delta", "placement")] == [
        "dp-sgd",
        "example",
        1.0,
        6.0,
        1e-5,
        "distributed",
    ]
    assert plain["aggregator"]["use"] == "secagg-plus"
    assert plain["personalization"]["use"] == "fedavg"
    training = plain["training"]
    assert (training["steps"], training["optimizer"]["use"], training["optimizer"]["momentum"]) == (1, "sgd", 0.0)
    assert training["precision"] == "float32"


def test_paper_is_the_authors_setting(registry):
    plain = config("paper", registry).to_dict()
    assert (plain["privacy"]["use"], plain["privacy"]["preset"]) == ("dp-update", "paper")
    aggregator = plain["aggregator"]
    assert (aggregator["use"], aggregator["threshold"], aggregator["neighbours"]) == ("secagg-plus", 4, 4)
    training = plain["training"]
    assert (plain["run"]["rounds"], training["epochs"], training["batch_size"]) == (50, 3, 32)
    assert (training["optimizer"]["use"], training["optimizer"]["lr"]) == ("adam", 1e-3)


def test_other_numbers_can_be_laid_over(registry):
    changed = config("dpresnet", registry, "model=scale-resnet9", "privacy.epsilon=3").to_dict()
    assert changed["model"]["use"] == "scale-resnet9"
    assert (changed["privacy"]["epsilon"], changed["privacy"]["placement"]) == (3.0, "distributed")


def planned(recipe: str, registry: Registry, examples: int) -> dict[str, Any]:
    experiment = pppml.Experiment(
        {"extends": f"{FOLDER / recipe}.yaml", "task": {"use": "tiny", "sites": 10, "size": 16, "examples": examples}}, registry=registry
    )
    plan = experiment.plan().plan
    assert sum(p.numel() for p in plan.assembly.model.parameters()) == 4_802_120 - 2 * 9 * 64 - 5 * 513, "1 channel, 3 classes"
    return plan.privacy


def test_dpresnet_plans_what_it_promises(registry):
    claim = planned("dpresnet", registry, 400)
    assert claim["epsilon"] == pytest.approx(6, rel=1e-6)
    assert tuple(claim[key] for key in ("unit", "adjacency", "delta", "placement")) == ("example", "add-remove", 1e-5, "distributed")


def test_paper_states_what_its_setting_is_worth(registry):
    """2,759: the facts of the paper's setting, noise of 0.699 on an update of at most 7, 50 times; computed with dp-accounting for them."""
    claim = planned("paper", registry, 40)
    assert claim["epsilon"] == pytest.approx(2759, rel=0.02)
    assert tuple(claim[key] for key in ("unit", "delta", "placement")) == ("site", 1.9e-4, "local")
