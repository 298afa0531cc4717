"""`idlg`: the same idea with a solver that does not fail for numerical reasons, and that models the defence.

The objective is relative to what was seen; pixels stay in their range; the line search is strong Wolfe without absolute tolerances; several
starting points are tried, and the one of least loss goes on. Clip, steps and sums are in the forward model. Under noise of known variance
the objective is minus the logarithm of the posterior: Gaussian likelihood, and a prior learned from public images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.interfaces.attack import AdversaryView, Knowledge, Reconstruction
from pppml_idlg.answers import answer
from pppml_idlg.attack import Matching
from pppml_idlg.config import IdlgConfig
from pppml_idlg.evidence import Evidence, Tensors, update_evidence
from pppml_idlg.labels import Rule, chosen_rule, errors_by, expected_of, labels_of
from pppml_idlg.matching import Effort, Leaves, Likelihood, OutOfTime, Run, lbfgs
from pppml_idlg.prior import Cost, learned, unit_public

#: candidates may leave the range of pixels by this share of it, so that darkest and brightest pixels are reached; the answer is cut.
MARGIN = 0.02
#: the variance of a coordinate is at least this share of its tensor's mean square: float32 arithmetic is no better.
FLOOR = 1e-12
#: relative loss from which on nothing is left to find: float32 updates agree no better.
CONVERGED = 1e-14
#: noise in the last bias, as a share of it, up to which the network's error is read from it.
READABLE = 0.05
#: share of the time, or of the evaluations, after which no more starting points are tried: slow networks allow few evaluations.
TRYING = 0.25


class Idlg(Matching):
    """The label by the sign rule or matched filter, then the image by a robust search."""

    config: IdlgConfig

    def search(self, view: AdversaryView, ctx: Knowledge, effort: Effort) -> Reconstruction:
        """Images and labels."""
        config = self.config
        effort.most = config.evaluations
        ctx = replace(ctx, adaptive=ctx.adaptive and config.adaptive)
        evidence = update_evidence(view, ctx, config.images, torch.float64 if config.double else torch.float32)
        labels, rule = inferred(evidence, config.rule)
        read = by_read_error(evidence) if config.read_error else None
        orders = orders_of(labels, evidence, config)
        prior = learned(ctx, evidence.dtype) if evidence.noisy and config.prior else None
        runs = []
        for start, order in zip(starts(evidence, orders), orders, strict=True):
            asked = read or Asked(evidence, torch.from_numpy(order))
            runs.append(Run(asked.leaves(start), objective(asked, prior, config.prior), effort))
        _advance(runs, config, effort)
        best = min(range(len(runs)), key=lambda number: runs[number].lowest)
        unit = to_unit(runs[best].best[0]).clamp(0, 1)
        # In the order of the images; but the surest first where only some of them are the watched site's.
        told = orders[best] if evidence.parts == 1 else labels
        return answer(evidence, unit, told, effort, runs[best].lowest, rule, len(runs))


def inferred(evidence: Evidence, rule: str) -> tuple[npt.NDArray[np.int64], Rule]:
    """Labels of all images behind the sight, and the rule that found them."""
    head = evidence.head
    assert head is not None
    clear = not evidence.noisy or (head.bias is not None and readable(evidence, head.bias))
    used = chosen_rule(rule, head, clear)
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


@dataclass(frozen=True)
class Asked:
    """What candidates are compared with, and the targets they are given.

    Args:
        evidence: with the forward model.
        targets: of all images, in the form that the evidence's loss takes.
        loose: standard deviation of the targets' coordinates, which are then searched for too; 0: they are known.
    """

    evidence: Evidence
    targets: torch.Tensor
    loose: float = 0.0

    def leaves(self, start: torch.Tensor) -> Leaves:
        """What is searched for, from images in unbounded variables on."""
        return [start, torch.zeros_like(self.targets)] if self.loose else [start]

    def made(self, leaves: Leaves) -> Tensors:
        """The update that they would have made."""
        targets = self.targets + self.loose * leaves[1] if self.loose else self.targets
        return self.evidence.made(to_unit(leaves[0]), targets)


def objective(asked: Asked, prior: Cost | None, weight: float) -> Callable[[Leaves], torch.Tensor]:
    """Distance to what was seen over the distance of an update of zero, plus what is known beside it."""
    evidence = asked.evidence
    squares = {n: float(s.square().mean()) for n, s in evidence.seen.items()}
    variances = {n: max(v, FLOOR * squares[n], 1e-60) for n, v in evidence.noise.items()} if evidence.noisy else dict.fromkeys(squares, 1.0)
    likelihood = Likelihood.of(evidence.seen, variances, evidence.noisy)

    def loss(leaves: Leaves) -> torch.Tensor:
        value = likelihood(asked.made(leaves))
        if prior is not None:
            value = value + weight * prior(to_unit(leaves[0]))
        return value / likelihood.scale

    return loss


def by_read_error(evidence: Evidence) -> Asked | None:
    """The same evidence of one image and one step, with the network's error read from the last bias instead of computed.

    With ``e`` the derivative of the loss by the outputs, the gradient is that of ``e . outputs``, and ``e`` is the gradient of the last
    bias. A candidate's own error spans many powers of ten, and where a network is sure, that of the true image is lost in float32; read,
    it is neither. A clip scales error and gradient alike. Noise and rounding leave ``e`` as loose as they are large; it is then searched
    for around what was read. None where there is no such bias, where it is too noisy to be read, or where it is not the outputs'.
    """
    head, ctx = evidence.head, evidence.ctx
    if evidence.count > 1 or ctx.training.steps > 1 or head is None or head.bias is None or not readable(evidence, head.bias):
        return None
    rate = ctx.training.learning_rate
    error = (evidence.seen[head.bias] / -rate)[None]
    linear = replace(evidence, ctx=replace(ctx, loss=lambda outputs, errors: (outputs * errors).sum(), adaptive=False))
    grey = torch.full(evidence.shape, 0.5, dtype=evidence.dtype)
    made = linear.made(grey, error)[head.bias].detach()
    if not torch.allclose(made, evidence.seen[head.bias], rtol=1e-3):
        return None
    return Asked(linear, error, math.sqrt(evidence.noise[head.bias]) / rate)


def readable(evidence: Evidence, bias: str) -> bool:
    """Whether the last bias was seen, and the noise in it is small beside it."""
    size = float(evidence.seen[bias].norm())
    return size > 0 and math.sqrt(evidence.noise[bias] * evidence.seen[bias].numel()) <= READABLE * size


# -- the search -----------------------------------------------------------------------------------------------------------------------


def orders_of(labels: npt.NDArray[np.int64], evidence: Evidence, config: IdlgConfig) -> list[npt.NDArray[np.int64]]:
    """The labels of each starting point: the same everywhere for one step, in which no order is told.

    Over several steps it matters which label came first, and only the loss can tell: up to ``orders`` different orders are tried.
    """
    if evidence.ctx.training.steps == 1 or len(set(labels.tolist())) == 1:
        return [labels] * config.restarts
    generator, found = np.random.default_rng(evidence.ctx.seed), {tuple(labels.tolist()): labels}
    for _ in range(8 * config.orders):
        if len(found) < max(config.orders, config.restarts):
            order = generator.permutation(labels)
            found.setdefault(tuple(order.tolist()), order)
    return list(found.values())


def starts(evidence: Evidence, orders: list[npt.NDArray[np.int64]]) -> list[torch.Tensor]:
    """Starting points, in unbounded variables: the mean of public images, then mid-grey, then mid-grey again; each under its own noise.

    For several orders of labels all are alike, so that the order alone decides.
    """
    generator = torch.Generator().manual_seed(evidence.ctx.seed)
    alike, out = all(order is orders[0] for order in orders), []
    for number, order in enumerate(orders):
        base = torch.zeros(evidence.shape, dtype=evidence.dtype)
        if (number == 0 or not alike) and len(evidence.ctx.public):
            base = base + from_unit(public_means(evidence, order))
        noise = torch.randn(evidence.shape, generator=generator, dtype=torch.float64).to(evidence.dtype)
        out.append(base + (0.5 if alike and number > 1 else 0.1) * noise)
    return out


def public_means(evidence: Evidence, labels: npt.NDArray[np.int64]) -> torch.Tensor:
    """For each label the mean of public images of it (of all, where there are none), on the unit scale."""
    public, classes = unit_public(evidence.ctx), evidence.ctx.public.targets
    means = []
    for label in labels:
        own = classes == label
        means.append(public[own if own.any() else slice(None)].mean(axis=0).clip(0.01, 0.99))
    return torch.from_numpy(np.stack(means)).to(evidence.dtype)


def _advance(runs: list[Run], config: IdlgConfig, effort: Effort) -> None:
    """``trial`` steps of every run, then of the better half, and so on; the rest for the best one, and when it is stuck, for the next."""
    steps = {id(run): lbfgs(run, robust=True) for run in runs}
    left, alive = config.steps, list(runs)
    try:
        while len(alive) > 1 and effort.way < TRYING:
            for run in alive:
                for _ in range(min(config.trial, left)):
                    steps[id(run)]()
                    left -= 1
            alive = sorted(alive, key=lambda run: run.lowest)[: len(alive) // 2]
        for run in sorted(runs, key=lambda run: (run not in alive, run.lowest)):
            while left > 0 and run.lowest > CONVERGED:
                before = run.lowest
                steps[id(run)]()
                left -= 1
                if not run.lowest < before or not math.isfinite(run.last):
                    break
            if run.lowest <= CONVERGED:
                return
    except OutOfTime:
        return
