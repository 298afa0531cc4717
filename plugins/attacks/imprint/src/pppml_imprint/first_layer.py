"""Finds a network's linear layer on the whole image, and whether it can be planted, by watching one image go through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class FirstLayer:
    """A linear layer whose input is the flattened image.

    Args:
        weight: name of its weights, ``(rows, pixels)``.
        bias: of its bias, ``(rows,)``.
        after: weight and bias (None: it has none) of the linear layer that takes its outputs through a ReLU, and nothing else. None:
            another layer follows, so that it cannot be planted.
    """

    weight: str
    bias: str
    after: tuple[str, str | None] | None


def first_layer(model: nn.Module, image: torch.Tensor) -> FirstLayer | str:
    """The first layer with parameters that ``image`` (``(1, channels, *size)``) meets, or a sentence: why there is nothing to read.

    The model's buffers may change.
    """
    passed: list[tuple[str, nn.Module, torch.Tensor, torch.Tensor]] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            if given and isinstance(given[0], torch.Tensor) and isinstance(made, torch.Tensor):
                passed.append((name, module, given[0].detach(), made.detach()))

        return hook

    own = {n: m for n, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None}
    hooks = [m.register_forward_hook(watch(n)) for n, m in own.items()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for one in hooks:
            one.remove()
    if not passed:
        return "the network has no layer with parameters"
    name, layer, given, made = passed[0]
    if not isinstance(layer, nn.Linear) or given.shape != image.flatten(1).shape or not torch.equal(given, image.flatten(1)):
        return f"the network's first layer ({type(layer).__name__}) is not linear on the whole image, so no row of its update is an image"
    if layer.bias is None:
        return f"the network's first layer ({name}) has no bias, and without its update the rows have no scale"
    return FirstLayer(_full(name, "weight"), _full(name, "bias"), _after(passed, made))


def _after(passed: list[tuple[str, nn.Module, torch.Tensor, torch.Tensor]], made: torch.Tensor) -> tuple[str, str | None] | None:
    if len(passed) < 2:
        return None
    name, layer, given, _ = passed[1]
    # Outputs below zero are what tells a ReLU from a function that is the identity above zero.
    if not isinstance(layer, nn.Linear) or given.shape != made.shape or not torch.equal(given, torch.relu(made)):
        return None
    return _full(name, "weight"), None if layer.bias is None else _full(name, "bias")


def _full(name: str, own: str) -> str:
    return f"{name}.{own}" if name else own


def missing(layer: FirstLayer, update: Mapping[str, Any]) -> str:
    """Which of its tensors is not shared, as a sentence; empty: none."""
    lacking = [name for name in (layer.weight, layer.bias) if name not in update]
    return f"{lacking[0]} does not leave the sites, so there is nothing to read it out of" if lacking else ""
