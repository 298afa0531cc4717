"""What an adversary sees of a network and knows of it, made by hand: for tests of attacks.

Updates come of plain autograd and a loop, not of the forward model with which an attack compares::

    world = Attacked(network, classes=3)
    view = world.sum_of(world.update(batch), world.update(other))            # of two sites, decoded by the server
    attack.run(view, Budget(1e9), world.knowledge(public))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pppml_core.interfaces.attack import AdversaryView, Arrays, Defence, Images, Knowledge, Seen, Sight, Training, Vantage
from pppml_core.interfaces.task import Kind, TaskSpec

#: slugs; the first one is watched.
SITES = tuple(f"site_{i + 1}" for i in range(9))
Updates = dict[str, npt.NDArray[np.float64]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Import it into a conftest: every test has one torch thread, as the process of an attack has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Attacked:
    """A network at its weights; images have one channel.

    Args:
        network: attacked where it is, never copied.
        classes: of the task.
        kind: of the task.
        loss: mean loss of a batch.
    """

    network: torch.nn.Module
    classes: int
    kind: Kind = "classification"
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.nn.functional.cross_entropy

    @property
    def weights(self) -> Updates:
        """Of the trained parameters."""
        return {n: p.detach().numpy().copy() for n, p in self.network.named_parameters()}

    def knowledge(self, public: Images, training: Training | None = None, defence: Defence | None = None, **more: Any) -> Knowledge:
        """Of who watches the first site: one step of rate 0.5 on one image, no defence, unless told; pixels in [0, 1].

        ``more``: of :class:`.Knowledge`.
        """
        spec = TaskSpec(self.kind, 1, public.images.shape[2:], tuple("abcdefghij"[: self.classes]), "any", "accuracy", {})
        low = np.zeros((1, *(1 for _ in spec.size)), np.float32)
        training, defence = training or Training(0.5), defence or Defence()
        return Knowledge(SITES[0], spec, lambda: self.network, self.loss, training, defence, low, low + 1, public, **more)

    def update(self, images: Images, rate: float = 0.5, clip: float | None = None, divisor: float | None = None) -> Updates:
        """Of one step on all images, each example clipped by itself and their sum divided by their number, or by ``divisor``."""
        parameters = dict(self.network.named_parameters())
        total = {n: np.zeros(p.shape) for n, p in parameters.items()}
        for image, target in zip(torch.from_numpy(images.images), torch.from_numpy(images.targets), strict=True):
            self.network.zero_grad()
            self.loss(self.network(image[None]), target[None]).backward()
            made = {n: np.zeros(p.shape) if p.grad is None else p.grad.numpy().astype(np.float64) for n, p in parameters.items()}
            norm = float(np.sqrt(sum(np.square(g).sum() for g in made.values())))
            factor = 1.0 if clip is None else min(1.0, clip / norm)
            total = {n: t + factor * made[n] for n, t in total.items()}
        return {n: -rate * t / (divisor or len(images)) for n, t in total.items()}

    def seen(self, *sums: tuple[Sequence[str], Arrays], round: int = 1) -> Seen:
        """A round in which these sums are decoded: sites, and their mean update. What is in none stays at the sites."""
        sights = tuple(Sight(tuple(sites), {n: u.astype(np.float32) for n, u in mean.items()}, float(len(sites))) for sites, mean in sums)
        cohort = tuple(dict.fromkeys(site for sites, _ in sums for site in sites))
        shared = {n: w for n, w in self.weights.items() if any(n in sight.update for sight in sights)}
        return Seen(round, shared, {}, cohort, sights)

    def view(self, *rounds: Seen) -> AdversaryView:
        """The server's."""
        return AdversaryView(Vantage("server", server=True), rounds)

    def sum_of(self, *updates: Arrays) -> AdversaryView:
        """The server's view of one round of as many sites, whose sum it decodes."""
        return self.view(self.seen((SITES[: len(updates)], mean_of(updates))))


def mean_of(updates: Sequence[Arrays]) -> Updates:
    """Of several sites."""
    return {n: np.mean([u[n] for u in updates], axis=0) for n in updates[0]}


def some(images: Images, *which: int) -> Images:
    """Those at these places, in this order."""
    return Images(images.images[list(which)], images.targets[list(which)])


def joined(*parts: Images) -> Images:
    """All of them, one after another."""
    return Images(np.concatenate([p.images for p in parts]), np.concatenate([p.targets for p in parts]))
