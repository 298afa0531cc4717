"""The attack on views made by hand: known mechanisms, clips, sums of sites, rounding, several rounds."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binom, norm

from pppml_core.interfaces.attack import Budget, Defence, Images, Seen, Sight, Training
from pppml_core.testing import PluginSuite
from pppml_core.testing.attacked import SITES, Attacked, joined, mean_of, some
from pppml_gallery.attack import Gallery, variances_of
from pppml_gallery.config import GalleryConfig

TIME = Budget(1e9)
SHARED = Path(os.environ.get("PPPML_SHARED_DATA", Path(__file__).resolve().parents[4] / ".." / "shared" / "data"))


class TestPlugin(PluginSuite):
    plugin = "pppml_gallery.plugin"


def attack(view, ctx, **settings) -> np.ndarray:
    gallery = Gallery(GalleryConfig(**settings))
    assert gallery.misfit(view, ctx) == ""
    return gallery.run(view, TIME, ctx).guess["candidate"]


@pytest.mark.parametrize(("sites", "rounds"), [(1, 1), (4, 1), (1, 2)])
def test_hit_rate_of_a_clipped_gaussian_mechanism(one_hot, sites, rounds):
    """The closed form of 16 orthogonal updates; two-sided binomial test with a false alarm below 1e-6 for each of the three.

    Images are of very different strength, so only who clips as the site does meets it. The other sites hold an image like the public ones.
    """
    make, bright = one_hot
    pixels, clip, rate, noise, trials = 18, 0.1, 0.5, 0.025, 150
    world, generator = make(pixels), np.random.default_rng(sites)
    candidates, public = bright(pixels, np.arange(16), np.geomspace(1, 50, 16)), bright(pixels, np.full(4, 17), np.ones(4))
    ctx = world.knowledge(public, Training(rate), Defence("dp-sgd", clip, "example", noise, divisor=1.0), candidates=candidates)
    own = [world.update(some(candidates, j), rate, clip) for j in range(16)]
    other = world.update(some(public, 0), rate, clip)
    hits = 0
    for trial in range(trials):
        clean = mean_of([own[trial % 16], *[other] * (sites - 1)])
        seen = [
            world.seen((SITES[:sites], {n: u + generator.normal(0, noise / sites, u.shape) for n, u in clean.items()}), round=r + 1)
            for r in range(rounds)
        ]
        hits += attack(world.view(*seen), ctx, history="all").argmax() == trial % 16
    mu = clip * rate / noise * rounds**0.5
    expected = quad(lambda t: norm.pdf(t - mu) * norm.cdf(t) ** 15, mu - 12, mu + 12)[0]
    assert binom.ppf(5e-7, trials, expected) <= hits <= binom.isf(5e-7, trials, expected), (hits / trials, expected)


def test_who_does_not_know_the_clip_fails(one_hot):
    """Without noise: the clipped update of a bright image is next to the unclipped one of a faint image, which has a second faint pixel."""
    make, bright = one_hot
    world, candidates = make(4), bright(4, np.array([0, 0]), np.array([5.0, 0.13], np.float32))
    candidates.images[1, 0, 0, 1] = 0.03
    ctx = world.knowledge(bright(4, np.array([1]), np.ones(1)), Training(0.5), Defence("clip-only", 0.1, "example"), candidates=candidates)
    for victim in (0, 1):
        view = world.sum_of(world.update(some(candidates, victim), 0.5, 0.1))
        assert attack(view, ctx).argmax() == victim
        assert attack(view, replace(ctx, adaptive=False)).argmax() == 1


@pytest.mark.parametrize("settings", [{}, {"others": "diagonal"}, {"public": 20}])
def test_through_a_sum_of_unknown_images(convolutional, images, settings):
    """Of 30 look-alikes of one label in sums of three sites without noise; blind guessing finds one of 30. Fixed seeds."""
    found = []
    for seed in range(8):
        world, generator = convolutional(seed)
        public, candidates, rest = images(generator, 100), images(generator, 30, label=1), images(generator, 2)
        victim = int(generator.integers(30))
        view = world.sum_of(*(world.update(image) for image in (some(candidates, victim), some(rest, 0), some(rest, 1))))
        scores = attack(view, world.knowledge(public, candidates=candidates), **settings)
        found.append(int((scores > scores[victim]).sum()))
    assert sum(rank == 0 for rank in found) >= (8 if not settings else 4)


def test_in_a_batch(convolutional, images):
    """The victim's image is one of four of its site, the update is clipped by example and divided by a public number. Fixed seeds."""
    hits = 0
    for seed in range(6):
        world, generator = convolutional(seed)
        public, candidates, rest = images(generator, 100), images(generator, 30, label=1), images(generator, 3)
        batch = joined(some(candidates, 7), rest)
        view = world.sum_of(world.update(batch, 0.5, 0.3, divisor=5.0))
        ctx = world.knowledge(public, Training(0.5, 1, 4), Defence("clip-only", 0.3, "example", divisor=5.0), candidates=candidates)
        hits += attack(view, ctx).argmax() == 7
    assert hits >= 5


def test_a_rounded_update(convolutional, images):
    """One tensor is rounded so coarsely that it says nothing; who weighs both alike is led astray by it. Fixed seeds."""
    hits = {True: 0, False: 0}
    for seed in range(12):
        world, generator = convolutional(seed)
        candidates = images(generator, 30, label=1)
        clean = world.update(some(candidates, 3))
        grid = {n: 0.3 if n == "0.weight" else 1e-4 for n in clean}
        seen = {n: grid[n] * np.floor(u / grid[n] + generator.random(u.shape)) for n, u in clean.items()}
        for told in hits:
            ctx = world.knowledge(images(generator, 2), defence=Defence(grid=grid if told else {}), candidates=candidates)
            hits[told] += attack(world.sum_of(seen), ctx).argmax() == 3
    assert hits[True] == 12
    assert hits[False] < 12


def test_variance_of_rounding_and_noise(images):
    """Against drawn errors; 40,000 coordinates give it to 2 %, so 10 % is 7 deviations: false alarm below 1e-6."""
    generator, sites, step, noise = np.random.default_rng(5), 3, 1e-3, 2e-3
    exact = generator.normal(0, 1, (sites, 40_000)) * 1e-2
    rounded = step * np.floor(exact / step + generator.random(exact.shape))
    mean = rounded.mean(0) + generator.normal(0, noise, 40_000) / sites
    sight = Sight(("a", "b", "c"), {"w": mean.astype(np.float32)}, 3.0)
    ctx = Attacked(torch.nn.Identity(), 2).knowledge(images(generator, 1), defence=Defence(noise=noise, grid={"w": step}))
    found = variances_of(sight, ctx, ("w",))
    assert found.shape == (40_000,)
    assert found[0] == pytest.approx(np.var(mean - exact.mean(0)), rel=0.1)


def test_recorded_rounds_get_a_linear_score(convolutional, images):
    """Many steps on many images: those that were trained on are above public ones, whose scores have mean 0 and deviation 1."""
    world, generator = convolutional(3)
    public, candidates = images(generator, 60), images(generator, 40)
    members = some(candidates, *range(5))
    ctx = world.knowledge(public, Training(0.5, 10, 8, exact=False), candidates=candidates)
    scores = attack(world.sum_of(world.update(members)), ctx, public=60)
    update, every = world.update(members), [world.update(some(public, i)) for i in range(60)]
    known = np.array([sum((u[n] * update[n]).sum() for n in update) for u in every])
    one = sum((world.update(some(candidates, 9))[n] * update[n]).sum() for n in update)
    assert scores[9] == pytest.approx((one - known.mean()) / known.std(ddof=1), rel=1e-3)
    assert scores[:5].mean() > scores[5:].mean()


def test_several_rounds_add_up(convolutional, images):
    world, generator = convolutional(1)
    candidates = images(generator, 10)
    ctx = world.knowledge(images(generator, 2), defence=Defence(noise=0.05), candidates=candidates)
    clean = world.update(some(candidates, 4))
    seen = [world.seen((SITES[:1], {n: u + generator.normal(0, 0.05, u.shape) for n, u in clean.items()}), round=r) for r in (1, 2)]
    alone = [attack(world.view(one), ctx) for one in seen]
    np.testing.assert_allclose(attack(world.view(*seen), ctx, history="all"), alone[0] + alone[1])
    np.testing.assert_array_equal(attack(world.view(*seen), ctx, history="last"), alone[1])
    # A round without the watched site says nothing of it.
    without = Seen(3, seen[0].weights, {}, ("site_2",), (Sight(("site_2",), seen[0].sights[0].update, 1.0),))
    np.testing.assert_array_equal(attack(world.view(without, seen[1]), ctx, history="all"), alone[1])


def test_misfits(convolutional, images):
    world, generator = convolutional(2)
    candidates, public = images(generator, 3), images(generator, 2)
    gallery, seen = Gallery(GalleryConfig()), world.seen((SITES[:2], world.update(candidates)))
    ctx, nobody = world.knowledge(public, candidates=candidates), images(generator, 0)
    assert gallery.misfit(world.view(seen), ctx) == ""
    assert "decodes no sum" in gallery.misfit(world.view(replace(seen, sights=())), ctx)
    assert "does not have the model" in gallery.misfit(world.view(replace(seen, weights={})), ctx)
    assert "no candidates" in gallery.misfit(world.view(seen), world.knowledge(public))
    assert "there are no public ones" in gallery.misfit(world.view(seen), world.knowledge(nobody, candidates=candidates))
    alone = world.sum_of(world.update(some(candidates, 2)))
    assert attack(alone, world.knowledge(nobody, candidates=candidates)).argmax() == 2


def test_the_same_answer_twice_and_its_effort(convolutional, images):
    world, generator = convolutional(6)
    candidates, public = images(generator, 10), images(generator, 30)
    ctx, view = world.knowledge(public, candidates=candidates), world.view(world.seen((SITES[:2], world.update(some(candidates, 1, 2)))))
    one, two = (Gallery(GalleryConfig(public=20)).run(view, TIME, ctx) for _ in range(2))
    np.testing.assert_array_equal(one.guess["candidate"], two.guess["candidate"])
    assert one.effort["evaluations"] == 30
    assert one.effort["rounds"] == 1


def test_real_chest_x_rays_in_a_sum_of_three():
    """Of 50 images of one label in a sum with two others, no noise, an untrained network."""
    file = SHARED / "ct_or_xray_classification_pneumoniamnist_v1_28.npz"
    if not file.is_file():
        pytest.skip(f"needs {file.name}, which is in no repository; PPPML_SHARED_DATA names its folder")
    with np.load(file) as held:
        pictures, labels = held["images"][:1200, None].astype(np.float32) / 255, held["labels"][:1200].astype(np.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 5, stride=2), torch.nn.Sigmoid(), torch.nn.Flatten(), torch.nn.Linear(1152, 2))
    world, sick = Attacked(network, 2), np.flatnonzero(labels == 1)
    gallery, public, hits = sick[:50], np.arange(600, 800), 0
    for victim in range(10):
        batch = [gallery[victim], 900 + 2 * victim, 901 + 2 * victim]
        view = world.sum_of(*(world.update(Images(pictures[[i]], labels[[i]])) for i in batch))
        ctx = world.knowledge(Images(pictures[public], labels[public]), candidates=Images(pictures[gallery], labels[gallery]))
        hits += attack(view, ctx).argmax() == victim
    assert hits >= 8
