"""``site-inference`` on views made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from pppml_core.interfaces.attack import AdversaryView, Budget, Defence, Images, Knowledge, Seen, Sight, Training, Vantage
from pppml_core.interfaces.task import TaskSpec
from pppml_core.testing import PluginSuite
from pppml_site_inference.attack import SiteInference
from pppml_site_inference.config import SiteInferenceConfig
from pppml_site_inference.parts import parts_of
from pppml_site_inference.usual import RIDGE

SITES = ("a", "b", "c")


class TestPlugin(PluginSuite):
    plugin = "pppml_site_inference.plugin"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))


def images(generator: np.random.Generator, count: int) -> Images:
    """Nothing in them tells a site: what is found is found in the updates."""
    return Images(generator.random((count, 1, 10, 10), np.float32), generator.integers(0, 3, count))


def update(network, batch: Images) -> dict[str, np.ndarray]:
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(torch.from_numpy(batch.images)), torch.from_numpy(batch.targets)).backward()
    return {n: -0.5 * p.grad.numpy().copy() for n, p in network.named_parameters()}


def mean(updates: list[dict]) -> dict[str, np.ndarray]:
    return {n: np.mean([u[n] for u in updates], axis=0) for n in updates[0]}


def seen(network, *sums: tuple[str, dict], round: int = 1) -> Seen:
    """Each sum: its sites, a letter each, and their mean update."""
    weights = {n: p.detach().numpy().copy() for n, p in network.named_parameters()}
    return Seen(round, weights, {}, SITES, tuple(Sight(tuple(who), u, float(len(who))) for who, u in sums))


def view(*rounds: Seen) -> AdversaryView:
    return AdversaryView(Vantage("server", server=True), rounds)


def knowledge(network, public: Images, queries: Images | None, **others) -> Knowledge:
    spec = TaskSpec("classification", 1, (10, 10), ("x", "y", "z"), "any", "accuracy", {})
    zero, one = np.zeros((1, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
    loss, training = torch.nn.functional.cross_entropy, Training(0.5, 1, 8)
    return Knowledge("a", spec, lambda: network, loss, training, Defence(), zero, one, public, queries=queries, sites=SITES, **others)


def sites_of(view: AdversaryView, ctx: Knowledge, **settings) -> np.ndarray:
    attack = SiteInference(SiteInferenceConfig(**settings))
    assert attack.misfit(view, ctx) == ""
    return attack.run(view, Budget(1e9), ctx).guess["site"]


@pytest.fixture
def trained(network):
    """What each site trained on, 8 images; its update; all images as queries and where they are from."""
    generator = np.random.default_rng(1)
    batches = [images(generator, 8) for _ in SITES]
    queries = Images(np.concatenate([b.images for b in batches]), np.concatenate([b.targets for b in batches]))
    return [update(network, b) for b in batches], queries, np.repeat(np.arange(3), 8), images(generator, 60)


def test_sites_seen_alone_are_told_apart(network, trained):
    """Of 24 trained images, the site of each; chance is a third. Fixed seed."""
    updates, queries, true, public = trained
    ctx = knowledge(network, public, queries)
    scores = sites_of(view(seen(network, *zip(SITES, updates, strict=True))), ctx)
    assert scores.shape == (24, 3)
    right = int((scores.argmax(axis=1) == true).sum())
    assert right >= 18
    assert binom.sf(right - 1, 24, 1 / 3) < 1e-4


def test_the_score_is_a_z_score_of_the_whitened_cosine(network, trained):
    """Against the same formula with the ``d x d`` metric written out."""
    updates, queries, _, public = trained
    scores = sites_of(view(seen(network, *zip(SITES, updates, strict=True))), knowledge(network, public, queries))

    def flat(made: dict) -> np.ndarray:
        return np.concatenate([u.ravel() for u in made.values()]).astype(np.float64)

    def single(batch: Images, i: int) -> np.ndarray:
        return flat(update(network, Images(batch.images[i : i + 1], batch.targets[i : i + 1])))

    known = np.stack([single(public, i) for i in range(60)])
    scatter = (known - known.mean(0)).T @ (known - known.mean(0))
    metric = np.linalg.inv(scatter + RIDGE * np.trace(scatter) / 60 * np.eye(len(scatter)))

    def cosine(batch: Images, i: int) -> float:
        x, y = single(batch, i) - known.mean(0), flat(updates[1]) - known.mean(0)
        return float(x @ metric @ y / np.sqrt((x @ metric @ x) * (y @ metric @ y)))

    usual = np.array([cosine(public, i) for i in range(60)])
    assert scores[5, 1] == pytest.approx((cosine(queries, 5) - usual.mean()) / usual.std(ddof=1), rel=1e-4)


def test_a_sum_is_taken_off_a_larger_one(network, trained):
    """The sum of all and that of the second site show the second, and the others together."""
    updates, queries, true, public = trained
    one = seen(network, ("abc", mean(updates)), ("b", updates[1]))
    names = tuple(updates[0])
    parts = parts_of(one, names)
    assert list(parts) == [frozenset("b"), frozenset("ac")]
    wanted = np.concatenate([((updates[0][n] + updates[2][n]) / 2).ravel() for n in names])
    np.testing.assert_allclose(parts[frozenset("ac")], wanted, atol=1e-6)
    scores = sites_of(view(one), knowledge(network, public, queries))
    np.testing.assert_array_equal(scores[:, 0], scores[:, 2])
    assert ((scores[:, 1] > scores[:, 0]) == (true == 1)).mean() >= 0.8


def test_unseen_sites_get_the_score_of_strangers(network, trained):
    updates, queries, true, public = trained
    scores = sites_of(view(seen(network, ("a", updates[0]))), knowledge(network, public, queries))
    np.testing.assert_array_equal(scores[:, 1:], 0)
    assert (scores[true == 0, 0] > 0).mean() >= 0.75


def test_rounds_are_averaged(network, trained):
    updates, queries, _, public = trained
    ctx = knowledge(network, public, queries)
    generator = np.random.default_rng(2)

    def noisy() -> Seen:
        drawn = [{n: x + generator.normal(0, 0.01, x.shape) for n, x in u.items()} for u in updates]
        return seen(network, *zip(SITES, drawn, strict=True))

    rounds = [noisy(), noisy()]
    alone = [sites_of(view(one), ctx) for one in rounds]
    np.testing.assert_allclose(sites_of(view(*rounds), ctx), (alone[0] + alone[1]) / 2)
    np.testing.assert_allclose(sites_of(view(*rounds), ctx, history="last"), alone[1])
    # A round in which only the sum of all was decoded says nothing.
    np.testing.assert_allclose(sites_of(view(seen(network, ("abc", mean(updates))), rounds[1]), ctx), alone[1])


def test_scores_are_held_against_images_of_all_sites(network, trained):
    """Where the sites' own looks are known, each counts alike, however many images there are of it."""
    updates, queries, _, _ = trained
    generator = np.random.default_rng(3)
    looks = {"a": images(generator, 40), "b": images(generator, 4), "c": images(generator, 9)}
    one = view(seen(network, *zip(SITES, updates, strict=True)))
    ctx = knowledge(network, images(generator, 60), queries, sites_public=looks)
    few = [Images(i.images[c], i.targets[c]) for i, c in zip(looks.values(), ([0, 13, 26, 39], [0, 1, 2, 3], [0, 3, 5, 8]), strict=True)]
    same = Images(np.concatenate([i.images for i in few]), np.concatenate([i.targets for i in few]))
    np.testing.assert_allclose(sites_of(one, ctx), sites_of(one, knowledge(network, same, queries)))


def test_misfits(network, trained):
    updates, queries, _, public = trained
    attack, ctx = SiteInference(SiteInferenceConfig()), knowledge(network, public, queries)
    every = view(seen(network, ("abc", mean(updates))))
    assert "tells one site from another" in attack.misfit(every, ctx)
    alone = seen(network, *zip(SITES, updates, strict=True))
    assert attack.misfit(view(alone), ctx) == ""
    assert "no images to ask about" in attack.misfit(view(alone), knowledge(network, public, None))
    assert "no public images" in attack.misfit(view(alone), knowledge(network, images(np.random.default_rng(0), 1), queries))
    assert "does not have the model" in attack.misfit(view(replace(alone, weights={})), ctx)
    assert "tells one site from another" in attack.misfit(view(replace(alone, sights=())), ctx)
