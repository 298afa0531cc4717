"""`idlg`: the same idea with a solver that does not fail for numerical reasons, and that models the defence.

The objective is relative to what was seen; pixels stay in their range; the line search is strong Wolfe without absolute tolerances; several
starting points are tried, and the one of least loss goes on. Clip, steps and sums are in the forward model. Under noise of known variance
the objective is minus the logarithm of the posterior: Gaussian likelihood, and a prior of smoothness fitted to public images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Knowledge, Reconstruction
from pppml_idlg.answers import answer, seconds_of
from pppml_idlg.config import IdlgConfig
from pppml_idlg.evidence import Evidence, misfit, update_evidence
from pppml_idlg.labels import Rule, chosen_rule, errors_by, expected_of, labels_of
from pppml_idlg.matching import Effort, Leaves, Likelihood, OutOfTime, Run, lbfgs

#: candidates may leave the range of pixels by this share of it, so that darkest and brightest pixels are reached; the answer is cut.
MARGIN = 0.02
#: the variance of a coordinate is at least this share of its tensor's mean square: float32 arithmetic is no better.
FLOOR = 1e-12
#: relative loss from which on nothing is left to find: float32 updates agree no better.
CONVERGED = 1e-14
#: mean difference of neighbouring pixels, on the unit scale, where there are no public images to take it from.
ROUGH = 0.05


class Idlg(Attack):
    """The label by the sign rule or matched filter, then the image by a robust search."""

    config: IdlgConfig

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """No sum, masks, no model, too many images, or no last layer from which to read the label."""
        reason = misfit(view, ctx, self.config.images, self.config.most_images)
        if reason:
            return reason
        evidence = update_evidence(view, ctx, self.config.images, torch.float32)
        return "" if evidence.head else "the last layer is not in the sum: it stays at the site, or is not linear"

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """Images and labels."""
        config = self.config
        effort = Effort(seconds_of(budget, config.seconds))
        evidence = update_evidence(view, ctx, config.images, torch.float64 if config.double else torch.float32)
        labels, rule = inferred(evidence, config.rule)
        targets = torch.from_numpy(labels)
        loss = objective(by_read_error(evidence) if config.read_error else evidence, targets, config)
        runs = [Run([start], loss, effort) for start in starts(evidence, labels, config.restarts)]
        steps = [lbfgs(run, robust=True) for run in runs]
        _advance(runs, steps, config, effort)
        best = min(runs, key=lambda run: run.lowest)
        return answer(evidence, to_unit(best.best[0]).clamp(0, 1), labels, effort, best.lowest, rule, len(runs))


def inferred(evidence: Evidence, rule: str) -> tuple[npt.NDArray[np.int64], Rule]:
    """Labels of all images behind the sight, and the rule that found them."""
    head = evidence.head
    assert head is not None
    used = chosen_rule(rule, head, evidence.noisy)
    expected = expected_of(evidence.model, head, evidence.ctx)
    errors = errors_by(used, head, evidence.ctx.gradient(evidence.sight), expected)
    return labels_of(errors, evidence.count, expected.probabilities), used


# -- the objective --------------------------------------------------------------------------------------------------------------------


def to_unit(free: torch.Tensor) -> torch.Tensor:
    """From unbounded variables to the unit scale, and a little over: the box constraint."""
    return (1 + 2 * MARGIN) * torch.sigmoid(free) - MARGIN


def from_unit(unit: torch.Tensor) -> torch.Tensor:
    """The inverse, for values in [0, 1]."""
    return torch.logit((unit + MARGIN) / (1 + 2 * MARGIN))


def objective(evidence: Evidence, targets: torch.Tensor, config: IdlgConfig) -> Callable[[Leaves], torch.Tensor]:
    """Distance to what was seen over the distance of an update of zero, plus what is known beside it."""
    squares = {n: float(s.square().mean()) for n, s in evidence.seen.items()}
    variances = {n: max(v, FLOOR * squares[n], 1e-60) for n, v in evidence.noise.items()} if evidence.noisy else dict.fromkeys(squares, 1.0)
    likelihood = Likelihood.of(evidence.seen, variances, evidence.noisy)
    rough = roughness(evidence) if evidence.noisy and config.smooth else None

    def loss(leaves: Leaves) -> torch.Tensor:
        unit = to_unit(leaves[0])
        value = likelihood(evidence.made(unit, targets))
        if rough is not None:
            value = value + config.smooth * unlikely(unit, rough)
        value = value / likelihood.scale
        return value

    return loss


def by_read_error(evidence: Evidence) -> Evidence:
    """The same evidence of one image, one step and no noise, with the network's error read from the last bias instead of computed.

    With ``e`` the derivative of the loss by the outputs, the gradient is that of ``e . outputs``, and ``e`` is the gradient of the last
    bias. A candidate's own error spans many powers of ten, and where a network is sure, that of the true image is lost in float32; read,
    it is neither. A clip scales error and gradient alike. Returned as it is where there is no such bias, or where it is not the outputs'.
    """
    head, ctx = evidence.head, evidence.ctx
    if evidence.noisy or evidence.count > 1 or ctx.training.steps > 1 or head is None or head.bias is None:
        return evidence
    seen = evidence.seen[head.bias]
    error = seen / -ctx.training.learning_rate
    linear = replace(evidence, ctx=replace(ctx, loss=lambda outputs, targets: (outputs * error).sum(), adaptive=False))
    grey = torch.full(evidence.shape, 0.5, dtype=evidence.dtype)
    made = linear.made(grey, torch.zeros(1, dtype=torch.int64))[head.bias].detach()
    return linear if bool(seen.any()) and torch.allclose(made, seen, rtol=1e-3) else evidence


def roughness(evidence: Evidence) -> list[float]:
    """Mean absolute difference of neighbouring pixels of public images along each spatial axis, on the unit scale."""
    ctx = evidence.ctx
    if not len(ctx.public):
        return [ROUGH] * len(ctx.spec.size)
    span = np.maximum(np.asarray(ctx.high, np.float64) - ctx.low, 1e-12)
    unit = (ctx.public.images - ctx.low) / span
    return [max(float(np.abs(np.diff(unit, axis=2 + axis)).mean()), 1e-3) for axis in range(len(ctx.spec.size))]


def unlikely(unit: torch.Tensor, rough: list[float]) -> torch.Tensor:
    """Minus the logarithm of a Laplace density of neighbours' differences, but for a constant; rounded at 0, for L-BFGS."""
    total = unit.sum() * 0.0
    for axis, scale in enumerate(rough):
        soft = scale / 10
        total = total + (torch.sqrt(unit.diff(dim=2 + axis).square() + soft**2) - soft).sum() / scale
    return total / 2  # a pixel has neighbours along every axis: the differences are not independent


# -- the search -----------------------------------------------------------------------------------------------------------------------


def starts(evidence: Evidence, labels: npt.NDArray[np.int64], count: int) -> list[torch.Tensor]:
    """Starting points, in unbounded variables: mid-grey, then the mean of public images, then mid-grey again; each under its own noise."""
    generator = torch.Generator().manual_seed(evidence.ctx.seed)
    out = []
    for number in range(count):
        base = torch.zeros(evidence.shape, dtype=evidence.dtype)
        if number == 1 and len(evidence.ctx.public):
            base = base + from_unit(public_means(evidence, labels))
        noise = torch.randn(evidence.shape, generator=generator, dtype=torch.float64).to(evidence.dtype)
        out.append(base + (0.1 if number < 2 else 0.5) * noise)
    return out


def public_means(evidence: Evidence, labels: npt.NDArray[np.int64]) -> torch.Tensor:
    """For each label the mean of public images of it (of all, where there are none), on the unit scale."""
    public, ctx = evidence.ctx.public, evidence.ctx
    span = np.maximum(np.asarray(ctx.high, np.float64) - ctx.low, 1e-12)
    means = []
    for label in labels:
        own = public.targets == label
        mean = public.images[own if own.any() else slice(None)].mean(axis=0, dtype=np.float64)
        means.append(np.clip((mean - ctx.low) / span, 0.01, 0.99))
    return torch.from_numpy(np.stack(means)).to(evidence.dtype)


def _advance(runs: list[Run], steps: list[Callable[[], None]], config: IdlgConfig, effort: Effort) -> None:
    """``trial`` steps of every starting point, the rest for the best of them; when that one is stuck, for the next."""
    left = config.steps
    try:
        for step in steps:
            for _ in range(min(config.trial, left)):
                step()
                left -= 1
        for run, step in sorted(zip(runs, steps, strict=True), key=lambda pair: pair[0].lowest):
            while left > 0 and run.lowest > CONVERGED:
                before = run.lowest
                step()
                left -= 1
                if not run.lowest < before or not math.isfinite(run.last):
                    break
            if run.lowest <= CONVERGED:
                return
    except OutOfTime:
        return
