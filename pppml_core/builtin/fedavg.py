"""``fedavg`` (McMahan et al. 2017, Algorithm 1) with the server optimizers of FedOpt (Reddi et al. 2021), and ``local-only``."""

from __future__ import annotations

import torch

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.interfaces.personalization import GradientRule, LocalData, Personalization, PersonalState, Tensors, Update
from pppml_core.learning.arrays import difference, snapshot


class FedAvg(Personalization):
    """Local training from the shared weights; the weighted mean of the differences is applied by the server's optimizer."""

    config: FedAvgConfig
    shares_one_gradient = True

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """The configured epochs or steps, then weights minus start."""
        start = snapshot(model)
        metrics = data.train(model, gradients)
        return Update(difference(model, start), metrics), state

    def weight(self, examples: int) -> int:
        """Training examples, capped when asked."""
        return min(examples, self.config.weight_cap) if self.config.weight_cap else examples

    def server_init(self, weights: Tensors) -> PersonalState:
        """Zero moments where the optimizer has any."""
        optimizer = self.config.server_optimizer
        if optimizer.use == "adam":
            return {
                "first": {n: torch.zeros_like(w) for n, w in weights.items()},
                "second": {n: torch.full_like(w, optimizer.epsilon**2) for n, w in weights.items()},
            }
        return {"first": {n: torch.zeros_like(w) for n, w in weights.items()}} if optimizer.momentum else {}

    def server_update(self, weights: Tensors, mean: Tensors, state: PersonalState) -> tuple[Tensors, PersonalState]:
        """Reddi et al., Algorithm 2: the mean difference is the pseudo-gradient. Buffers take the mean as it is."""
        optimizer = self.config.server_optimizer
        if optimizer.use == "sgd" and not optimizer.momentum:
            return {n: w + optimizer.lr * mean[n] if is_weight(n) else w + mean[n] for n, w in weights.items()}, state
        out: dict[str, torch.Tensor] = {}
        first, second = dict(state["first"]), dict(state.get("second", {}))
        beta1, beta2 = (optimizer.momentum, 0.0) if optimizer.use == "sgd" else optimizer.betas
        for name, w in weights.items():
            if not is_weight(name):
                out[name] = w + mean[name]
            elif optimizer.use == "sgd":
                first[name] = beta1 * first[name] + mean[name]
                out[name] = w + optimizer.lr * first[name]
            else:
                first[name] = beta1 * first[name] + (1 - beta1) * mean[name]
                second[name] = beta2 * second[name] + (1 - beta2) * mean[name].square()
                out[name] = w + optimizer.lr * first[name] / (second[name].sqrt() + optimizer.epsilon)
        return out, ({"first": first, "second": second} if second else {"first": first})


def is_weight(name: str) -> bool:
    """Whether a state-dict name is a trained weight and not a running statistic, which no server optimizer should touch."""
    return not name.endswith(("running_mean", "running_var"))


class LocalOnly(Personalization):
    """Every site keeps its own weights from round to round; nothing is shared, no sum is formed."""

    shares = False
    personalizes = True

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """Train on; the site keeps everything because nothing is shared."""
        return Update({}, data.train(model, gradients)), state

    def server_update(self, weights: Tensors, mean: Tensors, state: PersonalState) -> tuple[Tensors, PersonalState]:
        """There is nothing to update."""
        return weights, state
