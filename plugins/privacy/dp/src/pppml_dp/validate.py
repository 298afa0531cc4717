"""What in a network breaks per-example gradients, so that no clip bounds one example's influence; each with its remedy.

DP-SGD bounds what one example adds to a sum. That needs networks in which an example's output depends on no other example, which learn
through their trained parameters alone, and in which every parameter is shared once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

_CARRIES = "it keeps statistics of the images it has seen, which are shared with the weights and which no clip bounds and no noise hides"


def problems(model: torch.nn.Module) -> list[str]:
    """Every layer or parameter for which per-example clipping would bound nothing: where, why, and what to use instead.

    An empty list: none was found. Read off the structure; no data is needed and nothing is changed.
    """
    out = [text for name, module in model.named_modules() if (text := _layer(name, module)) is not None]
    out += _tied(model)
    if not any(p.requires_grad for p in model.parameters()):
        out.append("the network: no parameter is trained, so there is no gradient to clip; unfreeze the layers to be trained")
    return out


def _layer(name: str, module: nn.Module) -> str | None:
    where = f"layer `{name}` ({type(module).__name__})" if name else f"the network itself ({type(module).__name__})"
    if isinstance(module, _InstanceNorm):
        return f"{where}: {_CARRIES}; use track_running_stats=False" if module.track_running_stats else None
    if isinstance(module, _BatchNorm):
        why = "its output for one image depends on the other images of the batch, so no clip bounds one image's influence"
        return f"{where}: {why}; use {_group_norm(module.num_features)}"
    if any(isinstance(m, SpectralNorm | _SpectralNorm) for m in _computes_weight(module)):
        why = "spectral norm updates its vectors in every forward pass, which no clip bounds"
        return f"{where}: {why}; leave it out: clipping limits the updates"
    running = [n for n, b in module.named_buffers(recurse=False) if n.startswith(("running_", "moving_")) and b is not None]
    if running:
        return f"{where}: {_CARRIES} (buffer {running[0]}); use a layer without running statistics, such as GroupNorm"
    return None


def _computes_weight(module: nn.Module) -> Iterator[object]:
    """What computes a module's weights from other parameters, in either of torch's ways."""
    yield from module._forward_pre_hooks.values()
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        yield from module.parametrizations.modules()


def _group_norm(channels: int) -> str:
    if channels == 0:  # a lazy layer that has seen no image yet
        return "GroupNorm(min(32, channels), channels)"
    return f"GroupNorm({math.gcd(32, channels)}, {channels})"


def _tied(model: nn.Module) -> list[str]:
    """Parameters that share memory: each name is clipped once but travels on its own, so the update would be larger than its clip."""
    names: dict[tuple[torch.device, int], list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if not isinstance(p, nn.parameter.UninitializedParameter) and p.numel():
            names.setdefault((p.device, p.data_ptr()), []).append(name)
    return [
        f"parameter `{first}` is also {' and '.join(f'`{n}`' for n in others)}: it travels under each name, so the clip would not bound the"
        " update; give each layer parameters of its own"
        for first, *others in names.values()
        if others
    ]
