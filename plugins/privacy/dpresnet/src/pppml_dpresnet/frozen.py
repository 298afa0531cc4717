"""A network as a fixed function of each image: nothing of it is trained, kept as statistics, or sent."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pppml_dpresnet.convert import replaced


class FixedScale(nn.Module):
    """Batch normalization in evaluation mode: ``scale * x + shift`` for each channel, both frozen, shape ``(channels,)``."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("a batch normalization without running statistics mixes the images of a batch even in evaluation")
        scale = torch.rsqrt(norm.running_var + norm.eps) * (norm.weight if norm.affine else 1.0)
        shift = (norm.bias if norm.affine else 0.0) - norm.running_mean * scale
        self.scale = nn.Parameter(scale.detach(), requires_grad=False)
        self.shift = nn.Parameter(shift.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, ...)``."""
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.shift.view(shape), self.scale.view(shape), x)


def frozen(network: nn.Module) -> nn.Module:
    """``network`` in evaluation mode, changed: parameters and floating buffers are frozen parameters, which never travel; batch
    normalization is a :class:`FixedScale`, so that no layer is left that could couple the images of a batch.

    Raises ValueError for a batch normalization without running statistics.
    """
    network = replaced(network, lambda name, module: FixedScale(module) if isinstance(module, _BatchNorm) else None)
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(buffer.detach(), requires_grad=False))
    return network.requires_grad_(False).eval()
