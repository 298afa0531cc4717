"""Synthetic images, what an adversary knows, and updates made by the forward model of a site."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pppml_core.interfaces.attack import AdversaryView, Defence, Images, Knowledge, Seen, Sight, Training, Vantage
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.forward import expected_update, placed
from pppml_core.learning.losses import default_loss
from pppml_core.learning.metrics import CLASSIFICATION_METRICS, SEGMENTATION_METRICS
from pppml_core.values import FixedPoint, Layout, TensorSpec, automatic_ranges, rms
from pppml_imprint.config import ImprintFrontConfig
from pppml_imprint.front import ImprintFrontModel

SIZE = 16


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def smooth_images(count: int, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """Smooth random images in [0, 1] whose brightness differs: float32 ``(count, 1, size, size)``."""
    field_ = gaussian_filter(rng.normal(size=(count, 1, size, size)), (0, 0, 3, 3))
    images = 0.5 + 0.15 * field_ / field_.std() + 0.1 * rng.normal(size=(count, 1, 1, 1))
    return np.clip(images, 0, 1).astype(np.float32)


@pytest.fixture(scope="session")
def draw():
    """``draw(count, rng)``."""
    return smooth_images


def spec_of(size=(SIZE, SIZE), kind="classification") -> TaskSpec:
    metrics = CLASSIFICATION_METRICS if kind == "classification" else SEGMENTATION_METRICS
    return TaskSpec(kind, 1, tuple(size), ("a", "b", "c"), "imprint-front", next(iter(metrics)), metrics)


@pytest.fixture(scope="session")
def spec():
    """``spec(size=..., kind=...)``."""
    return spec_of


@dataclass
class World:
    """An adversary's knowledge over ``imprint-front`` or ``network``, and sights of sites that made a step."""

    rows: int = 64
    batch: int = 8
    network: object = None
    defence: Defence = field(default_factory=Defence)
    public: int = 400
    seed: int = 0
    adaptive: bool = True

    def __post_init__(self) -> None:
        def front():
            torch.manual_seed(3)
            return ImprintFrontModel(ImprintFrontConfig(rows=self.rows)).build(spec_of())

        unit = np.zeros((1, 1, 1), np.float32)
        images = smooth_images(self.public, np.random.default_rng(10))
        self.ctx = Knowledge(
            "a", spec_of(), self.network or front, lambda out, y: default_loss("classification", out, y), Training(0.1, 1, self.batch),
            self.defence, unit, unit + 1, Images(images, np.zeros(len(images), np.int64)), seed=self.seed, adaptive=self.adaptive,
        )  # fmt: skip

    def weights(self):
        return {n: t.detach().numpy().copy() for n, t in self.ctx.network().state_dict().items()}

    def update(self, weights, images, dtype=torch.float32, defence=None):
        """Of one site, made by the forward model with the defence's clip: name -> array."""
        targets = torch.from_numpy(np.random.default_rng(len(images)).integers(0, 3, len(images)))
        model = placed(self.ctx.network(), weights, dtype)
        made = expected_update(
            model, self.ctx.loss, torch.from_numpy(images).to(dtype), targets, self.ctx.training, defence or self.defence
        )
        return {n: u.detach().numpy() for n, u in made.items()}

    def view(self, weights, update, sites=("a",)):
        sight = Sight(tuple(sites), update, float(len(sites)))
        return AdversaryView(Vantage("server", server=True), (Seen(1, weights, weights, tuple(sites), (sight,)),))


@pytest.fixture(scope="session")
def world():
    """``world(rows=64, ...)``."""
    return World


@pytest.fixture(scope="session")
def fixed_point_mean():
    """``mean(updates, bits, rng)``: the mean of several sites' updates through the run's encoding, and the grid by tensor."""

    def mean(updates, bits, rng):
        exact = {n: np.mean([u[n].astype(np.float64) for u in updates], axis=0) for n in updates[0]}
        layout = Layout(tuple(TensorSpec(n, u.shape) for n, u in exact.items()))
        point = FixedPoint(layout, automatic_ranges(layout, rms(exact, list(exact)), start=1.0, buffer_start={}), bits)
        total = sum(point.encode(layout.flatten(u, np.float64), rng)[0].astype(np.int64) for u in updates)
        decoded = {n: a.astype(np.float32) for n, a in layout.unflatten(point.decode(total) / len(updates)).items()}
        return decoded, {t.name: point.step(i) for i, t in enumerate(layout.tensors)}

    return mean
