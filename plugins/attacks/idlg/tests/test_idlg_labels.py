"""Label inference: what each rule finds, and where it must fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pppml_idlg.labels import Head, errors_by, expected_of, head_of, labels_of

RULES = ("row-sum", "bias", "matched-filter")


def guessed(lab, rule, view, ctx, count=1):
    model = ctx.model(view.last)
    sight = view.of(ctx.site)
    head = head_of(model, len(ctx.spec.classes), sight.update)
    expected = expected_of(model, head, ctx)
    return labels_of(errors_by(rule, head, ctx.gradient(sight), expected), count, expected.probabilities)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU])
def test_every_rule_names_the_label_of_one_image(lab, rule, activation):
    def make(channels, side, classes):
        return lab.small(channels, side, classes, activation)

    for seed in range(10):
        target = np.array([(7 * seed) % 10])
        view, ctx = lab.world(lab.picture(seed, side=12), target, make=make, seed=seed, public=5)
        assert guessed(lab, rule, view, ctx) == target


def test_the_update_is_turned_into_a_gradient(lab):
    """The sign: an update points away from the gradient. Read as a gradient, it names another class."""
    view, ctx = lab.world(lab.picture(0, side=12), np.array([3]), make=lab.small)
    update = view.of(ctx.site).update
    assert update["3.bias"].argmax() == 3
    assert ctx.gradient(view.of(ctx.site))["3.bias"].argmin() == 3


def test_the_error_is_that_of_the_softmax(lab):
    """All three rules estimate ``p - y``; the bias gives it exactly."""
    image, target = lab.picture(3, side=12), np.array([4])
    view, ctx = lab.world(image, target, make=lab.small, public=40)
    model = ctx.model(view.last)
    sight = view.of(ctx.site)
    head = head_of(model, 10, sight.update)
    truth = torch.softmax(model(torch.from_numpy(image)), 1).detach().numpy()[0] - np.eye(10)[4]
    expected = expected_of(model, head, ctx)
    found = {rule: errors_by(rule, head, ctx.gradient(sight), expected) for rule in RULES}
    np.testing.assert_allclose(found["bias"], truth, atol=1e-5)
    # The others assume the features of a public image; these pictures differ by less than a quarter of their length.
    for rule in ("row-sum", "matched-filter"):
        assert np.linalg.norm(found[rule] - truth) < 0.25 * np.linalg.norm(truth)


def test_under_noise_the_matched_filter_is_the_one_that_holds(lab):
    """Clip 1, noise of a tenth on each coordinate, 20 networks.

    In standard deviations of the noise, the matched filter's signal is ``e |a|``, that of the bias ``e`` alone. The noise is fixed.
    """
    right = dict.fromkeys(RULES, 0)
    for seed in range(20):
        target = np.array([seed % 10])
        view, ctx = lab.world(
            lab.picture(seed), target, seed=seed, public=10, training=lab.Training(1.0), noise_seed=seed,
            defence=lab.Defence("x", 1.0, "update", 0.1),
        )  # fmt: skip
        for rule in RULES:
            right[rule] += int(guessed(lab, rule, view, ctx)[0] == target[0])
    assert right["matched-filter"] >= 18
    assert right["bias"] <= 12


@pytest.mark.parametrize("targets", [[0, 1, 2, 3], [5, 5, 5, 2], [9, 9, 1, 1]])
def test_labels_of_a_batch_are_restored(lab, targets):
    images = np.concatenate([lab.picture(i, side=12) for i in range(4)])
    view, ctx = lab.world(images, np.array(targets), make=lab.small, public=40, training=lab.Training(0.1, 1, 4))
    assert sorted(guessed(lab, "bias", view, ctx, 4)) == sorted(targets)


def test_a_head_of_one_pixel_convolutions(lab):
    def make(channels, side, classes):
        body = [nn.Conv2d(channels, 6, 3, padding=1), nn.Sigmoid(), nn.Conv2d(6, classes, 1)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    for seed in range(5):
        view, ctx = lab.world(lab.picture(seed, side=12), np.array([seed]), make=make, seed=seed, public=5)
        for rule in RULES:
            assert guessed(lab, rule, view, ctx) == seed


def test_the_head_is_the_last_layer_with_one_output_a_class(lab):
    network = lab.lenet(1, 28, 10)
    names = dict(network.named_parameters())
    assert head_of(network, 10, names) == Head("7", "7.weight", "7.bias")
    assert head_of(network, 10, {n: p for n, p in names.items() if n != "7.bias"}) == Head("7", "7.weight", None)
    assert head_of(network, 10, {n: p for n, p in names.items() if not n.startswith("7")}) is None
    assert head_of(network, 3, names) is None
