"""``label-restoration`` on views made by hand."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import Budget, Defence, Images, Training
from pppml_core.testing import PluginSuite
from pppml_core.testing.attacked import Attacked
from pppml_label_restoration.attack import LabelRestoration
from pppml_label_restoration.config import LabelRestorationConfig
from pppml_label_restoration.head import Head

SHARED = Path(os.environ.get("PPPML_SHARED_DATA", Path(__file__).resolve().parents[4] / ".." / "shared" / "data"))


#: a batch of 8 images in one step.
BATCH = Training(0.5, 1, 8)


class TestPlugin(PluginSuite):
    plugin = "pppml_label_restoration.plugin"


def guess(view, ctx, **settings) -> dict:
    attack = LabelRestoration(LabelRestorationConfig(**settings))
    assert attack.misfit(view, ctx) == ""
    return attack.run(view, Budget(1e9), ctx).guess


def without(update: dict, start: str) -> dict:
    """Tensors whose name begins so stay at the sites."""
    return {n: u for n, u in update.items() if not n.startswith(start)}


def accuracy(counts, true) -> float:
    return 1 - 0.5 * np.abs(counts - true).sum() / true.sum()


def drawn(generator, batches: int, classes: int, size: int = 8):
    """Label lists that differ much from a uniform prevalence."""
    return [generator.choice(classes, size, p=generator.dirichlet(np.full(classes, 0.5))) for _ in range(batches)]


@pytest.mark.parametrize(("method", "least"), [("least-squares", 0.99), ("bias-corrected", 0.7), ("llg", 0.75)])
def test_batches_of_an_untrained_network(classifier, images, method, least):
    """Mean over 20 batches of 8, with repeated labels. Fixed seeds.

    With few classes the stages of LLG take an image's impact for too small: what is negative in the sum is what images of a label exceed
    its predicted share by.
    """
    world, generator = classifier(0), np.random.default_rng(0)
    ctx = world.knowledge(images(generator, np.arange(80) % 4), BATCH)
    got, blind = [], []
    for labels in drawn(generator, 20, 4):
        found = guess(world.sum_of(world.update(images(generator, labels))), ctx, method=method)
        assert found["counts"].sum() == pytest.approx(8)
        assert found["scope"] == "the watched site"
        true = np.bincount(labels, minlength=4)
        got.append(accuracy(np.bincount(found["labels"], minlength=4), true))
        blind.append(accuracy(np.full(4, 2), true))
    assert np.mean(got) >= least > np.mean(blind) + 0.1, np.mean(blind)


def test_two_classes_and_a_network_that_predicts_them_well(classifier, images):
    """After training most of the gradient is gone; what is left still says more than the prevalence. Fixed seeds."""
    world, generator = classifier(1, 2), np.random.default_rng(1)
    train = images(generator, np.arange(64) % 2)
    optimizer = torch.optim.SGD(world.network.parameters(), 0.2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = world.loss(world.network(torch.from_numpy(train.images)), torch.from_numpy(train.targets))
        loss.backward()
        optimizer.step()
    ctx, blind, got = world.knowledge(images(generator, np.arange(80) % 2), BATCH), [], []
    for labels in drawn(generator, 20, 2):
        true = np.bincount(labels, minlength=2)
        got.append(accuracy(guess(world.sum_of(world.update(images(generator, labels))), ctx)["counts"], true))
        blind.append(accuracy(np.array([4, 4]), true))
    assert loss.item() < 0.02
    assert np.mean(got) >= np.mean(blind) + 0.1


def test_one_image_through_clip_and_noise(classifier, images):
    """The clip is in the model of each label, and noise is weighed by it: the bias alone says less. Fixed seeds."""
    world, generator = classifier(2), np.random.default_rng(2)
    defence = Defence("dp-sgd", 0.5, "example", 0.02, divisor=2.0)
    ctx = world.knowledge(images(generator, np.arange(80) % 4), Training(0.5, 1, 1), defence)
    right = bias = 0
    for _ in range(25):
        label = int(generator.integers(4))
        clean = world.update(images(generator, [label]), 0.5, 0.5, 2.0)
        seen = {n: u + generator.normal(0, 0.02, u.shape) for n, u in clean.items()}
        found = guess(world.sum_of(seen), ctx)
        assert found["labels"].shape == (1,)
        assert found["counts"].sum() == pytest.approx(1)
        right += found["labels"][0] == label
        bias += seen["3.bias"].argmax() == label
    assert right >= 22
    assert right >= bias + 3


def test_a_whole_update_is_clipped(classifier, images):
    """Eight gradients are clipped together, to a hundredth; each alone would be clipped less. Fixed seeds."""
    world, generator = classifier(8), np.random.default_rng(8)
    ctx = world.knowledge(images(generator, np.arange(80) % 4), BATCH, Defence("clip-only", 0.01, "update"))
    got = []
    for labels in drawn(generator, 8, 4):
        update = world.update(images(generator, labels))
        norm = np.sqrt(sum(np.square(u).sum() for u in update.values()))
        assert norm > 0.05
        view = world.sum_of({n: u * 0.01 / norm for n, u in update.items()})
        got.append(accuracy(guess(view, ctx)["counts"], np.bincount(labels, minlength=4)))
    assert np.mean(got) >= 0.85


def test_recorded_rounds_are_read_as_first_order(classifier, images):
    """Ten small steps on batches of 8: counts of all 80 images, as one site's. Fixed seed."""
    world, generator = classifier(9), np.random.default_rng(9)
    ctx = world.knowledge(images(generator, np.arange(80) % 4), Training(0.01, 10, 8, exact=False))
    labels = np.repeat([0, 1, 2, 3], [40, 20, 20, 0])
    update = {n: 10 * u for n, u in world.update(images(generator, labels), 0.01).items()}
    found = guess(world.sum_of(update), ctx)
    assert found["counts"].sum() == pytest.approx(80)
    assert accuracy(found["counts"], np.bincount(labels, minlength=4)) >= 0.9


def test_a_sum_of_sites_gives_the_cohort_away(classifier, images):
    world, generator = classifier(3), np.random.default_rng(3)
    ctx = world.knowledge(images(generator, np.arange(80) % 4), BATCH)
    batches = [generator.choice(4, 8, p=[0.6, 0.3, 0.1, 0]) for _ in range(5)]
    found = guess(world.sum_of(*(world.update(images(generator, labels)) for labels in batches)), ctx)
    true = np.bincount(np.concatenate(batches), minlength=4)
    assert "labels" not in found
    assert "5 sites" in found["scope"]
    assert accuracy(found["cohort_counts"], true) >= 0.95
    np.testing.assert_allclose(found["counts"], found["cohort_counts"] / 5)


def test_a_label_that_no_public_image_has(classifier, images):
    world, generator = classifier(4), np.random.default_rng(4)
    ctx = world.knowledge(images(generator, np.arange(60) % 3), BATCH)
    labels = [3, 3, 3, 0, 0, 1, 2, 3]
    found = guess(world.sum_of(world.update(images(generator, labels))), ctx)
    assert accuracy(found["counts"], np.bincount(labels)) >= 0.9


def test_weighted_loss_is_learned_from_public_images(classifier, images):
    """``n = B (p - db)`` would be wrong: two labels count ten times as much."""
    world, generator = classifier(5), np.random.default_rng(5)
    factors = torch.tensor([1.0, 10.0, 1.0, 10.0])
    world.loss = lambda outputs, targets: torch.nn.functional.cross_entropy(outputs, targets, factors, reduction="none").mean()
    ctx = world.knowledge(images(generator, np.arange(80) % 4), BATCH)
    labels = [0, 0, 0, 0, 1, 1, 2, 3]
    assert accuracy(guess(world.sum_of(world.update(images(generator, labels))), ctx)["counts"], np.bincount(labels)) >= 0.9


def test_the_last_layer_is_found(classifier):
    world = classifier(6)
    image, shared = torch.zeros(1, 1, 10, 10), {"0.weight": 0, "3.weight": 0, "3.bias": 0}
    assert Head.of(world.network, image, 4, shared) == Head("3.weight", "3.bias")
    assert Head.of(world.network, image, 4, {"3.weight": 0}) == Head("3.weight", "")
    assert not Head.of(world.network, image, 5, shared).shared


def test_misfits(classifier, images):
    world, generator = classifier(7), np.random.default_rng(7)
    public = images(generator, [0, 1, 2, 3])
    update, ctx = world.update(public), world.knowledge(public, BATCH)
    view, attack = world.sum_of(update), LabelRestoration(LabelRestorationConfig())
    assert attack.misfit(view, ctx) == ""
    assert "last layer is not in the sum" in attack.misfit(world.sum_of(without(update, "3")), ctx)
    assert "no public images" in attack.misfit(view, world.knowledge(images(generator, [0]), BATCH))
    without_bias = LabelRestoration(LabelRestorationConfig(method="bias-corrected")).misfit(world.sum_of(without(update, "3.bias")), ctx)
    assert "does not share" in without_bias
    found = guess(world.sum_of(without(update, "3.bias")), ctx)["counts"]
    assert found.shape == (4,)
    world.kind = "segmentation"
    assert "lesion-area" in attack.misfit(view, world.knowledge(public, BATCH))


def test_real_blood_cells():
    """Batches of 8 of 8 cell types, an untrained network; the prevalence is the best guess."""
    file = SHARED / "bloodcells_chula_rbc8_28.npz"
    if not file.is_file():
        pytest.skip(f"needs {file.name}, which is in no repository; PPPML_SHARED_DATA names its folder")
    generator = np.random.default_rng(8)
    with np.load(file) as held:
        chosen = generator.permutation(len(held["labels"]))[:400]
        pictures = (held["images"][chosen].mean(axis=-1, dtype=np.float32) / 255)[:, None]
        labels = held["labels"][chosen].astype(np.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, stride=3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(512, 8))
    world = Attacked(network, 8)
    public = Images(pictures[:100], labels[:100])
    ctx, got, blind = world.knowledge(public, BATCH), [], []
    share = np.bincount(public.targets, minlength=8) / 100
    for batch in range(12):
        place = slice(100 + 8 * batch, 108 + 8 * batch)
        true = np.bincount(labels[place], minlength=8)
        view = world.sum_of(world.update(Images(pictures[place], labels[place])))
        got.append(accuracy(np.bincount(guess(view, ctx)["labels"], minlength=8), true))
        blind.append(accuracy(8 * share, true))
    assert np.mean(got) >= 0.95 > np.mean(blind)
