"""A run's mechanism on canaries alone: the same plan, sampler, clip, grid and noise, without images and without the run's network.

A canary is an artificial example whose gradient has one coordinate. The mechanism treats it as any other: it is drawn with the sampling
rate, clipped, summed, rounded and noised. All other examples are known to the worst-case adversary of a privacy claim, who subtracts
them; so there are none here, every batch of images is empty, and what each site releases is canaries and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.errors import ConfigError
from pppml_core.federation.pipeline import Pipeline, contribution_layout
from pppml_core.interfaces.personalization import DrawnBatch
from pppml_core.interfaces.privacy import Canaries, Encoding, PrivacyPlan
from pppml_core.learning.gradients import plain_gradients
from pppml_core.randomness import entropy
from pppml_core.values import TensorSpec

#: a canary's gradient before clipping: far above any clip, so that an example that is not clipped shows.
CANARY_GRADIENT = 1e6


@dataclass(frozen=True)
class Schedule:
    """What a run releases: public numbers.

    Args:
        shares: for each round, counted from 1, the parties whose noise is in what is released and unknown to the adversary; 0: nothing
            was released in this round. With noise that each site adds to its own gradients: any number above 0.
        learning_rates: of each round; steps of small ones count as much.
        gradients: that a site makes in a round.
        grid: of the config, for mechanisms that bring none of their own.
    """

    shares: Sequence[int] = (1,)
    learning_rates: Sequence[float] = (1.0,)
    gradients: int = 1
    grid: Encoding = field(default_factory=lambda: Encoding(1.0, 16))


def scores(plan: PrivacyPlan, included: npt.NDArray[np.bool_], schedule: Schedule) -> npt.NDArray[np.float64]:
    """Replay all rounds with the included canaries at one site; the sum over steps of what was released at each canary's coordinate.

    ``included``: bool ``(m,)``; canary ``j`` is at coordinate ``j`` of a flat gradient of ``m`` numbers. Returns float64 ``(m,)``. Raises
    ConfigError for a plan that takes no artificial examples.
    """
    at = np.flatnonzero(included)
    audited = plan.audited(Canaries(at.astype(np.int64), np.full(len(at), CANARY_GRADIENT)))
    if audited is None:
        text, hint = "this mechanism takes no artificial examples", "only noised gradients are audited"
        raise ConfigError(text, place=plan.statement.mechanism, hint=hint)
    total = np.zeros(len(included))
    for round, (shares, rate) in enumerate(zip(schedule.shares, schedule.learning_rates, strict=True), 1):
        if shares == 0:
            continue
        # Integers are noised in the pipeline, on their way into a sum; gradients have had their noise from the rule.
        if plan.placement in ("distributed", "server") or plan.noise_bound > 0:
            total += _summed(audited, plan, len(included), schedule, round, shares, rate)
        else:
            total += _gradients(audited, len(included), schedule.gradients)
    return total


def _gradients(plan: PrivacyPlan, length: int, count: int) -> npt.NDArray[np.float64]:
    """The sum of a site's ``count`` gradients of one round, from empty batches, flat."""
    rule = plan.gradient_rule(plain_gradients(lambda outputs, targets: outputs.sum()))
    # One layer with as many weights as there are canaries stands in for the network: noise and rounding are the same for every weight.
    model = torch.nn.utils.skip_init(torch.nn.Linear, 1, length, bias=False)
    torch.nn.init.zeros_(model.weight)
    model.train()
    total = np.zeros(length)
    for _ in range(count):
        rule(model, DrawnBatch(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), np.zeros(0)))
        total += 0.0 if model.weight.grad is None else model.weight.grad.reshape(-1).double().numpy()
    return total


def _summed(
    audited: PrivacyPlan, plan: PrivacyPlan, length: int, schedule: Schedule, round: int, shares: int, rate: float
) -> npt.NDArray[np.float64]:
    """The decoded sum of ``shares`` sites' updates, the first with canaries, in the unit of a gradient."""
    grid = audited.encoding(round) or schedule.grid
    weight = plan.constant_weight or 1
    layout = contribution_layout((TensorSpec("canaries", (length,)),), metrics=False)
    # Rounding must be independent of the data, no more.
    rounding = np.random.Generator(np.random.PCG64(int.from_bytes(entropy(16))))
    total = np.zeros(layout.length, np.int64)
    for party in range(1 if plan.placement == "local" else shares):
        mechanism = audited if party == 0 else plan
        update = -rate * _gradients(mechanism, length, schedule.gradients)
        pipeline = Pipeline(layout, (grid.range,), grid.bits, weight, mechanism)
        total += pipeline.encode({"canaries": update.astype(np.float32)}, weight, {}, rounding)[0]
    pipeline = Pipeline(layout, (grid.range,), grid.bits, weight, audited)
    mean, _, summed = pipeline.decode(pipeline.released(total))
    return mean["canaries"].astype(np.float64) * summed / weight / -rate
