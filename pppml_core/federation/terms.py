"""The announced terms of a round: what a site agrees to before it does anything. Plain data, hashed into every context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pppml_core.interfaces.aggregation import Guarantees
from pppml_core.interfaces.privacy import PrivacyStatement
from pppml_core.wire.codec import sha256_of


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
) -> dict[str, Any]:
    """Terms as the codec carries them.

    Args:
        ranges: fixed-point range of each shared tensor, in the layout's order (empty with ``encoding: float``).
        guarantees: of the session over ``cohort``; None where nothing is summed.
        metrics: what of the evaluation leaves a site: per-site, sum, none.
        keep: rounds whose state a site should not drop, because they may be selected.
    """
    return {
        "round": round,
        "cohort": list(cohort),
        "ranges": [float(r) for r in ranges],
        "max_weight": max_weight,
        "guarantees": {"sees_update": []} if guarantees is None else guarantees.to_dict(),
        "privacy": privacy.to_dict(),
        "metrics": metrics,
        "keep": list(keep),
    }


def binding(run: bytes, round: int, attempt: int, weights: bytes, terms: Mapping[str, Any]) -> bytes:
    """SHA-256 over everything the parties of an attempt must agree on: run, round, attempt, model hash, terms (roster included)."""
    return sha256_of({"run": run, "round": round, "attempt": attempt, "weights": weights, "terms": terms})
