"""The method in whole runs: what it shares, what it scores, what it refuses and says; running statistics; adapting."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from pppml_core.builtin.configs import TinyTaskConfig
from pppml_core.builtin.tiny import TinyTask
from pppml_core.errors import PlanRefused, PppmlError
from pppml_core.learning.arrays import snapshot
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.statistics import with_statistics
from pppml_core.testing.local_data import FixedData, real_training, small_network
from pppml_perfedavg.batch_norm import is_statistic, with_fixed_statistics
from pppml_perfedavg.config import PerFedAvgConfig
from pppml_perfedavg.meta_gradient import MetaGradient
from pppml_perfedavg.perfedavg import PerFedAvg

cross_entropy = plain_gradients(nn.functional.cross_entropy)
STATISTICS = ("1.running_mean", "1.running_var")  # of tiny-net
TRAINING = {
    "epochs": 1,
    "steps": None,
    "precision": "float32",
    "schedule": "constant",
    "warmup_rounds": 0,
    "optimizer": {"use": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0},
}


def rule(**settings):
    return PerFedAvg(PerFedAvgConfig(**settings))


def method(**settings):
    return {"use": "per-fedavg", **settings}


# -- whole runs ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [{}, {"optimizer": {"use": "adam"}}], ids=["sgd", "adam"])
def test_an_inner_rate_of_zero_is_fedavg_bit_for_bit(go, training):
    expected = go(personalization="fedavg", training=training).result["model_sha256"]
    for order in ("first", "hessian-free", "exact"):
        assert go(personalization=method(inner_lr=0.0, order=order), training=training).result["model_sha256"] == expected, order


def test_orders_and_rates_give_models_of_their_own(go):
    found = [go(personalization="fedavg")]
    found += [go(personalization=method(inner_lr=0.05, order=order)) for order in ("first", "hessian-free", "exact")]
    found += [go(personalization=method(inner_lr=0.1)), go(personalization=method(inner_lr=0.05, outer_lr=0.02))]
    assert len({run.result["model_sha256"] for run in found}) == len(found)


def test_an_epoch_has_as_many_gradients_as_fedavgs(experiment):
    sections = {"training": {"steps": None, "epochs": 1, "batch_size": 4}, "task": {"use": "tiny", "sites": 2, "examples": 24}}
    plans = {o: experiment(personalization=method(order=o), **sections).plan().plan.training for o in ("first", "hessian-free", "exact")}
    assert plans["first"] == {"steps": {"site_1": 3, "site_2": 3}, "gradient_calls": 2}
    assert plans["hessian-free"] == {"steps": {"site_1": 2, "site_2": 2}, "gradient_calls": 4}
    assert plans["exact"] == {"steps": {"site_1": 2, "site_2": 2}, "gradient_calls": 3}
    assert experiment(personalization="fedavg", **sections).plan().plan.training["steps"] == {"site_1": 6, "site_2": 7}


def test_distributed_noise_would_be_refused():
    assert not rule().shares_one_gradient
    assert rule(inner_lr=0.0).shares_one_gradient
    assert not rule(inner_lr=0.0, batch_norm="local").shares_one_gradient
    assert [rule(order=o).needs_hessian for o in ("first", "hessian-free", "exact")] == [False, False, True]
    assert not rule(order="exact", inner_lr=0.0).needs_hessian


# -- running statistics -------------------------------------------------------------------------------------------------------------------


def contribution(run):
    return [entry["name"] for entry in json.loads((run.folder / "manifest.json").read_text())["contribution"]]


def scored(run):
    return {row["weights"] for row in run.metrics}


def test_shared_statistics_travel_and_both_models_are_scored(go):
    run = go(personalization=method())
    assert set(STATISTICS) <= set(contribution(run))
    assert scored(run) == {"global", "personalized"}


def test_local_statistics_stay_at_the_site(go):
    run = go(personalization=method(batch_norm="local"))
    assert not set(STATISTICS) & set(contribution(run))
    assert "1.weight" in contribution(run)
    assert scored(run) == {"personalized"}
    own = [run.model(site).state_dict() for site in ("site_1", "site_2")]
    for name in STATISTICS:
        assert not torch.equal(own[0][name], own[1][name])


@pytest.mark.parametrize("order", ["first", "hessian-free", "exact"])
def test_frozen_statistics_never_change(go, experiment, order):
    run = go(personalization=method(batch_norm="frozen", order=order, inner_lr=0.05))
    start = experiment().plan().plan.assembly.initial_state
    for state in (run.model().state_dict(), run.model("site_1").state_dict()):
        for name in STATISTICS:
            assert torch.equal(state[name], start[name])
        assert not torch.equal(state["1.weight"], start["1.weight"])


def test_a_later_site_with_local_statistics_measures_its_own(go):
    """In one pass at the adapted weights: here over all its training images in one batch."""
    run = go(
        personalization=method(batch_norm="local", inner_lr=0.1),
        task={"use": "tiny", "sites": 4, "leave_out": ["site_4"]},
        training={"batch_size": 100},
    )
    adapted = run.adapt("site_4")
    training = TinyTask(TinyTaskConfig(sites=4)).load("site_4").train
    with torch.no_grad():
        seen = adapted[0](torch.from_numpy(np.stack([training.example(i)[0] for i in range(len(training))])))
    torch.testing.assert_close(adapted.state_dict()[STATISTICS[0]], seen.mean((0, 2, 3)))
    torch.testing.assert_close(adapted.state_dict()[STATISTICS[1]], seen.var((0, 2, 3)))


@pytest.mark.parametrize("order", ["first", "hessian-free", "exact"])
def test_only_the_pass_at_w_on_d_counts(order):
    """After a step the statistics are those of one forward pass, and the gradient is made with batch statistics all the same."""
    model, other = small_network(), small_network()
    batches = tuple(FixedData().sample(str(i), 1).__next__() for i in range(3))
    MetaGradient(cross_entropy, 0.1, order)(model.train(), batches)
    other.train()(batches[0][0])
    assert all(map(torch.equal, model.buffers(), other.buffers()))
    assert int(model.norm.num_batches_tracked) == 1


@pytest.mark.parametrize("order", ["first", "hessian-free", "exact"])
def test_frozen_is_evaluation_mode_of_normalization_alone(order):
    """The meta-gradient of a network whose BatchNorm is in evaluation mode, dropout on; and modules are put back into training mode."""
    batches = tuple(FixedData().sample(str(i), 1).__next__() for i in range(3))
    found = []
    for frozen in (True, False):
        model = nn.Sequential(small_network(), nn.Dropout(0.5)).train()
        model[0].norm.running_mean.fill_(0.3)
        step = MetaGradient(cross_entropy, 0.1, order)
        if frozen:
            step = with_fixed_statistics(step)
        else:
            model[0].norm.eval()
        torch.manual_seed(0)
        step(model, batches)
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
        assert float(model[0].norm.running_mean.sum()) == pytest.approx(1.2)
        assert model[0].norm.training == frozen
        assert model[1].training
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_what_counts_as_a_statistic():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True), nn.InstanceNorm1d(2), nn.GroupNorm(1, 2))
    assert [n for n in model.state_dict() if is_statistic(n, model)] == [
        f"{i}.{b}" for i in (0, 1) for b in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert with_statistics(model) == [model[0], model[1]]


# -- adapting -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_adapting_is_gradient_descent_on_training_batches(steps):
    model, by_hand = small_network().eval(), small_network()
    adapted = rule(inner_lr=0.1, adapt_steps=steps, adapt_lr=0.25, order="hessian-free").adapt(model, FixedData(), cross_entropy, {})
    assert adapted is model
    by_hand.train()
    for batch in FixedData().sample("adapt", steps):
        cross_entropy(by_hand, batch)
        with torch.no_grad():
            for p in by_hand.parameters():
                p.sub_(p.grad, alpha=0.25)
    assert all(map(torch.equal, adapted.state_dict().values(), by_hand.state_dict().values()))
    assert all(p.grad is None for p in adapted.parameters())


@pytest.mark.parametrize("batch_norm", ["shared", "local", "frozen"])
def test_adapting_trains_in_training_mode_whatever_mode_the_model_comes_in(batch_norm):
    """Scoring leaves a model in evaluation mode. The step must have dropout all the same, and the statistics that ``batch_norm`` names."""

    def adapted(mode, p):
        *body, head = small_network().named_children()
        model = nn.Sequential(OrderedDict([*body, ("drop", nn.Dropout(p)), head])).train(mode)
        return rule(inner_lr=0.1, batch_norm=batch_norm).adapt(model, real_training(), cross_entropy, {}).state_dict()

    start, scored_before, fresh, without = small_network().state_dict(), adapted(False, 0.5), adapted(True, 0.5), adapted(False, 0.0)
    assert all(torch.equal(scored_before[n], t) for n, t in fresh.items())
    assert not torch.equal(scored_before["head.weight"], without["head.weight"]), "dropout has its effect"
    kept = torch.equal(scored_before["norm.running_mean"], start["norm.running_mean"])
    assert kept == (batch_norm == "frozen")


def test_adapting_passes_over_frozen_parameters():
    model = small_network()
    model.conv.weight.requires_grad_(False)
    before = snapshot(model)
    after = rule(inner_lr=0.1).adapt(model, FixedData(), cross_entropy, {}).state_dict()
    assert torch.equal(after["conv.weight"], before["conv.weight"])
    assert not torch.equal(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize("settings", [{"adapt_steps": 0}, {"inner_lr": 0.0}, {"adapt_lr": 0.0}])
def test_without_steps_or_rate_there_is_nothing_to_adapt(settings):
    """And so nothing but the shared model to score, unless statistics are the site's own."""
    model, before = small_network(), snapshot(small_network())
    after = rule(**settings).adapt(model, FixedData(), cross_entropy, {}).state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert not rule(**settings).personalizes
    assert rule(**settings, batch_norm="local").personalizes
    assert rule().personalizes


def test_one_step_lowers_a_sites_loss(go):
    """What the method is for: after rounds at sites that differ, one gradient step on a site's own images lowers its loss there."""
    run = go(
        personalization=method(inner_lr=0.2, outer_lr=0.1),
        training={"steps": 6, "batch_size": 8},
        run={"rounds": 6, "evaluate_every": 6},
        task={"use": "tiny", "sites": 3, "examples": 24},
    )
    gains = []
    for site in ("site_1", "site_2", "site_3"):
        images, targets = zip(*map(run.task.load(site).train.example, range(24)), strict=True)
        batch = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))
        shared, own = (cross_entropy(run.model(s).eval(), batch) for s in (None, site))
        gains.append(shared - own)
    assert sum(gains) > 0


# -- what is refused and said -------------------------------------------------------------------------------------------------------------


def test_misfits():
    plain, normalized, sizes = nn.Linear(2, 2), small_network(), {"a": 9}
    bf16 = {**TRAINING, "precision": "bf16"}
    assert rule(order="first").misfits(plain, sizes, bf16) == []
    for order in ("hessian-free", "exact"):
        (text,) = rule(order=order).misfits(plain, sizes, bf16)
        assert "bf16" in text
        assert "first" in text
        assert rule(order=order, inner_lr=0.0).misfits(plain, sizes, bf16) == []
        assert rule(order=order).misfits(plain, sizes, {**TRAINING, "precision": "float64"}) == []
    (text,) = rule(batch_norm="local").misfits(plain, sizes, TRAINING)
    assert "running statistics" in text
    assert rule(batch_norm="local").misfits(normalized, sizes, TRAINING) == []
    for empty in ({"epochs": 0, "steps": None}, {"epochs": None, "steps": 0}):
        (text,) = rule().misfits(plain, sizes, {**TRAINING, **empty})
        assert "no local step" in text


def test_misfits_reach_the_plan(experiment):
    for sections, word in (
        ({"personalization": method(order="exact"), "training": {"precision": "bf16"}}, "bf16"),
        ({"personalization": method(order="hessian-free"), "training": {"steps": 0}}, "no local step"),
        ({"personalization": method(batch_norm="local"), "model": "tiny-net"}, "running statistics"),
        ({"personalization": method(order="exact"), "task": {"use": "tiny", "examples": 6}, "training": {"batch_size": 2}}, None),
    ):
        misfits = experiment(**sections).plan().plan.misfits
        assert [word in m for m in misfits] == ([True] if word else [])


def test_exact_under_a_rule_without_products_is_an_error_in_words():
    def clipped(model, batch):
        return cross_entropy(model, batch)

    with pytest.raises(PppmlError, match="Hessian-vector"):
        rule(order="exact").local_update(small_network(), FixedData(), clipped, {})


REMARKS = [
    ({"weight_cap": 1}, {}, []),
    ({"weight_cap": 1}, {"optimizer": {"use": "adam"}}, ["(adam)"]),
    ({"weight_cap": 1}, {"optimizer": {"momentum": 0.9}}, ["(sgd with momentum)"]),
    ({"weight_cap": 1}, {"optimizer": {"weight_decay": 1e-4}}, ["weight decay"]),
    ({"weight_cap": 1}, {"schedule": "cosine"}, ["schedule"]),
    ({"weight_cap": 1}, {"warmup_rounds": 2}, ["schedule"]),
    ({"weight_cap": 1, "adapt_steps": 5}, {}, ["adapt_steps is 5"]),
    ({"weight_cap": 1, "adapt_lr": 0.5}, {}, ["adapt_lr is 0.5"]),
    ({"weight_cap": 1, "adapt_lr": 0.01}, {}, []),
    ({"weight_cap": 1, "server_optimizer": {"lr": 0.5}}, {}, ["server_optimizer"]),
    ({"inner_lr": 0.0}, {"optimizer": {"use": "adam"}}, ["inner_lr: 0"]),
]


@pytest.mark.parametrize(("settings", "training", "words"), REMARKS)
def test_departures_are_named_where_they_apply(settings, training, words):
    merged = {**TRAINING, **training, "optimizer": {**TRAINING["optimizer"], **training.get("optimizer", {})}}
    found = rule(**settings).remarks(merged)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


@pytest.mark.parametrize(("settings", "words"), [({}, ["weigh by training examples"]), ({"weight_cap": 1}, []), ({"inner_lr": 0.0}, [])])
def test_weights_are_a_departure_of_their_own(settings, words):
    """The plan leaves it out where a privacy mechanism sets the weights."""
    found = rule(**settings).weight_remarks()
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_departures_are_in_the_plan(experiment):
    warnings = experiment(personalization=method(), training={"optimizer": {"use": "adam"}}).plan().plan.warnings
    assert sum("Fallah" in text for text in warnings) == 2


def test_a_run_with_a_misfit_does_not_start(go):
    with pytest.raises(PlanRefused, match="bf16"):
        go(personalization=method(order="exact"), training={"precision": "bf16"})


@pytest.mark.parametrize(
    "settings",
    [{"inner_lr": -1}, {"inner_lr": float("inf")}, {"outer_lr": 0}, {"order": "second"}, {"hessian_step": 0}, {"adapt_steps": -1}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PerFedAvgConfig(**settings)
