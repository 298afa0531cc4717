"""``per-fedavg``: federated meta-learning. Fallah, Mokhtari and Ozdaglar 2020 (arXiv:2002.07948), Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pppml_core.builtin.fedavg import FedAvg
from pppml_core.interfaces.personalization import GradientRule, LocalData, PersonalState, StepRule, Update
from pppml_core.learning.arrays import difference, snapshot
from pppml_core.learning.statistics import measure_statistics, with_statistics
from pppml_perfedavg.batch_norm import is_statistic, with_fixed_statistics
from pppml_perfedavg.config import PerFedAvgConfig
from pppml_perfedavg.meta_gradient import MetaGradient

BATCHES = {"first": 2, "hessian-free": 3, "exact": 3}
CALLS = {"first": 2, "hessian-free": 4, "exact": 3}


class PerFedAvg(FedAvg):
    """Local steps on ``f_i(w - alpha grad f_i(w))``, so that the shared weights are good one gradient step later, at every site.

    The server's part is FedAvg's. ``adapt`` makes that gradient step: ``w_i = w - alpha g(w, D_i)``, on training examples. With
    ``inner_lr: 0`` (and ``batch_norm: shared``) local training is FedAvg's, bit for bit: one batch, one gradient a step.

    Running statistics follow the passes at ``w`` on D (and those of ``adapt``), by ``batch_norm``. ``shared``: they are averaged like
    weights. ``local``: they stay at the site, so the shared weights are no model by themselves; a site that never took part measures
    its own. ``frozen``: normalization uses the statistics that training began with (``training.init``, or mean 0 and variance 1), and
    they never change.
    """

    config: PerFedAvgConfig

    def __init__(self, config: PerFedAvgConfig) -> None:
        super().__init__(config)
        meta = config.inner_lr > 0
        self.batches_per_step = BATCHES[config.order] if meta else 1
        self.gradient_calls = CALLS[config.order] if meta else 1
        self.needs_hessian = meta and config.order == "exact"
        self.personalizes = self._adapts or config.batch_norm == "local"
        # With local statistics the gradient is taken at more than the shared weights.
        self.shares_one_gradient = not meta and config.batch_norm != "local" and config.outer_lr is None

    @property
    def has_global_model(self) -> bool:
        """Not where each site has running statistics of its own."""
        return self.config.batch_norm != "local"

    def shared(self, name: str, model: torch.nn.Module) -> bool:
        """All but running statistics that are to stay local."""
        return self.config.batch_norm != "local" or not is_statistic(name, model)

    def misfits(self, model: torch.nn.Module, examples: Mapping[str, int], training: Mapping[str, Any]) -> list[str]:
        """Precision, normalization and lengths that make the method impossible or empty."""
        config, out = self.config, []
        if config.inner_lr and 0 in (training["epochs"], training["steps"]):
            out.append("training: it makes no local step, so nothing would be learned; set training.epochs or training.steps above 0")
        if config.inner_lr and config.order != "first" and training["precision"] == "bf16":
            out.append(f"personalization.order: {config.order} needs gradients more precise than bf16's; use `first`, or precision float32")
        if config.batch_norm == "local" and not with_statistics(model):
            out.append("personalization.batch_norm: local, but the network has no running statistics to keep at a site; leave it out")
        return out

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """Departures from the paper, but for the weights of sites."""
        config, optimizer, server = self.config, training["optimizer"], self.config.server_optimizer
        kind = optimizer["use"] + (" with momentum" if optimizer["use"] == "sgd" and optimizer["momentum"] else "")
        departures = [
            (kind != "sgd", f"its outer step is plain SGD; here it is training.optimizer ({kind})"),
            (optimizer["weight_decay"], f"its outer step has no weight decay; here training.optimizer has {optimizer['weight_decay']:g}"),
            (training["schedule"] != "constant" or training["warmup_rounds"], "its outer rate is constant; here training has a schedule"),
            (server.use != "sgd" or server.momentum or server.lr != 1, "its server takes the mean as it is; here server_optimizer steps"),
        ]
        adapting = [
            (config.adapt_steps != 1, f"it adapts by one step; here adapt_steps is {config.adapt_steps}"),
            (self._adapt_lr != config.inner_lr, f"it adapts at the inner rate {config.inner_lr:g}; here adapt_lr is {self._adapt_lr:g}"),
        ]
        if not config.inner_lr:
            same = config.batch_norm == "shared" and config.outer_lr in (None, optimizer["lr"])
            how = "that of fedavg" if same else "without meta-gradients, and outer_lr and batch_norm have their effect"
            text = f"inner_lr: 0: local training is {how}; order has no effect"
            return [text, *(f"per-fedavg (Fallah et al. 2020): {text}" for applies, text in adapting if applies)]
        return [f"per-fedavg (Fallah et al. 2020): {text}" for applies, text in (*departures, *adapting) if applies]

    def weight_remarks(self) -> list[str]:
        """That the paper's mean is uniform."""
        if not self.config.inner_lr or self.config.weight_cap == 1:
            return []
        text = "its mean over sites is uniform; here sites weigh by training examples (uniform: weight_cap: 1)"
        return [f"per-fedavg (Fallah et al. 2020): {text}"]

    def noise_remarks(self, training: Mapping[str, Any]) -> list[str]:
        """That a difference of two noised gradients is divided by the step: twice the variance, by the square of 2 delta."""
        alpha, step = self.config.inner_lr, self.config.hessian_step
        if not alpha or self.config.order != "hessian-free":
            return []
        if step == "auto":
            length = torch.finfo(torch.float64 if training["precision"] == "float64" else torch.float32).eps ** (1 / 3)
            gain, unit, remedy = 1 / (2**0.5 * length), "|v| s", "a fixed, larger hessian_step"
            how = f"s |v| / (sqrt(2) h), v being the noised gradient and h = {length:.2g} or more (hessian_step: auto), so at most"
        else:
            gain, unit, remedy = 1 / (2**0.5 * step), "s", "a larger hessian_step"
            how = "s / (sqrt(2) hessian_step) ="
        return [
            f"order: hessian-free divides a privacy mechanism's noise by its step: of standard deviation s in each gradient, it is {how} "
            f"{gain:.3g} {unit} in the Hessian product and {alpha * gain:.3g} {unit} (inner_lr times that) in the step, beside the s that "
            f"`order: first` has; take `first`, or {remedy}"
        ]

    # -- at a site --------------------------------------------------------------------------------------------------------------------

    def init(self, model: torch.nn.Module) -> PersonalState:
        """With local statistics: whether the site has any."""
        return {"trained": False} if self.config.batch_norm == "local" else {}

    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """The configured local steps (tau of the paper), each along a meta-gradient."""
        config = self.config
        rule: StepRule = gradients
        if config.inner_lr:
            rule = MetaGradient(gradients, config.inner_lr, config.order, config.hessian_step)
        start = snapshot(model)
        metrics = data.train(model, self._normalized(rule), batches_per_step=self.batches_per_step, lr=config.outer_lr)
        delta = {n: d for n, d in difference(model, start).items() if self.shared(n, model)}
        return Update(delta, metrics), {"trained": True} if state else {}

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """``adapt_steps`` times ``w <- w - adapt_lr g(w, D)``, in training mode, on batches of training examples."""
        if self._adapts:
            model.train()
            rule = self._normalized(gradients)
            for batch in data.sample("adapt", self.config.adapt_steps):
                rule(model, batch)
                with torch.no_grad():
                    for parameter in model.parameters():
                        if parameter.grad is not None:
                            parameter.sub_(parameter.grad, alpha=self._adapt_lr)
            model.zero_grad(set_to_none=True)
        if not state.get("trained", True):
            measure_statistics(model, with_statistics(model), data)
        return model

    @property
    def _adapt_lr(self) -> float:
        return self.config.inner_lr if self.config.adapt_lr is None else self.config.adapt_lr

    @property
    def _adapts(self) -> bool:
        return self.config.adapt_steps > 0 and self._adapt_lr > 0

    def _normalized(self, rule: StepRule) -> StepRule:
        return with_fixed_statistics(rule) if self.config.batch_norm == "frozen" else rule
