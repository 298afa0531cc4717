"""``apfl``: a personal model mixed with the shared one. Deng, Kamani and Mahdavi 2020 (arXiv:2003.13461), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import Batch, GradientRule, LocalData, PersonalState, Tensors, Update, fresh
from pppml_core.learning.arrays import difference, load_state, snapshot
from pppml_personalization_baselines.config import APFLConfig
from pppml_personalization_baselines.parts import on_cpu, optimizer_remark, schedule_remark


class APFL(FedAvg):
    """The shared model is FedAvg's, bit for bit. Site i also keeps ``v_i``; it uses ``v_bar = alpha v + (1 - alpha) w``.

    Each step takes two gradients on the same batch: of ``w`` at ``w``, and of ``v`` at ``v_bar`` with ``w`` held, which is ``alpha`` times
    the gradient of the loss there. One optimizer steps both. ``v_i`` and ``alpha`` never leave the site, and nothing shared depends on
    them. Running statistics are never mixed: a mean of two models' statistics fits neither, so the mixture keeps those of its own forward
    passes at the site. Departures: ``alpha`` has a rate of its own (the paper's is the weights' rate), without optimizer or schedule; the
    mean is weighted by examples (``weight_cap: 1`` is the paper's). A new site trains ``v`` from the shared weights, and ``alpha``, on the
    support examples, with ``w`` fixed.
    """

    config: APFLConfig
    gradient_calls = 2
    personalizes = True

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """The optimizer."""
        return optimizer_remark("apfl (Deng et al. 2020)", training) + schedule_remark(training)

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """``w`` in the model, ``v`` beside it, stepped together."""
        start = snapshot(model)
        mixture = Mixture(model, state, self.config)

        def rule(network: torch.nn.Module, batch: Batch) -> float:
            loss = gradients(network, batch)
            at_w = {p: p.grad for p in network.parameters()}
            mine = snapshot(network)
            mixture.gradients(network, mine, gradients, fresh(batch))
            load_state(network, mine)
            for parameter, gradient in at_w.items():
                parameter.grad = gradient
            return loss

        metrics = data.train(model, rule, parameters=[*model.parameters(), *mixture.v.values()])
        return Update(difference(model, start), metrics), mixture.state()

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """The mixture with the shared weights in ``model``; a new site trains its ``v`` first."""
        shared = snapshot(model)
        mixture = Mixture(model, state, self.config)
        if not state:

            def rule(network: torch.nn.Module, batch: Batch) -> float:
                return mixture.gradients(network, shared, gradients, batch)

            own, c = list(mixture.v.values()), self.config
            data.train(model, rule, parameters=own, epochs=c.adapt_epochs, steps=c.adapt_steps, purpose="adapt")
        mixture.place(model, shared)
        return model


class Mixture:
    """``v``, ``alpha``, and the running statistics of ``v_bar``; all three begin at the model (and the config) where there is no state.

    ``v``: parameter name -> parameter on the model's device. ``alpha`` in [0, 1].
    """

    def __init__(self, model: torch.nn.Module, state: PersonalState, config: APFLConfig) -> None:
        held = model.state_dict()
        self.v = {
            n: torch.nn.Parameter(state["v"][n].to(p.device, copy=True) if state else p.detach().clone(), p.requires_grad)
            for n, p in model.named_parameters()
        }
        self.buffers: dict[str, torch.Tensor] = (
            dict(state["buffers"]) if state else {n: b.detach().clone() for n, b in model.named_buffers() if n in held}
        )
        self.alpha = float(state["alpha"]) if state else config.alpha
        self._rate = config.alpha_lr

    def place(self, model: torch.nn.Module, w: Tensors) -> None:
        """``v_bar = alpha v + (1 - alpha) w``, with its own running statistics, into the model."""
        mixed = {n: self.alpha * v.detach() + (1 - self.alpha) * w[n] for n, v in self.v.items()}
        load_state(model, mixed, self.buffers)

    def gradients(self, model: torch.nn.Module, w: Tensors, gradients: GradientRule, batch: Batch) -> float:
        """Sets ``.grad`` of ``v`` and steps ``alpha``; returns the loss at ``v_bar``, which it leaves in the model.

        Both derivatives are at the same ``v`` and ``w``: ``d/dv = alpha g`` and ``d/dalpha = <v - w, g>``, g the gradient at
        ``v_bar``.
        """
        self.place(model, w)
        model.zero_grad(set_to_none=True)  # so that no rule writes into a gradient that somebody keeps
        loss = gradients(model, batch)
        self.buffers = {n: b.detach().clone() for n, b in model.named_buffers() if n in self.buffers}
        slopes = []
        for name, parameter in model.named_parameters():
            g, v = parameter.grad, self.v[name]
            v.grad = None if g is None else self.alpha * g
            if g is not None:
                slopes.append(((v.detach() - w[name]) * g).sum())
        if self._rate and slopes:
            self.alpha = min(1.0, max(0.0, self.alpha - self._rate * float(torch.stack(slopes).sum())))
        return loss

    def state(self) -> PersonalState:
        """For the site to keep."""
        return {"v": on_cpu(self.v), "buffers": on_cpu(self.buffers), "alpha": self.alpha}
