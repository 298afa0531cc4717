"""What a learning rule asks its data and its gradient rule for, noted as it happens.

:class:`WatchedData` stands between a rule and its training data, :func:`watched` between it and the gradient rule. Wrappers hand
``hessian_vector`` on exactly when the rule they wrap has it: whether it is there tells a method what it may ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pppml_core.interfaces.personalization import Batch, GradientRule, LocalData, StepRule

#: ``(kind, model, batch)`` before each call of a gradient rule; kind is ``gradient`` or ``product``.
Note = Callable[[str, torch.nn.Module, Batch], None]


def watched(gradients: GradientRule, note: Note) -> GradientRule:
    """The same rule, with a note before each gradient and each Hessian-vector product."""

    def rule(model: torch.nn.Module, batch: Batch) -> float:
        note("gradient", model, batch)
        return gradients(model, batch)

    product = getattr(gradients, "hessian_vector", None)
    if product is not None:

        def hessian_vector(model: torch.nn.Module, batch: Batch, vector: Mapping[str, torch.Tensor]) -> Any:
            note("product", model, batch)
            return product(model, batch, vector)

        rule.hessian_vector = hessian_vector  # type: ignore[attr-defined]
    return rule


def without_products(gradients: GradientRule) -> GradientRule:
    """A rule as a privacy mechanism has it: gradients, and no Hessian-vector products."""
    return lambda model, batch: gradients(model, batch)


def blind(model: torch.nn.Module, batch: Batch) -> float:
    """Every gradient is zero, and so is every Hessian-vector product."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return 0.0


def _zero_product(model: torch.nn.Module, batch: Batch, vector: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.zeros_like(p) for n, p in model.named_parameters() if n in vector}


blind.hessian_vector = _zero_product  # type: ignore[attr-defined]


def example_keys(batch: Batch) -> frozenset[bytes]:
    """The examples of a batch, told apart by their pixels."""
    return frozenset(image.detach().cpu().numpy().tobytes() for image in batch[0])


@dataclass
class Step:
    """One optimizer step: the batches it was handed, those its gradient calls took, and which weights its step rule changed."""

    batches: tuple[Batch, ...]
    used: list[Batch] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)


@dataclass
class Training:
    """One call of ``train`` or ``batches``."""

    purpose: str
    batches_per_step: int
    steps: list[Step] = field(default_factory=list)


class WatchedData:
    """Offers what ``interfaces.personalization.LocalData`` has, and nothing else.

    ``trainings``: every training that was asked for. ``calls``: kinds of all gradient calls. ``reached``: other names a rule looked for.
    """

    def __init__(self, data: LocalData) -> None:
        self.examples = data.examples
        self.__data = data
        self.trainings: list[Training] = []
        self.calls: list[str] = []
        self.reached: list[str] = []
        self.__step: Step | None = None

    def __getattr__(self, name: str) -> Any:
        self.reached.append(name)
        raise AttributeError(f"LocalData has no {name!r}")

    def steps(self) -> list[Step]:
        """Of all trainings."""
        return [step for training in self.trainings for step in training.steps]

    def gradients(self, rule: GradientRule) -> GradientRule:
        """The gradient rule to hand over with these data."""

        def note(kind: str, model: torch.nn.Module, batch: Batch) -> None:
            self.calls.append(kind)
            if self.__step is not None:
                self.__step.used.append(batch)

        return watched(rule, note)

    def batches(self) -> Iterator[Batch]:
        """As it is; each batch counts as one step."""
        self.trainings.append(noted := Training("train", 1))
        for batch in self.__data.batches():
            noted.steps.append(step := Step((batch,)))
            self.__step = step
            yield batch
        self.__step = None

    def sample(self, purpose: str, count: int) -> Iterator[Batch]:
        """As it is."""
        return self.__data.sample(purpose, count)

    def train(
        self, model: torch.nn.Module, rule: StepRule, *, batches_per_step: int = 1, purpose: str = "train", **options: Any
    ) -> dict[str, float]:
        """As it is."""
        self.trainings.append(noted := Training(purpose, batches_per_step))

        def step_rule(model: torch.nn.Module, together: Any) -> float:
            noted.steps.append(step := Step(together if batches_per_step > 1 else (together,)))
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            outer, self.__step = self.__step, step
            value = rule(model, together)
            self.__step = outer
            step.moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
            return value

        return self.__data.train(model, step_rule, batches_per_step=batches_per_step, purpose=purpose, **options)
