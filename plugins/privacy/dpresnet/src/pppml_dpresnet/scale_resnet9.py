"""ResNet-9 with ScaleNorm (Klause, Ziller, Rueckert, Hammernik and Kaissis 2022, arXiv:2203.00324), as in their published code.

::

    conv1         conv 3 -> 64                      28 x 28     conv: 3 x 3 convolution, GN, activation
    conv2         conv 64 -> 128, max-pool          14 x 14
    res1          [conv 128, conv 128] + identity   14 x 14     the activation is inside the branch, before the sum
    scale_norm1   GN
    conv3         conv 128 -> 256, max-pool          7 x 7
    conv4         conv 256 -> 256, max-pool          3 x 3
    res2          [conv 256, conv 256] + identity    3 x 3
    scale_norm2   GN
    pool, flat, head                                1024 -> classes     pool: largest of each quarter

A sum has twice the variance of its terms; ScaleNorm brings it back, which DP-SGD's noise otherwise makes hard to learn. 2,446,664
parameters with 3 channels and 8 classes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_dpresnet.blocks import Residual, conv_norm_act
from pppml_dpresnet.config import ScaleResNet9Config
from pppml_dpresnet.definition import definition
from pppml_dpresnet.fitting import flat_misfits

ACTIVATIONS: dict[str, type[nn.Module]] = {"mish": nn.Mish, "relu": nn.ReLU}
#: Three poolings leave the 2 x 2 pixels that the last one wants.
SMALLEST = 16


def scale_resnet9(
    channels: int, classes: int, groups: int = 32, activation: type[nn.Module] = nn.Mish, *, scale_norm: bool = True
) -> nn.Sequential:
    """Input ``(batch, channels, height, width)``, output logits ``(batch, classes)``; PyTorch's own initial weights."""

    def conv(channels: int, width: int, *after: nn.Module) -> nn.Sequential:
        return nn.Sequential(*conv_norm_act(channels, width, groups, activation), *after)

    layers = OrderedDict[str, nn.Module](
        conv1=conv(channels, 64),
        conv2=conv(64, 128, nn.MaxPool2d(2)),
        res1=Residual(nn.Sequential(conv(128, 128), conv(128, 128))),
        scale_norm1=nn.GroupNorm(groups, 128),
        conv3=conv(128, 256, nn.MaxPool2d(2)),
        conv4=conv(256, 256, nn.MaxPool2d(2)),
        res2=Residual(nn.Sequential(conv(256, 256), conv(256, 256))),
        scale_norm2=nn.GroupNorm(groups, 256),
        pool=nn.AdaptiveMaxPool2d(2),
        flat=nn.Flatten(),
        head=nn.Linear(1024, classes),
    )
    if not scale_norm:
        del layers["scale_norm1"], layers["scale_norm2"]
    return nn.Sequential(layers)


class ScaleResNet9Model(ModelFactory):
    """2-D classification."""

    config: ScaleResNet9Config

    def misfits(self, spec: TaskSpec) -> list[str]:
        """Wrong kind of task, volumes, images below 16 px."""
        return flat_misfits("scale-resnet9", SMALLEST, spec)

    def build(self, spec: TaskSpec) -> nn.Module:
        """The network."""
        config = self.config
        activation = ACTIVATIONS[config.activation]
        return scale_resnet9(spec.channels, len(spec.classes), config.groups, activation, scale_norm=config.scale_norm)

    def definition(self, spec: TaskSpec) -> dict[str, Any]:
        """The same network for torch and MONAI alone."""
        return definition(self.build(spec))
