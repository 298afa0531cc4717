"""Noise images with arbitrary labels: a network that knows them learnt them by heart, and nothing else tells members from others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import AdversaryView, Images, Seen, Sight, Training, Vantage
from pppml_core.testing.attacked import Attacked, joined, one_thread, some  # noqa: F401

EACH = 40


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(128, 3))


def noise(generator: np.random.Generator, count: int) -> Images:
    return Images(generator.standard_normal((count, 1, 10, 10)).astype(np.float32), generator.integers(0, 3, count))


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {n: t.detach().numpy().copy() for n, t in model.state_dict().items()}


def learnt(model: torch.nn.Module, images: Images, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(images.images)), torch.from_numpy(images.targets)).backward()
        optimizer.step()


class World:
    """``members`` and as many others, mixed in ``ctx.queries``; ``inside`` says which; weights before and after training on ``trained``."""

    def __init__(self, trained: str = "members", steps: int = 200) -> None:
        generator = np.random.default_rng(5)
        members, others, public, strangers = (noise(generator, n) for n in (EACH, EACH, 120, EACH))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = network()
        self.before = state(model)
        learnt(model, {"members": members, "strangers": strangers}[trained], steps)
        self.after = state(model)
        order = generator.permutation(2 * EACH)
        self.inside = order < EACH
        told = {"queries": some(joined(members, others), *order), "sites": ("a", "b", "c")}
        ctx = Attacked(model, 3).knowledge(public, Training(0.1, 100, EACH, exact=False), **told)
        self.ctx = replace(ctx, site="a", network=network)

    @property
    def update(self) -> dict[str, np.ndarray]:
        return {n: self.after[n] - self.before[n] for n in self.before}

    def seen(self, **changes) -> Seen:
        """The published models alone, of a round of three sites."""
        return replace(Seen(2, self.before, self.after, ("a", "b", "c"), ()), **changes)

    def sight(self, *sites: str) -> Sight:
        return Sight(sites, self.update, float(len(sites)))


def view(seen: Seen) -> AdversaryView:
    return AdversaryView(Vantage("public", public=True), (seen,))


@pytest.fixture(scope="session")
def world():
    """The class, and what makes a view."""
    return World


@pytest.fixture(scope="session")
def looking():
    return view


@pytest.fixture(scope="session")
def memorized() -> World:
    return World()


@pytest.fixture(scope="session")
def strange() -> World:
    """Trained, but on none of the queries."""
    return World("strangers")
