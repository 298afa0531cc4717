"""Combinations whose claim would be false: the planner says why, and what its sentence advises is then planned without complaint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pppml_core as pppml
from pppml_core.errors import ConfigError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.registry import Registry
from pppml_dp.config import DpSgdConfig, DpUpdateConfig
from pppml_dp.dp_sgd import DpSgd
from pppml_dp.dp_update import DpUpdate

pytestmark = pytest.mark.usefixtures("stated_epsilon_alone")

INSTALLED = Registry.discover()
#: 200 + 201 + 202 + 203 + 204 training examples.
TASK = {"use": "tiny", "sites": 5, "examples": 200}
SGD = {"use": "sgd", "lr": 0.5}
TRAINING = {"steps": 1, "batch_size": 32, "optimizer": SGD}

LOCAL = {"use": "dp-sgd", "noise_multiplier": 1.0, "delta": 1e-5}
SHARED, SERVER = {**LOCAL, "placement": "distributed"}, {**LOCAL, "placement": "server"}
UPDATE = {"use": "dp-update", "noise_multiplier": 1.0, "delta": 1e-5}
SECAGG, HE, RINGS = "secagg-plus", "he-fedavg", {"use": "cyclic-he", "backend": "tenseal"}


class Network(ModelFactory):
    """``alter`` makes of the tiny network what a user might have written."""

    def __init__(self, alter=lambda net: net):
        self._alter = alter

    def build(self, spec):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, len(spec.classes)),
        )  # fmt: skip
        return self._alter(net)


def tied(net):
    net[4].weight = net[2].weight
    return net


def frozen(net):
    return net.requires_grad_(False)


def head_only(net):
    net.requires_grad_(False)[-1].requires_grad_(True)
    return net


def with_layer(layer):
    def alter(net):
        net[1] = layer()
        return net

    return alter


def components(sections) -> list[tuple[str, str]]:
    named = [(kind, sections[kind]) for kind in ("aggregator", "personalization") if kind in sections]
    return [(kind, c if isinstance(c, str) else c["use"]) for kind, c in named]


def plan(**sections) -> dict[str, Any]:
    """The real planner's answer; a config that is refused before it has one misfit."""
    for kind, name in components(sections):
        if not any(c.name == name and not c.missing() for c in INSTALLED.components(kind)):
            pytest.skip(f"{name} is not installed")
    sections = {"task": TASK, "run": {"rounds": 2}, **sections, "training": {**TRAINING, **sections.get("training", {})}}
    sections["training"] = {k: v for k, v in sections["training"].items() if v is not None}
    try:
        return pppml.Experiment(registry=INSTALLED, **sections).plan().to_dict()
    except ConfigError as error:
        return {"misfits": [str(error)]}


def distributed(**changes):
    return {"privacy": SHARED, "aggregator": SECAGG, **changes}


TWO_GRADIENTS = (
    "it makes 2 gradients a step, and all but the last would enter the sum without noise; use fedavg, or a mechanism with placement local"
)
ALONE = "what a site shares must be its gradient alone"

#: name: what is refused, a part of its sentence, and what the sentence advises: one or more of them.
ROWS: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]]]] = {
    # -- networks in which an example is not alone --------------------------------------------------------------------------------
    "batch norm": (
        {"privacy": LOCAL, "model": {"use": "tiny-net", "norm": "batch"}},
        "its output for one image depends on the other images of the batch, so no clip bounds one image's influence; use GroupNorm(8, 8)",
        [{"privacy": LOCAL, "model": {"use": "tiny-net", "norm": "group"}}],
    ),
    "batch norm, clip-only": (
        {"privacy": "clip-only", "model": {"use": "tiny-net", "norm": "batch"}},
        "depends on the other images of the batch",
        [{"privacy": "clip-only"}],
    ),
    "tied weights": (
        {"privacy": LOCAL, "model": Network(tied)},
        "parameter `2.weight` is also `4.weight`: it travels under each name, so the clip would not bound the update; give each layer",
        [{"privacy": LOCAL, "model": Network()}],
    ),
    "nothing is trained": (
        {"privacy": LOCAL, "model": Network(frozen)},
        "no parameter is trained, so there is no gradient to clip; unfreeze the layers to be trained",
        [{"privacy": LOCAL, "model": Network(head_only)}],
    ),
    "instance norm with running statistics": (
        {"privacy": LOCAL, "model": Network(with_layer(lambda: nn.InstanceNorm2d(4, track_running_stats=True)))},
        "which no clip bounds and no noise hides; use track_running_stats=False",
        [{"privacy": LOCAL, "model": Network(with_layer(lambda: nn.InstanceNorm2d(4, track_running_stats=False)))}],
    ),
    "spectral norm": (
        {"privacy": LOCAL, "model": Network(with_layer(lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))))},
        "spectral norm updates its vectors in every forward pass, which no clip bounds; leave it out",
        [{"privacy": LOCAL, "model": Network(with_layer(lambda: nn.Conv2d(4, 4, 1)))}],
    ),
    # -- losses and arithmetic ----------------------------------------------------------------------------------------------------
    "balanced class weights": (
        {"privacy": LOCAL, "training": {"class_weights": "balanced"}},
        "balanced weights count a site's labels, which nothing noises; use class_weights: none, or a list that is no count of these data",
        [{"privacy": LOCAL, "training": {"class_weights": w}} for w in ("none", [1.0, 2.0, 3.0])],
    ),
    "bf16": (
        {"privacy": LOCAL, "training": {"precision": "bf16"}},
        "bf16 rounds gradients too coarsely for the clip to hold; use float32",
        [{"privacy": LOCAL, "training": {"precision": "float32"}}],
    ),
    # -- delta ----------------------------------------------------------------------------------------------------------------------
    "delta, local: of the smallest site": (
        {"privacy": {**LOCAL, "delta": 1 / 200}},
        "0.005 is not below 1/200 (training examples of the smallest site): publishing one unit's data outright at random would satisfy "
        "it; use at most 1e-03",
        [{"privacy": {**LOCAL, "delta": 1e-3}}],
    ),
    "delta, distributed: of all sites": (
        distributed(privacy={**SHARED, "delta": 1 / 1010}),
        "is not below 1/1,010 (training examples of all sites): publishing one unit's data outright at random would satisfy it; use at "
        "most 1e-04",
        [distributed(privacy={**SHARED, "delta": 1e-4})],
    ),
    "delta of sites": (
        {"privacy": {**UPDATE, "delta": 0.2}},
        "0.2 is not below 1/5 (sites): publishing one unit's data outright at random would satisfy it; use at most 1e-01",
        [{"privacy": {**UPDATE, "delta": 0.1}}],
    ),
    # -- who sees what ------------------------------------------------------------------------------------------------------------
    "shares of noise in single updates": (
        {"privacy": SHARED, "aggregator": "plain"},
        "server would read each site's own update, which carries only a share of noise; use a secure sum (secagg-plus, cyclic-he) or "
        "placement local",
        [{"privacy": SHARED, "aggregator": SECAGG}, {"privacy": SHARED, "aggregator": RINGS}, {"privacy": LOCAL, "aggregator": "plain"}],
    ),
    "shares of noise in single updates of sites": (
        {"privacy": {**UPDATE, "placement": "distributed"}, "aggregator": "plain"},
        "server would read each site's own update, which carries only a share of noise",
        [{"privacy": {**UPDATE, "placement": "distributed"}, "aggregator": SECAGG}, {"privacy": UPDATE, "aggregator": "plain"}],
    ),
    "one key for all sites, and a colluder": (
        {"privacy": SHARED, "aggregator": HE},
        "one site may collude (colluders), and the secure sum withstands 0: they could read one site's update, which carries only a share "
        "of noise; use another aggregator, or lower colluders",
        [{"privacy": {**SHARED, "colluders": 0}, "aggregator": HE}, {"privacy": SHARED, "aggregator": SECAGG}],
    ),
    "more colluders than the sum withstands": (
        distributed(privacy={**SHARED, "colluders": 4}),
        "4 sites may collude (colluders), and the secure sum withstands 3",
        [distributed(privacy={**SHARED, "colluders": 3})],
    ),
    "others see the sum before the server's noise": (
        {"privacy": SERVER, "aggregator": HE},
        "server and sites would read the sum before the server has noised it; use an aggregator whose sum only the server reads, or "
        "placement distributed",
        [{"privacy": SERVER, "aggregator": "plain"}, {"privacy": SERVER, "aggregator": SECAGG}, distributed()],
    ),
    "all data at one place": (
        {"privacy": SHARED, "aggregator": SECAGG, "task": {**TASK, "pool": True}},
        "all data are at one place, so there is no sum to which others add noise; use placement local",
        [{"privacy": LOCAL, "task": {**TASK, "pool": True}}],
    ),
    "nothing summed, distributed": (
        distributed(personalization="local-only"),
        "placement distributed: nothing is summed here, so no noise would ever be added; use placement local",
        [{"privacy": LOCAL, "personalization": "local-only"}],
    ),
    "nothing summed, server": (
        {"privacy": SERVER, "personalization": "local-only"},
        "placement server: nothing is summed here, so no noise would ever be added; use placement local",
        [{"privacy": LOCAL, "personalization": "local-only"}],
    ),
    "nothing leaves a site": (
        {"privacy": UPDATE, "personalization": "local-only"},
        "nothing leaves a site here, so there is no update to protect; use privacy: none or dp-sgd",
        [{"privacy": "none", "personalization": "local-only"}, {"privacy": LOCAL, "personalization": "local-only"}],
    ),
    # -- what enters a sum besides one gradient -----------------------------------------------------------------------------------
    **{
        f"{name} under distributed": (distributed(personalization=name), why, [distributed(), {"privacy": LOCAL, "personalization": name}])
        for name, why in {
            "per-fedavg": f"per-fedavg cannot be protected by distributed noise: {TWO_GRADIENTS}",
            "apfl": f"apfl cannot be protected by distributed noise: {TWO_GRADIENTS}",
            "ditto": "ditto cannot be protected by distributed noise: it makes 2 gradients a step",
            "fedrep": "fedrep cannot be protected by distributed noise: it makes 2 gradients a step",
            "fedper": "fedper cannot be protected by distributed noise: what it shares is no plain gradient",
        }.items()
    },
    "fedbn under distributed": (
        distributed(personalization={"use": "fedbn", "layers": "all"}),
        "fedbn cannot be protected by distributed noise: what it shares is no plain gradient",
        [distributed(), {"privacy": LOCAL, "personalization": {"use": "fedbn", "layers": "all"}}],
    ),
    "exact second order": (
        {"privacy": LOCAL, "personalization": {"use": "per-fedavg", "order": "exact"}},
        "per-fedavg needs Hessian-vector products, which dp-sgd neither clips nor noises; take an order that needs gradients only",
        [{"privacy": LOCAL, "personalization": {"use": "per-fedavg", "order": order}} for order in ("first", "hessian-free")],
    ),
    "two steps a round": (
        distributed(training={"steps": 2}),
        "distributed noise protects one gradient a sum, and 'site_1' makes 2 steps a round; set training.steps: 1",
        [distributed(training={"steps": 1}), {"privacy": LOCAL, "training": {"steps": 2}}],
    ),
    "an epoch a round": (
        distributed(training={"steps": None, "epochs": 1}),
        "distributed noise protects one gradient a sum, and 'site_1' makes 6 steps a round; set training.steps: 1",
        [distributed(training={"steps": 1})],
    ),
    "two steps a round, server": (
        {"privacy": SERVER, "training": {"steps": 2}},
        "server noise protects one gradient a sum, and 'site_1' makes 2 steps a round; set training.steps: 1",
        [{"privacy": SERVER, "training": {"steps": 1}}],
    ),
    "no step": (
        {"privacy": LOCAL, "training": {"steps": 0}},
        "it makes no step, so there is no gradient to protect; set training.steps: 1",
        [{"privacy": LOCAL}],
    ),
    **{
        f"{name} at the sites": (distributed(training=training), ALONE, [distributed(training={"optimizer": SGD})])
        for name, training in {
            "adam": {"optimizer": {"use": "adam", "lr": 0.01}},
            "a kept optimizer": {"optimizer": {**SGD, "momentum": 0.9}, "keep_optimizer": True},
            "weight decay": {"optimizer": {**SGD, "weight_decay": 1e-4}},
        }.items()
    },
    # -- weights and encoding -----------------------------------------------------------------------------------------------------
    "another bound of the weight": (
        {"privacy": LOCAL, "encoding": {"max_weight": 500}},
        "dp-sgd gives every site the weight 1, and its noise is sized for that; leave it out",
        [{"privacy": LOCAL}],
    ),
    "a cap of weights that are all one": (
        {"privacy": UPDATE, "personalization": {"use": "fedavg", "weight_cap": 50}},
        "dp-update gives every site the weight 1, so a cap of 50 has no effect; leave it out",
        [{"privacy": UPDATE, "personalization": "fedavg"}],
    ),
    **{
        f"real numbers, {name}": (
            {**sections, "encoding": "float"},
            "the noise is added to integers; use encoding: fixed",
            [{**sections, "encoding": "fixed"}],
        )
        for name, sections in {"server": {"privacy": SERVER}, "update": {"privacy": UPDATE}}.items()
    },
    # -- numbers of the mechanism -------------------------------------------------------------------------------------------------
    **{
        f"no noise is given, {use}": (
            {"privacy": {"use": use}},
            "give epsilon (the noise is solved for it)",
            [{"privacy": {"use": use, "epsilon": 3, "delta": 1e-5}}, {"privacy": {"use": use, "noise_multiplier": 1.0}}],
        )
        for use in ("dp-sgd", "dp-update")
    },
    "a preset with numbers of one's own": (
        {"privacy": {"use": "dp-update", "preset": "paper", "clip": 2.0}},
        "preset: paper sets clip itself; leave it out",
        [{"privacy": {"use": "dp-update", "preset": "paper"}}],
    ),
    "no noise that should hold epsilon": (
        {"privacy": {**LOCAL, "noise_multiplier": 0, "epsilon": 6}},
        "noise_multiplier: 0 guarantees nothing, so epsilon 6 would never hold; leave one of them out",
        [{"privacy": {"use": "dp-sgd", "noise_multiplier": 0}}, {"privacy": {"use": "dp-sgd", "epsilon": 6}}],
    ),
    "the first round is too dear": (
        {"privacy": {**UPDATE, "epsilon": 3}},
        "with `noise_multiplier: 1` the first round would exceed `epsilon: 3`",
        [{"privacy": {**UPDATE, "epsilon": 3, "noise_multiplier": 3.0}}, {"privacy": {**UPDATE, "noise_multiplier": None, "epsilon": 3}}],
    ),
    "noise beyond 31 bits": (
        {"privacy": {"use": "dp-update", "epsilon": 1e-5, "delta": 1e-9}},
        "does not fit integers of 31 bits; use a smaller model, more epsilon or less noise_multiplier, or fewer noised sums",
        [{"privacy": {"use": "dp-update", "epsilon": 1e-3, "delta": 1e-3}}],
    ),
    "noise beyond 31 bits, by its multiplier": (
        {"privacy": {**UPDATE, "noise_multiplier": 2e4}},
        "noise of 2e+04 sensitivities for 2,035 coordinates does not fit integers of 31 bits",
        [{"privacy": {**UPDATE, "noise_multiplier": 1e4}}, {"privacy": {**UPDATE, "noise_multiplier": 2e4}, "model": Network()}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_is_refused_in_a_sentence_whose_advice_helps(name):
    refused, sentence, advised = ROWS[name]
    misfits = plan(**refused)["misfits"]
    assert [m for m in misfits if sentence in m], misfits
    for sections in advised:
        assert plan(**sections)["misfits"] == []


def test_there_are_at_least_twenty():
    assert len({sentence for _, sentence, _ in ROWS.values()}) >= 20


@pytest.mark.parametrize("mechanism", [DpSgd(DpSgdConfig(epsilon=6, placement="distributed", colluders=2)),
                                       DpUpdate(DpUpdateConfig(epsilon=6, placement="distributed", colluders=2))])  # fmt: skip
def test_colluders_that_leave_no_honest_share_are_refused(mechanism, setting, rule_is):
    """No aggregator here opens a sum over as few sites as may collude; one that did is refused."""
    training = {"class_weights": "none", "precision": "float32"}

    def misfits(min_survivors):
        return mechanism.misfits(setting(min_survivors=min_survivors), rule_is(), nn.Linear(3, 2), training)

    assert ["which leaves none; raise the aggregator's threshold or lower colluders" in m for m in misfits(2)] == [True]
    assert misfits(3) == []


def test_several_reasons_are_said_at_once():
    misfits = plan(privacy={**SHARED, "delta": 0.5}, model={"use": "tiny-net", "norm": "batch"}, training={"class_weights": "balanced"})
    assert len(misfits["misfits"]) == 4


@pytest.mark.parametrize("use", ["fedavg-finetune", "fedprox"])
def test_what_personalizes_after_training_or_shares_one_gradient_is_admitted(use):
    assert plan(**distributed(personalization=use))["misfits"] == []


def test_the_plan_names_what_is_outside_the_claim():
    warnings = plan(**distributed(personalization="fedavg-finetune"))["warnings"]
    said = next(w for w in warnings if "outside the claim" in w)
    assert "evaluation metrics" in said
    assert "personalized model" in said
    assert "training loss" not in said
