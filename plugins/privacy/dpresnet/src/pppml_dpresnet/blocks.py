"""What both residual networks are made of. Every layer is a module, none works in place: hooks and ``torch.func`` see each output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Residual(nn.Module):
    """``x + submodule(x)``."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Input and output ``(batch, channels, height, width)``, both of the same shape."""
        added: torch.Tensor = x + self.submodule(x)
        return added


def conv_norm(channels: int, width: int, groups: int, *, stride: int = 1) -> list[nn.Module]:
    """A 3 x 3 convolution without bias (the normalization has one) and group normalization."""
    return [nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(groups, width)]


def conv_norm_act(channels: int, width: int, groups: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """The same, and an activation."""
    return [*conv_norm(channels, width, groups), activation()]
