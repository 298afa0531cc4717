"""Clipped sums of per-example gradients, by the fastest method that is right for the network.

``book-keeping`` (:mod:`.book_keeping`) for networks of the usual layers; ``functional`` (:mod:`.functional`), vectorized with
``torch.func``, for others; the ``loop`` (:mod:`.loop`) for the rest. All three are exact and agree to rounding. What is learnt of a network
on first use is remembered; tests on it draw no random numbers that training would draw.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

import torch

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import Batch
from pppml_core.learning.gradients import LossFunction
from pppml_dp.book_keeping import Unfit, add_book_kept, examine, leaves
from pppml_dp.clipping import Clipping
from pppml_dp.functional import add_functional
from pppml_dp.loop import Sums, add_loop, trainable
from pppml_dp.rows_alone import compare
from pppml_dp.untouched import buffers_kept, full_precision, untouched

__all__ = ["Clipping", "clipped_sum", "method_for"]

Method = Literal["auto", "book-keeping", "functional", "loop"]


@dataclass
class _Known:
    """What use has told of a network: methods that failed and why; whether those that remain were tried.

    ``largest``: examples of the largest batch of which rows were compared with themselves alone. ``chance`` picks rows and times, which are
    no secret.
    """

    refused: dict[str, str] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    largest: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(0))


#: rows that are compared with themselves alone: on first use, and later; and how often later.
FIRST_ROWS, ROWS, OFTEN = 3, 2, 1 / 256

_known: WeakKeyDictionary[torch.nn.Module, _Known] = WeakKeyDictionary()


def clipped_sum(
    model: torch.nn.Module,
    loss: LossFunction,
    batch: Batch,
    clipping: Clipping,
    *,
    method: Method = "auto",
    physical_batch: int | None = None,
) -> None:
    """Set ``.grad`` of every trained parameter to the sum over the batch of ``c_i`` times the gradient of example ``i``.

    An example's gradient is that of ``loss(outputs[i:i+1], targets[i:i+1])``; ``c_i`` is its share times the clipping factor. What one
    example adds has a norm of at most its share of the clip, whatever it holds; an example with an output or a number in its gradient that
    is NaN or infinite adds exactly zero.

    Args:
        model: in training mode or not; its forward pass takes the images and returns one tensor with a row for each. Hooks are removed
            again whatever happens, and buffers are put back.
        loss: mean loss of a batch.
        batch: images and targets with ``shares`` (:class:`.DrawnBatch`); empty batches give zeros.
        clipping: kind and norm.
        method: ``auto``, or one that must be used.
        physical_batch: most examples computed at once; the sum is the same. None: the whole batch.

    Raises PppmlError: a batch without shares, a network that is not trained, a method that does not fit the network.

    """
    shares = getattr(batch, "shares", None)
    images, targets = batch
    if shares is None:
        raise PppmlError(
            "the batch has no shares, so nothing bounds what one patient adds", place="clipped_sum", hint="give the batch as it was drawn"
        )
    if method not in ("auto", *_FAST, "loop"):
        raise PppmlError(f"there is no method {method!r}", place="clipped_sum", hint=", ".join(("auto", *_FAST, "loop")))
    shares = torch.as_tensor(shares, dtype=torch.float64).cpu()
    if shares.shape != (len(images),) or len(targets) != len(images) or not bool(((shares >= 0) & (shares <= 1)).all()):
        raise PppmlError(f"shares are {len(images)} numbers between 0 and 1", place="clipped_sum")
    parameters = trainable(model)
    if not parameters:
        raise PppmlError("no parameter of the network is trained", place="clipped_sum")
    sums: Sums = {name: torch.zeros(p.shape, dtype=p.dtype, device=p.device) for name, p in parameters.items()}
    size = physical_batch or max(1, len(images))
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        with full_precision(), buffers_kept(model):  # else a part would see what layers keep of the parts before it
            _add(sums, model, loss, (images[part].detach(), targets[part], shares[part]), clipping, method)
    for name, p in parameters.items():
        p.grad = sums[name]


def method_for(model: torch.nn.Module) -> tuple[str, str]:
    """The method that ``auto`` uses and why, in words: from the network's structure, and from first use if there was one."""
    refused = dict(_known[model].refused) if model in _known else {}
    if "book-keeping" not in refused:
        try:
            leaves(model)
        except Unfit as why:
            refused["book-keeping"] = str(why)
    if "book-keeping" not in refused:
        return "book-keeping", "all trained layers can be book-kept: one forward and one backward pass"
    if "functional" not in refused:
        return "functional", f"no book-keeping: {refused['book-keeping']}; vectorized with torch.func instead"
    return "loop", f"no book-keeping: {refused['book-keeping']}; not vectorized: {refused['functional']}; one example at a time instead"


_Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_Add = Callable[[Sums, torch.nn.Module, LossFunction, torch.Tensor, torch.Tensor, torch.Tensor, Clipping], list[int]]
_FAST: dict[str, _Add] = {"book-keeping": add_book_kept, "functional": add_functional}


def _add(sums: Sums, model: torch.nn.Module, loss: LossFunction, part: _Part, clipping: Clipping, method: Method) -> None:
    images = part[0]
    known = _known.setdefault(model, _Known())
    alone: list[int] | None = None
    for name in _FAST if method == "auto" else {method} & set(_FAST):
        if name not in known.refused and name not in known.tried:
            _try(name, known, model, loss, part, clipping)
        elif name == "book-keeping" and name not in known.refused:
            _look_again(known, model, loss, part, clipping)
        if name not in known.refused:
            try:
                alone = _FAST[name](sums, model, loss, *part, clipping)
                break
            except Unfit as why:  # control flow that depends on the data
                known.refused[name] = str(why)
        if method != "auto":
            text = f"method {name} does not fit this network: {known.refused[name]}"
            raise PppmlError(text, place="clipped_sum", hint="method auto")
    add_loop(sums, model, loss, *part, clipping, range(len(images)) if alone is None else alone)


def _try(name: str, known: _Known, model: torch.nn.Module, loss: LossFunction, part: _Part, clipping: Clipping) -> None:
    """Whether a method works, without a trace in the network or in torch's random numbers: a run that is resumed tries again."""
    images, targets, shares = part
    with untouched(model, images.device):
        if name == "book-keeping":
            try:
                examine(model, images)
                compare(model, loss, images, targets, _some(known, images, FIRST_ROWS), clipping.norm, loud=True)
                known.tried.add(name)
                known.largest = len(images)
            except Unfit as why:
                known.refused[name] = str(why)
            return
        trial = {n: torch.zeros_like(p) for n, p in trainable(model).items()}
        try:
            add_functional(trial, model, loss, images[:2], targets[:2], shares[:2], clipping)
            known.tried.add(name)
        except torch.OutOfMemoryError:
            raise
        except Exception as why:  # whatever torch says of an operation that it cannot vectorize
            known.refused[name] = str(why).partition("\n")[0]


def _look_again(known: _Known, model: torch.nn.Module, loss: LossFunction, part: _Part, clipping: Clipping) -> None:
    """Compare rows with themselves alone where a batch is larger than any before, and now and then.

    Raises PppmlError where they differ and batches were book-kept before: the clip may not have held there.
    """
    images, targets, _ = part
    if len(images) <= known.largest and known.chance.random() >= OFTEN:
        return
    try:
        with untouched(model, images.device):
            compare(model, loss, images, targets, _some(known, images, ROWS), clipping.norm)
    except Unfit as why:
        if known.largest > 1:
            text = f"the network mixes the images of a batch, found after gradients were made with it: {why}"
            hint = "start a new run with a network that does not, or with per_example: functional; the claim of this one does not hold"
            raise PppmlError(text, place="clipped_sum", hint=hint) from why
        known.refused["book-keeping"] = str(why)
    known.largest = max(known.largest, len(images))


def _some(known: _Known, images: torch.Tensor, count: int) -> list[int]:
    return known.chance.sample(range(len(images)), min(count, len(images)))
