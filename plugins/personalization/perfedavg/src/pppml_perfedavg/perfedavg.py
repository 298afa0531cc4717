"""``per-fedavg``: Fallah, Mokhtari and Ozdaglar 2020 (arXiv:2002.07948), Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import Batch, GradientRule, LocalData, PersonalState, Update
from pppml_core.learning.arrays import difference, load_state, snapshot
from pppml_perfedavg.config import PerFedAvgConfig


class PerFedAvg(FedAvg):
    """Local steps on ``F(w) = f(w - alpha grad f(w))``."""

    config: PerFedAvgConfig
    shares_one_gradient = False
    personalizes = True

    def __init__(self, config: PerFedAvgConfig) -> None:
        super().__init__(config)
        order = "none" if config.inner_lr == 0 else config.order
        self.batches_per_step = {"none": 1, "first": 2}.get(order, 3)
        self.gradient_calls = {"none": 1, "first": 2, "exact": 3}.get(order, 4)
        self.needs_hessian = order == "exact"

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """Tau meta-steps from the shared weights."""
        start = snapshot(model)
        rule = gradients if self.config.inner_lr == 0 else MetaGradient(gradients, self.config)
        metrics = data.train(model, rule, batches_per_step=self.batches_per_step, lr=self.config.outer_lr)
        return Update(difference(model, start), metrics), state

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """``w - alpha g(w, D)``, as often as asked."""
        rate = self.config.inner_lr if self.config.adapt_lr is None else self.config.adapt_lr
        model.train()
        for batch in data.sample("adapt", self.config.adapt_steps):
            gradients(model, batch)
            move(model, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, -rate)
        return model


class MetaGradient:
    """Sets ``.grad`` to ``(I - alpha H(w, D'')) g(w - alpha g(w, D), D')``, or to what the order leaves of it."""

    def __init__(self, gradients: GradientRule, config: PerFedAvgConfig) -> None:
        self._gradients, self._config = gradients, config

    def __call__(self, model: torch.nn.Module, batches: tuple[Batch, ...]) -> float:
        """The loss on D' at the adapted weights."""
        alpha = self._config.inner_lr
        w = {n: p.detach().clone() for n, p in model.named_parameters()}
        self._gradients(model, batches[0])
        with buffers_kept(model):
            move(model, grads(model), -alpha)
            loss = self._gradients(model, batches[1])
            v = {n: g.clone() for n, g in grads(model).items()}
            load_state(model, w)
            hv = self._product(model, w, batches[2], v) if self._config.order != "first" else {}
        for n, p in model.named_parameters():
            p.grad = v[n] - alpha * hv[n] if n in hv else v.get(n)
        return loss

    def _product(
        self, model: torch.nn.Module, w: dict[str, torch.Tensor], batch: Batch, v: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        if self._config.order == "exact":
            product: dict[str, torch.Tensor] = self._gradients.hessian_vector(model, batch, v)  # type: ignore[attr-defined]
            return product
        norm = float(torch.sqrt(sum(g.square().sum() for g in v.values())))  # type: ignore[arg-type]
        if norm == 0:
            return {n: torch.zeros_like(g) for n, g in v.items()}
        size = float(torch.sqrt(sum(p.square().sum() for p in w.values())))  # type: ignore[arg-type]
        eps = torch.finfo(next(iter(v.values())).dtype).eps
        delta = eps ** (1 / 3) * (1 + size) / norm if self._config.hessian_step == "auto" else self._config.hessian_step
        stream = torch.get_rng_state()
        move(model, v, delta)
        self._gradients(model, batch)
        up = {n: g.clone() for n, g in grads(model).items()}
        load_state(model, w)
        torch.set_rng_state(stream)
        move(model, v, -delta)
        self._gradients(model, batch)
        down = grads(model)
        out = {n: (up[n] - down[n]) / (2 * delta) for n in v}
        load_state(model, w)
        return out


def grads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients that are there."""
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def move(model: torch.nn.Module, direction: dict[str, torch.Tensor], by: float) -> None:
    """Parameters by a multiple of a direction, in place."""
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n in direction:
                p.add_(direction[n], alpha=by)


@contextmanager
def buffers_kept(model: torch.nn.Module) -> Iterator[None]:
    """Buffers are afterwards what they were."""
    held = {n: b.clone() for n, b in model.named_buffers()}
    try:
        yield
    finally:
        for n, b in model.named_buffers():
            b.copy_(held[n])
