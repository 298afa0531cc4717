"""The only place where torch tensors and numpy arrays meet, and where a model's state is taken apart and put together.

A model's state has three parts: floating parameters, floating buffers (BatchNorm statistics), and the rest (integer counters). The
first two may be shared, by the personalization's choice; the rest never leaves a site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.values import Layout, TensorSpec

Arrays = Mapping[str, npt.NDArray[Any]]


def to_numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[Any]]:
    """CPU arrays of tensors; bfloat16 becomes float32 (numpy has no bfloat16)."""
    return {n: (t.float() if t.dtype == torch.bfloat16 else t).detach().cpu().contiguous().numpy() for n, t in tensors.items()}


def to_torch(arrays: Arrays) -> dict[str, torch.Tensor]:
    """CPU tensors with memory of their own."""
    return {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}


def parameters_and_buffers(
    model: torch.nn.Module, shared: Callable[[str, torch.nn.Module], bool], *, share_buffers: bool
) -> tuple[TensorSpec, ...]:
    """What of a model's state is shared: trained parameters first, then floating buffers, each in the state's order.

    A frozen parameter (``requires_grad`` False) is the same everywhere and stays so: it does not travel.
    """
    # A tensor with several names is a parameter under each of them, and travels under each: a name left behind would hold its old value.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = model.state_dict()
    first = [
        TensorSpec(n, tuple(t.shape))
        for n, t in state.items()
        if n in parameters and parameters[n].requires_grad and t.is_floating_point() and shared(n, model)
    ]
    second = [
        TensorSpec(n, tuple(t.shape), "buffer")
        for n, t in state.items()
        if share_buffers and n not in parameters and t.is_floating_point() and shared(n, model)
    ]
    return tuple(first + second)


def shared_state(model: torch.nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    """Copies of the shared part of a model's state, on the CPU."""
    state = model.state_dict()
    return {t.name: state[t.name].detach().cpu().clone() for t in layout.tensors if t.role in ("parameter", "buffer")}


def personal_state(model: torch.nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    """Copies of everything that is not shared, on the CPU."""
    names = {t.name for t in layout.tensors}
    return {n: t.detach().cpu().clone() for n, t in model.state_dict().items() if n not in names}


def load_state(model: torch.nn.Module, *parts: Mapping[str, torch.Tensor]) -> None:
    """Put shared and personal parts into a model in place; what no part names keeps its value."""
    state = model.state_dict()
    with torch.no_grad():
        for part in parts:
            for name, tensor in part.items():
                state[name].copy_(tensor)


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the whole state on the model's device."""
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def difference(model: torch.nn.Module, start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating state now minus a snapshot, on the CPU."""
    return {n: (t.detach() - start[n]).cpu() for n, t in model.state_dict().items() if t.is_floating_point()}


def clamp_variances(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Running variances no lower than zero: a mean of variances cannot be negative, only its rounding error can."""
    out = dict(tensors)
    for name in names:
        if name.endswith("running_var"):
            out[name] = tensors[name].clamp_min(0.0)
    return out


def sha256_of_state(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 over names, dtypes, shapes and bytes, sorted by name: equal exactly when the models are equal bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = to_numpy({name: tensors[name]})[name]
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
