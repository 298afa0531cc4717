"""Labels from the gradient of the last layer: free, without any search (Zhao, Mopuri and Bilen 2020, section 3.1).

Of one image of class c, cross-entropy has the derivative ``p_i - [i = c]`` by output i: negative for the label alone. The gradient of the
last layer's bias is this error itself, that of its weights' row i is the error times the layer's inputs ``a``. Over a batch both are means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import Knowledge

Rule = Literal["row-sum", "bias", "matched-filter"]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """The last linear layer (or convolution of one pixel): its name in the network, and its tensors' names; ``bias`` None: it has none."""

    module: str
    weight: str
    bias: str | None


def head_of(model: torch.nn.Module, classes: int, shared: Mapping[str, Any]) -> Head | None:
    """The last layer in the network's order with one output a class whose weight is among ``shared``; None: there is none.

    Where the last such layer of the network is not shared (a personal head), there is none.
    """
    found = None
    for name, module in model.named_modules():
        linear = isinstance(module, torch.nn.Linear) and module.out_features == classes
        if linear or (_is_pointwise(module) and module.out_channels == classes):
            found = name, module
    if found is None:
        return None
    name, module = found
    prefix = f"{name}." if name else ""
    bias = f"{prefix}bias" if module.bias is not None and f"{prefix}bias" in shared else None
    return Head(name, f"{prefix}weight", bias) if f"{prefix}weight" in shared else None


def _is_pointwise(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d) and set(module.kernel_size) == {1}


@dataclass(frozen=True)
class Expected:
    """What an image of this kind looks like to the network: the mean over public images, at the round's weights.

    Args:
        features: mean input of the last layer, ``(features,)``.
        probabilities: mean probability of each class, ``(classes,)``.
    """

    features: Numbers
    probabilities: Numbers


def features_of(model: torch.nn.Module, head: Head, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the last layer, ``(n, features)``, averaged over places, and the network's outputs; differentiable in the images."""
    kept: list[torch.Tensor] = []
    layer = model.get_submodule(head.module)
    handle = layer.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    # Copies: normalization layers write their running statistics into what they are given.
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    try:
        outputs = torch.func.functional_call(model, buffers, (images,))
    finally:
        handle.remove()
    inputs = kept[-1]
    if inputs.ndim > 2:
        inputs = inputs.flatten(1, -2).mean(1) if isinstance(layer, torch.nn.Linear) else inputs.flatten(2).mean(2)
    return inputs, outputs


def expected_of(model: torch.nn.Module, head: Head, ctx: Knowledge, most: int = 64) -> Expected:
    """From the first ``most`` public images; from a mid-grey image where there are none."""
    dtype = next(model.parameters()).dtype
    images = torch.from_numpy(ctx.public.images[:most]).to(dtype)
    if not len(images):
        grey = torch.from_numpy((ctx.low + ctx.high) / 2).to(dtype)
        images = grey.expand(1, ctx.spec.channels, *ctx.spec.size).contiguous()
    with torch.no_grad():
        features, outputs = features_of(model, head, images)
        probabilities = torch.softmax(outputs.flatten(2).mean(2) if outputs.ndim > 2 else outputs, 1)
    return Expected(features.double().mean(0).numpy(), probabilities.double().mean(0).numpy())


def errors_by(rule: Rule, head: Head, gradient: Mapping[str, npt.NDArray[Any]], expected: Expected) -> Numbers:
    """Mean error ``p - y`` of the batch by class, ``(classes,)``, as one rule estimates it; its signs are what counts.

    ``row-sum``: the sum of each row of the weight's gradient, as in the authors' code. Right where the features' sum is positive.
    ``bias``: the bias's gradient, which is the error. Needs a bias.
    ``matched-filter``: the estimate of least variance under equal noise on every coordinate, if the features are as expected: noise grows
    with the square root of the number of coordinates, the signal with the number.
    """
    rows = np.asarray(gradient[head.weight], np.float64).reshape(len(expected.probabilities), -1)
    a = expected.features
    if rule == "row-sum":
        sums: Numbers = rows.sum(axis=1)
        return sums / max(abs(float(a.sum())), 1e-12)
    if rule == "bias":
        assert head.bias is not None
        return np.asarray(gradient[head.bias], np.float64)
    filtered: Numbers = rows @ a
    energy = float(a @ a)
    if head.bias is not None:
        filtered, energy = filtered + np.asarray(gradient[head.bias], np.float64), energy + 1.0
    return filtered / max(energy, 1e-12)


def labels_of(errors: Numbers, count: int, probabilities: Numbers) -> npt.NDArray[np.int64]:
    """Labels of ``count`` images, the surest first.

    One image: the class of least error. Several: ``count * (p - error)`` is how many there are of each class, up to the mean ``p`` of the
    batch, for which that of public images stands; the largest is taken and reduced by one, ``count`` times.
    """
    if count == 1:
        return np.array([int(errors.argmin())], np.int64)
    left = count * (probabilities - errors)
    out = []
    for _ in range(count):
        best = int(left.argmax())
        out.append(best)
        left[best] -= 1.0
    return np.array(out, np.int64)


def chosen_rule(rule: str, head: Head, clear: bool) -> Rule:
    """The rule that ``auto`` stands for: where the last layer is ``clear`` of noise the bias, which is exact, else row sums; under noise
    the matched filter.
    """
    if rule == "auto":
        return "matched-filter" if not clear else ("bias" if head.bias else "row-sum")
    return "row-sum" if rule == "bias" and head.bias is None else rule  # type: ignore[return-value]
