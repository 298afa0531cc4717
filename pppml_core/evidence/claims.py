"""What a run's privacy claim says about one attack: a bound on re-identification, where the adversary is one the claim is made against."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from pppml_core.evidence.bounds import Adjacency, Bound, Release, gaussian_bound
from pppml_core.interfaces.attack import Seen, Vantage
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.wire.messages import SERVER


def before_noise(plan: PrivacyPlan, who: Vantage) -> bool:
    """Whether this adversary may see sums to which the server has not added its noise yet: the server itself, and who listens to it."""
    return plan.placement == "server" and (who.server or bool(who.links))


def raw(plan: PrivacyPlan, seen: Seen, site: str) -> bool:
    """Whether the smallest sum that holds ``site`` was seen before the server added its noise: it is not made of published models."""
    sight = seen.of(site)
    return plan.placement == "server" and sight is not None and not sight.released


def outside(plan: PrivacyPlan, who: Vantage, seen: Sequence[Seen], site: str) -> str:
    """Why the claim is not made against this adversary, who is after ``site``; empty: it is."""
    said = plan.statement
    if said.epsilon is None or math.isinf(said.epsilon):
        return "no differential privacy is claimed"
    sites = {m for one in seen for m in one.members if m != SERVER} | who.sites
    if site in sites:
        return "the watched site is one of them"
    if before_noise(plan, who):
        return "the server is trusted to add the noise, and sees the sum before" + ("" if who.server else ", as who listens to it may")
    if said.placement == "distributed":
        honest = int(said.details.get("honest_shares", 1))
        left = min((len(sight.sites) for one in seen for sight in one.sights if site in sight.sites), default=honest)
        if left < honest:
            return f"the claim is against those who leave the noise of {honest} sites unknown, and these leave {left}"
        most = int(said.details.get("colluders", 0))
        if len(sites) > most:
            return f"the claim is against at most {most} sites, each of which knows its own share of the noise, and these are {len(sites)}"
    return ""


def bound_of(
    plan: PrivacyPlan, who: Vantage, seen: Sequence[Seen], site: str, kappa: float, *, staged: int | None, before: int = 0
) -> Bound:
    """The ReRo bound on picking the victim where blind guessing succeeds with probability ``kappa``; without a rate where none covers this.

    Args:
        plan: of privacy.
        who: looks.
        seen: of each victim, which sums were decoded.
        site: the watched one.
        kappa: see :func:`.kappa`.
        staged: the round that was held again: one release in which the victim surely is, so no sampling helps; None: none was.
        before: rounds of the run that are in the view: it holds the model that came of them, and the victim trained it.
    """
    if reason := outside(plan, who, seen, site):
        return Bound(None, kappa, reason=reason)
    charges = [plan.charge(round) for round in (*range(1, before + 1), *([] if staged is None else [staged]))]
    if not charges or any(c is None or c.get("event") != "poisson-gaussian" for c in charges):
        return Bound(None, kappa, reason="no bound was computed for noise of this kind")
    releases: Counter[Release] = Counter()
    for number, charge in enumerate(charges):
        assert charge is not None
        one = release_of(charge, staged=number >= before)
        releases[replace(one, count=1)] += one.count
    adjacency = cast("Adjacency", plan.statement.adjacency)
    return gaussian_bound(kappa, [replace(one, count=count) for one, count in releases.items()], adjacency)


def release_of(charge: Mapping[str, Any], *, staged: bool) -> Release:
    """What a ledger's entry says was released; a staged round is one sum that surely holds the victim."""
    multiplier = float(charge["noise_multiplier"])
    return Release(multiplier) if staged else Release(multiplier, int(charge["count"]), float(charge["sample_rate"]))
