"""What differential privacy allows an attack at most: bounds of reconstruction robustness (ReRo).

A blind attacker is right with probability ``kappa``; any attacker that sees what a mechanism released is right with probability at most
``1 - f(kappa)``, ``f`` being the mechanism's trade-off curve (Balle, Cherubin and Hayes 2022, arXiv:2201.04845; Hayes, Mahloujifar and
Balle 2023, arXiv:2302.07225; Kaissis et al. 2023, arXiv:2307.03928). In a gallery of ``M`` look-alikes ``kappa`` is the rate of the best
blind guess *on that gallery*, at least ``1/M``: see :func:`kappa`. A bound counts every release of the view, and says nothing where the
vantage is outside the adversary of the claim.

Adjacencies: ``add-remove`` and ``zero-out`` (one unit's contribution is there or is nothing) shift a sum by one clip; ``replace`` by two.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pppml_core.errors import PppmlError
from pppml_core.learning.stats import clopper_pearson

Adjacency = Literal["add-remove", "zero-out", "replace"]
#: how often a true bound may be called broken, over all cells that are judged together.
FALSE_ALARMS = 1e-4


@dataclass(frozen=True)
class Release:
    """Gaussian noise on ``count`` sums.

    Args:
        noise_multiplier: standard deviation of the noise over the clip, above 0.
        count: sums with this noise, at least 1.
        sample_rate: probability with which the unit is in each, independently (Poisson sampling); 1: it is in all.
    """

    noise_multiplier: float
    count: int = 1
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and self.count >= 1 and 0 < self.sample_rate <= 1):
            raise PppmlError(f"{self} is no release of a noised sum", place="ReRo bound")


@dataclass(frozen=True)
class Bound:
    """No attack is right more often than ``rate``.

    Args:
        rate: in [kappa, 1]; None: there is no bound, for ``reason``.
        kappa: rate of the best blind guess.
        adjacency: of the claim; empty where there is none.
        method: how it was computed.
        reason: why there is none; empty where there is one.
    """

    rate: float | None
    kappa: float
    adjacency: str = ""
    method: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def kappa(candidates: int, blind: Iterable[tuple[int, int]] = (), look_alikes: Sequence[int] = ()) -> float:
    """How often the best blind guess picks the victim out of ``candidates``, at least ``1/candidates``.

    ``look_alikes``: of each victim, how many candidates share its site and label. Whoever guesses knows the watched site and
    what is frequent there, and picks among these alone: the mean of ``1 / (look_alikes + 1)`` counts.
    ``blind``: successes and trials of each rule that was tried on the same galleries (:func:`.blind_candidates`). One counts by its
    measured rate where that is above chance beyond doubt (one-sided 1 %, divided by the rules), as where look-alikes were chosen around the
    victim; a lucky hit does not.
    """
    from scipy.stats import binomtest

    chance, tried = 1.0 / candidates, [(s, n) for s, n in blind if n]
    beyond = [s / n for s, n in tried if binomtest(s, n, chance, "greater").pvalue <= 0.01 / len(tried)]
    among_alike = [float(np.mean([1.0 / (n + 1) for n in look_alikes]))] if look_alikes else []
    return max([chance, *among_alike, *beyond])


def pure_bound(kappa: float, epsilon: float, adjacency: Adjacency) -> Bound:
    """Of an epsilon-DP mechanism: ``min(kappa e^epsilon, 1 - (1 - kappa) e^-epsilon)``."""
    return curve_bound(kappa, [(epsilon, 0.0)], adjacency, method="pure epsilon")


def curve_bound(kappa: float, points: Iterable[tuple[float, float]], adjacency: Adjacency, method: str = "epsilon and delta") -> Bound:
    """Of a mechanism that is (epsilon, delta)-DP for each of some points: the least of ``kappa e^epsilon + delta`` and its mirror.

    The mirror, ``1 - (1 - kappa - delta) e^-epsilon``, is the same claim with the two data sets exchanged (Dong, Roth and Su 2022, section
    2); it is the sharper one at large ``kappa``. Epsilon at least 0, delta in [0, 1]; more points can only sharpen the bound.
    """
    _check(kappa)
    best = 1.0
    for epsilon, delta in points:
        if not (epsilon >= 0 and 0 <= delta <= 1):
            raise PppmlError(f"epsilon {epsilon}, delta {delta} claim nothing", place="ReRo bound")
        straight = kappa * math.exp(min(epsilon, 700.0)) + delta
        best = min(best, straight, 1.0 - math.exp(-epsilon) * (1.0 - kappa - delta))
    return Bound(max(best, kappa), kappa, adjacency, method)


def gaussian_dp_bound(kappa: float, mu: float, adjacency: Adjacency, method: str = "Gaussian DP") -> Bound:
    """Of a mu-GDP mechanism: ``Phi(Phi^-1(kappa) + mu)``, exact for Gaussian noise. ``mu`` at least 0."""
    from scipy.stats import norm

    _check(kappa)
    if not mu >= 0:
        raise PppmlError(f"mu must be at least 0, not {mu}", place="ReRo bound")
    return Bound(max(kappa, float(norm.cdf(norm.ppf(kappa) + mu))) if kappa < 1 else 1.0, kappa, adjacency, method)


def gaussian_mu(releases: Sequence[Release], adjacency: Adjacency) -> float:
    """Of Gaussian sums that all hold the unit: the root of summed ``count / z^2``, twice that under ``replace``. No release: 0."""
    return _shift(adjacency) * math.sqrt(sum(r.count / r.noise_multiplier**2 for r in releases))


def gaussian_bound(kappa: float, releases: Sequence[Release], adjacency: Adjacency) -> Bound:
    """Of all these sums together: in closed form where nothing was sampled, else by ``dp-accounting`` where that is installed.

    Sampled sums: privacy loss distributions give delta at many epsilon, never too small (pessimistic grid), and :func:`curve_bound` takes
    the best. The bound without sampling holds too and is taken where it is smaller. Without ``dp-accounting``, or for a sampled sum under
    ``replace``, which its distributions do not cover, there is no bound: ``rate`` is None, with the reason.
    """
    _check(kappa)
    mu = gaussian_mu(releases, adjacency)
    unsampled = gaussian_dp_bound(kappa, mu, adjacency, "Gaussian DP")
    if all(r.sample_rate == 1 for r in releases) or unsampled.rate == kappa:
        return unsampled
    if adjacency == "replace":
        return Bound(None, kappa, adjacency, reason="no bound of Poisson-sampled sums was computed for replacing one unit")
    if importlib.util.find_spec("dp_accounting") is None:
        return Bound(
            None, kappa, adjacency, reason="the batches were sampled, and dp-accounting, which composes such sums, is not installed"
        )
    sampled = curve_bound(kappa, _curve(releases, mu), adjacency, "Poisson-sampled Gaussian, privacy loss distributions")
    return sampled if (sampled.rate or 1.0) <= (unsampled.rate or 1.0) else unsampled


def beats(successes: int, trials: int, bound: float, cells: int = 1) -> bool:
    """Whether a measured rate refutes a bound: a bug of the claim, of the mechanism or of the vantage.

    The lower end of the exact one-sided interval at ``1 - 1e-4 / cells`` is above the bound (Clopper and Pearson 1934); ``cells``: how many
    comparisons are judged together. So a true bound is refuted in at most one of 10,000 sets of so many.
    """
    # A two-sided interval at 1 - 2a ends where the one-sided at 1 - a does.
    return trials > 0 and clopper_pearson(successes, trials, 1.0 - 2.0 * FALSE_ALARMS / cells).low > bound


def _shift(adjacency: Adjacency) -> float:
    shifts = {"add-remove": 1.0, "zero-out": 1.0, "replace": 2.0}
    if adjacency not in shifts:
        raise PppmlError(f"no adjacency {adjacency!r}", place="ReRo bound", hint=f"one of {', '.join(shifts)}")
    return shifts[adjacency]


def _curve(releases: Sequence[Release], mu: float) -> list[tuple[float, float]]:
    """Delta at many epsilon of Poisson-sampled Gaussian sums together, adding or removing one unit; never too small."""
    privacy_loss_distribution = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")

    # The loss of the same sums unsampled has variance mu^2; the grid follows it, for at most some hundred thousand points.
    interval = max(1e-4, (mu * mu / 2.0 + 12.0 * mu) / 2e5)
    together = privacy_loss_distribution.identity(value_discretization_interval=interval)
    for release in releases:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            release.noise_multiplier, sampling_prob=release.sample_rate, value_discretization_interval=interval
        )
        together = together.compose(one.self_compose(release.count))
    epsilons = np.concatenate([np.linspace(0.0, 20.0, 401), np.geomspace(20.5, max(21.0, mu * mu / 2.0 + 12.0 * mu), 100)])
    deltas = np.clip([together.get_delta_for_epsilon(float(e)) for e in epsilons], 0.0, 1.0)
    return [(float(e), float(d)) for e, d in zip(epsilons, deltas, strict=True)]


def _check(kappa: float) -> None:
    if not 0 < kappa <= 1:
        raise PppmlError(f"kappa is a probability above 0, not {kappa}", place="ReRo bound")
