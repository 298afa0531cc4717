"""One local step of FedAvg and of Per-FedAvg on a ResNet-9 of 2.4 million parameters, batches of 64 colour images of 28 x 28.

``python benchmarks/personalization_steps.py first`` makes three steps of a method and prints the process's peak resident size in MiB:
before the first step, and after the last.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peak import peak
from torch import nn

from pppml_core.config.run_config import TrainingSection
from pppml_core.interfaces.personalization import Personalization
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.training import LocalTraining, TensorCache
from pppml_core.randomness import Seeds
from pppml_core.registry import Registry

#: Component and settings.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("fedavg", {}),
    **{order: ("per-fedavg", {"inner_lr": 0.01, "order": order}) for order in ("first", "hessian-free", "exact")},
}
BATCH, CLASSES = 64, 8


def block(channels: int, out: int, pool: bool = False) -> nn.Sequential:
    """Convolution, GroupNorm of 32 groups, ReLU, perhaps max-pooling."""
    layers = [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.GroupNorm(32, out), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Sequential):
    """Two blocks and a skip."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(batch, channels, height, width)``, unchanged in shape."""
        return x + super().forward(x)


def resnet9() -> nn.Sequential:
    """ResNet-9 as in Klause et al. 2022 (arXiv:2203.00324), without ScaleNorm: 2,445,896 parameters."""
    torch.manual_seed(0)
    first = [block(3, 64), block(64, 128, pool=True), Residual(block(128, 128), block(128, 128))]
    second = [block(128, 256, pool=True), block(256, 256, pool=True), Residual(block(256, 256), block(256, 256))]
    return nn.Sequential(*first, *second, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(1024, CLASSES))


def step_of(name: str) -> Callable[[], None]:
    """One local step of a method through the core's own training, ready to be called again and again."""
    use, settings = METHODS[name]
    component = Registry.discover().get("personalization", use)
    rule: Personalization = component.load()(component.config(**settings))
    training = TrainingSection(steps=1, batch_size=BATCH, device="cpu")
    model, gradients = resnet9(), plain_gradients(nn.functional.cross_entropy)
    count = 3 * BATCH
    images = np.random.default_rng(0).normal(size=(count, 3, 28, 28)).astype(np.float32)
    examples = ArrayExamples(images, np.arange(count) % CLASSES, np.arange(count), to_image=np.asarray)
    cache = TensorCache(examples, torch.float32, torch.device("cpu"))

    def step() -> None:
        data = LocalTraining(examples, training, Seeds(0), site="a", round=1, rounds=1, cache=cache)
        rule.local_update(model, data, gradients, {})

    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    step = step_of(parser.parse_args().method)
    before = peak()
    for _ in range(3):
        step()
    print(before, peak())
