"""Staged rounds are made of the run's real parts: what is seen, the clip and the noise are what the run's own components make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import pppml_core as pppml
from pppml_core.evidence.evaluate import flat
from pppml_core.evidence.knowledge import known
from pppml_core.evidence.stage import Stage
from pppml_core.evidence.vantage import read_vantage
from pppml_core.evidence.victims import batch_of, public_images
from pppml_core.interfaces.attack import Training
from pppml_core.learning.arrays import to_numpy
from pppml_core.registry import Registry

REGISTRY = Registry.discover()
SITES = ("site_1", "site_2", "site_3")
SECAGG = {"aggregator": {"use": "secagg-plus"}}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def staged(**sections: Any) -> tuple[Stage, dict[str, Any], dict[str, Any]]:
    """A stage over three sites, the initial weights, and a batch of one image for each site."""
    given = {"task": {"use": "tiny", "sites": 3, "examples": 32}, "training": {"batch_size": 8, "steps": 1}, **sections}
    plan = pppml.Experiment(run={"rounds": 2}, registry=REGISTRY, **given)._plan()
    assert plan.misfits == []
    stage = Stage(plan.assembly, plan.sizes)
    return stage, to_numpy(plan.assembly.initial_weights), {s: batch_of(plan.assembly, s, 1, "test") for s in SITES}


def descent(stage: Stage, weights: dict[str, Any], batch: Any) -> dict[str, Any]:
    """Minus the learning rate times the gradient of cross entropy, by nothing but torch."""
    net = stage.parts.factory.build(stage.parts.spec)
    net.load_state_dict({n: torch.from_numpy(w.copy()) for n, w in weights.items()})
    outputs = net.train()(torch.from_numpy(batch.images))
    torch.nn.functional.cross_entropy(outputs, torch.from_numpy(batch.targets)).backward()
    return {n: -stage.learning_rate(1) * p.grad.numpy() for n, p in net.named_parameters()}


def grid(held: Any) -> float:
    """The largest step of the round's fixed point."""
    return max(held.pipeline.fixed_point.step(i) for i in range(len(held.pipeline.ranges)))


def seen(held: Any, vantage: str) -> Any:
    return held.seen(read_vantage(vantage, SITES))


def test_on_plain_the_server_sees_one_step_of_descent():
    stage, weights, batches = staged()
    held = stage.hold(1, weights, batches, 0)
    sight = seen(held, "server").of("site_2")
    assert sight.sites == ("site_2",)
    wanted = descent(stage, weights, batches["site_2"])
    assert max(np.abs(u).max() for u in wanted.values()) > 20 * grid(held), "else anything is within the grid"
    for name, update in sight.update.items():
        np.testing.assert_allclose(update, wanted[name], atol=grid(held) * 1.01, rtol=1e-5)
    assert seen(held, "site:site_1").of("site_2").sites == ("site_2", "site_3")


RING = {"aggregator": {"use": "cyclic-he", "rings": 1, "backend": {"use": "tenseal", "scheme": "bfv"}}}


@pytest.mark.parametrize("sections", [SECAGG, RING], ids=["secagg-plus", "ring"])
def test_of_a_secure_sum_the_server_sees_the_exact_sum_and_no_more(sections):
    stage, weights, batches = staged(**sections)
    held = stage.hold(1, weights, batches, 0)
    view = seen(held, "server")
    assert [set(s.sites) for s in view.sights] == [set(SITES)]
    total = sum(values.astype(np.int64) for values in held.contributions.values())
    exact, _, weight = held.pipeline.decode(total)
    np.testing.assert_allclose(flat(view.sights[0].update), flat(exact), atol=1e-3 * grid(held))
    assert view.sights[0].weight == pytest.approx(weight)
    mean = np.mean([flat(descent(stage, weights, batches[s])) for s in SITES], axis=0)
    np.testing.assert_allclose(flat(view.sights[0].update), mean, atol=grid(held) * 1.01, rtol=1e-5)
    moved = {n: held.after[n] - weights[n] for n in weights}
    np.testing.assert_allclose(flat(moved), flat(exact), atol=1e-6)


def test_who_carries_the_ring_hears_more():
    stage, weights, batches = staged(**RING)
    star = Stage(stage.parts, dict.fromkeys(SITES, 32), "star")
    heard = [len(seen(one.hold(1, weights, batches, 0), "server").messages) for one in (stage, star)]
    assert heard[1] > heard[0]


DP_SGD: dict[str, Any] = {"use": "dp-sgd", "noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.5}
PRIVATE = {
    "none": ({}, "server"),
    "clip-only": ({"privacy": {"use": "clip-only", "clip": 0.5}}, "server"),
    "dp-sgd local": ({"privacy": DP_SGD}, "server"),
    "dp-sgd local, a sum": ({"privacy": DP_SGD, **SECAGG}, "server"),
    "dp-sgd distributed": ({"privacy": {**DP_SGD, "placement": "distributed"}, **SECAGG}, "server+site:site_1"),
    "dp-sgd at the server": ({"privacy": {**DP_SGD, "placement": "server"}}, "public"),
    "dp-update": ({"privacy": {"use": "dp-update", "noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.05}}, "server"),
    "dp-update distributed": (
        {"privacy": {"use": "dp-update", "noise_multiplier": 2.0, "delta": 1e-3, "clip": 0.05, "placement": "distributed"}, **SECAGG},
        "server",
    ),
}
REPEATS = 6


@pytest.mark.parametrize("name", PRIVATE)
def test_the_forward_model_and_the_stated_noise_are_those_of_the_staged_round(name):
    sections, vantage = PRIVATE[name]
    stage, weights, batches = staged(**sections)
    who, parts = read_vantage(vantage, SITES), stage.parts
    sites = seen(stage.hold(1, weights, batches, 0), vantage).of("site_2").sites
    defence = stage.privacy.defence(1, len(sites))
    assert (defence.noise > 0) == ("dp" in name)
    about = known(
        parts, "site_2", training=Training(stage.learning_rate(1)), defence=defence, public=public_images(parts, "site_2", 0)
    )  # fmt: skip
    model = about.model(seen(stage.hold(1, weights, batches, 0), "server"))
    each = []
    for site in sites:
        made = about.expected(model, torch.from_numpy(batches[site].images), torch.from_numpy(batches[site].targets))
        each.append(flat({n: u.detach().numpy() for n, u in made.items()}))
    wanted = np.mean(each, axis=0)
    plain = np.mean([flat(descent(stage, weights, batches[s])) for s in sites], axis=0)
    assert (np.linalg.norm(wanted) < 0.9 * np.linalg.norm(plain)) == (name != "none"), "the clip must be at work"

    if defence.noise:
        rounds = [stage.hold(1, weights, batches, n).seen(who).of("site_2") for n in range(REPEATS)]
        residual = np.concatenate([flat(s.update) - wanted for s in rounds])
        ratio = float(np.mean(residual**2)) / (defence.noise / len(sites)) ** 2
        # Noise as good as Gaussian: the mean square of n residuals is chi2(n) / n; false alarm 1e-6. Rounding adds at most 1 %.
        low, high = (chi2.ppf(q, residual.size) / residual.size for q in (5e-7, 1 - 5e-7))
        assert residual.size > 5_000
        assert low < ratio < high * 1.01
        stage.privacy._noise = None
    held = stage.hold(1, weights, batches, 99)
    exact = flat(held.seen(who).of("site_2").update)
    # Each site's coordinate is rounded to the grid; a published model also to its own float32.
    np.testing.assert_allclose(exact, wanted, rtol=1e-3, atol=1.01 * grid(held) + (2e-7 if vantage == "public" else 1e-9))
    assert np.linalg.norm(exact - wanted) < 0.2 * np.linalg.norm(wanted), "else all is within rounding"
