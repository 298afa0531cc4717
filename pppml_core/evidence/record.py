"""What came of a cell, as ``attacks/NAME-VANTAGE-rROUND.json`` records it: plain data, every sentence made of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pppml_core.component import ComponentConfig
from pppml_core.config.run_config import OF_ANY_ATTACK
from pppml_core.evidence.bounds import Bound, beats
from pppml_core.evidence.claims import bound_of
from pppml_core.evidence.deciding import beside, claims, decide
from pppml_core.evidence.found import Found
from pppml_core.evidence.summary import best_guess, summarize, total_effort
from pppml_core.evidence.tallies import blind_rate, of_victims, one_each
from pppml_core.interfaces.privacy import PrivacyPlan, claim_words


def record_of(
    found: Found,
    plan: PrivacyPlan,
    site: str,
    round: int,
    *,
    about: str,
    staged: bool = True,
    before: int = 0,
    rounds: int = 0,
    cells: int = 1,
) -> dict[str, Any]:
    """The record of a cell.

    Args:
        found: its victims' scores.
        plan: of privacy.
        site: the watched one.
        round: counted from 1.
        about: what exactly was attacked, a sentence.
        staged: whether the round was held again for this.
        before: how many rounds of the run itself are in the view: those from which its model came, and the recorded one.
        rounds: of the whole run; ``bound.whole_run`` counts all of them, whatever the view holds.
        cells: how many bounds are judged together.
    """
    attack, cell = found.attack, found.cell
    record: dict[str, Any] = {
        "attack": cell.attack.use,  # type: ignore[attr-defined]
        "vantage": cell.vantage.text,
        "round": round,
        "outcome": "not_applicable",
        "reason": found.misfit,
        "why": found.why,
        "metrics": {},
        "control": {},
        "best_guess": {},
        "effort": {},
        "settings": settings_of(cell.attack),
        "staged": staged,
        "about": about,
        "victims": len(found.scores),
        "site": site,
        "answers": attack.answers,
        "defence": claim_words(plan.statement.to_dict()),
        "pictures": None,
        "bound": None,
        "violation": False,
        "caught": list(found.caught),
        "lied": found.lied,
        "people": people(found),
        "members": sorted({member for seen in found.seen for member in seen.members}),
        "exposed": exposed(found),
        "look_alikes": float(np.median(found.alike)) if found.alike else None,
    }
    if not found.scores:
        return record
    outcome, reason = decide(attack.answers, found.scores, found.control, found.negative)
    also = beside(attack.answers, found.scores, found.control, found.negative)
    reason = " ".join([reason, *(claim.reason for claim in also)])
    if found.broken:
        reason = f"The attack failed in {len(found.broken)} of its control runs ({found.broken[0]}). {reason}"
    if found.errors:
        outcome = "inconclusive" if outcome == "not_shown_to_leak" else outcome
        reason = f"The attack failed for {len(found.errors)} of {len(found.scores)} victims ({found.errors[0]}). {reason}"
    if found.unfit:
        reason = f"It did not fit {found.unfit} further victims ({found.misfit}). {reason}"
    made = [*claims(attack.answers, found.scores, found.control, found.negative), *also]
    shown = {claim.name: claim.verdict for claim in made}
    passed = succeeds(found)
    if found.caught:
        reason = (
            f"A site whose policy vets the weights it is sent (vet_weights, on by default) refuses this model: {found.caught[0]}. {reason}"
        )
    bound, violated = judged(found, plan, site, round if staged else None, before, cells)
    whole = judged(found, plan, site, round if staged else None, rounds, cells)[0]
    if violated:
        outcome = "recovered"
        reason = f"The claim of privacy is refuted: patients were picked more often than it allows. {reason}"
    record |= {
        "outcome": outcome,
        "reason": reason,
        "why": "broke" if found.errors else None,
        "metrics": {**summarize(found.scores), "claims": shown},
        "control": {"what": "the same attack with the defence off", "passed": passed, **summarize(found.control)},
        "negative": {"what": "the same attack on random updates", **summarize(found.negative)} if found.negative else {},
        "best_guess": best_guess(attack.answers, found.scores),
        "effort": total_effort(found.efforts),
        "bound": None if bound is None else {**bound.to_dict(), "whole_run": None if whole is None else whole.rate},
        "violation": violated,
    }
    plain: dict[str, Any] = finite(record)
    return plain


def settings_of(attack: ComponentConfig) -> dict[str, Any]:
    """Of the attack itself: without what a config says of every attack."""
    return {name: value for name, value in attack.model_dump(mode="json").items() if name != "use" and name not in OF_ANY_ATTACK}


def succeeds(found: Found) -> bool:
    """Whether the same attack shows any of its claims with the defence off."""
    return any(c.verdict == "shown" for c in claims(found.attack.answers, found.control, found.control, found.negative))


def judged(found: Found, plan: PrivacyPlan, site: str, staged: int | None, before: int, cells: int) -> tuple[Bound | None, bool]:
    """What the privacy claim allows in picking the victim, and whether it was picked more often; None: nobody was to be picked."""
    prefix, scores = "candidate_" if found.attack.answers == "candidate" else "", one_each(found.scores)
    hits = of_victims(scores, f"{prefix}picked")
    if not hits:
        return None, False
    _, blind = blind_rate(scores, prefix, "candidate" if prefix else "images")
    bound = bound_of(plan, found.cell.vantage, found.seen, site, blind, staged=staged, before=before)
    return bound, bound.rate is not None and beats(sum(hits), len(hits), bound.rate, cells)


def people(found: Found) -> int | None:
    """How many different persons the victims are; None where nobody in particular is attacked."""
    persons = {score["person"] for score in found.scores if score.get("person") is not None}
    return len(persons) or None


def exposed(found: Found) -> list[dict[str, Any]]:
    """Which sums this vantage decodes, over all victims, the smallest first."""
    sets = {sight.sites for seen in found.seen for sight in seen.sights}
    return [{"sites": list(sites)} for sites in sorted(sets, key=lambda s: (len(s), s))]


def finite(value: Any) -> Any:
    """Plain JSON data: numbers that JSON has none of become None."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
