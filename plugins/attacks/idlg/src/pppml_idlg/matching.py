"""The search: candidates whose update comes closest to the one that was seen. One loop for all presets.

A *match* is a list of leaf tensors and a function that gives their loss, 0-d. An optimizer advances them; every value on the way is
counted, and the best finite one is kept, by the attack's own loss and by nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from pppml_idlg.evidence import Tensors

Leaves = list[torch.Tensor]
Loss = Callable[[Leaves], torch.Tensor]


# -- distances ------------------------------------------------------------------------------------------------------------------------


def squared(made: Tensors, seen: Tensors) -> torch.Tensor:
    """Sum over tensors of the squared L2 distance, not normalized (Zhu, Liu and Han 2019)."""
    return torch.stack([(made[n] - s).square().sum() for n, s in seen.items()]).sum()


def _scaled(tensors: Tensors, variances: Mapping[str, float]) -> torch.Tensor:
    """All coordinates of the tensors that have a variance, in units of their standard deviation, as one vector."""
    return torch.cat([tensors[n].flatten() / math.sqrt(v) for n, v in variances.items()])


@dataclass(frozen=True)
class Likelihood:
    """Minus the logarithm of the Gaussian likelihood of what was seen, to second order, but in direction and length apart.

    With ``a`` what was made, ``b`` what was seen (both in units of the noise), ``n`` the length of ``b`` without its noise and ``t`` the
    angle: ``|a - b|^2 / 2`` is ``n |b| (1 - cos t) + n^2 log(|a| / n)^2 / 2`` and a constant, for ``|a|`` near ``n``. Far away the second
    form stays tame: the length of a gradient is the network's error, which goes through many powers of ten as a search moves.

    Args:
        seen: name -> tensor.
        variances: of one coordinate, above 0; names that are missing are not compared.
        noisy: whether ``variances`` are of noise; else they are weights, and nothing of the length is taken for noise.
    """

    seen: torch.Tensor
    length: float
    variances: Mapping[str, float]

    @classmethod
    def of(cls, seen: Tensors, variances: Mapping[str, float], noisy: bool) -> Likelihood:
        """Of these tensors."""
        b = _scaled(seen, variances)
        energy, count = float(b.square().sum()), b.numel()
        if noisy:  # the noise's part has mean `count` and this standard deviation
            energy = max(energy - count, math.sqrt(2 * count))
        return cls(b, max(math.sqrt(energy), 1e-30), variances)

    @property
    def scale(self) -> float:
        """What the direction's term is multiplied by: divide by it for a loss between 0 and 2."""
        return self.length * max(float(self.seen.norm()), 1e-30)

    def __call__(self, made: Tensors) -> torch.Tensor:
        """Of an update."""
        a, b = _scaled(made, self.variances), self.seen
        length = torch.sqrt(a.square().sum() + 1e-60)
        # 1 - cos, without its cancellation
        turned = (a / length - b / b.norm().clamp_min(1e-30)).square().sum() / 2
        away: torch.Tensor = self.scale * turned + (self.length * torch.log(length / self.length)).square() / 2
        return away


def cosine(made: Tensors, seen: Tensors) -> torch.Tensor:
    """One minus the cosine of the angle, over all coordinates jointly (Geiping et al. 2020, section 4)."""
    dot = torch.stack([(made[n] * s).sum() for n, s in seen.items()]).sum()
    norms = [torch.stack([t[n].square().sum() for n in seen]).sum() for t in (made, seen)]
    return 1 - dot / torch.sqrt(norms[0] * norms[1] + 1e-60)


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Sum over spatial axes of the mean absolute difference of neighbours, over images ``(n, channels, *size)``."""
    axes = [a for a in range(2, images.ndim) if images.shape[a] > 1]
    return torch.stack([images.diff(dim=a).abs().mean() for a in axes]).sum() if axes else images.sum() * 0.0


# -- the search -----------------------------------------------------------------------------------------------------------------------


class OutOfTime(Exception):
    """The deadline is over, or all evaluations are used."""


@dataclass
class Effort:
    """Counts evaluations of all restarts and ends them in time, or after ``most`` of them."""

    seconds: float = math.inf
    most: int | None = None
    evaluations: int = 0
    began: float = field(default_factory=time.monotonic)

    def count(self) -> None:
        """One more evaluation. Raises OutOfTime; never before the first has been made."""
        if self.evaluations and self.over:
            raise OutOfTime
        self.evaluations += 1

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    @property
    def over(self) -> bool:
        """Whether the time is up, or the evaluations are used."""
        return self.spent >= self.seconds or (self.most is not None and self.evaluations >= self.most)

    @property
    def way(self) -> float:
        """The share of time, or of evaluations, that is behind: whichever is larger."""
        counted = 0.0 if self.most is None else self.evaluations / self.most
        return max(self.spent / self.seconds if self.seconds > 0 else 1.0, counted)


class Run:
    """One starting point on its way.

    Args:
        start: values of the leaves.
        loss: of the leaves.
        effort: shared by all restarts.

    Attributes:
        leaves: where it is.
        best: where it was best; the start until a finite loss is seen.
        lowest: the loss there; infinite until then.
        last: the last loss.
    """

    def __init__(self, start: Leaves, loss: Loss, effort: Effort) -> None:
        self.leaves = [t.detach().clone().requires_grad_(True) for t in start]
        self.best = [t.detach().clone() for t in start]
        self.lowest = self.last = math.inf
        self._loss, self.effort = loss, effort

    def evaluate(self) -> torch.Tensor:
        """Loss and gradients where the leaves are; what is not finite is told as it is."""
        self.effort.count()
        loss = self._loss(self.leaves)
        gradients = torch.autograd.grad(loss, self.leaves, allow_unused=True)
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = torch.zeros_like(leaf) if gradient is None else gradient
        self.last = float(loss.detach())
        if self.last < self.lowest and all(bool(torch.isfinite(t).all()) for t in self.leaves):
            self.lowest, self.best = self.last, [t.detach().clone() for t in self.leaves]
        return loss.detach()


def lbfgs(run: Run, *, robust: bool) -> Callable[[], None]:
    """An outer step of torch's L-BFGS, of at most 20 inner ones.

    ``robust``: strong Wolfe line search and no absolute tolerances, which end a search whose gradient is merely small. Otherwise rate 1
    and all of torch's defaults, as in the authors' code.
    """
    if robust:
        optimizer = torch.optim.LBFGS(run.leaves, lr=1.0, line_search_fn="strong_wolfe", tolerance_grad=0.0, tolerance_change=0.0)
    else:
        optimizer = torch.optim.LBFGS(run.leaves, lr=1.0)

    def step() -> None:
        optimizer.step(run.evaluate)

    return step


def signed_adam(run: Run, rate: float, way: Callable[[], float], low: torch.Tensor, high: torch.Tensor) -> Callable[[], None]:
    """A step of Adam on the sign of the gradient, then projection to [low, high].

    ``way``: the share of the search that is behind, from 0 to 1; the rate falls tenfold at 3/8, 5/8 and 7/8.
    """
    optimizer = torch.optim.Adam(run.leaves, lr=rate)

    def step() -> None:
        run.evaluate()
        done = way()
        optimizer.param_groups[0]["lr"] = rate * 0.1 ** sum(done >= k / 8 for k in (3, 5, 7))
        with torch.no_grad():
            for leaf in run.leaves:
                assert leaf.grad is not None
                leaf.grad = leaf.grad.nan_to_num().sign()
        optimizer.step()
        with torch.no_grad():
            for leaf in run.leaves:
                leaf.copy_(torch.minimum(torch.maximum(leaf, low), high))

    return step
