"""``lesion-area`` on views made by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import Budget, Defence, Images, Training
from pppml_core.learning.losses import default_loss
from pppml_core.testing.attacked import Attacked
from pppml_label_restoration.attack import LesionArea
from pppml_label_restoration.config import LesionAreaConfig


def area(view, ctx) -> float:
    attack = LesionArea(LesionAreaConfig())
    assert attack.misfit(view, ctx) == ""
    return attack.run(view, Budget(1e9), ctx).guess["area"]


def lesions(generator, count: int) -> Images:
    """Bright rectangles of 2 x 2 to 9 x 9 pixels under noise, of 12 x 12."""
    masks = np.zeros((count, 12, 12), np.int64)
    for mask, (height, width) in zip(masks, generator.integers(2, 10, (count, 2)), strict=True):
        mask[1 : 1 + height, 1 : 1 + width] = 1
    pictures = generator.normal(0.3, 0.1, (count, 1, 12, 12)) + 0.4 * masks[:, None]
    return Images(pictures.astype(np.float32), masks)


@pytest.fixture
def segmenter():
    def make(seed: int, loss=torch.nn.functional.cross_entropy):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        return Attacked(network, 2, "segmentation", loss)

    return make


def true_area(images: Images) -> float:
    return float(images.targets.mean())


def test_cross_entropy_gives_the_area_away_exactly(segmenter):
    """With a last layer of weights 0, ``area = p - db``: both by that formula and by the attack."""
    world, generator = segmenter(0), np.random.default_rng(0)
    torch.nn.init.zeros_(world.network[2].weight)
    ctx = world.knowledge(lesions(generator, 60), Training(0.5, 1, 1))
    share = float(torch.softmax(world.network[2].bias.detach(), 0)[1])
    for _ in range(5):
        victim = lesions(generator, 1)
        update = world.update(victim)
        assert share + update["2.bias"][1] / 0.5 == pytest.approx(true_area(victim), abs=1e-6)
        assert area(world.sum_of(update), ctx) == pytest.approx(true_area(victim), abs=1e-3)


@pytest.mark.parametrize(("size", "sites"), [(1, 1), (8, 1), (4, 3)])
def test_the_default_loss_of_segmentation(segmenter, size, sites):
    """Cross-entropy plus Dice, an untrained network: the error is at most a tenth of that of the public mean. Fixed seeds."""
    world, generator = segmenter(1, partial(default_loss, "segmentation")), np.random.default_rng(1)
    public = lesions(generator, 100)
    ctx, errors, blind = world.knowledge(public, Training(0.5, 1, size)), [], []
    for _ in range(6):
        batches = [lesions(generator, size) for _ in range(sites)]
        true = float(np.mean([true_area(batch) for batch in batches]))
        errors.append(abs(area(world.sum_of(*(world.update(batch) for batch in batches)), ctx) - true))
        blind.append(abs(true_area(public) - true))
    assert np.mean(errors) <= np.mean(blind) / 10


def test_noise_leaves_the_public_mean(segmenter):
    world, generator = segmenter(2), np.random.default_rng(2)
    public, victim = lesions(generator, 60), lesions(generator, 1)
    update = world.update(victim)
    found = [
        area(world.sum_of(update), world.knowledge(public, Training(0.5, 1, 1), Defence(noise=noise))) for noise in (0.0, 0.1, 1e3)
    ]  # fmt: skip
    assert found[0] == pytest.approx(true_area(victim), abs=0.03)
    assert found[2] == pytest.approx(true_area(public), abs=1e-3)
    assert min(found[0], found[2]) < found[1] < max(found[0], found[2])


def test_misfits(segmenter):
    world, generator = segmenter(3), np.random.default_rng(3)
    public = lesions(generator, 4)
    update, attack = world.update(public), LesionArea(LesionAreaConfig())
    view, headless = world.sum_of(update), world.sum_of({n: u for n, u in update.items() if not n.startswith("2")})
    assert attack.misfit(view, world.knowledge(public)) == ""
    assert "last layer" in attack.misfit(headless, world.knowledge(public))
    world.kind = "classification"
    assert "label-restoration" in attack.misfit(view, world.knowledge(public))
