"""``dp-sgd``: every example's gradient is clipped, the sum is noised (Abadi et al. 2016), at one of three places.

``local``: each site rounds and noises each of its gradients itself. ``distributed``: an optimizer step is one secure sum at the same
public weights, and each site adds its share of the noise to the integers that enter it. ``server``: the same, with the noise added to the
sum by a server that is trusted. The integers, and so the sensitivity, are the same in all three (:mod:`.grid`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.errors import PppmlError
from pppml_core.interfaces.attack import Defence
from pppml_core.interfaces.personalization import Batch, DrawnBatch, GradientRule, Personalization
from pppml_core.interfaces.privacy import (
    Canaries,
    Encoding,
    PrivacyMechanism,
    PrivacyPlan,
    PrivacySetting,
    PrivacyStatement,
    Sample,
)
from pppml_core.learning.gradients import PlainGradients
from pppml_core.randomness import entropy
from pppml_core.values import FixedPoint, Layout, TensorSpec
from pppml_dp import placing
from pppml_dp.budget import composed
from pppml_dp.clipping import Clipping, layers_of
from pppml_dp.config import DpSgdConfig
from pppml_dp.grid import BITS
from pppml_dp.per_example import clipped_sum, method_for
from pppml_dp.sampling import draw_examples, draw_patients, poisson
from pppml_dp.sizing import Sized, size_noise
from pppml_dp.validate import problems


@dataclass(frozen=True)
class Scale:
    """Public numbers of a run: see :func:`scale_of`."""

    rate: float
    #: expected batch of a site of mean size: what a sum of gradients is divided by, whatever was drawn.
    divisor: float
    #: gradients a site makes in a round.
    gradients: int


def scale_of(setting: PrivacySetting) -> Scale:
    """The sampling rate is the same at all sites, so all have the same number of steps and the same divisor."""
    assert setting.sample_rate is not None
    mean_size = sum(setting.examples.values()) / len(setting.examples)
    steps = max(setting.local_steps.values(), default=0)
    return Scale(setting.sample_rate, setting.sample_rate * mean_size, steps * setting.gradient_calls)


class DpSgdPlan(PrivacyPlan):
    """Bound to a run. ``noise`` None: clipping alone, without a claim."""

    constant_weight = 1
    admits_metrics = False

    def __init__(self, config: DpSgdConfig, setting: PrivacySetting, scale: Scale, sized: Sized) -> None:
        self.config, self.placement = config, config.placement
        self.sample_rate = scale.rate
        self.min_survivors = setting.min_survivors if config.placement == "distributed" else 1
        self._setting, self._scale = setting, scale
        self._grid, self._noise, self._budget = sized.grid, sized.noise, sized.budget
        self._clipping = Clipping(config.clipping, config.clip)
        self._canaries: Canaries | None = None
        self.noise_bound = 0 if self._noise is None or self.placement == "local" else self._noise.bound

    @property
    def statement(self) -> PrivacyStatement:
        """Add-remove adjacency of one example or patient, for the whole run."""
        config, setting = self.config, self._setting
        if self._noise is None:
            return placing.unprotected(config.unit, {"clip": config.clip, "clipping": config.clipping, "sample_rate": self._scale.rate})
        shares = placing.honest_shares(self.placement, setting, config.colluders)
        return PrivacyStatement(
            mechanism="dp-sgd",
            epsilon=self._budget.limit,
            delta=config.delta,
            unit=config.unit,
            adjacency="add-remove",
            placement=self.placement,
            accountant=self._budget.accountant,
            adversary=placing.adversary(self.placement, setting, config.colluders),
            details={
                "noise_multiplier": self._budget.event.noise_multiplier,
                "sample_rate": self._scale.rate,
                "gradients": self._budget.event.count * setting.rounds,
                "clip": config.clip,
                "clipping": config.clipping,
                "noise": config.noise,
                "expected_batch": self._scale.divisor,
                "integer_sensitivity": self._grid.l2,
                "share_variance": self._noise.variance,
                "colluders": config.colluders,
                "honest_shares": shares,
            },
        )

    def remarks(self, model: torch.nn.Module) -> list[str]:
        """How gradients are made, how much noise, and what else is worth knowing."""
        method, why = method_for(model) if self.config.per_example == "auto" else (self.config.per_example, "as configured")
        event, scale = self._budget.event, self._scale
        sums = f"{event.count * self._setting.rounds:,} {'noised sums' if self._noise else 'sums, none noised'}"
        clip = f"noise of {event.noise_multiplier:.4g} clips (of {self.config.clip:g}) on"
        if self._noise is None:
            clip = f"each gradient is clipped to {self.config.clip:g} in"
        out = [
            f"per-example gradients by {method} ({why})",
            f"each {self.config.unit} is in a batch with probability {scale.rate:.4g}; {sums}",
            f"{clip} a sum of about {scale.divisor:.4g} gradients a site",
            "every site weighs 1; training metrics stay at the sites",
            *self._budget.remarks,
        ]
        if self._noise and self._setting.cohort < len(self._setting.examples):
            out.append("which sites take part in a round is no secret, so it is charged as if all did")
        return out

    def cross_checks(self) -> Mapping[str, float | None]:
        """Epsilon of the planned rounds by each accountant that can compute it here; None: it cannot."""
        return self._budget.cross_checks()

    def sample(self, groups: npt.NDArray[Any]) -> Sample:
        """Poisson sampling of examples, or of patients."""
        if self.config.unit == "patient":
            return draw_patients(groups, self._scale.rate, self.config.images_per_patient)
        return draw_examples(len(groups), self._scale.rate)

    def gradient_rule(self, plain: PlainGradients) -> GradientRule:
        """Clipped sums; noised here where the placement is local."""
        return _Rule(self, plain)

    def audited(self, canaries: Canaries) -> DpSgdPlan:
        """With further examples whose gradients have one coordinate each."""
        plan = copy.copy(self)
        plan._canaries = canaries
        return plan

    def encoding(self, round: int) -> Encoding | None:
        """The grid in the unit of a site's update, learning rate times gradient. None where the gradient itself is noised."""
        if self.placement == "local":
            return None
        clip = self._setting.learning_rates[round - 1] * self.config.clip / self._scale.divisor
        return Encoding(clip * self._grid.range_in_clips, BITS)

    def noise(self, values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """Values with a share of noise, or with all of it at the server. (With placement local the gradients have had theirs.)"""
        if self._noise is None or self.placement == "local":
            return values
        return (values + self._noise.sample(values.size)).astype(values.dtype)

    def defence(self, round: int, sites: int) -> Defence:
        """The clip, the public divisor, and the noise of one gradient in the unit of an update."""
        unit = self._setting.learning_rates[round - 1] / self._scale.divisor
        clip = self.config.clip
        if self._noise is None:
            return Defence("clip-only", clip, "example", divisor=self._scale.divisor)
        noise = placing.noise_in_sum(self.placement, self._noise.variance, sites) * unit * clip / self._grid.clip_steps
        return Defence("dp-sgd", clip, "example", noise, {}, self._scale.divisor, self._budget.event.noise_multiplier)

    def charge(self, round: int) -> Mapping[str, Any] | None:
        """The same each round."""
        return None if self._noise is None else self._budget.charge()

    def spent(self, charges: Sequence[Mapping[str, Any]]) -> float | None:
        """By the stated accountant."""
        return self._budget.spent(charges)

    def affords(self, charges: Sequence[Mapping[str, Any]]) -> bool:
        """By counting."""
        return self._budget.affords(charges)

    # -- used by the rule -----------------------------------------------------------------------------------------------------

    def clipped(self, model: torch.nn.Module, loss: Any, batch: DrawnBatch) -> torch.Tensor:
        """The sum of clipped gradients of a batch, and of canaries, if any: ``(trained coordinates,)``, the model's dtype."""
        config = self.config
        clipped_sum(model, loss, batch, self._clipping, method=config.per_example, physical_batch=config.physical_batch)
        flat = torch.cat([p.grad.reshape(-1) for p in _trained(model)])  # type: ignore[union-attr]
        if self._canaries is not None:
            flat.index_add_(0, *_clipped_canaries(model, self._canaries, self._clipping, self._scale.rate, flat))
        return flat

    def noised(self, flat: torch.Tensor) -> torch.Tensor:
        """A clipped sum on the integer grid, with noise: the same shape, dtype and unit."""
        if self._noise is None:
            return flat
        limit = self.config.clip * self._grid.range_in_clips
        fixed = FixedPoint(Layout((TensorSpec("gradient", (flat.numel(),)),)), (limit,), BITS)
        # Rounding bits need not be secret, only independent of the data.
        rounding = np.random.Generator(np.random.PCG64(int.from_bytes(entropy(16))))
        integers, _ = fixed.encode(flat.detach().cpu().numpy(), rounding)
        return torch.from_numpy((integers + self._noise.sample(integers.size)) * fixed.step(0)).to(flat)

    @property
    def divisor(self) -> float:
        """The public expected batch of a site."""
        return self._scale.divisor

    @property
    def gradients(self) -> int:
        """What a round's charge pays for."""
        return self._budget.event.count


class _Rule:
    """The gradient rule of one round: it makes as many gradients as are charged, and no more."""

    def __init__(self, plan: DpSgdPlan, plain: PlainGradients) -> None:
        self._plan, self._loss, self._made = plan, plain.loss, 0

    def __call__(self, model: torch.nn.Module, batch: Batch) -> float:
        """Set ``.grad`` to the clipped sum over the expected batch, noised where that is local. Returns 0: no loss is told."""
        plan = self._plan
        if not isinstance(batch, DrawnBatch):
            raise PppmlError("the batch was not drawn by Poisson sampling, so its gradient cannot be charged", place="dp-sgd")
        if batch.used:
            text, hint = "two gradients of one sample, each of which is charged as one of a sample of its own", "use `fresh(batch)`"
            raise PppmlError(text, place="dp-sgd", hint=hint)
        if self._made >= plan.gradients:
            text = f"{self._made + 1} gradients are asked for in a round that is charged for {plan.gradients}"
            raise PppmlError(text, place="dp-sgd", hint="the personalization declares too few gradient_calls")
        self._made, batch.used = self._made + 1, True
        flat = plan.clipped(model, self._loss, batch)
        if plan.placement == "local":
            flat = plan.noised(flat)
        flat = flat / plan.divisor
        start = 0
        for p in _trained(model):
            p.grad = flat[start : start + p.numel()].view_as(p).clone()
            start += p.numel()
        return 0.0


def _clipped_canaries(
    model: torch.nn.Module, canaries: Canaries, clipping: Clipping, rate: float, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates and clipped gradients of the canaries in a batch, each of which is there with probability ``rate`` as any example."""
    drawn = poisson(len(canaries.coordinates), rate)
    at, values = torch.from_numpy(canaries.coordinates[drawn]), torch.from_numpy(canaries.values[drawn])
    names, sizes = zip(*((n, p.numel()) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    ends, layers = torch.tensor(sizes).cumsum(0), torch.tensor(layers_of(list(names)))
    layer = layers[torch.searchsorted(ends, at, right=True)]
    norms = torch.zeros(len(drawn), int(layers.max()) + 1, dtype=torch.float64)
    one = torch.arange(len(drawn))
    norms[one, layer] = values.abs()
    factors = clipping.factors(norms, torch.ones(len(drawn), dtype=torch.float64))[one, layer]
    return at.to(like.device), (values * factors).to(like)


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


class DpSgd(PrivacyMechanism):
    """The mechanism of that name."""

    config: DpSgdConfig

    def sample_rate(self, examples: Mapping[str, int], batch_size: int) -> float:
        """See :func:`poisson_rate`."""
        return poisson_rate(self.config.sample_rate, examples, batch_size)

    def misfits(
        self, setting: PrivacySetting, personalization: Personalization, model: torch.nn.Module, training: Mapping[str, Any]
    ) -> list[str]:
        """Everything that would make the claim false."""
        config = self.config
        local = config.placement == "local"
        units = min(setting.examples.values()) if local else sum(setting.examples.values())
        return [
            *problems(model),
            *training_misfits(training),
            *(
                ["training: it makes no step, so there is no gradient to protect; set training.steps: 1"]
                if not scale_of(setting).gradients
                else []
            ),
            *placing.misfits(config.placement, setting, config.colluders, personalization.shares),
            *placing.delta_misfits(
                config.delta, units, "training examples of the smallest site" if local else "training examples of all sites"
            ),
        ]

    def plan(self, setting: PrivacySetting) -> DpSgdPlan:
        """Solve for the noise where epsilon is given; else compute epsilon."""
        return make_sgd_plan(self.config, setting)

    def spent(self, charges: Sequence[Mapping[str, Any]]) -> float:
        """By the accountant that makes the statement."""
        return composed(charges, self.config.delta)


def poisson_rate(configured: float | None, examples: Mapping[str, int], batch_size: int) -> float:
    """The same at all sites: a batch has ``batch_size`` examples in expectation at a site of mean size."""
    return configured or min(1.0, batch_size * len(examples) / max(1, sum(examples.values())))


def make_sgd_plan(config: DpSgdConfig, setting: PrivacySetting) -> DpSgdPlan:
    """The plan of a config with noise, or without (``noise_multiplier`` 0)."""
    scale = scale_of(setting)
    sized = size_noise(
        config,
        setting,
        rate=scale.rate,
        each=scale.gradients,
        expected=scale.divisor,
        delta=config.delta,
        multiplier=config.noise_multiplier,
    )
    return DpSgdPlan(config, setting, scale, sized)


def training_misfits(training: Mapping[str, Any]) -> list[str]:
    """Training settings under which one example's part in a gradient is not bounded by the clip."""
    out = []
    # A list is as public as the config, and the loss of an example is multiplied by its class's weight before its gradient is clipped.
    if training["class_weights"] == "balanced":
        out.append(
            "training.class_weights: balanced weights count a site's labels, which nothing noises; use class_weights: none, or a list "
            "that is no count of these data"
        )
    if training["precision"] == "bf16":
        out.append("training.precision: bf16 rounds gradients too coarsely for the clip to hold; use float32")
    return out
