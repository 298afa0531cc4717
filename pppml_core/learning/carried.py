"""Layers that keep something of the images they see: what a privacy mechanism that clips gradients cannot bound.

A gradient is clipped for each image. A layer that changes itself in a forward pass (running means, caches of activations, weights made from
the first batch) lets one image act on another one's gradient, or on later batches, past every clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pppml_core.randomness import seeded

#: (layer, attribute) -> value.
Held = dict[tuple[str, str], torch.Tensor]


def carrying(model: torch.nn.Module, first: torch.Tensor, second: torch.Tensor) -> list[str]:
    """The layers that two forward passes in training mode change, each with what changed: "layer `norm` (Norm) changes `center`".

    Looked at are parameters, buffers, and tensors, arrays and floats kept as plain attributes or in a list or map that is one. What a layer
    makes only once and alike of both batches (a grid of positions) is no change. The model is afterwards what it was.

    Args:
        model: on its device, in its dtype.
        first: a batch of images for it.
        second: another batch, with other values.

    """
    with _put_back(model), torch.no_grad(), seeded(0):
        before = _held(model)
        model.train()
        with _put_back(model):
            model(first)
            once = _held(model)
        model.train()
        model(second)
        again = _held(model)
    layers = dict(model.named_modules())
    changed: dict[str, list[str]] = {}
    for where in [*once, *(w for w in again if w not in once)]:
        values = [held[where] for held in (before, once, again) if where in held]
        if not all(_same(values[0], v) for v in values[1:]) or (where in once) != (where in again):
            changed.setdefault(where[0], []).append(where[1])
    kinds = {
        name: f"layer `{name}` ({type(layers[name]).__name__})" if name else f"the network itself ({type(model).__name__})"
        for name in changed
    }
    return [f"{kinds[name]} changes {', '.join(f'`{n}`' for n in names)}" for name, names in changed.items()]


def _held(model: torch.nn.Module) -> Held:
    return {(name, n): v.detach().clone() for name, module in model.named_modules() for n, v in _of_layer(module)}


def _of_layer(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every number that a layer keeps itself, its submodules left out."""
    for name, value in vars(module).items():
        if name == "_modules" or name.endswith(("_hooks", "_hooks_with_kwargs")):
            continue
        several = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else [("", value)]
        for key, one in several:
            if (tensor := _number(one)) is not None:
                yield str(key) if name in ("_buffers", "_parameters") else f"{name}[{key}]" if key != "" else name, tensor


def _number(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return None if torch.nn.parameter.is_lazy(value) else value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def _put_back(model: torch.nn.Module) -> Iterator[None]:
    """Attributes of all layers, and the numbers in their tensors, are afterwards what they were."""
    modules = list(model.modules())
    attributes = [{n: _copied(v) for n, v in vars(module).items()} for module in modules]
    tensors = [(t, t.detach().clone()) for module in modules for _, t in _of_layer(module)]
    try:
        yield
    finally:
        for module, kept in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(kept)
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)


def _copied(value: Any) -> Any:
    """A list or map of its own, of the same things."""
    return value.copy() if type(value) in (list, dict) else value
