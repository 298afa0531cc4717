"""``dp-audit``: does the noise that a run's own mechanism makes bear out the epsilon it claims?

It audits the mechanism, not the trained model: the run's privacy plan is made anew from its config and public sizes, and replayed for as
many rounds and steps as the run had, with every party's noise share, on canaries alone. No image is read, so it takes seconds to
minutes. What lies outside of the mechanism (a network that mixes examples, metrics that leave beside the sum) it cannot see.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from pppml_core.interfaces.attack import Attack, AttackContext, Outcome, Verdict
from pppml_core.interfaces.privacy import Canaries, Encoding
from pppml_dp_audit.audit import FALSE_ALARMS, AuditResult, audit_plan
from pppml_dp_audit.config import DpAuditConfig
from pppml_dp_audit.replay import Schedule


class DpAudit(Attack):
    """The attack of that name."""

    reads_view = False
    config: DpAuditConfig

    def run(self, view: Any, budget: float, ctx: AttackContext) -> Verdict:
        """Audit the run's plan up to ``ctx.round``; ``view`` and ``budget`` are not used: every replay has the run's own length."""
        if reason := not_applicable(ctx):
            return Verdict("not_applicable", reason)
        began = time.perf_counter()
        config = self.config
        found = audit_plan(
            ctx.privacy,
            schedule_of(ctx),
            canaries=(canaries := min(config.canaries, ctx.setting.coordinates)),
            guesses=None if config.guesses is None else min(config.guesses, canaries),
            confidence=config.confidence,
            confirmations=config.confirmations,
            audits=config.audits,
        )
        return verdict_of(found, ctx, time.perf_counter() - began)


def not_applicable(ctx: AttackContext) -> str:
    """Why this audit says nothing of this run from this vantage; empty: it does."""
    statement, who = ctx.privacy.statement, ctx.vantage
    if statement.epsilon is None:
        return "this run claims no differential privacy, so there is no epsilon to audit"
    if math.isinf(statement.epsilon):
        return f"{statement.mechanism} claims nothing (epsilon is infinite), so no bound could contradict it"
    if _no_canaries(ctx):
        return f"{statement.mechanism} protects a whole {statement.unit}: there are no artificial examples to add to its updates"
    if not ctx.parts.personalization.shares:
        return "nothing leaves a site in this run, so nobody sees what its mechanism releases"
    if who.public or who.neighbours or who.links or not (who.server or who.sites):
        return "the audit needs a party that gets every sum: use vantage server, site:NAME, or several of them joined by +"
    if statement.placement == "server" and who.server:
        return (
            "the server is trusted here: it sees the sums before it adds the noise, so nothing is claimed against it; use vantage site:NAME"
        )
    honest, left = statement.details.get("honest_shares", 1), [n for n in _shares(ctx) if n > 0]
    if not left:
        return f"no sum was opened up to round {ctx.round} to which a site outside of {who.text} contributed"
    if statement.placement == "distributed" and min(left) < honest:
        return f"the claim is against coalitions that leave {honest} sites' noise unknown, and {who.text} leaves {min(left)}"
    return ""


def schedule_of(ctx: AttackContext) -> Schedule:
    """What the run released up to ``ctx.round``."""
    setting, encoding = ctx.setting, ctx.config.encoding
    largest = encoding.range if isinstance(encoding.range, float | int) else encoding.start
    return Schedule(
        shares=_shares(ctx),
        learning_rates=setting.learning_rates[: ctx.round],
        gradients=max(setting.local_steps.values()) * setting.gradient_calls,
        grid=Encoding(float(largest), encoding.bits),
    )


def _shares(ctx: AttackContext) -> list[int]:
    """Contributions of each round's sum that are not the coalition's own."""
    survivors = ctx.result["survivors"]
    return [len(set(survivors.get(str(round), ())) - ctx.vantage.sites) for round in range(1, ctx.round + 1)]


def _no_canaries(ctx: AttackContext) -> bool:
    return ctx.privacy.audited(Canaries(np.zeros(0, np.int64), np.zeros(0))) is None


def verdict_of(found: AuditResult, ctx: AttackContext, seconds: float) -> Verdict:
    """The result in the words of the contract: never "private", at most "no violation found"."""
    statement = ctx.privacy.statement
    about = (
        f"audit of the mechanism, not of the network (whether that mixes images was not tested), replayed on {found.canaries:,} "
        f"canaries (no images) over {ctx.round} of the run's {ctx.setting.rounds} "
        f"rounds; unit {statement.unit}, adjacency {statement.adjacency}, delta {found.delta:g}, accountant {statement.accountant}, "
        f"placement {statement.placement}, adversary: {statement.adversary}"
    )
    bound = f"epsilon is at least {found.epsilon_lower:.3g} with {found.confidence:.0%} confidence, claimed is {found.epsilon_claimed:.4g}"
    can_find = found.epsilon_ceiling > found.epsilon_claimed
    outcome: Outcome = "not_shown_to_leak"
    if found.violation:
        outcome = "recovered"
        said = f"violation: {bound}, and {found.confirmations} further replays refute the claim (p = {found.p_value:.1g})"
    elif found.flagged:
        said = (
            f"no violation found: {bound}, as happens by chance in at most {1 - found.confidence:.0%} of audits, and "
            f"{found.confirmations} further replays do not refute the claim at {FALSE_ALARMS:g} (p = {found.p_value:.2g})"
        )
    elif can_find:
        said = f"no violation found: {bound}, at most {found.epsilon_ceiling:.3g} could have been shown"
    else:
        outcome = "inconclusive"
        said = f"no violation found, and none could have been: {bound}, and with every guess right it would be {found.epsilon_ceiling:.3g}"
    return Verdict(
        outcome,
        f"{said} ({about})",
        metrics=found.to_dict(),
        control={"what": "no noise: every guess right", "epsilon_lower": found.epsilon_ceiling, "passed": can_find},
        best_guess={"what": "coin flips", "right": found.guesses / 2, "epsilon_lower": 0.0},
        effort={"seconds": seconds, "replays": 1 + found.confirmations},
    )
