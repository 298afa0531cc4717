"""Epsilon of the recipe `dpresnet` by three accountants, as `pppml plan` prints them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import pppml_core as pppml
from pppml_core.registry import Registry
from pppml_dpresnet import plugin, recipes

OTHERS = ("pppml_dp.plugin", "pppml_secagg_plus.plugin")


def test_the_recipe_as_it_is_at_ten_sites_of_bloodmnist():
    """Ten sites, 300 rounds, epsilon 6, delta 1e-5; 12,045 training images, of which BloodMNIST has 11,959: batches of 64 are 5.3 %.

    PLD is stated, PRV computes the same number by another way, and RDP bounds it from above: here by 11 %. (That distance is of RDP, not of
    its orders, and grows where fewer sums have less noise each: 100 rounds at this rate are 15.5 %, at a rate of 10 % they are 12 %.)
    """
    for name in OTHERS:
        pytest.importorskip(name.partition(".")[0])
    pytest.importorskip("opacus", reason="PRV is computed by Opacus")
    registry = Registry.only(plugin, *(importlib.import_module(name) for name in OTHERS))
    task = {"use": "tiny", "sites": 10, "size": 16, "examples": 1200}
    recipe = Path(recipes.__file__).parent / "dpresnet.yaml"
    plan = pppml.Experiment({"extends": str(recipe), "task": task}, registry=registry).plan().plan
    assert plan.misfits == []
    details, found = plan.privacy["details"], plan.privacy["cross_checks"]
    assert (plan.config.run.rounds, len(plan.sizes), sum(plan.sizes.values())) == (300, 10, 12_045)
    assert (plan.privacy["placement"], plan.privacy["delta"], details["gradients"]) == ("distributed", 1e-5, 300)
    assert details["sample_rate"] == pytest.approx(64 * 10 / 12_045)
    assert plan.privacy["epsilon"] == 6
    assert found["pld"] <= 6
    assert found["pld"] == pytest.approx(6, rel=0.02)
    assert found["prv"] == pytest.approx(found["pld"], rel=0.02)
    assert 1 <= found["rdp"] / found["pld"] <= 1.15
