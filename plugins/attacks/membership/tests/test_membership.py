"""``membership`` on views made by hand. A test of chance fails correct code with probability 1e-6 (exact Mann-Whitney)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from pppml_core.interfaces.attack import Budget, Images, Sight
from pppml_core.learning.usual import RIDGE
from pppml_core.testing import PluginSuite
from pppml_membership.attack import Membership
from pppml_membership.config import MembershipConfig
from pppml_membership.models import log_p, reached

METHODS = ("rmia", "lira", "gradient", "loss")


class TestPlugin(PluginSuite):
    plugin = "pppml_membership.plugin"


def answer(view, ctx, seconds=1e9, **settings):
    attack = Membership(MembershipConfig(**settings))
    assert attack.misfit(view, ctx) == ""
    return attack.run(view, Budget(seconds), ctx)


def chance(scores, inside, alternative="greater") -> float:
    """Exact probability that scores which know nothing order members above (or below) others so far."""
    assert len(np.unique(scores)) == len(scores), "no ties: the exact test needs none"
    return float(mannwhitneyu(scores[inside], scores[~inside], alternative=alternative, method="exact").pvalue)


@pytest.mark.parametrize("method", METHODS)
def test_members_of_a_network_that_memorized_them_are_told(memorized, looking, method):
    found = answer(looking(memorized.seen()), memorized.ctx, method=method)
    assert found.guess["members"].shape == (80,)
    assert chance(found.guess["members"], memorized.inside) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_network_that_never_saw_the_queries_gives_chance(strange, looking, method):
    scores = answer(looking(strange.seen()), strange.ctx, method=method).guess["members"]
    assert chance(scores, strange.inside) > 0.5e-6
    assert chance(scores, strange.inside, "less") > 0.5e-6


@pytest.mark.parametrize("method", METHODS)
def test_an_update_in_the_open_tells_as_much_as_the_model_it_leads_to(memorized, strange, looking, method):
    """The published model moved elsewhere: only the site's own update gives its members away."""
    seen = memorized.seen(after=strange.after, sights=(Sight(("a", "b", "c"), strange.update, 3.0), memorized.sight("a")))
    scores = answer(looking(seen), memorized.ctx, method=method).guess["members"]
    assert chance(scores, memorized.inside) < 1e-6


def test_the_nearest_model(memorized, strange):
    ctx = memorized.ctx
    every, pair = Sight(("a", "b", "c"), strange.update, 3.0), memorized.sight("a", "b")
    assert reached(memorized.seen(), ctx) is memorized.after
    assert reached(memorized.seen(sights=(every,)), ctx) is memorized.after, "the sum of all is what the model has"
    near = reached(memorized.seen(after=strange.after, sights=(every, pair)), ctx)
    assert near.keys() == memorized.after.keys()
    for name, weights in near.items():
        np.testing.assert_allclose(weights, memorized.after[name], atol=1e-6)
        assert weights.dtype == memorized.after[name].dtype
    assert reached(memorized.seen(after={}), ctx) is memorized.before, "of earlier rounds"
    assert reached(memorized.seen(after={}, round=1), ctx) == {}, "nobody trained that model"


@pytest.mark.parametrize(("steps", "along"), [(1, 0.0), (100, 0.5)])
def test_the_gradient_score_written_out(memorized, looking, steps, along):
    """Against the ``d x d`` inverse covariance of gradients that torch computes by itself, half-way along an update of many steps."""
    ctx, few = memorized.ctx, slice(0, 20)
    public = Images(ctx.public.images[few], ctx.public.targets[few])
    ctx = replace(ctx, public=public, training=replace(ctx.training, steps=steps))
    scores = answer(looking(memorized.seen()), ctx, method="gradient").guess["members"]
    model = ctx.model(memorized.seen(weights={n: w + along * memorized.update[n] for n, w in memorized.before.items()}))

    def gradients(images: Images) -> np.ndarray:
        rows = []
        for x, y in zip(torch.from_numpy(images.images), torch.from_numpy(images.targets), strict=True):
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(x[None]), y[None]).backward()
            rows.append(np.concatenate([-0.1 * p.grad.numpy().ravel() for p in model.parameters()]).astype(np.float64))
        return np.stack(rows)

    known, update = gradients(public), np.concatenate([u.ravel() for u in memorized.update.values()]).astype(np.float64)
    mean = known.mean(axis=0)
    scatter = (known - mean).T @ (known - mean)
    metric = np.linalg.inv(scatter / (RIDGE * np.trace(scatter) / len(known)) + np.eye(len(mean)))
    rest = update - (mean @ metric @ update) / (mean @ metric @ mean) * mean

    def score(gradient: np.ndarray) -> float:
        own = gradient - mean
        return float(own @ metric @ rest / np.sqrt(own @ metric @ own))

    usual = np.array([score(g) for g in known])
    wanted = [(score(g) - usual.mean()) / usual.std(ddof=1) for g in gradients(Images(ctx.queries.images[:10], ctx.queries.targets[:10]))]
    np.testing.assert_allclose(scores[:10], wanted, rtol=2e-3, atol=2e-3)


def test_log_probabilities(memorized):
    ctx = memorized.ctx
    model = ctx.model(memorized.seen(weights=memorized.after))
    with torch.no_grad():
        outputs = torch.log_softmax(model(torch.from_numpy(ctx.public.images)).double(), dim=1).numpy()
    np.testing.assert_allclose(log_p(model, ctx, ctx.public), outputs[np.arange(120), ctx.public.targets], rtol=1e-6, atol=1e-9)


def test_of_a_mask_the_mean_over_pixels(memorized, looking):
    generator, model = np.random.default_rng(2), torch.nn.Conv2d(1, 2, 3, padding=1)
    masks = Images(generator.standard_normal((9, 1, 10, 10)).astype(np.float32), generator.integers(0, 2, (9, 10, 10)))
    ctx = replace(memorized.ctx, network=lambda: torch.nn.Conv2d(1, 2, 3, padding=1), queries=masks, public=masks)
    with torch.no_grad():
        outputs = torch.log_softmax(model(torch.from_numpy(masks.images)), dim=1).numpy()
    picked = np.take_along_axis(outputs, masks.targets[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(log_p(model, ctx, masks), picked.mean(axis=(1, 2)), rtol=1e-5)
    weights = {n: t.numpy().copy() for n, t in model.state_dict().items()}
    for method in METHODS:
        scores = answer(
            looking(memorized.seen(weights=weights, after={n: w * 1.5 for n, w in weights.items()})), ctx, method=method, steps=2
        )
        assert np.isfinite(scores.guess["members"]).all()


def test_layers_that_stay_at_the_site_are_trained_on_public_images(memorized, looking):
    """The body is published and the head is not."""
    body = {n: w for n, w in memorized.after.items() if n.startswith("0.")}
    start = {n: w for n, w in memorized.before.items() if n.startswith("0.")}
    seen = memorized.seen(weights=start, after=body)
    for method in METHODS:
        one, other = (answer(looking(seen), memorized.ctx, method=method, steps=20).guess["members"] for _ in range(2))
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_answer(memorized, looking, method):
    torch.manual_seed(0)
    one = answer(looking(memorized.seen()), memorized.ctx, method=method, steps=5)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    other = answer(looking(memorized.seen()), memorized.ctx, method=method, steps=5)
    np.testing.assert_array_equal(one.guess["members"], other.guess["members"])
    torch.manual_seed(0)
    assert torch.rand(1) == drawn, "nobody else's random stream is moved"
    if method in ("rmia", "lira"):
        third = answer(looking(memorized.seen()), replace(memorized.ctx, seed=9), method=method, steps=5)
        assert (third.guess["members"] != one.guess["members"]).any()


def test_the_order_of_the_queries_says_nothing(memorized, looking):
    ctx = memorized.ctx
    backwards = replace(ctx, queries=Images(ctx.queries.images[::-1].copy(), ctx.queries.targets[::-1].copy()))
    for method in METHODS:
        one, other = (answer(looking(memorized.seen()), c, method=method, steps=5).guess["members"] for c in (ctx, backwards))
        np.testing.assert_allclose(one, other[::-1], rtol=1e-4, atol=1e-5)


def test_effort(memorized, looking):
    ctx, view = memorized.ctx, looking(memorized.seen())
    effort = answer(view, ctx, steps=30, references=3).effort
    assert effort.items() >= {"evaluations": 90.0, "references": 3.0, "steps": 30.0, "stopped_early": 0.0}.items()
    # Round 2 of 100 steps each.
    assert answer(view, ctx).effort["steps"] == 200.0
    # No time at all: one step each, and it says so.
    hasty = answer(view, ctx, seconds=0.0, steps=30, references=3)
    assert hasty.effort.items() >= {"evaluations": 3.0, "steps": 1.0, "stopped_early": 3.0}.items()
    assert np.isfinite(hasty.guess["members"]).all()
    assert answer(view, ctx, method="gradient", public=50).effort["evaluations"] == 130
    assert answer(view, ctx, method="gradient", seconds=0.0).effort["evaluations"] == 88


def test_misfits(memorized, looking):
    ctx, view = memorized.ctx, looking(memorized.seen())

    def misfit(view, ctx, **settings) -> str:
        return Membership(MembershipConfig(**settings)).misfit(view, ctx)

    few = Images(ctx.public.images[:7], ctx.public.targets[:7])
    assert "no images to ask about" in misfit(view, replace(ctx, queries=None))
    assert "7 public images" in misfit(view, replace(ctx, public=few))
    assert misfit(view, replace(ctx, public=few), method="loss") == ""
    unseen = looking(memorized.seen(weights={}, after={}))
    assert "no model" in misfit(unseen, ctx)
    assert "no update" in misfit(looking(memorized.seen(after={})), ctx, method="gradient")
    assert "no update" in misfit(looking(memorized.seen(weights={})), ctx, method="gradient")
    assert misfit(looking(memorized.seen(weights={})), ctx) == ""


def test_lira_needs_two_references():
    with pytest.raises(ValueError, match="at least 2"):
        MembershipConfig(method="lira", references=1)


def test_public_images_are_held_against_models_that_never_saw_them(memorized, looking, monkeypatch):
    """Of two reference models one was trained on each public image, knows it by heart, and is not asked about it."""
    held = {}

    def kept(asked, asked_out, public, public_out, **settings):
        held["out"], held["asked"] = public_out, asked_out
        return asked

    monkeypatch.setattr("pppml_membership.attack.rmia", kept)
    answer(looking(memorized.seen()), memorized.ctx)
    np.testing.assert_array_equal(np.isnan(held["out"]).sum(axis=1), 60)
    np.testing.assert_array_equal(np.isnan(held["out"]).sum(axis=0), 1)
    # To a stranger a label is arbitrary: far from sure, as of the queries.
    assert np.nanmean(held["out"]) < np.log(0.4)
    assert held["asked"].mean() < np.log(0.4)


def test_an_image_is_judged_by_itself(memorized):
    """Batch statistics and dropout are those of use, not of training."""
    parts = (torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(100, 3))
    model, ctx = torch.nn.Sequential(*parts), memorized.ctx
    alone = [log_p(model, ctx, Images(ctx.public.images[i : i + 1], ctx.public.targets[i : i + 1]))[0] for i in range(5)]
    np.testing.assert_allclose(log_p(model, ctx, ctx.public)[:5], alone, rtol=1e-5)
