"""Personalization: the local learning rule, what is shared, and what is done with the mean.

Torch-native and stateless: state is handed in and out. Plain FedAvg is::

    class FedAvg(Personalization):
        def local_update(self, model, data, gradients, state):
            start = snapshot(model)
            data.train(model, gradients)                    # the configured epochs or steps
            return Update(difference(model, start)), state

        def server_update(self, weights, mean, state):
            return {n: w + mean[n] for n, w in weights.items()}, state

A rule that changes how a gradient is made wraps ``gradients`` and leaves the loop alone. FedProx is::

            def proximal(model, batch):
                loss = gradients(model, batch)
                for name, p in model.named_parameters():
                    p.grad += mu * (p.detach() - start[name])
                return loss

            data.train(model, proximal)

A rule whose step needs several batches, such as Per-FedAvg, declares ``batches_per_step`` and is handed that many disjoint batches.
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
    #: The same for one optimizer step, which may take a tuple of batches.
    StepRule = Callable[[torch.nn.Module, Any], float]
else:
    Tensors = Mapping[str, Any]
    Batch = tuple
    GradientRule = StepRule = Callable


class DrawnBatch(tuple[Any, ...]):
    """A batch that a privacy mechanism drew: images and targets like any other, possibly none, and each example's share of the clip.

    A Poisson sample pays for one gradient: a rule that makes a second one takes :func:`fresh`, or the mechanism refuses to make it. A rule
    that takes batches apart and joins them would lose the shares, and is refused too.

    Args:
        images: ``(n, channels, *size)``.
        targets: ``(n,)`` or ``(n, *size)``.
        shares: float64 ``(n,)``, on the CPU; see :class:`.privacy.Sample`.
        again: draws another batch.
    """

    shares: Any
    again: Callable[[], DrawnBatch] | None
    #: set by the mechanism when a gradient was made of it.
    used: bool

    def __new__(cls, images: Any, targets: Any, shares: Any, again: Callable[[], DrawnBatch] | None = None) -> DrawnBatch:
        """The pair ``(images, targets)``, with the rest beside it."""
        batch = super().__new__(cls, (images, targets))
        batch.shares, batch.again, batch.used = shares, again, False
        return batch


def fresh(batch: Batch) -> Batch:
    """What to make one more gradient of: a Poisson sample of its own where a privacy mechanism draws them, else the same batch."""
    return batch.again() if isinstance(batch, DrawnBatch) and batch.again is not None else batch


#: Plain data a site keeps between rounds: names to tensors, numbers, or maps of these.
PersonalState = Mapping[str, Any]


@dataclass(frozen=True)
class Update:
    """What a site would share: ``delta`` by state-dict name (floating tensors on the CPU), and training metrics (weighted means)."""

    delta: Tensors
    metrics: Mapping[str, float] = field(default_factory=dict)


class LocalData(Protocol):
    """A site's training data and training settings during one round. There is no way from here to validation or test data."""

    examples: int

    def batches(self) -> Iterator[Batch]:
        """The configured epochs or steps of training batches, on the training device."""

    def sample(self, purpose: str, count: int) -> Iterator[Batch]:
        """``count`` further batches with an order of their own, named by the purpose; a new order whenever the examples are used up."""

    def train(
        self,
        model: torch.nn.Module,
        rule: StepRule,
        *,
        parameters: list[torch.nn.Parameter] | None = None,
        batches_per_step: int = 1,
        lr: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        purpose: str = "train",
    ) -> dict[str, float]:
        """The configured local training in place. Returns mean training metrics (``loss``; empty when no step was made).

        Args:
            model: trained in place, in training mode.
            rule: called once for each optimizer step with a batch, or with a tuple of ``batches_per_step`` of them.
            parameters: which to train; default: all.
            batches_per_step: above 1, each step gets that many batches of the configured size without an example in common. An epoch
                is one pass over the data all the same, so it has fewer steps.
            lr: instead of the configured learning rate, with the same schedule.
            epochs: instead of the configured epochs or steps.
            steps: instead of the configured epochs or steps.
            purpose: names the order of examples and the optimizer's kept state, where a round trains more than once.
        """


class Personalization(ABC):
    """A local learning rule; holds no state."""

    #: gradient evaluations per optimizer step, for privacy accounting and cost.
    gradient_calls: int = 1
    #: disjoint batches per optimizer step, as handed to ``LocalData.train``.
    batches_per_step: int = 1
    #: False: nothing is shared, no sum is formed.
    shares: bool = True
    #: whether ``adapt`` gives something else than the global model, so that both are evaluated.
    personalizes: bool = False
    #: whether it asks the gradient rule for Hessian-vector products, which no privacy mechanism can bound.
    needs_hessian: bool = False
    #: whether a round of one step shares a mean of per-example gradients at the shared weights, times a public rate, and nothing else:
    #: all that noise distributed over the sites can protect.
    shares_one_gradient: bool = False

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @property
    def has_global_model(self) -> bool:
        """Whether the shared weights make a model by themselves. False where every site adds parts of its own (a head, normalization)."""
        return self.shares

    def misfits(self, model: torch.nn.Module, examples: Mapping[str, int], training: Mapping[str, Any]) -> list[str]:
        """All reasons why this rule does not fit the network, the sites' numbers of training examples, or the training settings."""
        return []

    def remarks(self, training: Mapping[str, Any]) -> list[str]:
        """Where the settings depart from the paper; the plan prints them."""
        return []

    def weight_remarks(self) -> list[str]:
        """Where the weights of sites depart from the paper; the plan prints them unless a privacy mechanism sets the weights."""
        return []

    def noise_remarks(self, training: Mapping[str, Any]) -> list[str]:
        """What this rule makes of noise in its gradients, beyond passing it on; the plan prints it where a mechanism replaces the rule."""
        return []

    def init(self, model: torch.nn.Module) -> PersonalState:
        """A site's state before its first round; ``model`` holds the initial weights."""
        return {}

    def shared(self, name: str, model: torch.nn.Module) -> bool:
        """Whether this floating parameter or buffer (state-dict name) is shared; the rest stays at the site.

        ``model`` is there for its structure (names and types of modules): the answer must not depend on its values.
        """
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
        """The model a site would use: from shared weights in ``model`` to the personalized one, on the site's training data only.

        It stays at the site, so ``gradients`` is plain autograd here, whatever the privacy mechanism.
        """
        return model
