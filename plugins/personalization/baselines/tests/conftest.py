"""Sites with quadratic losses in float64, whose optima are known in closed form, and small runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pppml_core.api import Experiment
from pppml_core.config.run_config import TrainingSection
from pppml_core.interfaces.personalization import Personalization, StepRule
from pppml_core.learning.arrays import load_state
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.gradients import PlainGradients, plain_gradients
from pppml_core.learning.training import LocalTraining
from pppml_core.randomness import Seeds
from pppml_personalization_baselines.plugin import pppml_personalizations


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """``make(name, **settings)``: a method of the plugin."""
    components = {c.name: c for c in pppml_personalizations()}

    def build(name: str, **settings: Any) -> Any:
        return components[name].load()(components[name].config(**settings))

    return build


class Point(torch.nn.Module):
    """Two parameters; its output is their distance to the batch's centre."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, centre: torch.Tensor) -> torch.Tensor:
        return self.w - centre


@dataclass
class QuadraticSite:
    """``F(w) = 1/2 sum curvature (w - centre)^2`` and plain gradient descent on it. One batch, always the same."""

    centre: list[float]
    curvature: list[float]
    lr: float = 0.1
    steps: int = 1
    examples: int = 1

    def train(
        self,
        model: torch.nn.Module,
        rule: StepRule,
        *,
        parameters: Iterable[torch.nn.Parameter] | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        purpose: str = "train",
    ) -> dict[str, float]:
        batch = torch.tensor(self.centre, dtype=torch.float64), torch.tensor(self.curvature, dtype=torch.float64)
        loss = float("nan")
        for _ in range(steps or epochs or self.steps):
            loss = rule(model, batch)
            with torch.no_grad():
                for p in model.parameters() if parameters is None else parameters:
                    if p.grad is not None:
                        p -= self.lr * p.grad
        return {"loss": loss}


#: centres and curvatures of three sites that disagree.
CENTRES, CURVATURES = [[1.0, -2.0], [4.0, 0.5], [-1.0, 3.0]], [[1.0, 2.0], [3.0, 0.5], [0.5, 1.0]]


class Quadratics:
    """The family, its arrays ``(site, coordinate)``, and a federation of it without network or rounding."""

    c, a = np.array(CENTRES), np.array(CURVATURES)

    @staticmethod
    def gradients() -> PlainGradients:
        return plain_gradients(lambda out, a: 0.5 * (a * out.square()).sum())

    def site(self, number: int, **options: Any) -> QuadraticSite:
        return QuadraticSite(CENTRES[number], CURVATURES[number], **options)

    def federate(self, rule: Personalization, rounds: int, **options: Any) -> tuple[np.ndarray, list[Any]]:
        """The shared weights after the rounds, and the sites' states. The mean is uniform: one example each."""
        model = Point()
        weights: Any = {"w": model.w.detach().clone()}
        states: list[Any] = [rule.init(Point()) for _ in CENTRES]
        server = rule.server_init(weights)
        for _ in range(rounds):
            deltas = []
            for number in range(len(CENTRES)):
                load_state(model, weights)
                update, states[number] = rule.local_update(model, self.site(number, **options), self.gradients(), states[number])
                deltas.append(update.delta["w"])
            weights, server = rule.server_update(weights, {"w": torch.stack(deltas).mean(0)}, server)
        return weights["w"].numpy(), states

    def adapted(self, rule: Personalization, weights: np.ndarray, number: int, state: Any, **options: Any) -> np.ndarray:
        """The model the site uses."""
        model = Point()
        load_state(model, {"w": torch.from_numpy(weights)})
        out: Any = rule.adapt(model, self.site(number, **options), self.gradients(), state)
        return np.array(out.w.detach().numpy())


@pytest.fixture
def quadratics() -> Quadratics:
    return Quadratics()


@pytest.fixture
def point() -> Callable[[np.ndarray], torch.nn.Module]:
    """The network of the quadratics at given weights."""

    def build(weights: np.ndarray) -> torch.nn.Module:
        model = Point()
        load_state(model, {"w": torch.from_numpy(weights)})
        return model

    return build


@pytest.fixture
def training() -> Callable[..., LocalTraining]:
    """The core's own training data: 32 images of noise, batches of 8, SGD."""

    def build(site: str = "a", *, examples: int = 32, lr: float = 0.1, round: int = 1, **settings: Any) -> LocalTraining:
        generator = Seeds(3).generator("images", site)
        images = (0.5 + 2 * generator.standard_normal((examples, 1, 8, 8))).astype(np.float32)
        held = ArrayExamples(images, generator.integers(0, 3, examples), np.arange(examples), to_image=np.asarray)
        section = TrainingSection(**{"device": "cpu", "batch_size": 8, "optimizer": {"use": "sgd", "lr": lr}, **settings})
        return LocalTraining(held, section, Seeds(1), site=site, round=round, rounds=9)

    return build


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    """On the tiny task: two rounds, a network with batch normalization, batches of which none is of one example."""

    def build(personalization: Any, **sections: Any) -> Experiment:
        run = {"rounds": 2, "seed": 5, "transcript": "payloads", **sections.pop("run", {})}
        base = {"task": {"use": "tiny"}, "model": {"use": "tiny-net", "norm": "batch"}, "training": {"batch_size": 7}, "reporters": []}
        return Experiment({**base, "personalization": personalization, "run": run, **sections})

    return build
