"""The audit of a plan: coins, a replay, guesses, and what the right ones refute.

One replay gives the bound that is reported. It is above a true claim in at most 5 of 100 audits, so by itself it calls no claim false:
where it is above, further replays with coins of their own are made, and only these decide, at ``1 - 1e-4``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import ConfigError
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.randomness import entropy
from pppml_dp_audit.one_run import combined, epsilon_ceiling, epsilon_lower, guesses_for, p_value
from pppml_dp_audit.replay import Schedule, scores

#: how often a true claim may be called false.
FALSE_ALARMS = 1e-4
#: share of the canaries that are guessed, and the fewest, unless a claim needs more.
GUESSED, LEAST = 0.01, 20


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Args:
        epsilon_lower: refuted with ``confidence`` by the first replay, all up to it.
        epsilon_ceiling: what it would have been with every guess right.
        epsilon_claimed: by the plan, with ``delta``.
        delta: of the claim and of the bound.
        canaries: fair coins.
        guesses: that were made.
        right: that were right.
        confidence: of ``epsilon_lower``.
        confirmations: further replays that were made, because the first was above the claim.
        p_value: of the claim, by the further replays; None where none were made.
        violation: ``p_value`` is at most ``FALSE_ALARMS`` over the number of audits judged together: the claim is false.
    """

    epsilon_lower: float
    epsilon_ceiling: float
    epsilon_claimed: float
    delta: float
    canaries: int
    guesses: int
    right: int
    confidence: float
    confirmations: int
    p_value: float | None
    violation: bool

    @property
    def flagged(self) -> bool:
        """Whether the first replay alone is above the claim."""
        return self.epsilon_lower > self.epsilon_claimed

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def audit_plan(
    plan: PrivacyPlan,
    schedule: Schedule | None = None,
    *,
    canaries: int = 20_000,
    guesses: int | None = None,
    confidence: float = 0.95,
    confirmations: int = 8,
    audits: int = 1,
) -> AuditResult:
    """Audit the claim of a plan by replaying its mechanism.

    Args:
        plan: with a finite epsilon and ``audited``.
        schedule: what the run releases; default: one gradient, from one party.
        canaries: coins, ``m``.
        guesses: ``r``, at most ``m``; default: 1 % of ``m``, at least 20, or as many more as missing noise needs to show at this claim.
        confidence: of the reported bound.
        confirmations: further replays where the first is above the claim.
        audits: that are judged together.

    Raises ConfigError where the plan claims nothing or takes no artificial examples.
    """
    schedule = schedule or Schedule()
    claim, delta = plan.statement.epsilon, plan.statement.delta or 0.0
    if claim is None or math.isinf(claim):
        raise ConfigError("no finite epsilon is claimed, so there is nothing to refute", place=plan.statement.mechanism)
    if guesses is None:
        guesses = guesses_for(claim, canaries, delta, (1.0 - confidence) / 2.0, min(canaries, max(LEAST, round(GUESSED * canaries))))
    right = replayed(plan, schedule, canaries, guesses)
    lower = epsilon_lower(right, guesses, canaries, delta, confidence)
    further: list[int] = []
    if lower > claim:
        further = [replayed(plan, schedule, canaries, guesses) for _ in range(confirmations)]
    chance = combined([p_value(v, guesses, canaries, claim, delta) for v in further]) if further else None
    return AuditResult(
        epsilon_lower=lower,
        epsilon_ceiling=epsilon_ceiling(guesses, canaries, delta, confidence),
        epsilon_claimed=claim,
        delta=delta,
        canaries=canaries,
        guesses=guesses,
        right=right,
        confidence=confidence,
        confirmations=len(further),
        p_value=chance,
        violation=chance is not None and chance <= FALSE_ALARMS / audits,
    )


def replayed(plan: PrivacyPlan, schedule: Schedule, canaries: int, guesses: int) -> int:
    """Toss the coins, replay the mechanism, guess; how many guesses are right."""
    included = coins(canaries)
    return right_guesses(included, scores(plan, included, schedule), guesses)


def coins(count: int) -> npt.NDArray[np.bool_]:
    """Fair and independent, from the operating system."""
    return np.unpackbits(np.frombuffer(entropy(-(-count // 8)), np.uint8))[:count].astype(bool)


def right_guesses(included: npt.NDArray[np.bool_], score: npt.NDArray[np.float64], guesses: int) -> int:
    """The ``guesses / 2`` canaries of highest score are guessed to be in, as many of the lowest to be out, the rest is not guessed."""
    order = np.argsort(score, kind="stable")
    out = order[: guesses // 2]
    into = order[len(order) - (guesses - guesses // 2) :]
    return int(np.count_nonzero(included[into]) + np.count_nonzero(~included[out]))
