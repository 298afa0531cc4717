"""At the ends of their settings the methods are FedAvg or training alone, bit for bit; what is shared never depends on a personal model."""

import copy

import pytest
import torch

from pppml_core.builtin.configs import FedAvgConfig, LocalOnlyConfig
from pppml_core.builtin.fedavg import FedAvg, LocalOnly
from pppml_core.learning.arrays import load_state, snapshot
from pppml_core.learning.gradients import plain_gradients
from pppml_core.testing.local_data import FixedData, small_network

FEDAVG, ALONE = FedAvg(FedAvgConfig()), LocalOnly(LocalOnlyConfig())
GRADIENTS = plain_gradients(torch.nn.functional.cross_entropy)


class OneOrder(FixedData):
    """The same batches for every purpose, so that trajectories of two methods can be compared."""

    def _pass(self, purpose: str) -> str:
        return "train-1"


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[n], other[n]) for n in one)


def rounds_of(rule, count=3, data=OneOrder):
    """Deltas of several rounds of one site, in which the shared weights move as if another site pulled too; the last state and model."""
    model, state, deltas = small_network(), rule.init(small_network()), []
    shared = {n: t for n, t in snapshot(small_network()).items() if t.is_floating_point()}
    for _ in range(count):
        load_state(model, shared)
        update, state = rule.local_update(model, data(), GRADIENTS, state)
        deltas.append(update.delta)
        shared = {n: w + 0.5 * update.delta[n] + 0.01 for n, w in shared.items()}
    load_state(model, shared)
    return deltas, state, model


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fedprox", {"mu": 0.0}),
        ("fedavg-finetune", {"steps": 4}),
        ("ditto", {"strength": 0.7, "personal_epochs": 2}),
        ("apfl", {"alpha": 0.3, "alpha_lr": 0.1}),
    ],
)
def test_what_is_shared_is_fedavgs_bit_for_bit(make, name, settings):
    expected, _, _ = rounds_of(FEDAVG, data=FixedData)
    got, _, _ = rounds_of(make(name, **settings), data=FixedData)
    assert all(equal(one, other) for one, other in zip(expected, got, strict=True))
    if name == "fedprox":
        pulled, _, _ = rounds_of(make(name, mu=0.1), data=FixedData)
        assert not equal(pulled[0], expected[0])


def alone(count=3):
    """The state of training alone over as many rounds."""
    model = small_network()
    for _ in range(count):
        ALONE.local_update(model, OneOrder(), GRADIENTS, {})
    return snapshot(model)


def test_ditto_without_pull_trains_alone(make):
    _, state, model = rounds_of(make("ditto", strength=0.0))
    assert equal(dict(state["model"]), alone())
    assert equal(snapshot(make("ditto", strength=0.0).adapt(model, OneOrder(), GRADIENTS, state)), alone())
    _, pulled, _ = rounds_of(make("ditto", strength=0.1))
    assert not equal(dict(pulled["model"]), alone())


def test_apfl_with_alpha_1_trains_alone(make):
    rule = make("apfl", alpha=1.0, alpha_lr=0.0)
    _, state, model = rounds_of(rule)
    assert equal(snapshot(rule.adapt(model, OneOrder(), GRADIENTS, state)), alone())


def test_apfl_with_alpha_0_uses_the_shared_weights_and_statistics_of_its_own(make):
    rule = make("apfl", alpha=0.0, alpha_lr=0.0)
    _, state, model = rounds_of(rule)
    shared = snapshot(model)
    adapted = snapshot(rule.adapt(model, OneOrder(), GRADIENTS, state))
    parameters = {n for n, _ in model.named_parameters()}
    assert all(torch.equal(adapted[n], shared[n]) for n in parameters)
    assert equal(dict(state["v"]), {n: t for n, t in snapshot(small_network()).items() if n in parameters}), "v has no gradient"
    assert all(torch.equal(adapted[n], b) for n, b in state["buffers"].items())
    assert not torch.equal(adapted["norm.running_mean"], shared["norm.running_mean"])


def test_apfls_running_statistics_are_those_of_the_mixtures_own_passes(make):
    """After one step from equal weights v_bar = w, so the mixture saw the same batch through the same network as w did."""
    rule = make("apfl", alpha=0.5)
    model = small_network()
    _, state = rule.local_update(model, FixedData(steps=1), GRADIENTS, {})
    assert torch.equal(state["buffers"]["norm.running_mean"], model.norm.running_mean)
    assert int(state["buffers"]["norm.num_batches_tracked"]) == int(model.norm.num_batches_tracked) == 1
    _, state = rule.local_update(model, FixedData(steps=2), GRADIENTS, state)
    assert int(state["buffers"]["norm.num_batches_tracked"]) == int(model.norm.num_batches_tracked) == 3
    assert not torch.equal(state["buffers"]["norm.running_mean"], model.norm.running_mean)


def test_apfls_gradients_against_autograd(make):
    """One step on a network, from a v far from w: v's step and alpha's are the derivatives of f(alpha v + (1 - alpha) w)."""
    rate, lr = 0.05, 0.1
    rule = make("apfl", alpha=0.3, alpha_lr=rate)
    w, v = small_network(0, torch.float64), small_network(1, torch.float64)
    buffers = {n: b.clone() for n, b in v.named_buffers()}
    state = {"v": {n: p.detach().clone() for n, p in v.named_parameters()}, "buffers": buffers, "alpha": 0.3}
    before = copy.deepcopy(w)
    data = FixedData(steps=1, lr=lr, dtype=torch.float64)
    _, after = rule.local_update(w, data, GRADIENTS, state)

    images, targets = next(FixedData(steps=1, dtype=torch.float64).batches())
    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    own = {n: p.clone().requires_grad_() for n, p in state["v"].items()}
    mixed = {n: alpha * own[n] + (1 - alpha) * p.detach() for n, p in before.named_parameters()}
    loss = torch.nn.functional.cross_entropy(torch.func.functional_call(before.train(), mixed, images), targets)
    by_alpha, *by_v = torch.autograd.grad(loss, [alpha, *own.values()])
    assert abs(float(by_alpha)) > 1e-3
    assert after["alpha"] == pytest.approx(0.3 - rate * float(by_alpha), abs=1e-13)
    for (name, value), gradient in zip(own.items(), by_v, strict=True):
        torch.testing.assert_close(after["v"][name], value.detach() - lr * gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["ditto", "apfl"])
def test_a_round_leaves_the_network_as_fedavg_leaves_it(make, name):
    """What is not shared (counters; under differential privacy running statistics) is read from it, and must be the shared model's."""
    _, state, _ = rounds_of(make(name))
    models = small_network(), small_network()
    make(name).local_update(models[0], FixedData(), GRADIENTS, state)
    FEDAVG.local_update(models[1], FixedData(), GRADIENTS, {})
    assert equal(snapshot(models[0]), snapshot(models[1]))
