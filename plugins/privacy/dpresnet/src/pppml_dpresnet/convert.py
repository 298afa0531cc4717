"""Batch normalization into group normalization, for networks that were not made for differential privacy.

Batch normalization makes the output of one image depend on the others of its batch, so the gradient of one example does not exist; its
running statistics leave the site without noise. Group normalization (Wu and He 2018, arXiv:1803.08494) does neither. What works in place
overwrites what hooks and ``torch.func`` have to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def group_norm(network: nn.Module, groups: int = 32, changes: list[str] | None = None) -> nn.Module:
    """``network`` with GroupNorm in place of every BatchNorm (1-D to 3-D, synchronized too), and no module that works in place.

    The network is changed, and returned; where it is a BatchNorm itself, the new layer is. Names, affine weights and biases stay, running
    statistics go. ``changes`` gets a line for each layer changed. What a forward function does in place by itself (``x += y``) stays.

    Args:
        network: on any device, of any dtype.
        groups: most groups; a layer takes the largest common divisor with its channels, but at least two channels a group.
        changes: filled.

    Raises ValueError for a lazy BatchNorm, whose channels are not known yet.

    """
    said = [] if changes is None else changes

    def grouped(name: str, module: nn.Module) -> nn.Module | None:
        kind, where = type(module).__name__, name or "the network"
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
            said.append(f"{where}: {kind} no longer works in place")
        if not isinstance(module, _BatchNorm):
            return None
        new = _like(module, groups)
        said.append(
            f"{name or 'the network'}: {type(module).__name__} is now GroupNorm, {new.num_groups} groups over {new.num_channels} channels"
        )
        return new

    return replaced(network, grouped)


def groups_for(channels: int, groups: int = 32) -> int:
    """The largest common divisor, but at least two channels a group: one alone, on a map of one pixel, would always be normalized to 0.

    >>> groups_for(128), groups_for(92), groups_for(16), groups_for(1)
    (32, 4, 8, 1)
    """
    found = math.gcd(channels, groups)
    if found == channels:
        return next(found // divisor for divisor in range(2, found + 1) if found % divisor == 0) if found > 1 else 1
    return found


def _like(old: _BatchNorm, groups: int) -> nn.GroupNorm:
    if isinstance(old.weight, nn.UninitializedParameter) or old.num_features == 0:
        raise ValueError(f"{type(old).__name__} does not know its channels yet: feed the network one image first")
    new = nn.GroupNorm(groups_for(old.num_features, groups), old.num_features, eps=old.eps, affine=old.affine)
    if old.affine:
        new.to(old.weight.device, old.weight.dtype)
        with torch.no_grad():
            new.weight.copy_(old.weight)
            new.bias.copy_(old.bias)
        new.weight.requires_grad_(old.weight.requires_grad)
        new.bias.requires_grad_(old.bias.requires_grad)
    return new.train(old.training)


def replaced(network: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """``network`` with ``make(name, module)`` in place of each module for which it is not None; a module with two names stays one."""
    done: dict[int, nn.Module] = {}

    def walk(name: str, module: nn.Module) -> nn.Module:
        if id(module) not in done:
            done[id(module)] = make(name, module) or module
            if done[id(module)] is module:
                # named_children() leaves out second names of a module.
                for key, child in list(module._modules.items()):
                    if child is not None and (new := walk(f"{name}.{key}".removeprefix("."), child)) is not child:
                        setattr(module, key, new)
        return done[id(module)]

    return walk("", network)
