"""Noise that comes after the gradient: a site shares minus the learning rate times one gradient, as it was made; draws and rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.config.run_config import TrainingSection
from pppml_core.errors import PppmlError, RunFailed
from pppml_core.federation.trainer import one_gradient
from pppml_core.interfaces.personalization import DrawnBatch, Update
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacyStatement, Sample
from pppml_core.learning.arrays import difference, snapshot
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.training import LocalTraining
from pppml_core.randomness import Seeds

SITES = ("site_1", "site_2", "site_3")
LOSS = torch.nn.functional.cross_entropy
LATER = pytest.mark.parametrize("placement", ["distributed", "server"])


def network(scale=1.0):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)
    return net


def training(*, round=1, rounds=8, **settings):
    generator = np.random.default_rng(3)
    examples = ArrayExamples(generator.normal(size=(12, 1, 3, 3)).astype(np.float32), np.arange(12) % 3, np.arange(12), to_image=np.asarray)
    section = TrainingSection(device="cpu", **{"batch_size": 12, "steps": 1, **settings})
    return LocalTraining(examples, section, Seeds(1), site="a", round=round, rounds=rounds)


def gradient(model, batch):
    """Of the mean loss, by torch alone."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(LOSS(model(batch[0]), batch[1]), parameters)
    return dict(zip(names, (g.numpy() for g in found), strict=True))


SCHEDULES = [
    ({}, 5, 1.0),
    ({"schedule": "cosine"}, 4, 0.5 * (1 + math.cos(math.pi * 3 / 8))),
    ({"schedule": "step"}, 7, 0.01),
    ({"warmup_rounds": 3}, 2, 0.5),
    ({"warmup_rounds": 2, "schedule": "cosine"}, 1, 1 / 3),
    ({"warmup_rounds": 2, "schedule": "cosine"}, 5, 0.5 * (1 + math.cos(math.pi * 2 / 6))),
]


@pytest.mark.parametrize(("settings", "round", "factor"), SCHEDULES, ids=str)
@pytest.mark.parametrize("lr", [0.05, 0.1, 3.0])
def test_the_update_is_minus_the_rate_times_the_gradient_to_the_bit(settings, round, factor, lr):
    model = network()
    before = snapshot(model)
    given = {"optimizer": {"use": "sgd", "lr": lr}, **settings}
    update = one_gradient(model, training(round=round, **given), plain_gradients(LOSS))
    expected = gradient(network(), next(training(round=round, **given).batches()))
    assert set(update.delta) == set(expected)
    assert update.metrics == {}
    for name, found in update.delta.items():
        assert found.dtype == torch.float32
        assert found.numpy().tobytes() == (np.float32(-lr * factor) * expected[name]).tobytes(), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the weights are where they were"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_minus_weights_would_have_rounded_it(momentum):
    """At weights of size 1000 what float32 keeps of a small step is far from the gradient: its integers would have another sensitivity."""
    model, settings = network(1e3), {"optimizer": {"use": "sgd", "lr": 1e-3, "momentum": momentum}}
    start = snapshot(model)
    batch = next(training(**settings).batches())
    expected = gradient(network(1e3), batch)
    update = one_gradient(model, training(**settings), plain_gradients(LOSS))
    training(**settings).train(model, plain_gradients(LOSS))
    rounded = difference(model, start)
    moved = sum(np.abs(g).sum() for g in expected.values())
    assert moved > 0
    lost = sum(np.abs(rounded[n].numpy() - np.float32(-1e-3) * g).sum() for n, g in expected.items()) / (1e-3 * moved)
    assert lost > 1e-4, "weights minus weights, for comparison"
    assert all(np.array_equal(update.delta[n].numpy(), np.float32(-1e-3) * g) for n, g in expected.items())


def test_float64_stays_float64():
    model = network().double()
    update = one_gradient(model, training(precision="float64"), plain_gradients(LOSS))
    reference = network().double()
    expected = gradient(reference, next(training(precision="float64").batches()))
    lr = TrainingSection().optimizer.lr
    assert all(t.dtype == torch.float64 and np.array_equal(t.numpy(), -lr * expected[n]) for n, t in update.delta.items())


class Branched(torch.nn.Module):
    """A layer that no loss depends on, one that is frozen, and a name for another's weight."""

    def __init__(self):
        super().__init__()
        self.used, self.frozen, self.unused = torch.nn.Linear(9, 3), torch.nn.Linear(9, 3), torch.nn.Linear(9, 3)
        self.frozen.requires_grad_(False)
        self.also = self.used

    def forward(self, images):
        flat = images.flatten(1)
        return self.used(flat) + self.frozen(flat)


def test_what_has_no_gradient_is_zero_and_a_tied_weight_has_it_under_each_name():
    torch.manual_seed(0)
    model = Branched()
    for p in model.parameters():
        p.grad = torch.ones_like(p)  # of another batch, another site, or of adapting, without noise
    update = one_gradient(model, training(), plain_gradients(LOSS)).delta
    assert set(update) == {f"{part}.{kind}" for part in ("used", "also", "frozen", "unused") for kind in ("weight", "bias")}
    for name, tensor in update.items():
        assert tensor.shape == dict(model.named_parameters(remove_duplicate=False))[name].shape
        assert bool(tensor.any()) == name.startswith(("used", "also"))
    assert torch.equal(update["also.weight"], update["used.weight"])


def test_a_rule_that_sets_some_gradients_leaves_none_of_another_batch():
    model = network()
    for p in model.parameters():
        p.grad = torch.ones_like(p)

    def first_alone(net, batch):
        net[1].weight.grad = torch.full_like(net[1].weight, 2.0)
        return 0.0

    update = one_gradient(model, training(optimizer={"use": "sgd", "lr": 0.5}), first_alone).delta
    assert set(update["1.weight"].unique().tolist()) == {-1.0}
    assert not any(tensor.any() for name, tensor in update.items() if name != "1.weight")


# -- in a run -----------------------------------------------------------------------------------------------------------------


class NotingPlan(PrivacyPlan):
    """Notes gradients as its rule made them, updates as they came to its clip, and draws."""

    constant_weight, admits_metrics = 1, False

    def __init__(self, owner, setting):
        self.owner, self.setting, self.placement, self.sample_rate = owner, setting, owner.placement, owner.rate

    @property
    def statement(self):
        return PrivacyStatement("noting", placement=self.placement)

    def sample(self, groups):
        drawn = np.flatnonzero(self.owner.generator.random(len(groups)) < self.sample_rate)
        self.owner.drawn.append((list(groups), drawn.tolist()))
        return Sample(drawn, np.full(len(drawn), 0.5))

    def gradient_rule(self, plain):
        if not self.owner.replaces:
            return plain

        def rule(model, batch):
            if self.sample_rate is not None and not isinstance(batch, DrawnBatch):
                raise PppmlError("this batch has lost the shares that it was drawn with, so no clip would hold", place="noting")
            if not len(batch[0]):
                for p in model.parameters():
                    p.grad = torch.zeros_like(p)
                return 0.0
            value = plain(model, batch)
            self.owner.made.append(np.concatenate([p.grad.numpy().ravel().copy() for p in model.parameters()]))
            return value

        return rule

    def constrain(self, flat):
        self.owner.updates.append(flat.copy())
        return flat


class Noting(PrivacyMechanism):
    """A mechanism with a placement, a sampling rate and maybe a rule of its own."""

    def __init__(self, placement, rate=None, replaces=True):
        self.placement, self.rate, self.replaces, self.generator = placement, rate, replaces, np.random.default_rng(0)
        self.made, self.updates, self.drawn, self.settings = [], [], [], []

    def sample_rate(self, examples, batch_size):
        return self.rate

    def plan(self, setting):
        self.settings.append(setting)
        return NotingPlan(self, setting)


LR = {"use": "sgd", "lr": 0.3}


@LATER
@pytest.mark.parametrize("schedule", [{}, {"schedule": "cosine", "warmup_rounds": 1}], ids=["constant", "cosine"])
def test_what_a_site_shares_is_its_gradient_at_the_rate_that_the_mechanism_was_told(go, placement, schedule):
    """Its noise and its grid are of ``learning_rates``, so that these must be the very numbers by which gradients are multiplied."""
    noting = Noting(placement)
    run = go(privacy=noting, run={"rounds": 3}, training={"steps": 1, "optimizer": LR, **schedule})
    assert run.result["survivors"]["3"] == list(SITES)
    rates = noting.settings[0].learning_rates
    assert len(noting.made) == len(noting.updates) == 9
    for i, (made, shared) in enumerate(zip(noting.made, noting.updates, strict=True)):
        assert shared.tobytes() == (np.float32(-rates[i // 3]) * made).tobytes()


def test_local_noise_leaves_training_to_the_method(go):
    """There every gradient has noise of its own: what is shared are weights minus weights, after any number of steps."""
    noting = Noting("local")
    go(privacy=noting, run={"rounds": 1}, training={"steps": 2, "optimizer": LR})
    assert (len(noting.made), len(noting.updates)) == (6, 3)
    for i, shared in enumerate(noting.updates):
        by_hand = np.float32(-0.3) * (noting.made[2 * i] + noting.made[2 * i + 1])
        np.testing.assert_allclose(shared, by_hand, atol=1e-6)


@LATER
def test_a_mechanism_for_whole_updates_leaves_training_to_the_method(go, placement):
    noting = Noting(placement, replaces=False)
    run = go(privacy=noting, run={"rounds": 1}, training={"epochs": 2, "optimizer": {"use": "adam", "lr": 0.01}})
    assert run.result["survivors"]["1"] == list(SITES)
    assert all(np.abs(update).max() > 0.01 for update in noting.updates), "more than one step of Adam"


# -- Poisson samples ----------------------------------------------------------------------------------------------------------


class Adapting(FedAvg):
    """FedAvg that trains on for each site; notes what it is handed."""

    personalizes = True

    def __init__(self):
        super().__init__(FedAvgConfig())
        self.handed, self.seen = [], []

    def local_update(self, model, data, gradients, state):
        self.handed.append(type(gradients))
        return super().local_update(model, data, gradients, state)

    def adapt(self, model, data, gradients, state):
        def rule(net, batch):
            self.seen.append((type(batch), len(batch[0])))
            return gradients(net, batch)

        data.train(model, rule)
        return model


@pytest.mark.parametrize(("placement", "steps"), [("local", 3), ("distributed", 1), ("server", 1)])
def test_training_draws_and_adapting_and_scoring_do_not(go, placement, steps):
    noting, method = Noting(placement, rate=0.4), Adapting()
    training = {"steps": steps, "optimizer": LR}
    run = go(privacy=noting, personalization=method, run={"rounds": 2}, training=training)
    assert run.result["survivors"]["2"] == list(SITES)
    assert {s.sample_rate for s in noting.settings} == {0.4}
    assert len(noting.drawn) == 2 * 3 * steps, "one draw for each gradient of training, and none for anything else"
    for i, (groups, drawn) in enumerate(noting.drawn):
        site = i // steps % 3 + 1
        assert len(groups) == 23 + site, "the groups of the site's training examples, one an example"
        assert all(g.startswith(f"site_{site}-train-") for g in groups)
        assert set(drawn) < set(range(len(groups)))
    assert method.seen
    assert all(kind is tuple for kind, _ in method.seen)
    assert {count for _, count in method.seen} == {8}, "adapting takes the configured batches"


def test_an_epoch_of_draws_is_planned_and_made(go, experiment):
    sections = {"training": {"epochs": 2, "optimizer": LR}, "run": {"rounds": 1}}
    noting = Noting("local", rate=0.3)
    planned = experiment(privacy=noting, **sections).plan().to_dict()["training"]
    assert planned["steps"] == dict.fromkeys(SITES, 6), "twice round(1 / 0.3), at every site alike"
    noting.drawn.clear()
    go(privacy=noting, **sections)
    assert len(noting.drawn) == 18


@LATER
def test_an_empty_batch_is_sent_like_any_other(go, wire, placement):
    """How many were drawn is no secret that the form of a message tells."""
    noting = Noting(placement, rate=0.0001)
    run = go(privacy=noting, run={"rounds": 1, "transcript": "payloads"}, training={"steps": 1, "optimizer": LR})
    assert [drawn for _, drawn in noting.drawn] == [[], [], []]
    assert run.result["survivors"]["1"] == list(SITES)
    sent = [m.body["values"] for m in wire(run, "contribute", 1)]
    assert len(sent) == 3
    assert all(np.abs(values[:-1]).max() == 0 and values[-1] == 2**15 - 1 for values in sent)


class Joining(FedAvg):
    """Makes each gradient on two batches in one: what it hands on has no shares."""

    def __init__(self):
        super().__init__(FedAvgConfig())

    def local_update(self, model, data, gradients, state):
        def joined(net, batch):
            return gradients(net, (torch.cat([batch[0], batch[0]]), torch.cat([batch[1], batch[1]])))

        start = snapshot(model)
        return Update(metrics=data.train(model, joined), delta=difference(model, start)), state


def test_a_method_that_loses_the_shares_is_refused_by_the_mechanism_before_anything_leaves(go, tmp_path):
    noting = Noting("local", rate=0.4)
    sections = {"personalization": Joining(), "run": {"rounds": 1, "on_abort": "stop"}, "training": {"steps": 1, "optimizer": LR}}
    with pytest.raises(RunFailed, match="has lost the shares that it was drawn with"):
        go(tmp_path / "r", privacy=noting, **sections)
    assert noting.updates == []
    assert go(privacy=Noting("local"), **sections).result["survivors"]["1"] == list(SITES), "where nothing is drawn there are none to lose"
