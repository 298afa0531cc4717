"""``imprint-front``: a network whose first layer is linear on the whole image (Fowl et al. 2022, section 3).

::

    flat    (batch, channels, *size) -> (batch, pixels)
    front   Linear(pixels, rows), ReLU
    back    Linear(rows, pixels), as an image; plus the image itself, with ``skip``
    inner   any network for the task

Trained honestly it is an ordinary network. It is here as what has to be in the agreed architecture for an imprint to work.
"""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from pppml_core.errors import ConfigError, PppmlError
from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_core.registry import Registry
from pppml_imprint.config import ImprintFrontConfig


class ImprintFront(nn.Module):
    """Input ``(batch, channels, *size)``, output that of ``inner``."""

    def __init__(self, shape: tuple[int, ...], rows: int, inner: nn.Module, *, skip: bool) -> None:
        super().__init__()
        self.shape, self.skip = shape, skip
        self.front = nn.Linear(prod(shape), rows)
        self.back = nn.Linear(rows, prod(shape))
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        mapped = self.back(torch.relu(self.front(images.flatten(1)))).reshape(images.shape)
        logits: torch.Tensor = self.inner(images + mapped if self.skip else mapped)
        return logits


class ImprintFrontModel(ModelFactory):
    """``{use: imprint-front, rows: 256, of: small-cnn, args: {groups: 4}}``."""

    config: ImprintFrontConfig

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Those of the other network."""
        try:
            if self.config.of is not None:
                return self._another().misfits(spec)
        except PppmlError as error:
            return [str(error)]
        if len(spec.size) not in (2, 3):
            return [f"model: imprint-front serves 2-D and 3-D images; the task's size is {spec.size}"]
        return []

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network. Raises ConfigError where the other one cannot be built."""
        inner = small_network(spec) if self.config.of is None else self._another().build(spec)
        return ImprintFront((spec.channels, *spec.size), self.config.rows, inner, skip=self.config.skip)

    def _another(self) -> ModelFactory:
        name, place = str(self.config.of), "model.of"
        if name == "imprint-front":
            raise ConfigError("imprint-front stands before another network, not before itself", place=place, hint="name that network")
        found: ModelFactory = Registry.discover().named("model", name, self.config.args, place)
        return found


def small_network(spec: TaskSpec) -> nn.Sequential:
    """Two 3 x 3 convolutions and a head, for 2-D and 3-D images, classification and segmentation."""
    flat = len(spec.size) == 2
    conv: type[nn.Module] = nn.Conv2d if flat else nn.Conv3d
    body = [conv(spec.channels, 8, 3, padding=1), nn.ReLU(), conv(8, 16, 3, padding=1), nn.ReLU()]
    if spec.kind == "segmentation":
        return nn.Sequential(*body, conv(16, len(spec.classes), 1))
    pool = nn.AdaptiveAvgPool2d(4) if flat else nn.AdaptiveAvgPool3d(4)
    return nn.Sequential(*body, pool, nn.Flatten(), nn.Linear(16 * 4 ** len(spec.size), len(spec.classes)))
