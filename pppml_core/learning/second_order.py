"""A forward pass whose gradient is cheap to differentiate again: what makes Hessian-vector products affordable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pppml_core.learning.convolutions import CONVOLUTIONS
from pppml_core.learning.group_norm import group_norm


class CheapSecondDerivatives(TorchFunctionMode):
    """Inside the block, convolutions and group normalizations are made by operations with second derivatives of their own.

    For gradients that are taken with ``create_graph`` and of which only the derivative is used: values of those by the weights of
    convolutions are left out.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls with unusual arguments, and all other functions, are torch's own."""
        own = _OWN.get(func)
        made = own(*args, **(kwargs or {})) if own else None
        return func(*args, **(kwargs or {})) if made is None else made


_OWN: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    **CONVOLUTIONS,
    torch.nn.functional.group_norm: group_norm,
    torch.group_norm: group_norm,
}
