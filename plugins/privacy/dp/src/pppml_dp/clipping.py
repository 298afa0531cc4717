"""Clipping factors: how much of each example's gradient enters the sum.

Flat: the whole gradient is scaled to norm ``C`` at most (Abadi et al. 2016, arXiv:1607.00133). Per layer: each module that owns parameters
has the bound ``C / sqrt(L)`` of its own, so that all ``L`` together keep ``C`` (McMahan et al. 2018, arXiv:1710.06963). Automatic: every
gradient is normalized, ``C / (norm + 0.01)``, and the learning rate takes the place of ``C`` (Bu et al. 2022, arXiv:2206.07136).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch

from pppml_core.errors import PppmlError

Kind = Literal["flat", "per-layer", "automatic"]
#: keeps automatic clipping from blowing up gradients that are nearly zero; the authors' value.
STABILITY = 0.01
#: smaller factors lose digits in float32; such examples are computed alone, in float64.
SMALLEST = 1e-30


@dataclass(frozen=True)
class Clipping:
    """How gradients are clipped, and to which L2 norm; finite and above zero."""

    kind: Kind
    norm: float

    def __post_init__(self) -> None:
        if self.kind not in ("flat", "per-layer", "automatic"):
            raise PppmlError(f"there is no clipping {self.kind!r}", place="clipping", hint="flat, per-layer or automatic")
        if not (math.isfinite(self.norm) and self.norm > 0):
            raise PppmlError(f"a clipping norm of {self.norm} bounds nothing", place="clipping", hint="a finite number above 0")

    def factors(self, norms: torch.Tensor, shares: torch.Tensor | None = None) -> torch.Tensor:
        """What each example's gradient is multiplied with, in each layer.

        Args:
            norms: L2 norms of each example's gradient by layer, ``(examples, layers)``, none of them NaN. ``(examples,)``: of
                gradients that are not divided into layers.
            shares: the part of the clip an example may use, ``(examples,)`` in [0, 1]. None: all of it.

        Returns:
            Shape and dtype of ``norms``, values in [0, 1], or [0, 100 C] for automatic clipping; zero where the norm is infinite.

        """
        table = norms if norms.ndim == 2 else norms[:, None]
        if self.kind == "per-layer":
            bound = self.norm / math.sqrt(table.shape[1])
            factors = bound / table.clamp_min(bound)
        else:
            whole = reduce(torch.hypot, table.unbind(1))[:, None].expand_as(table)  # does not overflow
            factors = self.norm / (whole + STABILITY if self.kind == "automatic" else whole.clamp_min(self.norm))
        if shares is not None:
            factors = factors * shares[:, None]
        return factors.reshape(norms.shape)


def layers_of(names: list[str]) -> list[int]:
    """The layer of each parameter, by name: the parameters of one module are one layer. Numbered from 0 in the order given."""
    owners = [name.rpartition(".")[0] for name in names]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    return [numbers[owner] for owner in owners]
