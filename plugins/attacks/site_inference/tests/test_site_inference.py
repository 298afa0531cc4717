"""``site-inference`` on views made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from pppml_core.interfaces.attack import AdversaryView, Budget, Images, Knowledge, Seen, Training
from pppml_core.learning.usual import RIDGE
from pppml_core.testing import PluginSuite
from pppml_core.testing.attacked import SITES, Attacked, joined, mean_of, one_thread, some  # noqa: F401
from pppml_site_inference.attack import SiteInference
from pppml_site_inference.config import SiteInferenceConfig
from pppml_site_inference.parts import parts_of

FIRST, SECOND, THIRD = SITES[:3]
ALL = (FIRST, SECOND, THIRD)


class TestPlugin(PluginSuite):
    plugin = "pppml_site_inference.plugin"


@pytest.fixture
def world():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    return Attacked(network, 3)


def images(generator: np.random.Generator, count: int) -> Images:
    """Nothing in them tells a site: what is found is found in the updates."""
    return Images(generator.random((count, 1, 10, 10), np.float32), generator.integers(0, 3, count))


def knowledge(world: Attacked, public: Images, queries: Images | None, **others) -> Knowledge:
    return world.knowledge(public, Training(0.5, 1, 8), queries=queries, sites=ALL, **others)


def apart(world: Attacked, updates: list[dict]) -> Seen:
    """Each of the three sites' updates is in the open."""
    return world.seen(*(((site,), update) for site, update in zip(ALL, updates, strict=True)))


def sites_of(view: AdversaryView, ctx: Knowledge, **settings) -> np.ndarray:
    attack = SiteInference(SiteInferenceConfig(**settings))
    assert attack.misfit(view, ctx) == ""
    return attack.run(view, Budget(1e9), ctx).guess["site"]


@pytest.fixture
def trained(world):
    """What each site trained on, 8 images; its update; all images as queries and where they are from."""
    generator = np.random.default_rng(1)
    batches = [images(generator, 8) for _ in ALL]
    return [world.update(b) for b in batches], joined(*batches), np.repeat(np.arange(3), 8), images(generator, 60)


def test_sites_seen_alone_are_told_apart(world, trained):
    """Of 24 trained images, the site of each; chance is a third. Fixed seed."""
    updates, queries, true, public = trained
    ctx = knowledge(world, public, queries)
    scores = sites_of(world.view(apart(world, updates)), ctx)
    assert scores.shape == (24, 3)
    right = int((scores.argmax(axis=1) == true).sum())
    assert right >= 18
    assert binom.sf(right - 1, 24, 1 / 3) < 1e-4


def test_the_score_is_a_z_score_of_the_whitened_cosine(world, trained):
    """Against the same formula with the ``d x d`` metric written out."""
    updates, queries, _, public = trained
    scores = sites_of(world.view(apart(world, updates)), knowledge(world, public, queries))

    def flat(made: dict) -> np.ndarray:
        return np.concatenate([u.ravel() for u in made.values()]).astype(np.float64)

    def single(batch: Images, i: int) -> np.ndarray:
        return flat(world.update(some(batch, i)))

    known = np.stack([single(public, i) for i in range(60)])
    scatter = (known - known.mean(0)).T @ (known - known.mean(0))
    metric = np.linalg.inv(scatter + RIDGE * np.trace(scatter) / 60 * np.eye(len(scatter)))

    def cosine(batch: Images, i: int) -> float:
        x, y = single(batch, i) - known.mean(0), flat(updates[1]) - known.mean(0)
        return float(x @ metric @ y / np.sqrt((x @ metric @ x) * (y @ metric @ y)))

    usual = np.array([cosine(public, i) for i in range(60)])
    assert scores[5, 1] == pytest.approx((cosine(queries, 5) - usual.mean()) / usual.std(ddof=1), rel=1e-4)


def test_a_sum_is_taken_off_a_larger_one(world, trained):
    """The sum of all and that of the second site show the second, and the others together."""
    updates, queries, true, public = trained
    one = world.seen((ALL, mean_of(updates)), ((SECOND,), updates[1]))
    names = tuple(updates[0])
    parts = parts_of(one, names)
    assert list(parts) == [frozenset({SECOND}), frozenset({FIRST, THIRD})]
    wanted = np.concatenate([((updates[0][n] + updates[2][n]) / 2).ravel() for n in names])
    np.testing.assert_allclose(parts[frozenset({FIRST, THIRD})], wanted, atol=1e-6)
    scores = sites_of(world.view(one), knowledge(world, public, queries))
    np.testing.assert_array_equal(scores[:, 0], scores[:, 2])
    assert ((scores[:, 1] > scores[:, 0]) == (true == 1)).mean() >= 0.8


def test_unseen_sites_get_the_score_of_strangers(world, trained):
    updates, queries, true, public = trained
    scores = sites_of(world.view(world.seen(((FIRST,), updates[0]))), knowledge(world, public, queries))
    np.testing.assert_array_equal(scores[:, 1:], 0)
    assert (scores[true == 0, 0] > 0).mean() >= 0.75


def test_rounds_are_averaged(world, trained):
    updates, queries, _, public = trained
    ctx = knowledge(world, public, queries)
    generator = np.random.default_rng(2)

    def noisy() -> Seen:
        drawn = [{n: x + generator.normal(0, 0.01, x.shape) for n, x in u.items()} for u in updates]
        return apart(world, drawn)

    rounds = [noisy(), noisy()]
    alone = [sites_of(world.view(one), ctx) for one in rounds]
    np.testing.assert_allclose(sites_of(world.view(*rounds), ctx), (alone[0] + alone[1]) / 2)
    np.testing.assert_allclose(sites_of(world.view(*rounds), ctx, history="last"), alone[1])
    # A round in which only the sum of all was decoded says nothing.
    np.testing.assert_allclose(sites_of(world.view(world.seen((ALL, mean_of(updates))), rounds[1]), ctx), alone[1])


def test_scores_are_held_against_images_of_all_sites(world, trained):
    """Where the sites' own looks are known, each counts alike, however many images there are of it."""
    updates, queries, _, _ = trained
    generator = np.random.default_rng(3)
    looks = {FIRST: images(generator, 40), SECOND: images(generator, 4), THIRD: images(generator, 9)}
    one = world.view(apart(world, updates))
    ctx = knowledge(world, images(generator, 60), queries, sites_public=looks)
    same = joined(some(looks[FIRST], 0, 13, 26, 39), some(looks[SECOND], 0, 1, 2, 3), some(looks[THIRD], 0, 3, 5, 8))
    np.testing.assert_allclose(sites_of(one, ctx), sites_of(one, knowledge(world, same, queries)))


def test_misfits(world, trained):
    updates, queries, _, public = trained
    attack, ctx = SiteInference(SiteInferenceConfig()), knowledge(world, public, queries)
    every = world.sum_of(*updates)
    assert "tells one site from another" in attack.misfit(every, ctx)
    alone = apart(world, updates)
    assert attack.misfit(world.view(alone), ctx) == ""
    assert "no images to ask about" in attack.misfit(world.view(alone), knowledge(world, public, None))
    assert "no public images" in attack.misfit(world.view(alone), knowledge(world, images(np.random.default_rng(0), 1), queries))
    assert "does not have the model" in attack.misfit(world.view(replace(alone, weights={})), ctx)
    assert "tells one site from another" in attack.misfit(world.view(replace(alone, sights=())), ctx)
