"""Epsilon of everything a ledger charges, and the noise or the number of steps that keeps it within a claim.

Neighbouring data sets differ by one unit (an image, a patient) that is added or removed, and batches are Poisson samples: every unit is
in each with the same probability, independently. Without sampling (rate 1) the same numbers hold where one site's contribution is
replaced by zero, the roster being public.

The statement is made by ``pld`` (:mod:`.pld`); ``prv`` (Opacus; Gopi, Lee and Wutschitz, NeurIPS 2021) and ``rdp`` (Mironov, Talwar and
Zhang 2019) compute the same bound in other ways and must agree with it. For Skellam noise there is ``rdp`` alone (:mod:`.skellam_rdp`),
and for a list of both kinds too.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from pppml_core.errors import PppmlError
from pppml_dp.calibrate import first_within, four_digits, index_of
from pppml_dp.events import Event, merged
from pppml_dp.gaussian import classical_sd, mu_at
from pppml_dp.pld import pld_epsilon
from pppml_dp.skellam_rdp import integer_rdp_epsilon

__all__ = [
    "Accountant",
    "Event",
    "accountant_of",
    "classical_sd",
    "epsilon",
    "epsilon_of_choice",
    "largest_count",
    "noise_multiplier_for",
    "skellam_variance_for",
]

Accountant = Literal["pld", "prv", "rdp"]
_MOST_STEPS = 10**6


def accountant_of(events: Iterable[Event]) -> Literal["pld", "rdp"]:
    """The accountant that makes the statement for these events."""
    return "rdp" if any(event.kind == "skellam" for event in events) else "pld"


def epsilon(events: Iterable[Event], delta: float, accountant: str = "pld") -> float:
    """Epsilon at ``delta`` of all these events together, in any order. No event: 0. One without noise: infinite.

    Args:
        events: of one or of many runs over the same data.
        delta: in (0, 1).
        accountant: ``pld``, ``prv`` or ``rdp``.

    Raises:
        PppmlError: ``delta`` is out of range, the accountant is unknown, cannot compose Skellam noise, or is not installed.
    """
    return _epsilon(merged(events), float(delta), accountant)


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[Event, ...], delta: float, accountant: str) -> float:
    _check(delta)
    if accountant not in ("pld", "prv", "rdp"):
        raise PppmlError(f"accountants are pld, prv and rdp, not {accountant!r}", place="privacy accounting")
    if not events:
        return 0.0
    if any(event.noise_multiplier == 0 for event in events):
        return math.inf
    if accountant_of(events) == "rdp":
        if accountant != "rdp":
            raise PppmlError(f"{accountant} cannot compose Skellam noise", place="privacy accounting", hint="use the accountant rdp")
        return integer_rdp_epsilon(events, delta)
    return {"pld": pld_epsilon, "prv": _prv_epsilon, "rdp": _rdp_epsilon}[accountant](events, delta)


def epsilon_of_choice(runs: Iterable[Iterable[Event]], delta: float, accountant: str | None = None) -> float:
    """Epsilon of choosing one of several runs over the same data by what they showed: that of all of them together.

    ``runs``: the events of each. ``accountant`` None: the one that makes the statement.
    """
    events = [event for run in runs for event in run]
    return epsilon(events, delta, accountant or accountant_of(events))


@lru_cache(maxsize=256)
def noise_multiplier_for(target_epsilon: float, delta: float, sample_rate: float, count: int) -> float:
    """The smallest noise multiplier of four digits with which ``count`` sampled Gaussian sums cost at most ``target_epsilon`` (PLD).

    Rounded up, so that the claim holds, and to few digits, so that every party that solves for it has the same number. No sum: 0.
    """
    _check(delta, target_epsilon)
    sums = Event("gaussian", sample_rate, 1.0, count)
    if count == 0:
        return 0.0

    def excess(index: int) -> float:
        return _log_ratio(epsilon([replace(sums, noise_multiplier=four_digits(index))], delta), target_epsilon)

    start = index_of(_near(sums, target_epsilon, delta))
    return four_digits(first_within(excess, start, index_of(1e-4), index_of(1e9), step=32))


@lru_cache(maxsize=256)
def skellam_variance_for(target_epsilon: float, delta: float, sample_rate: float, count: int, d1: float, d2: float) -> float:
    """The smallest variance of four digits with which ``count`` sampled Skellam sums cost at most ``target_epsilon`` (RDP).

    ``d1``, ``d2``: L1 and L2 sensitivity of the integer sum. No sum: 0.
    """
    _check(delta, target_epsilon)
    sums = Event.skellam(sample_rate, d2**2, d1, d2, count)
    if count == 0:
        return 0.0

    def excess(index: int) -> float:
        return _log_ratio(epsilon([Event.skellam(sample_rate, four_digits(index), d1, d2, count)], delta, "rdp"), target_epsilon)

    start = index_of((_near(sums, target_epsilon, delta) * d2) ** 2)
    return four_digits(first_within(excess, start, index_of(1e-8 * d2**2), index_of(1e18 * d2**2), step=512))


@lru_cache(maxsize=1024)
def largest_count(event: Event, delta: float, limit: float) -> int:
    """How many times ``event`` (with its own count) can be charged before epsilon exceeds ``limit``: at most a million steps.

    By the accountant that makes the statement.
    """
    _check(delta)
    if event.noise_multiplier == 0 or not limit > 0:
        return 0
    if event.count == 0 or math.isinf(limit):
        return _MOST_STEPS
    accountant, most = accountant_of([event]), max(_MOST_STEPS // event.count, 1)

    def headroom(count: int) -> float:
        if count > most:
            return -math.inf
        return -_log_ratio(epsilon([event.times(count)], delta, accountant), limit) or 1e-300  # exactly the limit is within it

    distance = _distance(event)
    guess = math.ceil(min((mu_at(limit, delta) / distance) ** 2, most)) if distance else most
    return first_within(headroom, guess, 1, most + 1, step=guess // 64 + 1) - 1


def _distance(event: Event) -> float:
    """About how many standard deviations one unit moves ``event``: the limit of many steps (Bu, Dong, Long and Su 2020). A first guess."""
    each = event.noise_multiplier**-2
    return event.sample_rate * math.sqrt(event.count * (each if event.sample_rate == 1 else math.expm1(min(each, 700.0))))


def _near(sums: Event, target_epsilon: float, delta: float) -> float:
    """The noise multiplier with which :func:`_distance` of ``sums`` would be what the target allows. A first guess."""
    each = (mu_at(target_epsilon, delta) / sums.sample_rate) ** 2 / sums.count
    return 1 / math.sqrt(each if sums.sample_rate == 1 else math.log1p(each))


def _log_ratio(value: float, target: float) -> float:
    return math.log(value / target) if value > 0 else -math.inf


def _rdp_epsilon(events: Sequence[Event], delta: float) -> float:
    """Gaussian events by ``dp-accounting``; orders at which its series does not converge are left out, which costs, but is no error."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    log = logging.getLogger("absl")
    silent, log.disabled = log.disabled, True
    try:
        for event in events:
            noisy = dp_event.GaussianDpEvent(event.noise_multiplier)
            accountant.compose(dp_event.PoissonSampledDpEvent(event.sample_rate, noisy), event.count)
        return float(accountant.get_epsilon(delta))
    finally:
        log.disabled = silent


def _prv_epsilon(events: Sequence[Event], delta: float) -> float:
    """Gaussian events by Opacus: the upper end of its interval, which is asked to be narrow: at most 1 % of epsilon to either side."""
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as error:
        hint = "pip install pppml-dp[prv]"
        raise PppmlError("prv is computed by Opacus, which is not installed", place="privacy accounting", hint=hint) from error
    accountant = PRVAccountant()
    about = pld_epsilon(events, delta)
    accountant.history = [(event.noise_multiplier, event.sample_rate, event.count) for event in events]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # logarithms of 0 where a unit is sampled surely
            return float(accountant.get_epsilon(delta, eps_error=max(about / 500, min(about / 100, 0.01), 1e-4)))
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        raise PppmlError(f"prv cannot compute this: {error}", place="privacy accounting") from error


def _check(delta: float, target_epsilon: float = 1.0) -> None:
    if not 0 < delta < 1:
        raise PppmlError(f"delta is above 0 and below 1, not {delta!r}", place="privacy accounting")
    if not 0 < target_epsilon < math.inf:
        raise PppmlError(f"the target epsilon is above 0 and finite, not {target_epsilon!r}", place="privacy accounting")
