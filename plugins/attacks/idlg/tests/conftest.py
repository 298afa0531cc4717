"""Small networks, smooth pictures and what an adversary sees of one update, made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from pppml_core.interfaces.attack import AdversaryView, Budget, Defence, Images, Knowledge, Seen, Sight, Training, Vantage
from pppml_core.interfaces.task import TaskSpec
from pppml_core.learning.forward import expected_update

torch.set_num_threads(1)
#: generous: in tests steps decide, not seconds.
AMPLE = Budget(600.0)


def lenet(channels: int, side: int, classes: int, activation=nn.Sigmoid) -> nn.Module:
    """The network of Zhao, Mopuri and Bilen 2020: three convolutions of 5 x 5, 12 channels, strides 2, 2, 1; a linear head."""
    last = -(-side // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 12, 5, padding=2, stride=2), activation(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2), activation(),
        nn.Conv2d(12, 12, 5, padding=2), activation(),
        nn.Flatten(), nn.Linear(12 * last * last, classes),
    )  # fmt: skip


def small(channels: int, side: int, classes: int, activation=nn.Sigmoid) -> nn.Module:
    """One convolution of 3 x 3 and a linear head."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, stride=2), activation(), nn.Flatten(), nn.Linear(6 * (side // 2) ** 2, classes)
    )


def uniform(network: nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Every weight and bias from U(-0.5, 0.5), as in the authors' code."""
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.rand(p.shape, generator=generator) - 0.5).numpy() for n, p in network.named_parameters()}


def picture(seed: int, channels: int = 1, side: int = 28) -> np.ndarray:
    """A sum of six soft spots, ``(1, channels, side, side)`` in [0, 1]."""
    generator, axis, out = np.random.default_rng(seed), np.linspace(0, 1, side), np.zeros((channels, side, side))
    for _ in range(6):
        (row, column), width, height = generator.random(2), generator.uniform(0.05, 0.2), generator.uniform(0.3, 1, channels)
        out += height[:, None, None] * np.exp(-((axis[:, None] - row) ** 2 + (axis[None] - column) ** 2) / (2 * width**2))
    return (out / out.max())[None].astype(np.float32)


def world(
    images,
    targets,
    *,
    classes=10,
    make=lenet,
    weights=None,
    seed=0,
    sites=1,
    training=None,
    defence=None,
    adaptive=True,
    public=0,
    noise_seed=0,
):
    """View and knowledge of a sum over ``sites`` sites that divide the images among them; the watched one is the first."""
    channels, side = images.shape[1], images.shape[2]
    training, defence = training or Training(0.1), defence or Defence()
    shared = weights if weights is not None else uniform(make(channels, side, classes), seed)
    others = [picture(1000 + i, channels, side) for i in range(public)]
    ctx = Knowledge(
        site="site_0",
        spec=TaskSpec("classification", channels, (side, side), tuple(f"c{i}" for i in range(classes)), "x", "accuracy", {}),
        network=lambda: make(channels, side, classes),
        loss=nn.functional.cross_entropy,
        training=training,
        defence=defence,
        low=np.zeros((channels, 1, 1), np.float32),
        high=np.ones((channels, 1, 1), np.float32),
        public=Images(np.concatenate(others) if others else np.zeros((0, *images.shape[1:]), np.float32), np.arange(public) % classes),
        seed=seed,
        adaptive=adaptive,
    )
    names = tuple(f"site_{i}" for i in range(sites))
    model = ctx.model(Seen(1, shared, {}, names, ()))
    each, generator = len(images) // sites, np.random.default_rng(noise_seed)
    mean: dict[str, np.ndarray] = {}
    for site in range(sites):
        part = slice(site * each, (site + 1) * each)
        own = expected_update(model, ctx.loss, torch.from_numpy(images[part]), torch.from_numpy(targets[part]), training, defence)
        mean = {n: mean.get(n, 0.0) + t.detach().numpy() / sites for n, t in own.items()}
    update = {n: (m + defence.noise / sites * generator.standard_normal(m.shape)).astype(np.float32) for n, m in mean.items()}
    sight = Sight(names, update, float(sites))
    return AdversaryView(Vantage("server", server=True), (Seen(1, shared, {}, names, (sight,)),)), ctx


def psnr(guess, truth) -> float:
    """In decibel, of pictures in [0, 1]; what is no number counts as mid-grey."""
    return float(-10 * np.log10(np.mean((np.clip(np.nan_to_num(guess, nan=0.5), 0, 1) - truth) ** 2) + 1e-12))


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    return SimpleNamespace(
        AMPLE=AMPLE, lenet=lenet, small=small, uniform=uniform, picture=picture, world=world, psnr=psnr, Training=Training, Defence=Defence
    )
