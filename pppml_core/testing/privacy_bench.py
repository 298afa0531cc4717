"""What the parts of ``PrivacySuite`` share: plans for public numbers, gradients that a test chooses, noise by itself.

Everything goes through the contract of :mod:`pppml_core.interfaces.privacy`. Two tricks make noise and clip visible by themselves.
A network of one linear output whose loss is the mean output has the image as its gradient, so that an adversary's gradients are simply
images. And under a loss of zero all gradients are zero: what still leaves is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pppml_core.federation.pipeline import Pipeline, contribution_layout, levels_of
from pppml_core.interfaces.personalization import Batch, DrawnBatch
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacySetting, PrivacyStatement
from pppml_core.learning.gradients import LossFunction, PlainGradients
from pppml_core.testing.suite import Suite
from pppml_core.values import TensorSpec

Vector = npt.NDArray[np.float64]
SITES = tuple("abcdefghij")
#: coordinates of what is shared.
LENGTH = 4096


@dataclass(frozen=True)
class Stated:
    """What a mechanism says of its noise; the suite holds it against what really leaves.

    Args:
        sensitivity: largest L2 distance that one protected unit makes in the integers of a sum, before noise, in steps.
        share_variance: of the noise that one party adds to a coordinate, in steps squared; 0: none.
    """

    sensitivity: float
    share_variance: float


@dataclass(frozen=True)
class Charged:
    """What a ledger entry pays for.

    Args:
        sample_rate: probability with which each unit is in a sum.
        noise_multiplier: standard deviation of the noise in sensitivities.
        count: noised sums.
    """

    sample_rate: float
    noise_multiplier: float
    count: int


class PrivacyBench(Suite):
    """Settings and helpers of :class:`~pppml_core.testing.PrivacySuite`."""

    #: settings, laid over ``config``, under which the mechanism clips and adds no noise; None: it cannot do that.
    quiet: ClassVar[Mapping[str, Any] | None] = None
    #: settings under which it adds more noise than with ``config``; None: there is no such setting.
    noisier: ClassVar[Mapping[str, Any] | None] = None
    #: the rule itself noises each gradient; otherwise ``noise`` does.
    noise_in_rule: ClassVar[bool] = False
    #: sites that may tell an adversary their share of the noise (placement ``distributed``).
    colluders: ClassVar[int] = 0
    #: how far above the exact epsilon the stated one may be, relatively.
    slack: ClassVar[float] = 0.01
    _kept: ClassVar[dict[str, Any]] = {}

    # -- what the author may say otherwise ----------------------------------------------------------------------------------------------

    def stated(self, plan: PrivacyPlan) -> Stated:
        """From the statement's details ``integer_sensitivity`` and ``share_variance``."""
        details = plan.statement.details
        return Stated(details["integer_sensitivity"], details["share_variance"])

    def charged(self, charge: Mapping[str, Any]) -> Charged:
        """From an entry's ``sample_rate``, ``noise_multiplier`` and ``count``."""
        return Charged(charge["sample_rate"], charge["noise_multiplier"], charge["count"])

    def step(self, plan: PrivacyPlan) -> float:
        """One step of the integers, in the unit of a site's update at a learning rate of 1."""
        grid = plan.encoding(1)
        assert grid is not None, "there is no grid: override step"
        return grid.range / levels_of(grid.bits)

    def clip(self, plan: PrivacyPlan) -> float:
        """Largest L2 norm of one example's gradient in the sum: the statement's detail ``clip``."""
        return float(plan.statement.details["clip"])

    def clipped(self, gradient: Sequence[torch.Tensor], clip: float) -> list[torch.Tensor]:
        """What of one example's gradient, by parameter, enters the sum: by default it is scaled to the clip as a whole."""
        norm = float(torch.cat([g.flatten() for g in gradient]).norm())
        return [g * min(1.0, clip / norm) if norm else g for g in gradient]

    def network(self) -> torch.nn.Module:
        """A small network whose examples do not mix: images ``(batch, 1, 8, 8)``, logits ``(batch, 3)``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return torch.nn.Sequential(
                torch.nn.Conv2d(1, 4, 3, padding=1),
                torch.nn.GroupNorm(2, 4),
                torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(4),
                torch.nn.Flatten(),
                torch.nn.Linear(64, 3),
            )

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The same for all tests of a class."""
        kept: dict[str, Any] = vars(type(self)).get("_kept", {})
        if name not in kept:
            kept = {**kept, name: make()}
            type(self)._kept = kept
        return kept[name]

    # -- plans --------------------------------------------------------------------------------------------------------------------------

    def mechanism(self, **settings: Any) -> PrivacyMechanism:
        """The mechanism under ``config`` with these settings laid over it."""
        made: PrivacyMechanism = self.build(self.component.config(**{**self.config, **settings}))
        return made

    def setting(self, mechanism: PrivacyMechanism, **changes: Any) -> PrivacySetting:
        """Public numbers of a run of ten sites of which seven survive at least."""
        usual = {
            "rounds": 3,
            "cohort": len(SITES),
            "examples": dict.fromkeys(SITES, 200),
            "batch_size": 20,
            "local_steps": dict.fromkeys(SITES, 1),
            "gradient_calls": 1,
            "learning_rates": (1.0,) * changes.get("rounds", 3),
            "coordinates": LENGTH,
            "min_survivors": 7,
            "sees_sum": ("server",),
        }
        values = {**usual, **changes}
        return PrivacySetting(sample_rate=mechanism.sample_rate(values["examples"], values["batch_size"]), **values)

    def plan(self, settings: Mapping[str, Any] | None = None, **changes: Any) -> PrivacyPlan:
        """Of the mechanism under ``settings``, for a :meth:`setting` with ``changes``."""
        mechanism = self.mechanism(**(settings or {}))
        return mechanism.plan(self.setting(mechanism, **changes))

    def noised(self) -> PrivacyPlan:
        """The usual plan, of a mechanism with noise; else skips."""
        plan = self.plan()
        if not claims(plan.statement):
            pytest.skip("it claims nothing, and so owes no noise")
        return plan

    def of_examples(self) -> PrivacyPlan:
        """The usual plan, of a mechanism that protects examples or patients by a rule of its own; else skips."""
        plan = self.plan()
        if plan.statement.unit == "site":
            pytest.skip("it protects a whole site, whatever gradients are made there")
        return plan

    # -- what leaves --------------------------------------------------------------------------------------------------------------------

    def gradient(self, plan: PrivacyPlan, batch: Batch, model: torch.nn.Module, loss: LossFunction) -> Vector:
        """What the mechanism's rule leaves in ``.grad``, flat."""
        model.train().zero_grad(set_to_none=True)
        plan.gradient_rule(PlainGradients(loss))(model, batch)
        return np.concatenate([_gradient_of(p) for p in model.parameters() if p.requires_grad])

    def update(self, plan: PrivacyPlan, images: npt.NDArray[np.float32], shares: npt.NDArray[np.float64] | None = None) -> Vector:
        """The update of one step on examples whose gradients are ``images``, shape ``(n, LENGTH)``, at a learning rate of 1."""
        batch = batch_of(plan, images, shares)
        return -self.gradient(plan, batch, line(), mean_output)

    def integers(self, plan: PrivacyPlan, update: Vector) -> Vector:
        """A site's update as it enters the sum, clipped and rounded but without noise, in steps. Rounding bits are always the same ones.

        A mechanism without a grid of its own is taken as it is, unrounded.
        """
        if (grid := plan.encoding(1)) is None:
            return np.asarray(plan.constrain(update.astype(np.float32)), np.float64) / self.step(plan)
        layout = contribution_layout((TensorSpec("gradient", (len(update),)),), metrics=plan.admits_metrics)
        weight = plan.constant_weight or 200
        pipeline = Pipeline(layout, (grid.range,), grid.bits, weight, Noiseless(plan))
        rounding = np.random.Generator(np.random.PCG64(11))
        values, _ = pipeline.encode({"gradient": update.astype(np.float32)}, weight, {}, rounding)
        return values[: len(update)].astype(np.float64)

    def noise_of(self, plan: PrivacyPlan) -> Vector:
        """The noise that one party adds in one round, in steps: ``(LENGTH,)`` by a rule, else four times as many."""
        if self.noise_in_rule:
            update = self.gradient(plan, batch_of(plan, np.zeros((3, LENGTH), np.float32)), line(), no_loss)
            return np.rint(update / self.step(plan))
        values = np.resize(np.array([0, 1, -1, 77, -1000]), 4 * LENGTH).astype(np.int64)
        return (plan.noise(values.copy()) - values).astype(np.float64)

    def noises(self, count: int) -> list[Vector]:
        """Noise of ``count`` rounds of one plan, learning randomness seeded alike before each, as a run seeds it alike at each try."""
        plan = self.noised()
        return [alike(lambda: self.noise_of(plan)) for _ in range(count)]


class Noiseless(PrivacyPlan):
    """A plan's clip and weight, without its noise."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self._plan = plan
        self.admits_metrics, self.constant_weight = plan.admits_metrics, plan.constant_weight

    @property
    def statement(self) -> PrivacyStatement:
        """The plan's."""
        return self._plan.statement

    def constrain(self, flat: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The plan's."""
        return self._plan.constrain(flat)


def claims(statement: PrivacyStatement) -> bool:
    """Whether it claims a finite epsilon."""
    return statement.epsilon is not None and bool(np.isfinite(statement.epsilon))


def line() -> torch.nn.Module:
    """One output, linear in ``LENGTH`` numbers, with weights of zero."""
    model: torch.nn.Module = torch.nn.utils.skip_init(torch.nn.Linear, LENGTH, 1, bias=False)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    return model


def mean_output(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss under which the gradient of a linear output is the image."""
    return outputs.mean()


def no_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss that does not depend on anything."""
    return 0.0 * outputs.sum()


def batch_of(plan: PrivacyPlan, images: npt.NDArray[np.float32], shares: npt.NDArray[np.float64] | None = None) -> Batch:
    """A batch as local training hands it to the rule: drawn, where the mechanism draws."""
    pair = torch.from_numpy(images), torch.zeros(len(images), dtype=torch.int64)
    return pair if plan.sample_rate is None else DrawnBatch(*pair, np.ones(len(images)) if shares is None else shares)


def alike(make: Any) -> Any:
    """``make()`` with all generators of learning seeded in the same way."""
    import random

    from pppml_core.randomness import seeded

    state = random.getstate()
    random.seed(5)
    try:
        with seeded(5):
            return make()
    finally:
        random.setstate(state)


def _gradient_of(parameter: torch.nn.Parameter) -> Vector:
    given = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return given.detach().double().numpy().ravel()
