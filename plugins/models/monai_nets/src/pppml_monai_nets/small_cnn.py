"""A small convolutional network with group normalization and no in-place operation: fit for per-example gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_monai_nets.config import SmallCNNConfig
from pppml_monai_nets.norms import groups_for
from pppml_monai_nets.probe import kind_misfits


class SmallCNN(nn.Module):
    """conv - pool - conv - pool - conv - conv - mean over the image - linear; each convolution 3 x 3, then GroupNorm and ReLU."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, int, int], groups: int) -> None:
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(
            _layer(channels, first, groups),
            nn.MaxPool2d(2),
            _layer(first, second, groups),
            nn.MaxPool2d(2),
            _layer(second, third, groups),
            _layer(third, third, groups),
        )
        self.head = nn.Linear(third, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        return self.head(self.features(images).mean(dim=(2, 3)))


def _layer(channels: int, width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(groups_for(width, groups), width), nn.ReLU(inplace=False)
    )


class SmallCNNModel(ModelFactory):
    """2-D classification."""

    config: SmallCNNConfig

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Wrong kind of task, volumes, images below 8 px."""
        out = kind_misfits("small-cnn", "classification", spec)
        if len(spec.size) != 2:
            out.append(f"model: small-cnn is a 2-D network; the task has {len(spec.size)}-D images of size {spec.size}: use densenet")
        elif min(spec.size) < 8:
            out.append(f"model: small-cnn needs images of at least 8 px; the task's size is {spec.size}")
        return out

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network."""
        return SmallCNN(spec.channels, len(spec.classes), self.config.channels, self.config.groups)

    def definition(self, spec: TaskSpec) -> dict[str, Any]:
        """The same layers under the same names for torch alone; the mean over the image is a pooling to one pixel."""
        first, second, third = self.config.channels

        def layer(channels: int, width: int) -> str:
            groups = groups_for(width, self.config.groups)
            convolution = f"torch.nn.Conv2d({channels}, {width}, 3, padding=1, bias=False)"
            return f"$torch.nn.Sequential({convolution}, torch.nn.GroupNorm({groups}, {width}), torch.nn.ReLU())"

        pool = {"_target_": "torch.nn.MaxPool2d", "kernel_size": 2}
        return {
            "features": [layer(spec.channels, first), pool, layer(first, second), pool, layer(second, third), layer(third, third)],
            "head": {"_target_": "torch.nn.Linear", "in_features": third, "out_features": len(spec.classes)},
            "network_def": "$torch.nn.Sequential(collections.OrderedDict(features=torch.nn.Sequential(*@features), "
            "mean=torch.nn.AdaptiveAvgPool2d(1), flat=torch.nn.Flatten(), head=@head))",
        }
