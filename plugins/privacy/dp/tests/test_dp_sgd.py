"""The acceptance recipe's epsilon, public scales, shares of patients, and what the rule refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import DrawnBatch
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.losses import default_loss
from pppml_dp.config import DpSgdConfig
from pppml_dp.dp_sgd import make_sgd_plan, scale_of

DP = {"use": "dp-sgd", "delta": 1e-5}


def plan_of(setting, numbers=None, **config):
    return make_sgd_plan(DpSgdConfig(**{"noise_multiplier": 1.0, **config}), setting(**(numbers or {})))


def rule_of(plan, weights=None):
    return plan.gradient_rule(plain_gradients(lambda o, t: default_loss("classification", o, t, weights)))


def drawn(n, shares=None, scale=1.0):
    images = scale * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(n))
    return DrawnBatch(images, torch.arange(n) % 3, torch.ones(n, dtype=torch.float64) if shares is None else shares)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_recipes_epsilon_by_three_accountants(experiment, secagg):
    """Acceptance: ten sites, distributed noise, epsilon 6, delta 1e-5."""
    made = experiment({**DP, "epsilon": 6, "placement": "distributed"}, sites=10, examples=120, aggregator=secagg,
                      training={"batch_size": 12}, run={"rounds": 100})  # fmt: skip
    told = made.plan().to_dict()
    checks = told["privacy"]["cross_checks"]
    assert told["misfits"] == []
    assert checks["pld"] <= 6 == told["privacy"]["epsilon"]
    assert checks["pld"] == pytest.approx(6, rel=0.02)
    assert checks["prv"] == pytest.approx(checks["pld"], rel=0.02)
    assert checks["pld"] <= checks["rdp"] <= 1.15 * checks["pld"]


def test_a_noise_multiplier_states_epsilon(setting):
    """More noise, less epsilon; and the noise that epsilon solves for is what states it."""
    epsilons = [plan_of(setting, noise_multiplier=z).statement.epsilon for z in (0.8, 1.2, 2.0)]
    assert all(a > b for a, b in pairwise(epsilons))
    solved = plan_of(setting, noise_multiplier=None, epsilon=epsilons[1]).statement
    assert solved.details["noise_multiplier"] == pytest.approx(1.2, rel=5e-3)
    assert solved.epsilon == epsilons[1]


@pytest.mark.usefixtures("stated_epsilon_alone")
def test_rate_and_divisor_are_public_and_the_same_at_all_sites(experiment, setting):
    uneven = {"examples": {"a": 1000, "b": 10, "c": 190}, "cohort": 3, "sample_rate": 0.1, "local_steps": dict.fromkeys("abc", 1)}
    scale = scale_of(setting(**uneven))
    assert (scale.rate, scale.divisor) == (0.1, pytest.approx(0.1 * 1200 / 3))
    details = experiment({**DP, "noise_multiplier": 1.0}, sites=3, examples=99).plan().to_dict()["privacy"]["details"]
    assert details["sample_rate"] == pytest.approx(32 * 3 / (99 + 100 + 101))
    assert details["expected_batch"] == pytest.approx(32)


def test_all_sites_are_charged_where_fewer_take_part(setting):
    """Which sites a round draws is no secret: no amplification by it."""
    all_of_them, some = plan_of(setting), plan_of(setting, {"cohort": 5, "min_survivors": 4})
    assert some.charge(1) == all_of_them.charge(1)
    assert any("charged as if all did" in text for text in some.remarks(net()))


def test_the_images_of_one_patient_use_one_clip_together(setting):
    plan = plan_of(setting, unit="patient", noise_multiplier=0.0, clip=0.5)
    sample = plan.sample(np.repeat(np.arange(300), 7))
    owners = np.repeat(np.arange(300), 7)[sample.indices]
    assert len(owners)
    for patient in np.unique(owners):
        assert np.count_nonzero(owners == patient) == 4
        assert sample.shares[owners == patient].sum() == pytest.approx(1)
    # Four images alike, each with a gradient far beyond the clip: together they are one clip long.
    batch = DrawnBatch(torch.full((4, 1, 4, 4), 50.0), torch.zeros(4, dtype=torch.long), torch.full((4,), 0.25, dtype=torch.float64))
    model = net()
    rule_of(plan)(model, batch)
    assert float(gradient(model).norm()) * plan.divisor == pytest.approx(0.5, rel=1e-4)


def test_the_rule_refuses_what_is_not_charged(setting):
    rule, model = rule_of(plan_of(setting)), net()
    with pytest.raises(PppmlError, match="not drawn by Poisson sampling"):
        rule(model, (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)))
    rule(model, drawn(3))
    with pytest.raises(PppmlError, match="2 gradients are asked for in a round that is charged for 1"):
        rule(model, drawn(3))


def test_a_sample_pays_for_one_gradient(setting):
    rule, batch = rule_of(plan_of(setting, {"gradient_calls": 2})), drawn(3)
    rule(net(), batch)
    with pytest.raises(PppmlError, match="two gradients of one sample"):
        rule(net(), batch)


@pytest.mark.usefixtures("stated_epsilon_alone")
@pytest.mark.parametrize(("order", "calls"), [("first", 2), ("hessian-free", 4)])
def test_every_gradient_of_per_fedavg_is_charged(experiment, order, calls):
    personalization = {"use": "per-fedavg", "order": order}
    try:
        made = experiment({**DP, "noise_multiplier": 1.0}, training={"steps": 3}, run={"rounds": 5}, personalization=personalization)
    except PppmlError:
        pytest.skip("pppml-perfedavg is not installed")
    told = made.plan().to_dict()
    assert told["misfits"] == []
    assert told["privacy"]["details"]["gradients"] == 5 * 3 * calls


@pytest.mark.usefixtures("stated_epsilon_alone")
def test_an_empty_batch_is_a_gradient_like_any_other(setting, experiment, tmp_path):
    model, plan = net(), plan_of(setting, placement="local", noise_multiplier=1.0)
    rule_of(plan)(model, drawn(0))
    assert float(gradient(model).norm()) > 0, "its noise is sent all the same"
    quiet = plan_of(setting, placement="local", noise_multiplier=0.0)
    rule_of(quiet)(model, drawn(0))
    assert not gradient(model).any()
    # A rate at which nearly every batch is empty: all sites contribute in all rounds. (Noise is divided by the tiny expected batch.)
    rare = {**DP, "noise_multiplier": 1.0, "sample_rate": 1e-9, "placement": "server"}
    slow = {"optimizer": {"use": "sgd", "lr": 1e-9}}
    run = experiment(rare, sites=2, examples=12, training=slow).run(tmp_path / "r", reporters=False, report=False)
    assert {n: len(sites) for n, sites in run.result["survivors"].items()} == {"1": 2, "2": 2}


def test_a_schedule_of_learning_rates_scales_the_grid(setting):
    """The update is rate times gradient, so the same integers stand for it in every round: the sensitivity stays."""
    rates = (0.5, 0.25, 0.05)
    plan = plan_of(setting, {"rounds": 3, "learning_rates": rates}, placement="distributed")
    ranges = [plan.encoding(n).range for n in (1, 2, 3)]
    assert [r / ranges[0] for r in ranges] == pytest.approx([r / rates[0] for r in rates])
    clip_steps = 1.0 * rates[0] / plan.divisor / (ranges[0] / (2**23 - 1))
    assert plan.statement.details["integer_sensitivity"] == pytest.approx(1.001 * clip_steps + math.sqrt(2035), rel=1e-6)


def test_class_weights_multiply_gradients_before_they_are_clipped(setting):
    """A list is public: gradients below the clip are multiplied by it, others are as long as the clip."""
    small, large = (plan_of(setting, noise_multiplier=0.0, clip=clip) for clip in (1e3, 1e-3))
    one = DrawnBatch(torch.ones(1, 1, 4, 4), torch.tensor([2]), torch.ones(1, dtype=torch.float64))
    found = []
    for plan in (small, large):
        for weights in (None, torch.tensor([1.0, 1.0, 3.0])):
            model = net()
            one.used = False
            rule_of(plan, weights)(model, one)
            found.append(float(gradient(model).norm()) * plan.divisor)
    assert found[1] == pytest.approx(3 * found[0], rel=1e-5)
    assert found[2:] == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_sums_saturate_before_the_noise_and_never_after(setting):
    """The grid cuts what is beyond it; noise is added to the cut integers and is not cut itself."""
    plan = plan_of(setting, placement="local", noise_multiplier=100.0)
    limit = plan.config.clip * plan._grid.range_in_clips
    noised = plan.noised(torch.full((2035,), 10 * limit, dtype=torch.float64))
    beyond = float((noised > limit).double().mean())
    # Half of the noise is positive: 2,035 fair coins are within 5.2 standard deviations but for 2e-7.
    assert abs(beyond - 0.5) < 5.2 * 0.5 / math.sqrt(2035)
    assert float(noised.mean()) == pytest.approx(limit, abs=5.2 * 101.2 / math.sqrt(2035))
