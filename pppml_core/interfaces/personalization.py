"""Personalization: the local learning rule, what is shared, and what is done with the mean.

Torch-native and stateless: state is handed in and out. Plain FedAvg is::

    class FedAvg(Personalization):
        def local_update(self, model, data, gradients, state):
            start = snapshot(model)
            data.train(model, gradients)                    # the configured epochs or steps
            return Update(difference(model, start)), state

        def server_update(self, weights, mean, state):
            return {n: w + mean[n] for n, w in weights.items()}, state
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pppml_core.component import ComponentConfig

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]
    Batch = tuple[torch.Tensor, torch.Tensor]
    #: Sets ``.grad`` of the model's parameters for one batch and returns the batch's mean loss.
    GradientRule = Callable[[torch.nn.Module, Batch], float]
else:
    Tensors = Mapping[str, Any]
    Batch = tuple
    GradientRule = Callable

#: Plain data a site keeps between rounds: names to tensors, numbers, or maps of these.
PersonalState = Mapping[str, Any]


@dataclass(frozen=True)
class Update:
    """What a site would share: ``delta`` by state-dict name (floating tensors on the CPU), and training metrics (weighted means)."""

    delta: Tensors
    metrics: Mapping[str, float] = field(default_factory=dict)


class LocalData(Protocol):
    """A site's training data and training settings during one round."""

    examples: int

    def batches(self) -> Iterator[Batch]:
        """The configured epochs or steps of training batches, on the training device."""

    def sample(self, purpose: str, count: int) -> Iterator[Batch]:
        """``count`` further batches with an order of their own, named by the purpose; a new order whenever the examples are used up."""

    def train(
        self, model: torch.nn.Module, gradients: GradientRule, *, parameters: list[torch.nn.Parameter] | None = None
    ) -> dict[str, float]:
        """The configured local training in place: optimizer, schedule, batches. Returns mean training metrics (``loss``)."""


class Personalization(ABC):
    """A local learning rule; holds no state."""

    #: gradient evaluations per optimizer step, for privacy accounting and cost.
    gradient_calls = 1
    #: False: nothing is shared, no sum is formed.
    shares = True

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def init(self, model: torch.nn.Module) -> PersonalState:
        """A site's state before its first round."""
        return {}

    def shared(self, name: str) -> bool:
        """Whether this floating parameter or buffer (state-dict name) is shared; the rest stays at the site."""
        return self.shares

    @abstractmethod
    def local_update(
        self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState
    ) -> tuple[Update, PersonalState]:
        """Train on the site. ``model`` holds the shared weights (and this site's personal ones) and may be changed freely."""

    def server_init(self, weights: Tensors) -> PersonalState:
        """The server's state before the first round (momentum and the like)."""
        return {}

    @abstractmethod
    def server_update(self, weights: Tensors, mean: Tensors, state: PersonalState) -> tuple[Tensors, PersonalState]:
        """New shared weights from the weighted mean of the deltas."""

    def weight(self, examples: int) -> int:
        """A site's weight in the mean: its number of training examples unless the rule says otherwise."""
        return examples

    def adapt(self, model: torch.nn.Module, data: LocalData, gradients: GradientRule, state: PersonalState) -> torch.nn.Module:
        """The model a site would use: from shared weights in ``model`` to the personalized one, on the site's training data only."""
        return model

    #: whether ``adapt`` gives something else than the global model, so that both are evaluated.
    personalizes = False
