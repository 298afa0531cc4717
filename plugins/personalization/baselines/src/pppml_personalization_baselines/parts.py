"""What several methods use: the pull towards a model, heads, training one part of a network, and counts of gradients."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from pppml_core.errors import nearest
from pppml_core.interfaces.personalization import Batch, GradientRule, LocalData, Tensors
from pppml_core.learning.arrays import snapshot
from pppml_core.learning.statistics import measure_statistics, with_statistics

# -- gradients ----------------------------------------------------------------------------------------------------------------------------


def towards(gradients: GradientRule, anchor: Tensors, strength: float) -> GradientRule:
    """The gradient of the loss plus ``strength / 2 * ||weights - anchor||^2``, over all parameters that take part.

    The added term depends on the weights only, not on data, so it needs no privacy mechanism. The loss returned is without it.
    ``strength`` 0 is the rule itself.
    """
    if strength == 0:
        return gradients

    def pulled(model: torch.nn.Module, batch: Batch) -> float:
        loss = gradients(model, batch)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad += strength * (parameter.detach() - anchor[name])
        return loss

    return pulled


def train_part(
    model: torch.nn.Module,
    names: Collection[str],
    data: LocalData,
    gradients: GradientRule,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    purpose: str = "train",
) -> dict[str, float]:
    """Train the named parameters alone; all other parameters and running statistics keep their values.

    Outside the named part, normalization with running statistics works as in evaluation (it uses them and leaves them alone), so the rest
    of the network is one fixed function of each image, not of the batch. Nothing is done where no parameter is named.
    """
    chosen = [p for n, p in model.named_parameters() if n in names]
    if not chosen:
        return {}
    fixed = [p for n, p in model.named_parameters() if n not in names and p.requires_grad]
    still = [
        m
        for n, m in model.named_modules()
        if getattr(m, "running_mean", None) is not None and f"{n}.running_mean".removeprefix(".") not in names
    ]

    def rule(network: torch.nn.Module, batch: Batch) -> float:
        for module in still:
            module.eval()
        return gradients(network, batch)

    # The process's one network: the next site trains all of it, so it must come back as it was, whatever happens.
    for parameter in fixed:
        parameter.requires_grad_(False)
    try:
        return data.train(model, rule, parameters=chosen, epochs=epochs, steps=steps, purpose=purpose)
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)


def train_own_part(
    model: torch.nn.Module, names: Collection[str], data: LocalData, gradients: GradientRule, epochs: int | None, steps: int | None
) -> torch.nn.Module:
    """What a site that never took part does with the shared part of a network: it trains its own from the initial values.

    Running statistics of its own are then the plain mean over the batches of one pass (as in AdaBN, Li et al. 2016, arXiv:1603.04779): a
    moving average over a few steps would still be mostly its initial value.
    """
    train_part(model, names, data, gradients, epochs=epochs, steps=steps, purpose="adapt")
    names_of = {id(m): n for n, m in model.named_modules()}
    own = [m for m in with_statistics(model) if f"{names_of[id(m)]}.running_mean".removeprefix(".") in names]
    measure_statistics(model, own, data)
    return model


def on_cpu(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Copies for the site's state."""
    return {n: t.detach().to("cpu", copy=True) for n, t in tensors.items()}


def held(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the whole model for the site's state: parameters, running statistics, counters."""
    return on_cpu(snapshot(model))


# -- heads --------------------------------------------------------------------------------------------------------------------------------


def head_names(model: torch.nn.Module, head: str | Sequence[str]) -> frozenset[str]:
    """State-dict names of the head: parameters and buffers. A tensor with several names is in it with all of them or with none.

    ``auto``: the last registered module with a weight of two or more dimensions, and everything registered after it (a normalization, an
    activation with parameters): the linear layer of a classifier, the last convolution of a U-Net's decoder. Patterns match the name of
    a tensor or of a module that holds it.
    """
    state = model.state_dict(keep_vars=True)
    if head == "auto":
        modules = list(model.modules())
        layers = [i for i, m in enumerate(modules) if any(p.ndim >= 2 for p in m.parameters(recurse=False))]
        tail = modules[layers[-1] :] if layers else modules
        chosen = {id(t) for m in tail for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
    else:
        patterns = [head] if isinstance(head, str) else head
        chosen = {id(t) for n, t in state.items() if any(_matches(n, p) for p in patterns)}
    return frozenset(n for n, t in state.items() if id(t) in chosen)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def head_misfits(model: torch.nn.Module, head: str | Sequence[str]) -> list[str]:
    """Patterns that match no parameter, and a head that is the whole network."""
    names = [n for n, _ in model.named_parameters()]
    out = []
    for pattern in () if head == "auto" else [head] if isinstance(head, str) else head:
        if not any(_matches(n, pattern) for n in names):
            close = nearest(pattern.rstrip("*."), [*names, *(n.rpartition(".")[0] for n in names)])
            hint = f"did you mean {close!r}?" if close else f"the last parameter is {names[-1]!r}"
            out.append(f"personalization.head: {pattern!r} matches no parameter of the network; {hint}")
    if not out and set(names) <= head_names(model, head):
        out.append("personalization.head: it is the whole network, so nothing would be shared; name fewer layers")
    return out


# -- counts and remarks -------------------------------------------------------------------------------------------------------------------


def calls_of(epochs: int | None, steps: int | None) -> int:
    """Gradients that a further training adds to each configured optimizer step: 1 where it is as long as `training`, else an upper bound.

    The configured training makes at least one epoch, or at least one step, so ``epochs`` epochs are at most that many gradients for each
    of its steps, and ``steps`` steps as well. :func:`length_misfits` refuses what this does not cover.
    """
    return epochs or steps or 1


def length_misfits(name: str, epochs: int | None, steps: int | None, training: Mapping[str, Any]) -> list[str]:
    """Lengths that cannot be told to a privacy accountant as gradients for each configured step."""
    if epochs is None and steps is None:
        return []
    if training["epochs"] == 0 or training["steps"] == 0:
        return [f"personalization.{name}: `training` makes no step, so these gradients would be charged to none; remove the setting"]
    if epochs is not None and training["steps"] is not None:
        return [f"personalization.{name}_epochs: beside training.steps it has no bound for each step; give {name}_steps or training.epochs"]
    return []


def optimizer_remark(paper: str, training: Mapping[str, Any]) -> list[str]:
    """Where the paper steps with plain SGD and this run does not."""
    optimizer = training["optimizer"]
    if optimizer["use"] == "sgd" and not optimizer["momentum"]:
        return []
    kind = "sgd with momentum" if optimizer["use"] == "sgd" else optimizer["use"]
    return [f"{paper} steps with plain SGD; here training.optimizer does ({kind}), as for every method"]


def schedule_remark(training: Mapping[str, Any]) -> list[str]:
    """Where training at evaluation would be at the reduced rate of a schedule's end or of a warm-up."""
    out = []
    if training["warmup_rounds"]:
        out.append("what a site trains for itself at an evaluation is at that round's learning rate, which is small while it warms up")
    if training["schedule"] == "constant":
        return out
    return [
        *out,
        f"what a site trains for itself after the rounds is at the last round's learning rate, which `schedule: {training['schedule']}` "
        "has made small; use constant",
    ]
