"""Rows of a batch against the same rows alone: in the batch an image must have the output and the gradient norm that it has by itself.

The test with NaN (:func:`.book_keeping.examine`) sees a network's structure. This one sees its numbers, on the images that are trained on
and at the size of the real batch: on first use, when a batch is larger than any before, and now and then.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from pppml_core.learning.gradients import LossFunction
from pppml_dp.book_keeping import Unfit, keep_books
from pppml_dp.loop import alone, safe_norm

#: relative difference that rounding may make; where it is exceeded, float64 decides.
TOLERANCE = {torch.float64: 1e-7}
COARSE = 1e-3
#: a gradient norm below this part of the clip is compared as if it were as large: confident examples have norms that are mostly rounding.
SMALL = 1e-2
#: images beside those that are compared are also made so many times larger, so that little of them is seen.
LOUD = 100.0


def compare(
    model: nn.Module,
    loss: LossFunction,
    images: torch.Tensor,
    targets: torch.Tensor,
    rows: Sequence[int],
    clip: float,
    *,
    loud: bool = False,
) -> None:
    """Raises :class:`Unfit` where one of these rows is another one in the batch than alone; dropout is off meanwhile.

    Args:
        model: a network that can be book-kept, by its structure.
        loss: mean loss of a batch.
        images: the batch, ``(examples, ...)``.
        targets: of the batch.
        rows: positions in the batch.
        clip: clipping norm.
        loud: also beside images that are ``LOUD`` times larger.

    """
    if len(images) < 2 or not rows:
        return
    batches = [images]
    if loud and images.is_floating_point():
        others = torch.ones(len(images), dtype=torch.bool)
        others[list(rows)] = False
        batches.append(torch.where(others.to(images.device).reshape(-1, *[1] * (images.ndim - 1)), LOUD * images, images))
    with _without_dropout(model):
        args = batches, targets, rows, clip
        if _difference(model, loss, *args) and (why := _exact(model, loss, *args)):
            raise Unfit(f"its {why} in a batch is not that of the image alone: it mixes images, or draws random numbers besides dropout")


def _exact(
    model: nn.Module, loss: LossFunction, batches: Sequence[torch.Tensor], targets: torch.Tensor, rows: Sequence[int], clip: float
) -> str | None:
    """The same in float64, where rounding is out of the question. What cannot be computed so is not the same."""
    dtype = next(model.parameters()).dtype
    batches = [images.double() if images.is_floating_point() else images for images in batches]
    try:
        return _difference(copy.deepcopy(model).double(), lambda o, t: loss(o.to(dtype), t), batches, targets, rows, clip)
    except (Unfit, RuntimeError, TypeError, ValueError) as why:
        first = str(why).partition("\n")[0]
        return f"output or gradient for an image, as far as can be told ({first}),"


def _difference(
    model: nn.Module, loss: LossFunction, batches: Sequence[torch.Tensor], targets: torch.Tensor, rows: Sequence[int], clip: float
) -> str | None:
    """What of the rows, which are the same in all batches, differs, in words."""
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, COARSE)
    kept = [keep_books(model, loss, images, targets) for images in batches]
    for row in rows:
        output, gradients = alone(model, loss, batches[0][row : row + 1], targets[row : row + 1])
        own_gradients = [g for g in gradients if g is not None]
        if not all(bool(t.isfinite().all()) for t in (output, *own_gradients)):
            continue  # it is never book-kept
        norm = math.hypot(*map(safe_norm, own_gradients))
        for together in kept:
            own = together.outputs[row : row + 1]
            differs = not bool(own.isfinite().all()) or safe_norm((own - output).double()) > tolerance * max(
                safe_norm(output.double()), 1e-6
            )
            if differs:
                return "output for an image"
            square, slack = float(together.squares[row].sum()), math.sqrt(float(together.slack[row].sum()))
            # A square that overflows is no norm: such an example is computed alone.
            if math.isfinite(square) and abs(math.sqrt(square) - norm) > slack + COARSE * max(norm, SMALL * clip):
                return "gradient for an image"
    return None


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    dropping = [m for m in model.modules() if isinstance(m, _DropoutNd) and m.training]
    for module in dropping:
        module.training = False
    try:
        yield
    finally:
        for module in dropping:
            module.training = True
