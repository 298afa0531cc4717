"""What a site does that never took part, and that one which did only puts its model together."""

from collections import OrderedDict

import pytest
import torch

from pppml_core.learning.arrays import snapshot
from pppml_core.learning.gradients import plain_gradients
from pppml_core.testing.local_data import small_network
from pppml_personalization_baselines.parts import train_part

GRADIENTS = plain_gradients(torch.nn.functional.cross_entropy)
NAMES = ["fedavg-finetune", "fedprox", "fedbn", "ditto", "fedper", "fedrep", "apfl"]


def no_gradients(model, batch):
    raise AssertionError("trained, although the site has its own model already")


def moved(one, other):
    return {n for n in one if not torch.equal(one[n], other[n])}


@pytest.mark.parametrize("name", ["fedprox", "fedbn", "ditto", "fedper", "fedrep", "apfl"])
def test_a_site_that_took_part_trains_nothing_more(make, training, name):
    rule, model = make(name), small_network()
    _, state = rule.local_update(model, training(), GRADIENTS, rule.init(model))
    before = snapshot(model)
    adapted = snapshot(rule.adapt(model, training(), no_gradients, state))
    if name in ("fedprox", "fedbn", "fedper", "fedrep"):  # the model it is handed holds the site's own parts
        assert not moved(before, adapted)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("fedper", {"head.weight", "head.bias"}),
        ("fedrep", {"head.weight", "head.bias"}),
        ("fedbn", {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}),
        ("ditto", None),
        ("apfl", None),
        ("fedavg-finetune", None),
        ("fedprox", set()),
    ],
)
def test_a_new_site_trains_its_own_part_on_the_support_data(make, training, name, own):
    settings = {} if name in ("fedprox", "fedavg-finetune") else {"adapt_epochs": 6}
    rule, model = make(name, **settings), small_network()
    before = snapshot(model)
    support = training("new", lr=0.05)
    images, targets = next(training("new", examples=32, batch_size=32).sample("all", 1))

    def loss():
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model.eval()(images), targets))

    first = loss()
    state = rule.init(model)
    adapted = rule.adapt(model, support, GRADIENTS, state)
    assert adapted is model
    changed = moved(before, snapshot(adapted))
    if own is None:  # the bias below a batch normalization has next to no gradient
        assert changed | {"conv.bias"} == set(before)
    else:
        assert changed == own
    assert state == rule.init(model), "the state is not touched"
    assert own == set() or loss() < first


def test_the_new_site_trains_as_long_as_it_is_told(make, training):
    def calls(rule):
        count = 0

        def counted(model, batch):
            nonlocal count
            count += 1
            return GRADIENTS(model, batch)

        rule.adapt(small_network(), training(epochs=2), counted, rule.init(small_network()))
        return count

    for name in ("fedbn", "ditto", "fedper", "fedrep", "apfl"):
        assert calls(make(name)) == 8, "as `training`: two epochs of four batches"
        assert calls(make(name, adapt_epochs=3)) == 12
        assert calls(make(name, adapt_steps=5)) == 5
    assert calls(make("fedavg-finetune")) == 4, "one epoch by default"
    assert calls(make("fedavg-finetune", epochs=2)) == 8
    assert calls(make("fedavg-finetune", steps=3)) == 3
    assert calls(make("fedprox")) == 0


def test_fine_tuning_takes_its_own_rate(make, training):
    model, slow = small_network(), small_network()
    make("fedavg-finetune", lr=0.0).adapt(model, training(), GRADIENTS, {})
    assert not moved(dict(model.named_parameters()), dict(small_network().named_parameters()))
    make("fedavg-finetune", lr=0.1, steps=2).adapt(model, training(lr=3.0), GRADIENTS, {})
    make("fedavg-finetune", steps=2).adapt(slow, training(lr=0.1), GRADIENTS, {})
    assert not moved(dict(model.named_parameters()), dict(slow.named_parameters()))


def test_a_new_site_measures_the_statistics_of_its_normalization(make, training):
    """The layer below is fixed, so they are the means over the four batches of its support data: computed here from all of them."""
    rule, model = make("fedbn", adapt_steps=2), small_network()
    rule.adapt(model, training(), GRADIENTS, rule.init(model))
    images, _ = next(training(batch_size=32).sample("all", 1))
    with torch.no_grad():
        seen = model.conv(images)
    torch.testing.assert_close(model.norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    # Unbiased variances of batches of 512 values differ from that of all 2,048 by the batches' different means alone.
    torch.testing.assert_close(model.norm.running_var, seen.var((0, 2, 3)), rtol=0.02, atol=1e-4)
    assert model.norm.momentum == 0.1
    trained = small_network()
    train_part(trained, {n for n in trained.state_dict() if n.startswith("norm.")}, training(), GRADIENTS, steps=2, purpose="adapt")
    assert not moved(dict(trained.named_parameters()), dict(model.named_parameters())), "measuring trains nothing"


def test_dittos_new_model_is_held_near_the_shared_one(make, training):
    def distance(strength):
        rule, model = make("ditto", strength=strength, adapt_steps=20), small_network()
        rule.adapt(model, training(), GRADIENTS, {})
        pairs = zip(model.parameters(), small_network().parameters(), strict=True)
        return sum(float((p - q).detach().square().sum()) for p, q in pairs) ** 0.5

    assert distance(5.0) < 0.5 * distance(0.0)


def test_apfls_new_model_is_the_mixture_with_fixed_shared_weights(make, quadratics, point):
    """F(v_bar) falls by gradient steps of size alpha^2: v moves by alpha, and counts for alpha in the mixture."""
    import numpy as np

    rule, w = make("apfl", alpha=0.5, alpha_lr=0.0, adapt_steps=3), np.array([2.0, -1.0])
    got = quadratics.adapted(rule, w, 0, {})
    expected = quadratics.c[0] + (1 - 0.1 * 0.25 * quadratics.a[0]) ** 3 * (w - quadratics.c[0])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["fedavg-finetune", "fedbn", "ditto", "fedper", "fedrep", "apfl"])
def test_adapting_trains_in_training_mode_whatever_mode_the_model_comes_in(make, training, name):
    """Scoring leaves a model in evaluation mode. What is trained then must have dropout all the same, and see its batches' statistics."""

    def adapted(mode, p):
        *body, head = small_network().named_children()
        model = torch.nn.Sequential(OrderedDict([*body, ("drop", torch.nn.Dropout(p)), head])).train(mode)
        rule = make(name)
        return snapshot(rule.adapt(model, training(), GRADIENTS, rule.init(model)))

    assert not moved(adapted(False, 0.5), adapted(True, 0.5))
    assert moved(adapted(False, 0.5), adapted(False, 0.0)), "dropout has its effect"
