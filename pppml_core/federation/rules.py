"""What the rules of a policy say of announced terms: of a run, and anew of each of its rounds.

A rule is a function ``(policy, terms) -> why it is broken, or None``. Terms come from another party: what is missing or of another form
breaks the rule that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pppml_core.federation.evaluation import SUM_IN_CLEAR
from pppml_core.interfaces.privacy import CONDITIONS, condition_words

if TYPE_CHECKING:
    from pppml_core.federation.policy import Policy

Terms = Mapping[str, Any]
#: what may leave of evaluation scores, the least first.
METRICS = ("none", "sum", "per-site")


def _min_cohort(policy: Policy, terms: Terms) -> str | None:
    sites = len(set(terms["cohort"]))
    return None if sites >= policy.min_cohort else f"{sites} sites announced, at least {policy.min_cohort} required"


def _plain_updates(policy: Policy, terms: Terms) -> str | None:
    sees = terms["guarantees"]["sees_update"]
    return None if policy.plain_updates or not sees else f"{', '.join(sees)} would see this site's update"


def _max_colluders(policy: Policy, terms: Terms) -> str | None:
    promised = terms["guarantees"]
    if promised["sees_update"] or "coalition_curious" not in promised:
        return None  # a sum in the clear, which this policy allows, or no sum at all
    # The default is for the sums that let a site choose; as a demand it holds where somebody demanded it.
    demanded = not policy.plain_updates or "max_colluders" in policy.model_fields_set
    if not demanded or promised["coalition_curious"] >= policy.max_colluders:
        return None
    return f"the sum withstands {promised['coalition_curious']} sites that work with the server, {policy.max_colluders} are demanded"


def _mechanisms(policy: Policy, terms: Terms) -> str | None:
    name = terms["privacy"].get("mechanism")
    if policy.mechanisms is None or name in policy.mechanisms:
        return None
    return f"{_said(name)} announced, one of {', '.join(policy.mechanisms) or 'none'} required"


def _placements(policy: Policy, terms: Terms) -> str | None:
    name = terms["privacy"].get("placement")
    if policy.placements is None or name in policy.placements:
        return None
    return f"noise by {_said(name)} announced, by {' or '.join(policy.placements) or 'nobody'} required"


def _privacy_unit(policy: Policy, terms: Terms) -> str | None:
    unit = terms["privacy"].get("unit")
    return None if policy.privacy_unit in (None, unit) else f"{_said(unit)} announced, {policy.privacy_unit} required"


def _max_epsilon(policy: Policy, terms: Terms) -> str | None:
    epsilon = terms["privacy"].get("epsilon")
    # An infinite epsilon comes as the text `inf`.
    if policy.max_epsilon is None or (isinstance(epsilon, float | int) and 0 <= epsilon <= policy.max_epsilon):
        return None
    conditions = "" if epsilon is None else f" ({_conditions(terms['privacy'])})"
    return f"{_said(epsilon)} announced, at most {policy.max_epsilon:g} allowed{conditions}"


def _metrics(policy: Policy, terms: Terms) -> str | None:
    asked = terms.get("metrics", "none")
    if asked == SUM_IN_CLEAR and policy.metrics != "per-site":
        return f"sums of scores announced in which somebody sees this site's own, at most {policy.metrics} allowed"
    if asked == SUM_IN_CLEAR or asked in METRICS[: METRICS.index(policy.metrics) + 1]:
        return None
    return f"{_said(asked)} announced, at most {policy.metrics} allowed"


#: name -> rule, in the order asked.
TERMS: dict[str, Callable[[Policy, Terms], str | None]] = {
    "min_cohort": _min_cohort,
    "max_epsilon": _max_epsilon,
    "mechanisms": _mechanisms,
    "placements": _placements,
    "privacy_unit": _privacy_unit,
    "plain_updates": _plain_updates,
    "max_colluders": _max_colluders,
    "metrics": _metrics,
}


def _conditions(announced: Terms) -> str:
    """What the announced epsilon is of; whatever is missing or long is told as such."""
    said = {}
    for name in CONDITIONS:
        value = announced.get(name)
        said[name] = value if isinstance(value, float | int) else f"{value:.200}" if isinstance(value, str) and value else "not said"
    return condition_words(said)


def _said(value: Any) -> str:
    return "none" if value in (None, "") else f"{value:g}" if isinstance(value, float | int) else f"{value!s:.200}"
