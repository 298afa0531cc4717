"""The network of the DPResNet authors (Haj Fares and Saad 2024, arXiv:2412.00687), layer by layer as in their published code.

::

    conv1   conv 3 -> 64, GN, ReLU                                  28 x 28
    conv2   conv 64 -> 128, GN, ReLU                                28 x 28
    res1    [conv 128, GN, ReLU, conv 128, GN] + identity           28 x 28     no activation after the sum
    res2    conv 128 -> 256 stride 2, GN, ReLU, conv 256, GN        14 x 14     no identity, despite the name
    res3    conv 256 -> 512 stride 2, GN, ReLU, conv 512, GN         7 x 7      no identity, despite the name
    pool, flat, head                                                512 -> classes

No max-pooling: two strides and one global mean take its place. 4,802,120 parameters with 3 channels and 8 classes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_dpresnet.blocks import Residual, conv_norm, conv_norm_act
from pppml_dpresnet.config import DPResNet9Config
from pppml_dpresnet.definition import definition
from pppml_dpresnet.fitting import flat_misfits

#: From here on the last map has more than one pixel.
SMALLEST = 8


def dp_resnet9(channels: int, classes: int, groups: int = 32) -> nn.Sequential:
    """Input ``(batch, channels, height, width)``, output logits ``(batch, classes)``; PyTorch's own initial weights."""

    def pair(channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(*conv_norm(channels, width, groups, stride=stride), nn.ReLU(), *conv_norm(width, width, groups))

    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Sequential(*conv_norm_act(channels, 64, groups, nn.ReLU)),
            conv2=nn.Sequential(*conv_norm_act(64, 128, groups, nn.ReLU)),
            res1=Residual(pair(128, 128, 1)),
            res2=pair(128, 256, 2),
            res3=pair(256, 512, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(512, classes),
        )
    )


class DPResNet9Model(ModelFactory):
    """2-D classification."""

    config: DPResNet9Config

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Wrong kind of task, volumes, images below 8 px."""
        return flat_misfits("dp-resnet9", SMALLEST, spec)

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network."""
        return dp_resnet9(spec.channels, len(spec.classes), self.config.groups)

    def definition(self, spec: TaskSpec) -> dict[str, Any]:
        """The same network for torch and MONAI alone."""
        return definition(self.build(spec))
