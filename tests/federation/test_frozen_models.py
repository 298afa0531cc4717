"""A network that is frozen as a whole: the plan blames the network, not the personalization, with a mechanism of privacy and without."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import pppml_core as pppml
from pppml_core.interfaces.model import ModelFactory
from pppml_core.registry import Registry

INSTALLED = Registry.discover()
BLAMED = (
    "model: every parameter is frozen (requires_grad is False), so nothing would be trained or shared; unfreeze the layers to be trained"
)


class Network(ModelFactory):
    """Two layers, of which all, none or the first are frozen."""

    def __init__(self, frozen: str) -> None:
        self.frozen = frozen

    def build(self, spec: Any) -> nn.Module:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, len(spec.classes)))
        net.requires_grad_(self.frozen != "all")
        if self.frozen == "features":
            net[1].requires_grad_(False)
        return net


def misfits(frozen: str, privacy: Any) -> list[str]:
    if privacy != "none" and not any(c.name == privacy["use"] for c in INSTALLED.components("privacy")):
        pytest.skip("pppml-dp is not installed")
    training = {"steps": 1, "batch_size": 10, "optimizer": {"use": "sgd"}}
    task = {"use": "tiny", "sites": 3, "examples": 40, "size": 8}
    made = pppml.Experiment(task=task, model=Network(frozen), privacy=privacy, training=training, run={"rounds": 2}, registry=INSTALLED)
    return made.plan().plan.misfits


@pytest.mark.parametrize(
    "privacy",
    [
        "none",
        {"use": "clip-only"},
        {"use": "dp-sgd", "noise_multiplier": 1.0, "delta": 1e-4},
        {"use": "dp-update", "noise_multiplier": 1.0, "delta": 1e-4},
    ],
    ids=["none", "clip-only", "dp-sgd", "dp-update"],
)
def test_the_network_is_blamed_and_the_advice_helps(privacy):
    found = misfits("all", privacy)
    assert BLAMED in found
    assert not [text for text in found if text.startswith("personalization")]
    assert misfits("features", privacy) == misfits("nothing", privacy) == []
