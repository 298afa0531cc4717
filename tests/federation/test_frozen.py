"""Frozen parameters: they do not travel, nobody moves them, and a run, its predictions and its bundle have them all the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pppml_core.builtin.configs import TinyNetConfig
from pppml_core.builtin.tiny import TinyNet
from pppml_core.federation.store import SiteStore
from pppml_core.learning.arrays import parameters_and_buffers
from pppml_core.testing.bundle_alone import predict_alone

SITES = ("site_1", "site_2", "site_3")
FROZEN = ("0.weight", "0.bias", "3.weight")


class Frozen(TinyNet):
    """The tiny network with a frozen first convolution, and a second of which only the bias is trained."""

    def __init__(self, norm="group"):
        super().__init__(TinyNetConfig(norm=norm))

    def build(self, spec):
        model = super().build(spec)
        for name in FROZEN:
            model.get_parameter(name).requires_grad_(False)
        return model


OPTIMIZERS = [
    {"use": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    {"use": "adam", "lr": 0.01},
    {"use": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


@pytest.fixture(scope="module")
def frozen(go):
    return go(model=Frozen(), run={"rounds": 2, "transcript": "payloads"}, training={"optimizer": OPTIMIZERS[0], "keep_optimizer": True})


def test_they_are_in_no_layout_and_in_no_message(frozen, wire):
    parts = frozen._assembly
    expected = [n for n, _ in parts.model.named_parameters() if n not in FROZEN]
    assert [t.name for t in parts.shared] == expected
    assert set(parts.initial_personal) == set(FROZEN)
    length = sum(parts.model.get_parameter(n).numel() for n in expected)
    assert {m.body["values"].shape for m in wire(frozen, "contribute")} == {(length + 4,)}
    rows = json.loads((frozen.folder / "manifest.json").read_text())["contribution"]
    assert [r["name"] for r in rows if r["role"] == "parameter"] == expected
    for message in wire(frozen, up=False):
        assert set(message.body.get("weights", expected)) == set(expected), "the server sends what is shared, too"


def test_what_is_shared_is_what_is_trained_whatever_the_method_says():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    assert [t.name for t in parameters_and_buffers(model, lambda *_: True, share_buffers=False)] == ["0.weight", "1.weight", "1.bias"]
    names = [t.name for t in parameters_and_buffers(model, lambda *_: True, share_buffers=True)]
    assert names == ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"], "statistics are not trained, and travel"
    model[0].weight.requires_grad_(False)
    model[1].requires_grad_(False)
    assert [t.name for t in parameters_and_buffers(model, lambda *_: True, share_buffers=False)] == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["use"])
@pytest.mark.parametrize("method", ["fedavg", "local-only"])
def test_nobody_moves_them(go, method, optimizer):
    """Not by momentum and not by weight decay, at no site and not in what is released."""
    run = go(model=Frozen(), personalization=method, training={"optimizer": optimizer, "keep_optimizer": True})
    initial = run._assembly.initial_state
    models = {s: load_file(run.folder / "sites" / s / "personalized.safetensors") for s in SITES}
    if method == "fedavg":
        models["released"] = load_file(run.folder / "model.safetensors")
    for state in models.values():
        assert set(state) == set(initial)
        assert all(torch.equal(state[n], initial[n]) for n in FROZEN)
        assert not any(torch.equal(state[n], initial[n]) for n in ("1.weight", "3.bias", "7.weight"))


def test_they_are_equal_at_all_sites_after_every_round(frozen):
    initial = frozen._assembly.initial_state
    for site in SITES:
        store = SiteStore(frozen.folder / "sites" / site)
        assert store.rounds() == [0, 1, 2]
        for round in store.rounds():
            kept = store.state(round)["personal"]
            assert set(kept) == set(FROZEN)
            assert all(np.array_equal(kept[n], initial[n].numpy()) for n in FROZEN)


def test_the_plan_counts_what_travels_and_the_mechanism_what_is_trained(frozen, experiment):
    parts = frozen._assembly
    trained = sum(p.numel() for n, p in parts.model.named_parameters() if n not in FROZEN)
    assert parts.privacy_setting(dict.fromkeys(SITES, 24)).coordinates == trained
    plan = experiment(model=Frozen()).plan().to_dict()
    assert plan["misfits"] == []
    assert f"an update of {trained:,} real numbers" in plan["stages"][0]["gives"]
    assert plan["bytes"]["up_per_site_round"] < experiment().plan().to_dict()["bytes"]["up_per_site_round"]


def test_predictions_and_a_bundle_have_them(frozen, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    draw = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(draw.integers(0, 256, (16, 16), dtype=np.uint8)).save(pictures / f"{i}.png")
    state = frozen.model().state_dict()
    assert all(torch.equal(state[n], frozen._assembly.initial_state[n]) for n in FROZEN)
    result = frozen.predict(pictures)
    bundle = frozen.export_bundle(tmp_path / "bundle")
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(weights[n], tensor) for n, tensor in state.items())
    pytest.importorskip("ignite")
    pytest.importorskip("fire")
    alone = predict_alone(bundle, pictures)
    for name, expected in zip(result.names, result.probabilities, strict=True):
        np.testing.assert_allclose(alone[name], expected, atol=2e-6)


def test_a_network_that_is_all_frozen_is_refused_in_words(experiment):
    class Nothing(TinyNet):
        def build(self, spec):
            return super().build(spec).requires_grad_(False)

    (found,) = experiment(model=Nothing(TinyNetConfig())).plan().misfits
    assert "nothing would be trained or shared" in found
