"""``sigmoid-lenet``: the network on which gradient matching was published (Zhu et al. 2019; Zhao et al. 2020, in the authors' code).

Three convolutions of 5 x 5 with 12 channels and strides 2, 2, 1, each followed by a sigmoid, and one linear head. No pooling and no
normalization: it is smooth everywhere and keeps what is in the image, which is what makes it the best case for an attacker.
"""

from __future__ import annotations

import torch
from torch import nn

from pppml_core.interfaces.model import ModelFactory
from pppml_core.interfaces.task import TaskSpec
from pppml_idlg.config import SigmoidLenetConfig


class SigmoidLenet(ModelFactory):
    """2-D classification."""

    config: SigmoidLenetConfig

    def misfits(self, spec: TaskSpec) -> list[str]:
        """It serves 2-D images of 8 pixels and more, and classes."""
        if spec.kind != "classification" or len(spec.size) != 2 or min(spec.size) < 8:
            return [f"model: sigmoid-lenet classifies 2-D images of 8 x 8 and more; the task asks for {spec.kind} of {spec.size}"]
        return []

    def build(self, spec: TaskSpec) -> nn.Module:
        """Input ``(batch, channels, *size)``, logits ``(batch, classes)``. Weights and biases are uniform in [-width, width]."""
        c = self.config.channels
        body = [
            nn.Conv2d(spec.channels, c, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(c, c, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(c, c, 5, stride=1, padding=2),
            nn.Sigmoid(),
            nn.Flatten(),
        ]
        # Each of the two strides halves, rounding up.
        height, width = ((s + 3) // 4 for s in spec.size)
        net = nn.Sequential(*body, nn.Linear(c * height * width, len(spec.classes)))
        with torch.no_grad():
            for p in net.parameters():
                p.uniform_(-self.config.width, self.config.width)
        return net
