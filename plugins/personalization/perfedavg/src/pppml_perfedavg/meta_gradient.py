"""The meta-gradient of one local step: Fallah, Mokhtari and Ozdaglar 2020 (arXiv:2002.07948), Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch

from pppml_core.errors import PppmlError
from pppml_core.interfaces.personalization import Batch, GradientRule, fresh
from pppml_perfedavg.config import Order

#: Parameter name -> tensor of its shape.
Direction = Mapping[str, torch.Tensor]
Product = Callable[[torch.nn.Module, Batch, Direction], Direction]


class MetaGradient:
    """A step rule: sets ``.grad`` to ``(I - alpha H(w, D'')) g(w - alpha g(w, D), D')``, or to what ``order`` makes of it.

    Every gradient comes from ``gradients``: 2 calls for ``first``, 4 for ``hessian-free``; ``exact`` makes 2, and one Hessian-vector
    product. Parameters are moved in place and put back from copies, so ``w`` is afterwards what it was, bit for bit, also where a call
    raises. Buffers (running statistics) follow the pass at ``w`` on D alone, the only one made at weights that anybody keeps. A
    parameter without a gradient on D is not moved, and one without a gradient on D' gets none.

    Args:
        gradients: the rule of every gradient; for ``exact`` it must have ``hessian_vector``, as autograd has. A privacy mechanism's has
            none: nothing bounds what a product reveals of one example.
        alpha: inner rate, above 0.
        order: see :class:`.config.PerFedAvgConfig`.
        hessian_step: delta of ``hessian-free``; ``auto``: see :func:`difference_step`.

    """

    def __init__(
        self, gradients: GradientRule, alpha: float, order: Order = "first", hessian_step: float | Literal["auto"] = "auto"
    ) -> None:
        self._gradients, self._alpha, self._order, self._step = gradients, alpha, order, hessian_step
        self._exact: Product | None = getattr(gradients, "hessian_vector", None)
        if order == "exact" and self._exact is None:
            raise PppmlError(
                "the gradient rule gives no Hessian-vector products, which `order: exact` asks for (a privacy mechanism's rule has none)",
                place="personalization.order",
                hint="use `order: hessian-free` or `first`, which need gradients only",
            )

    def __call__(self, model: torch.nn.Module, batches: tuple[Batch, ...]) -> float:
        """Batches D, D' and, but for ``first``, D''. Returns the mean loss on D' at the adapted weights."""
        self._gradients(model, batches[0])
        with moved(model, taken(model), -self._alpha), buffers_kept(model):
            loss = self._gradients(model, batches[1])
        meta = taken(model)
        if self._order != "first":
            product = self._exact if self._exact and self._order == "exact" else self._by_differences
            with buffers_kept(model):
                curved = product(model, batches[2], meta)
            meta = {n: g.sub_(curved[n], alpha=self._alpha) if n in curved else g for n, g in meta.items()}
        for name, parameter in model.named_parameters():
            parameter.grad = meta.get(name)
        return loss

    def _by_differences(self, model: torch.nn.Module, batch: Batch, v: Direction) -> Direction:
        """``[g(w + delta v, D'') - g(w - delta v, D'')] / (2 delta)``, an approximation of ``H(w, D'') v``.

        Both sides draw the same random numbers from torch's streams (dropout), or their difference would not be that of one function. Under
        a privacy mechanism its noise, the examples and dropout are drawn anew for each side: a sample pays for one gradient.
        """
        delta = difference_step(model, v) if self._step == "auto" else self._step
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
        with torch.random.fork_rng(devices), moved(model, v, delta), buffers_kept(model):
            self._gradients(model, batch)
        above = taken(model)
        with moved(model, v, -delta):
            self._gradients(model, fresh(batch))
        below = taken(model)
        return {n: above[n].sub_(below[n]).div_(2 * delta) for n in v if n in above and n in below}


def difference_step(model: torch.nn.Module, v: Direction) -> float:
    """``delta = eps^(1/3) max(1, s) / |v|``: central differences go the length ``h = delta |v|`` to either side of the weights.

    ``|.|`` is the Euclidean norm over the parameters in ``v``. ``s`` is the root mean square norm of their rows (the weights of one output
    channel; each scale and shift is a row): the length over which a layer changes, about 1 at the usual initial weights and growing with
    the weights. ``eps`` is the spacing of their floating type at 1, so h is 4.9e-3 max(1, s) in float32 and 6.1e-6 max(1, s) in float64.

    Along the unit direction ``u = v / |v|`` the product is off by ``h^2/6 |D^3 g[u, u, u]|`` (truncation) and about ``eps |g| / h``
    (rounding); a length of order eps^(1/3) balances them, and both are then of order eps^(2/3): 2e-5 in float32, 4e-11 in float64,
    times factors of the network. Relative to the exact product they were 1e-5 to 5e-4 and 2e-11 to 7e-10 on smooth networks of a few
    thousand to 2.4 million parameters; 1e-3 and 1e-8 are tested. Where the gradient jumps (ReLU, max-pooling) no length helps: a difference
    sees the jumps between its two sides, which are curvature of the mean loss, and the exact product sees none of them. There the two
    differ by tens of percent, on small networks by several times, and neither is the other's approximation.
    """
    at = [p.detach() for n, p in model.named_parameters() if n in v]
    along = _norm(list(v.values())) if v else 0.0
    if not along:
        return 1.0  # the difference is zero whatever the step
    rows = sum(p.shape[0] if p.ndim else 1 for p in at)
    eps = max(torch.finfo(p.dtype).eps for p in at)
    return float(eps ** (1 / 3) * max(1.0, _norm(at) / rows**0.5) / along)


def _norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.double()) for t in tensors])))


def taken(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients that are there, now the caller's: the model has none afterwards, so no later call writes into them."""
    out = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out


@contextmanager
def moved(model: torch.nn.Module, direction: Direction, by: float) -> Iterator[None]:
    """Parameters plus ``by`` times a direction inside the block; after it what they were, bit for bit."""
    parameters = {n: p for n, p in model.named_parameters() if n in direction}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.add_(direction[name], alpha=by)
    del direction  # it may be the last reference: a gradient that is not needed in the block
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


@contextmanager
def buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """After the block all buffers are what they were before it, bit for bit."""
    before = {n: b.detach().clone() for n, b in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
