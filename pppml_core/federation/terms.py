"""What the server asks of sites outside of sessions, and what they may answer.

Above all the announced terms of a round, which are hashed into every context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pppml_core.errors import WireError
from pppml_core.federation.reason import LENGTH
from pppml_core.interfaces.aggregation import Guarantees
from pppml_core.interfaces.privacy import PrivacyStatement
from pppml_core.wire.codec import sha256_of
from pppml_core.wire.manifest import WireField

#: What a site may answer outside of sessions and scores.
ROUND_FIELDS = (
    WireField("hello", "rounds", "list", (), 4096, "in the clear", "rounds whose state this site holds"),
    WireField("hello", "attempts", "map", (), 1024, "in the clear", "the last attempt this site took part in, of each of its last rounds"),
    WireField("open", "needs_weights", "bool", (), 8, "in the clear", "whether the model must be sent"),
    WireField("train", "done", "bool", (), 8, "in the clear", "that local training has ended (nothing is shared)"),
    WireField("evaluate", "needs_weights", "bool", (), 8, "in the clear", "whether the model must be sent"),
    WireField("refused or failed", "reason", "str", (), LENGTH, "in the clear", "why a site did not answer, in words"),
)

#: bytes of the number that each start of a run has, and no earlier one had.
START_BYTES = 16
#: how the refusal of a site begins that has given out what opens this sum: the server then knows that the round is lost.
RELEASED = "this sum was released before"


def round_terms(
    *,
    round: int,
    cohort: Sequence[str],
    ranges: Sequence[float],
    max_weight: int,
    guarantees: Guarantees | None,
    privacy: PrivacyStatement,
    metrics: str,
    keep: Sequence[int],
    roster: bytes,
) -> dict[str, Any]:
    """Terms as the codec carries them.

    Args:
        round: counted from 1.
        cohort: the sites of this attempt, in the task's order.
        ranges: fixed-point range of each shared tensor, in the layout's order (empty with ``encoding: float``).
        max_weight: public upper bound of a site's weight.
        guarantees: of the session over ``cohort``; None where nothing is summed.
        privacy: what is claimed for the whole run.
        metrics: what of the evaluation leaves a site, :func:`~pppml_core.federation.evaluation.announced_share`.
        keep: rounds whose state a site should not drop, because they may be selected.
        roster: :func:`~pppml_core.federation.identity.roster_hash` over the cohort and the server, as the server has pinned them.
    """
    return {
        "round": round,
        "cohort": list(cohort),
        "ranges": [float(r) for r in ranges],
        "max_weight": max_weight,
        **promises(guarantees, privacy),
        "metrics": metrics,
        "keep": list(keep),
        "roster": roster,
    }


def lasting(terms: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the terms that stays the same when a round is held again with other sites."""
    return {name: value for name, value in terms.items() if name not in ("cohort", "guarantees", "roster")}


def promises(guarantees: Guarantees | None, privacy: PrivacyStatement) -> dict[str, Any]:
    """The part of the terms that a site compares with what its own configuration promises; plain data as it comes off the wire."""
    found: dict[str, Any] = {"sees_update": []} if guarantees is None else guarantees.to_dict()
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    return {"guarantees": plain, "privacy": privacy.to_dict()}


_TERMS = {
    "round": int,
    "cohort": list,
    "ranges": list,
    "max_weight": int,
    "guarantees": dict,
    "privacy": dict,
    "metrics": str,
    "keep": list,
    "roster": bytes,
}
#: kind of request -> what its body must hold; ``weights`` may come with a ``sha256``.
_REQUESTS: dict[str, dict[str, type]] = {
    "hello": {"start": bytes},
    "open": {"terms": dict, "sha256": bytes},
    "train": {},
    "evaluate": {"state": int, "splits": list, "final": bool, "sha256": bytes},
}


#: what a site may be asked to score: never the data it trains on.
HELD_OUT = ("validation", "test")


def check_request(kind: str, body: Mapping[str, Any]) -> None:
    """Raise WireError unless ``body`` has the form of this kind of request, so that nothing a peer sends can crash a site."""
    if kind not in _REQUESTS:
        raise WireError(f"unknown kind of message {kind!r}", place="request")
    wanted = _REQUESTS[kind]
    allowed = {*wanted, "weights"} if "sha256" in wanted else set(wanted)
    if not set(wanted) <= set(body) <= allowed or not all(type(body[name]) is form for name, form in wanted.items()):
        raise WireError(f"a request of kind {kind!r} must hold {', '.join(wanted) or 'nothing'}", place="request")
    weights = body.get("weights", {})
    if not isinstance(weights, Mapping) or not all(isinstance(array, np.ndarray) for array in weights.values()):
        raise WireError("weights must be arrays", place="request")
    if kind == "evaluate" and not (body["splits"] and body["splits"] == [s for s in HELD_OUT if s in body["splits"]]):
        raise WireError(f"splits must be one or more of {', '.join(HELD_OUT)}, in this order", place="request")
    if kind == "hello" and len(body["start"]) != START_BYTES:
        raise WireError(f"start must be {START_BYTES} bytes", place="request")
    if kind == "open":
        _check_terms(body["terms"])


def _check_terms(terms: Mapping[str, Any]) -> None:
    if set(terms) != set(_TERMS) or not all(type(terms[name]) is form for name, form in _TERMS.items()):
        raise WireError(f"terms must hold {', '.join(_TERMS)}", place="terms")
    for name, form in (("cohort", str), ("ranges", float), ("keep", int)):
        if not all(type(item) is form for item in terms[name]):
            raise WireError(f"{name} must hold {form.__name__} only", place="terms")
    if len(set(terms["cohort"])) != len(terms["cohort"]):
        raise WireError("the cohort names a site twice", place="terms")
    check_promises(terms)
    if len(terms["roster"]) != 32:
        raise WireError("roster must be a hash", place="terms")


def check_promises(terms: Mapping[str, Any]) -> None:
    """Raise WireError unless guarantees, privacy and metrics of terms have the form in which :func:`promises` says them."""
    if not all(isinstance(terms.get(name), form) for name, form in (("guarantees", Mapping), ("privacy", Mapping), ("metrics", str))):
        raise WireError("terms must hold guarantees, privacy and metrics", place="terms")
    epsilon, sees = terms["privacy"].get("epsilon"), terms["guarantees"].get("sees_update")
    if (
        not (isinstance(epsilon, float | int | None) or epsilon == "inf")
        or not isinstance(sees, list)
        or not all(isinstance(s, str) for s in sees)
    ):
        raise WireError("privacy.epsilon must be a number, inf or none, guarantees.sees_update a list of names", place="terms")
    if type(terms["guarantees"].get("coalition_curious", 0)) is not int:
        raise WireError("guarantees.coalition_curious must be a whole number", place="terms")


def binding(run: bytes, round: int, attempt: int, weights: bytes, terms: Mapping[str, Any]) -> bytes:
    """SHA-256 over everything the parties of an attempt must agree on: run, round, attempt, model hash, terms (roster included)."""
    return sha256_of({"run": run, "round": round, "attempt": attempt, "weights": weights, "terms": terms})


def binding_of_sum(bound: bytes, kind: str, about: Mapping[str, Any]) -> bytes:
    """The binding of one sum within an attempt: nothing that is signed or derived for updates serves the sum of scores, or the reverse.

    ``about``: of scores, what :func:`about_scores` gives; else empty.
    """
    return sha256_of({"attempt": bound, "kind": kind, "about": about})


def about_scores(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a request for scores asks of every site alike: sites that were asked otherwise refuse each other in a sum of scores."""
    return {name: body[name] for name in ("sha256", "state", "splits", "final")}
