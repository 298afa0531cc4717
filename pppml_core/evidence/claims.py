"""What a run's privacy claim says about one attack: a bound on re-identification, where the adversary is one the claim is made against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pppml_core.evidence.bounds import Adjacency, Bound, Release, gaussian_bound
from pppml_core.interfaces.attack import Seen, Vantage
from pppml_core.interfaces.privacy import PrivacyPlan


def outside(plan: PrivacyPlan, who: Vantage, seen: Sequence[Seen], site: str) -> str:
    """Why the claim is not made against this adversary, who is after ``site``; empty: it is."""
    said = plan.statement
    if said.epsilon is None or math.isinf(said.epsilon):
        return "no differential privacy is claimed"
    if site in who.sites:
        return "the watched site is one of them"
    if said.placement == "server" and who.server:
        return "the server is trusted to add the noise, and sees the sum before"
    if said.placement == "distributed":
        honest = int(said.details.get("honest_shares", 1))
        left = min((len(sight.sites) for one in seen for sight in one.sights if site in sight.sites), default=honest)
        if left < honest:
            return f"the claim is against those who leave the noise of {honest} sites unknown, and these leave {left}"
    return ""


def bound_of(plan: PrivacyPlan, who: Vantage, seen: Sequence[Seen], site: str, kappa: float, *, staged: bool) -> Bound:
    """The ReRo bound on picking the victim where blind guessing succeeds with probability ``kappa``; without a rate where none covers this.

    ``staged``: one release in which the victim surely is, so no sampling helps; else every charge of the view's rounds counts.
    """
    if reason := outside(plan, who, seen, site):
        return Bound(None, kappa, reason=reason)
    charges = [dict(c) for one in seen if (c := plan.charge(one.round)) is not None]
    if not charges or any(c.get("event") != "poisson-gaussian" for c in charges):
        return Bound(None, kappa, reason="no bound was computed for noise of this kind")
    adjacency = cast("Adjacency", plan.statement.adjacency)
    return gaussian_bound(kappa, [release_of(charge, staged=staged) for charge in charges], adjacency)


def release_of(charge: Mapping[str, Any], *, staged: bool) -> Release:
    """What a ledger's entry says was released; a staged round is one sum that surely holds the victim."""
    multiplier = float(charge["noise_multiplier"])
    return Release(multiplier) if staged else Release(multiplier, int(charge["count"]), float(charge["sample_rate"]))
