"""Noise images with arbitrary labels: a network that knows them learnt them by heart, and nothing else tells members from others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pppml_core.interfaces.attack import AdversaryView, Defence, Images, Knowledge, Seen, Sight, Training, Vantage
from pppml_core.interfaces.task import TaskSpec

EACH = 40


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        queries = Images(np.concatenate([members.images, others.images])[order], np.concatenate([members.targets, others.targets])[order])
        self.inside = order < EACH
        spec = TaskSpec("classification", 1, (10, 10), ("x", "y", "z"), "any", "accuracy", {})
        low, high = np.full((1, 1, 1), -9, np.float32), np.full((1, 1, 1), 9, np.float32)
        training = Training(0.1, 100, EACH, exact=False)
        loss = torch.nn.functional.cross_entropy
        self.ctx = Knowledge("a", spec, network, loss, training, Defence(), low, high, public, queries=queries, sites=("a", "b", "c"))

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
