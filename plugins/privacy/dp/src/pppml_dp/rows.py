"""Arithmetic with one row per example: norms that do not overflow in float32, and weighted sums that leave examples out."""

from __future__ import annotations

import torch

#: rows of at least so many numbers are taken one after another on a CPU, where each then stays in the cache.
LONG = 2**13


def squared_norms(rows: torch.Tensor) -> torch.Tensor:
    """Of each row's numbers, float64 ``(rows,)``; infinite or NaN where one of them is, or where a float64 square overflows."""
    flat = rows.flatten(1)
    if flat.device.type == "cpu" and flat.shape[1] >= LONG and len(flat):
        return torch.stack([torch.dot(row, row) for row in (one.double() for one in flat)])
    found: torch.Tensor = flat.double().square().sum(1)
    return found


def good_rows(rows: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
    """The rows that are ``good``, bool ``(n,)`` on the CPU; no copy where all are."""
    kept: torch.Tensor = rows if bool(good.all()) else rows[good.to(rows.device)]
    return kept


def add_weighted(total: torch.Tensor, rows: torch.Tensor, factors: torch.Tensor, good: torch.Tensor) -> None:
    """Add ``factors`` times ``rows`` to ``total`` in place, without the rows that are not ``good``: zero times NaN is NaN.

    Args:
        total: any shape.
        rows: ``(n, *shape)``.
        factors: ``(n,)``, on the CPU.
        good: bool ``(n,)``, on the CPU.

    """
    rows, factors = good_rows(rows, good), factors[good]
    if len(rows) == 1:
        total.add_(rows[0], alpha=float(factors[0]))
    elif len(rows):
        total.view(-1).addmv_(rows.flatten(1).T, factors.to(rows))
