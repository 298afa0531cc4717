"""Book-keeping: per-example clipped sums from one forward pass, one backward pass by activations alone, and one sum per layer.

After Bu et al. 2023, *Differentially private optimization on large model at small cost* (arXiv:2210.00038). Hooks note each layer's input
on the way forward and the gradient by its output on the way back; no gradient by a weight is made then. :mod:`.layers` makes of both the
examples' norms, and, once the clipping factors are known, the weighted sums.

It is right where each trained parameter enters the loss through exactly one call of its layer, and where row ``i`` of that call belongs to
example ``i``. The first is read off autograd's graph in every step. The second is tested on first use, with an image of NaN that is sent
forward and back and may reach no other row anywhere, and again and again on the real images (:mod:`.rows_alone`). Whatever does not fit
raises :class:`Unfit`, and another method takes over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from pppml_core.learning.gradients import LossFunction
from pppml_dp.clipping import SMALLEST, Clipping, layers_of
from pppml_dp.layers import Contribution, contribution, fits_batch, misfit, statistics_of
from pppml_dp.loop import Sums, own_loss, trainable

#: largest part of the clip that rounding could add to one example's gradient at worst; usual networks stay below a tenth of it.
ROUNDING = 1e-4


class Unfit(Exception):
    """The network cannot be book-kept; the text says why."""


@dataclass
class _Call:
    """One call of a layer: what the way forward leaves for the way back."""

    module: nn.Module
    x: torch.Tensor | None
    version: int
    edge: GradientEdge | None
    #: no trained layer comes before it, so the way back ends here.
    first: bool
    statistics: Any
    made: Any = None


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with trained parameters, by name. Raises :class:`Unfit` where the structure shows that they cannot be book-kept."""
    owners: dict[int, str] = {}
    found = {}
    for name, module in model.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        where = f"layer `{name}` ({type(module).__name__})" if name else f"the network itself ({type(module).__name__})"
        if (why := misfit(module)) is not None:
            raise Unfit(f"{where}: {why}")
        for parameter in own.values():
            if id(parameter) in owners:
                raise Unfit(f"{where} shares a parameter with `{owners[id(parameter)]}`")
            owners[id(parameter)] = name
        found[name] = module
    return found


class _Watch:
    """Hooks on the layers during one forward and one backward pass over ``examples`` examples; ``take`` gets each call's gradient."""

    def __init__(self, layers: dict[str, nn.Module], examples: int, take: Any) -> None:
        self.layers, self.examples, self._take = layers, examples, take
        self.calls: dict[str, _Call] = {}
        self.why: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        handles = []
        try:
            for name, module in self.layers.items():
                handles.append(module.register_forward_hook(partial(self._forward, name), prepend=True, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for call in self.calls.values():
                call.edge = None  # it and the hook on the output hold each other, out of the garbage collector's sight

    def _refuse(self, why: str) -> None:
        self.why = self.why or why
        raise Unfit(why)

    def _forward(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        x: torch.Tensor = args[0] if args else kwargs["input"]
        if name in self.calls:
            self._refuse(f"layer `{name}` is called more than once")
        if not fits_batch(module, x, self.examples) or len(output) != self.examples:
            self._refuse(f"layer `{name}`: the first dimension of its input is not the batch")
        if not output.requires_grad:
            self._refuse(f"layer `{name}` is called where no gradients are recorded")
        edge = get_gradient_edge(output)  # of the output as it is now: an activation may overwrite it
        call = _Call(module, x.detach(), x._version, edge, not x.requires_grad, statistics_of(module, output))
        self.calls[name] = call
        output.register_hook(partial(self._backward, name, call))

    def _backward(self, name: str, call: _Call, gradient: torch.Tensor) -> None:
        assert call.x is not None
        if call.x._version != call.version:
            self._refuse(f"the input of layer `{name}` is overwritten after its use")
        call.made, call.x, call.statistics = self._take(call, gradient.detach()), None, None

    def back(self, outputs: torch.Tensor, gradient: torch.Tensor) -> set[str]:
        """From the outputs to every layer's output, and no further. Returns the layers that the outputs depend on."""
        if self.why is not None:  # the network swallowed the error
            raise Unfit(self.why)
        used = _uses(outputs, self.layers)
        edges = [call.edge for call in self.calls.values() if call.first and call.edge is not None]
        if edges and outputs.requires_grad:
            torch.autograd.grad(outputs, edges, gradient, allow_unused=True)
        if self.why is not None:
            raise Unfit(self.why)
        for name in used:
            if name not in self.calls or self.calls[name].made is None:
                raise Unfit(f"layer `{name}`: its parameters are used without a call of the layer")
        return used


def _uses(outputs: torch.Tensor, layers: dict[str, nn.Module]) -> set[str]:
    """Names of the layers whose parameters the outputs depend on. Raises :class:`Unfit` where a parameter is used in two places."""
    owner = {p: (name, n) for name, module in layers.items() for n, p in module.named_parameters(recurse=False) if p.requires_grad}
    seen: set[Node] = set()
    todo, used = [outputs.grad_fn], Counter[tuple[str, str]]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            raise Unfit("reentrant checkpoints hide the layers inside")
        for following, _ in node.next_functions:
            variable = getattr(following, "variable", None)
            if variable is None:
                todo.append(following)
            elif variable in owner:
                used[owner[variable]] += 1
    for (name, parameter), count in used.items():
        if count > 1:
            raise Unfit(f"parameter `{name}.{parameter}` is used in {count} places")
    return {name for name, _ in used}


def examine(model: nn.Module, images: torch.Tensor) -> None:
    """Test that no layer mixes examples, on three random images like these: NaN in the second, or sent back from its output, stays there.

    Raises :class:`Unfit` where it does not, and where a trained layer is out of the test's reach: what NaN does not pass (``nan_to_num``,
    comparisons) could mix as it likes.
    """
    layers = leaves(model)
    generator = torch.Generator().manual_seed(0)
    shape = (3, *images.shape[1:])
    like = torch.randn(shape, generator=generator) if images.is_floating_point() else torch.randint(2, shape, generator=generator)
    if images.is_floating_point():
        like[1] = math.nan
    spoilt: dict[str, list[bool]] = {}

    def take(call: _Call, gradient: torch.Tensor) -> bool:
        name = next(n for n, module in layers.items() if module is call.module)
        spoilt[name] = _not_finite(gradient)
        return True

    watch = _Watch(layers, 3, take)
    with watch():
        outputs = _outputs(model, like.to(images), watch)
        if _not_finite(outputs)[::2] != [False, False]:
            raise Unfit("its output for one image depends on another image")
        gradient = torch.zeros_like(outputs)
        gradient[1] = math.nan
        used = watch.back(outputs, gradient)
    for name, (before, _, after) in spoilt.items():
        if before or after:
            raise Unfit(f"layer `{name}`: its output for one image has a part in another image's loss")
    for name in sorted(used):
        if not spoilt.get(name, [False] * 3)[1]:
            raise Unfit(f"layer `{name}`: whether its output is of one image alone cannot be told, as NaN does not come back to it")


def _not_finite(rows: torch.Tensor) -> list[bool]:
    return [not bool(row.isfinite().all()) for row in rows]


def _outputs(model: nn.Module, images: torch.Tensor, watch: _Watch) -> torch.Tensor:
    with torch.enable_grad():
        outputs = model(images.detach())
    if not isinstance(outputs, torch.Tensor) or outputs.ndim == 0 or len(outputs) != watch.examples:
        raise Unfit("its output is not one tensor with a row for each image")
    return outputs


@dataclass
class Kept:
    """What one pass leaves: outputs, squared norms and their slack ``(examples, layers)`` on the CPU, and what sums are made of."""

    outputs: torch.Tensor
    squares: torch.Tensor
    slack: torch.Tensor
    made: dict[str, Contribution]
    number: dict[str, int]

    @property
    def known(self) -> torch.Tensor:
        """Which examples have a finite output and a finite norm: bool ``(examples,)``."""
        return self.outputs.flatten(1).isfinite().all(1).cpu() & self.squares.sum(1).isfinite()


def keep_books(model: nn.Module, loss: LossFunction, images: torch.Tensor, targets: torch.Tensor) -> Kept:
    """One forward and one backward pass. Raises :class:`Unfit`."""
    watch = _Watch(leaves(model), len(images), lambda call, g: contribution(call.module, call.x, g, call.statistics))
    with watch():
        outputs = _outputs(model, images, watch)
        watch.back(outputs, _output_gradients(loss, outputs, targets))
    names = list(trainable(model))
    number = dict(zip((n.rpartition(".")[0] for n in names), layers_of(names), strict=True))
    squares, slack = torch.zeros(2, len(images), len(number), dtype=torch.float64, device=images.device)
    made: dict[str, Contribution] = {name: call.made for name, call in watch.calls.items() if call.made is not None}
    for name, part in made.items():
        squares[:, number[name]] = part.squares
        slack[:, number[name]] = part.slack
    return Kept(outputs.detach(), squares.cpu(), slack.cpu(), made, number)


def add_book_kept(
    sums: Sums,
    model: nn.Module,
    loss: LossFunction,
    images: torch.Tensor,
    targets: torch.Tensor,
    shares: torch.Tensor,
    clipping: Clipping,
) -> list[int]:
    """Add the clipped gradients to ``sums``; as :func:`.add_loop`. Returns the examples it left out, which are to be computed alone.

    Left out are examples with an output or a norm that is not finite, and those of which rounding could exceed the clip by more than
    ``ROUNDING`` (activations so large, and gradients that cancel so well, that the norm is nearly noise).

    Raises :class:`Unfit`, before anything is added.
    """
    kept = keep_books(model, loss, images, targets)
    factors = clipping.factors(kept.squares.sqrt().where(kept.known[:, None], 0), shares)
    rounding = (factors.square() * kept.slack).sum(1).sqrt()
    good = kept.known & (rounding <= ROUNDING * shares * clipping.norm) & (factors.amin(1) >= SMALLEST * shares)
    for name, part in kept.made.items():
        part.add(sums, f"{name}." if name else "", factors[:, kept.number[name]], good)
    return [int(i) for i in (~good).nonzero()]


def _output_gradients(loss: LossFunction, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each example's own loss by its own output: ``outputs``' shape."""
    rows = [row.requires_grad_() for row in outputs.detach().split(1)]
    with torch.enable_grad():
        total = torch.stack([own_loss(loss, row, targets[i : i + 1], 0) for i, row in enumerate(rows)]).sum()
    return torch.cat(torch.autograd.grad(total, rows))
