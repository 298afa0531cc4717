"""Local training: batches, orders, schedules, optimizers and class weights, against torch by hand."""

from __future__ import annotations

import copy
import math
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.builtin.configs import TinyNetConfig, TinyTaskConfig
from pppml_core.builtin.tiny import TinyNet, TinyTask
from pppml_core.config.run_config import OptimizerSection, TrainingSection
from pppml_core.errors import DataError
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.training import (
    LocalTraining,
    TensorCache,
    class_weights,
    fits_cache,
    learning_rate_factor,
    make_optimizer,
    steps_per_round,
)
from pppml_core.randomness import Seeds, seeded
from pppml_core.wire.codec import decode, encode

LOSS = torch.nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def numbered(n):
    """Examples whose picture is their index."""
    images = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    return ArrayExamples(images, np.arange(n) % 3, np.arange(n))


def training(examples, *, site="a", round=1, rounds=10, seed=1, cached=False, state=None, **settings):
    section = TrainingSection(device="cpu", **settings)
    cache = TensorCache(examples, torch.float32, torch.device("cpu")) if cached else None
    return LocalTraining(examples, section, Seeds(seed), site=site, round=round, rounds=rounds, cache=cache, optimizer_state=state)


def seen(batches):
    return [images.ravel().int().tolist() for images, _ in batches]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("loaders", [0, 2])
def test_an_epoch_shows_every_example_once(cached, loaders):
    data = training(numbered(23), batch_size=5, epochs=2, cached=cached, loader_workers=loaders)
    batches = seen(data.batches())
    assert [len(b) for b in batches] == [5, 5, 5, 5, 3] * 2
    first, second = list(chain(*batches[:5])), list(chain(*batches[5:]))
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    assert batches == seen(training(numbered(23), batch_size=5, epochs=2).batches())


def test_images_and_targets_stay_together():
    for images, targets in training(numbered(10), batch_size=4, epochs=1).batches():
        assert (images.ravel().long() % 3).tolist() == targets.tolist()
        assert (images.dtype, targets.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("change", [{"site": "b"}, {"round": 2}, {"seed": 2}])
def test_orders_differ_by_site_round_and_seed(change):
    assert seen(training(numbered(20), batch_size=20, epochs=1).batches()) != seen(
        training(numbered(20), batch_size=20, epochs=1, **change).batches()
    )


def test_a_second_pass_in_a_round_has_an_order_of_its_own():
    data = training(numbered(20), batch_size=20, epochs=1)
    first, second = seen(data.batches()), seen(data.batches())
    assert first != second
    assert sorted(first[0]) == sorted(second[0])


def test_steps_go_over_as_many_epochs_as_they_need():
    batches = seen(training(numbered(7), batch_size=3, steps=5).batches())
    assert [len(b) for b in batches] == [3, 3, 1, 3, 3]
    assert seen(training(numbered(7), batch_size=3, steps=0).batches()) == []
    assert seen(training(numbered(7), batch_size=3, epochs=0).batches()) == []


def test_a_site_smaller_than_a_batch_uses_all_it_has():
    assert [sorted(b) for b in seen(training(numbered(4), batch_size=100, steps=3).batches())] == [[0, 1, 2, 3]] * 3


def test_samples_have_orders_of_their_own_and_do_not_disturb_training():
    data = training(numbered(12), batch_size=5, epochs=1)
    support, query = seen(data.sample("support", 4)), seen(data.sample("query", 4))
    assert [len(b) for b in support] == [5, 5, 2, 5]
    assert support != query
    assert sorted(chain(*support[:3])) == list(range(12))
    assert seen(data.batches()) == seen(training(numbered(12), batch_size=5, epochs=1).batches())


def test_global_generators_are_seeded_before_every_batch():
    def draws(disturb):
        found = []
        with seeded(0):
            for _ in training(numbered(9), batch_size=3, epochs=1).batches():
                found.append((float(torch.rand(())), float(np.random.rand())))  # noqa: NPY002
                if disturb:
                    torch.rand(100)
                    np.random.rand(100)  # noqa: NPY002
        return found

    assert draws(False) == draws(True)
    assert len(set(draws(False))) == 3


@pytest.mark.parametrize(
    ("settings", "examples", "steps"),
    [({}, 33, 3), ({"epochs": 4}, 33, 12), ({"epochs": 0}, 33, 0), ({"steps": 7}, 33, 7), ({"batch_size": 33}, 33, 1), ({}, 3, 1)],
)
def test_steps_per_round_counts_what_is_done(settings, examples, steps):
    section = TrainingSection(**{"batch_size": 16, **settings})
    assert steps_per_round(section, examples) == steps
    assert len(list(training(numbered(examples), **{"batch_size": 16, **settings}).batches())) == steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0] * 8),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * r / 8)) for r in range(8)]),
        ({"schedule": "step"}, [1.0] * 4 + [0.1] * 2 + [0.01] * 2),
        ({"warmup_rounds": 3}, [0.25, 0.5, 0.75] + [1.0] * 5),
        ({"warmup_rounds": 2, "schedule": "cosine"}, [1 / 3, 2 / 3] + [0.5 * (1 + math.cos(math.pi * r / 6)) for r in range(6)]),
        ({"warmup_rounds": 20, "schedule": "cosine"}, [r / 21 for r in range(1, 9)]),
    ],
    ids=str,
)
def test_schedules(settings, expected):
    section = TrainingSection(**settings)
    assert [learning_rate_factor(section, r, 8) for r in range(1, 9)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("section", "kind", "wanted"),
    [
        (
            {"use": "sgd", "lr": 0.5, "momentum": 0.8, "weight_decay": 0.1},
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1},
        ),
        ({"use": "adam", "lr": 0.5, "betas": (0.5, 0.6)}, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.6), "weight_decay": 0.0}),
        ({"use": "adamw", "lr": 0.5, "weight_decay": 0.2}, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.2}),
    ],
    ids=lambda v: v.get("use") if isinstance(v, dict) else None,
)
def test_optimizers(section, kind, wanted):
    made = make_optimizer([torch.nn.Parameter(torch.zeros(1))], OptimizerSection(**section), 0.2)
    assert type(made) is kind
    for name, value in wanted.items():
        assert made.param_groups[0][name] == pytest.approx(value)


def net():
    torch.manual_seed(0)
    return TinyNet(TinyNetConfig()).build(TinyTask(TinyTaskConfig()).spec())


def tiny():
    return TinyTask(TinyTaskConfig()).load("site_1").train


@pytest.mark.parametrize("optimizer", [{"use": "sgd", "lr": 0.05, "momentum": 0.9}, {"use": "adam", "lr": 0.01}], ids=lambda o: o["use"])
def test_training_is_a_plain_torch_loop(optimizer):
    model, expected = net(), net()
    data = training(tiny(), batch_size=8, epochs=2, optimizer=optimizer)
    metrics = data.train(model, plain_gradients(LOSS))
    by_hand = make_optimizer(expected.parameters(), OptimizerSection(**optimizer))
    total = count = 0
    for images, labels in training(tiny(), batch_size=8, epochs=2).batches():
        by_hand.zero_grad()
        loss = LOSS(expected(images), labels)
        loss.backward()
        by_hand.step()
        total, count = total + loss.item() * len(labels), count + len(labels)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert metrics == pytest.approx({"loss": total / count})
    assert data.optimizer_state is None


def test_given_parameters_alone_are_trained():
    model = net()
    before = copy.deepcopy(model)
    training(tiny(), epochs=1).train(model, plain_gradients(LOSS), parameters=list(model[-1].parameters()))
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[-1].weight, before[-1].weight)


def test_no_step_gives_no_loss():
    assert training(tiny(), steps=0).train(net(), plain_gradients(LOSS)) == {}


@pytest.mark.parametrize(
    "optimizer", [{"use": "sgd", "lr": 0.05, "momentum": 0.9}, {"use": "sgd", "lr": 0.05}, {"use": "adam", "lr": 0.01}], ids=str
)
def test_a_kept_optimizer_state_goes_through_the_codec(optimizer):
    """Two rounds with the state kept are one optimizer over both; the learning rate is the second round's own."""
    model, expected = net(), net()
    settings = {"batch_size": 8, "epochs": 1, "optimizer": optimizer, "schedule": "cosine", "keep_optimizer": True}
    first = training(tiny(), round=1, rounds=2, **settings)
    first.train(model, plain_gradients(LOSS))
    second = training(tiny(), round=2, rounds=2, state=decode(encode(first.optimizer_state)), **settings)
    second.train(model, plain_gradients(LOSS))

    by_hand = make_optimizer(expected.parameters(), OptimizerSection(**optimizer))
    for round, factor in ((1, 1.0), (2, 0.5)):
        by_hand.param_groups[0]["lr"] = optimizer["lr"] * factor
        for images, labels in training(tiny(), round=round, rounds=2, batch_size=8, epochs=1).batches():
            by_hand.zero_grad()
            LOSS(expected(images), labels).backward()
            by_hand.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_bf16_keeps_float32_parameters():
    model, exact = net(), net()
    training(tiny(), epochs=1, precision="bf16").train(model, plain_gradients(LOSS, "bf16"))
    training(tiny(), epochs=1).train(exact, plain_gradients(LOSS))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    difference = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), exact.parameters(), strict=True))
    assert 0 < difference < 0.02


def test_class_weights():
    labels = np.array([0, 0, 0, 0, 0, 0, 2, 2])
    examples = ArrayExamples(np.zeros((8, 2, 2), np.float32), labels, np.arange(8))
    assert class_weights(TrainingSection(), examples, 4) is None
    assert class_weights(TrainingSection(class_weights=[1.0, 2.0, 3.0]), examples, 3) == [1.0, 2.0, 3.0]
    balanced = class_weights(TrainingSection(class_weights="balanced"), examples, 4)
    assert balanced == pytest.approx([8 / (4 * 6), 0.0, 8 / (4 * 2), 0.0])

    masks = np.zeros((3, 2, 2), np.int64)
    masks[0, 0, 0] = masks[1, 0, 0] = masks[2, 1, 1] = 1
    pixels = class_weights(
        TrainingSection(class_weights="balanced"), ArrayExamples(np.zeros((3, 2, 2), np.float32), masks, np.arange(3)), 2
    )
    assert pixels == pytest.approx([12 / (2 * 9), 12 / (2 * 3)])


def test_class_weights_change_the_loss_that_is_trained(tmp_path):
    from pppml_core.api import Experiment
    from pppml_core.registry import Registry

    def sha(weights):
        made = Experiment(task="tiny", run={"rounds": 1}, training={"class_weights": weights}, registry=Registry.only())
        return made.run(tmp_path / str(weights)[:8], reporters=False, report=False).result["model_sha256"]

    assert sha([1.0, 1.0, 1.0]) == sha("none")
    assert len({sha("none"), sha([1.0, 5.0, 0.2])}) == 2


def test_only_what_fits_is_cached(monkeypatch):
    examples = numbered(10)  # 4 bytes a picture, 8 a target
    monkeypatch.setattr("pppml_core.learning.training.CACHE_BYTES", 3 * 2 * 120)
    assert fits_cache(examples, sites=2)
    assert not fits_cache(examples, sites=3)
    assert not fits_cache(numbered(0), sites=1)


# -- steps of several batches, and trainings beside the configured one ----------------------------------------------------------------


def steps_of(data, **options):
    """The examples of each batch of each step, as a rule is handed them, and what ``train`` returned."""
    steps = []

    def rule(model, together):
        batches = together if options.get("batches_per_step", 1) > 1 else (together,)
        steps.append([images.ravel().int().tolist() for images, _ in batches])
        return float(sum(steps[-1][0]))

    return steps, data.train(torch.nn.Linear(1, 1), rule, **options)


@settings(max_examples=150, deadline=None)
@given(
    examples=st.integers(1, 90),
    batch_size=st.integers(1, 40),
    each=st.integers(1, 4),
    epochs=st.integers(0, 3),
    cached=st.booleans(),
)
def test_the_batches_of_a_step_are_disjoint_and_an_epoch_is_one_pass(examples, batch_size, each, epochs, cached):
    data = training(numbered(examples), batch_size=batch_size, epochs=epochs, cached=cached)
    if examples < each:
        with pytest.raises(DataError, match=f"needs {each} batches"):
            steps_of(data, batches_per_step=each)
        return
    steps, _ = steps_of(data, batches_per_step=each)
    assert len(steps) == steps_per_round(TrainingSection(batch_size=batch_size, epochs=epochs), examples, each)
    assert all(len(step) == each for step in steps)
    a_pass, size = len(steps) // max(epochs, 1), min(batch_size, examples // each)
    for number in range(epochs):
        batches = [b for step in steps[number * a_pass : (number + 1) * a_pass] for b in step]
        used, sizes = list(chain(*batches)), [len(b) for b in batches]
        assert len(used) == len(set(used)), "an example twice in one pass"
        assert examples - len(used) < each, "more is left over than cannot be shared out"
        assert set(sizes[:-each]) <= {size}
        assert 1 <= min(sizes[-each:]) <= max(sizes[-each:]) <= min(size, min(sizes[-each:]) + 1), "the last step is shared out evenly"


@settings(max_examples=60, deadline=None)
@given(examples=st.integers(3, 40), batch_size=st.integers(1, 20), each=st.integers(1, 3), count=st.integers(0, 9))
def test_steps_count_steps_however_many_batches_they_have(examples, batch_size, each, count):
    section = TrainingSection(batch_size=batch_size, steps=count)
    steps, _ = steps_of(training(numbered(examples), batch_size=batch_size, steps=count), batches_per_step=each)
    assert len(steps) == steps_per_round(section, examples, each) == count
    for step in steps:
        assert len(set(chain(*step))) == sum(map(len, step))


def test_too_few_examples_for_a_step_are_refused_in_words():
    with pytest.raises(DataError, match=r"needs 3 batches .* there are 2 training examples"):
        steps_per_round(TrainingSection(), 2, 3)
    assert steps_per_round(TrainingSection(), 3, 3) == 1


def test_one_batch_a_step_is_the_plain_order():
    """The rule is then handed a batch, not a tuple of one."""
    steps, _ = steps_of(training(numbered(23), batch_size=5, epochs=2))
    assert [batch for (batch,) in steps] == seen(training(numbered(23), batch_size=5, epochs=2).batches())


def test_two_batches_a_step_are_cut_from_the_same_permutation():
    """The order is that of one batch a step; only the cut differs, so methods see the images in the same order."""
    data = training(numbered(22), batch_size=5, epochs=1)
    order = data.order(0).tolist()
    steps, _ = steps_of(data, batches_per_step=2)
    assert [[len(b) for b in step] for step in steps] == [[5, 5], [5, 5], [1, 1]]
    assert list(chain(*chain(*steps))) == order


def test_the_loss_of_a_step_counts_for_the_examples_of_all_its_batches():
    def rule(model, together):
        return float(len(together[0][0]))

    data = training(numbered(22), batch_size=5, epochs=1)
    assert data.train(torch.nn.Linear(1, 1), rule, batches_per_step=2) == pytest.approx({"loss": (5 * 10 + 5 * 10 + 1 * 2) / 22})


@pytest.mark.parametrize(
    ("configured", "asked", "steps"),
    [
        ({"epochs": 2}, {}, 10),
        ({"epochs": 2}, {"epochs": 1}, 5),
        ({"epochs": 2}, {"steps": 3}, 3),
        ({"steps": 7}, {}, 7),
        ({"steps": 7}, {"epochs": 1}, 5),
        ({"steps": 7}, {"steps": 1}, 1),
        ({"steps": 7}, {"steps": 0}, 0),
        ({"epochs": 1}, {"epochs": 0}, 0),
        ({}, {}, 5),
    ],
    ids=str,
)
def test_a_rule_may_ask_for_another_length(configured, asked, steps):
    found, metrics = steps_of(training(numbered(23), batch_size=5, **configured), **asked)
    assert len(found) == steps
    assert bool(metrics) == bool(steps)


def constant_slope(network, batch):
    """A gradient of one, so that a weight moves by the rate."""
    network.weight.grad = torch.ones(1, 1)
    return 0.0


@pytest.mark.parametrize(("schedule", "factor"), [("constant", 1.0), ("cosine", 0.5)])
def test_a_rule_may_ask_for_another_rate_under_the_same_schedule(schedule, factor):
    model = torch.nn.Linear(1, 1, bias=False)
    start = model.weight.item()
    data = training(numbered(8), batch_size=8, epochs=1, round=2, rounds=2, schedule=schedule, optimizer={"use": "sgd", "lr": 0.5})
    data.train(model, constant_slope, lr=0.25)
    assert model.weight.item() == pytest.approx(start - 0.25 * factor)
    data.train(model, constant_slope)
    assert model.weight.item() == pytest.approx(start - 0.75 * factor), "the configured rate is not forgotten"
    data.train(model, constant_slope, lr=0.0)
    assert model.weight.item() == pytest.approx(start - 0.75 * factor)


def test_a_purpose_has_an_order_of_its_own_and_leaves_the_others_alone():
    def orders(*purposes):
        data = training(numbered(12), batch_size=12, epochs=1)
        return [steps_of(data, purpose=p)[0] for p in purposes]

    plain, again = orders("train", "train")
    personal, beside = orders("personal", "train")
    assert plain != again, "a second training of a purpose in one round has another order"
    assert personal != plain
    assert beside == plain, "training for another purpose first changes nothing"
    assert orders("adapt", "personal")[1] == personal


def test_a_purpose_has_an_optimizer_state_of_its_own():
    """Kept momentum of one training is not taken into another one, and both are there in the next round."""
    kept = {"batch_size": 24, "epochs": 1, "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9}, "keep_optimizer": True}
    model = torch.nn.Linear(1, 1, bias=False)

    def move(data, purpose):
        before = model.weight.item()
        data.train(model, constant_slope, purpose=purpose)
        return before - model.weight.item()

    first = training(tiny(), round=1, **kept)
    assert move(first, "train") == pytest.approx(0.1, rel=1e-4)
    assert move(first, "personal") == pytest.approx(0.1, rel=1e-4)
    assert set(first.optimizer_state) == {"train", "personal"}
    second = training(tiny(), round=2, state=decode(encode(first.optimizer_state)), **kept)
    assert move(second, "train") == pytest.approx(0.19, rel=1e-4)
    assert move(second, "adapt") == pytest.approx(0.1, rel=1e-4)
    assert move(second, "personal") == pytest.approx(0.19, rel=1e-4)
    assert set(first.optimizer_state) == {"train", "personal"}, "a later round does not write into an earlier one"
