"""What a round will cost on the wire, from the sizes of the very messages it will send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pppml_core.federation import evaluation
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.evaluation import announced_share
from pppml_core.federation.terms import round_terms
from pppml_core.interfaces.aggregation import Session
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.learning.arrays import to_numpy
from pppml_core.learning.pool import evaluated_sites
from pppml_core.wire.codec import encode_message, encoded_size
from pppml_core.wire.messages import SERVER, Body, Message


def predicted_traffic(
    parts: Assembly, privacy: PrivacyPlan, session: Session | None, cohort: Sequence[str], max_weight: int
) -> dict[str, Any]:
    """Bytes one site sends (``up``) and gets (``down``) in a round: ``up_per_site_round``, ``down_per_site_round``, ``by_stage`` (up).

    Means over the run's rounds: the model comes down once a round and once before the first, evaluation may be rarer.
    """
    run, site = parts.config.run, max(cohort, key=len)
    guarantees = None if session is None else session.guarantees
    ranges = [1.0] * (len(parts.shared) if session is not None and session.value.kind == "integer" else 0)
    terms = round_terms(
        round=run.rounds,
        cohort=cohort,
        ranges=ranges,
        max_weight=max_weight,
        guarantees=guarantees,
        privacy=privacy.statement,
        metrics=announced_share(parts, cohort),
        keep=[],
        roster=bytes(32),
    )
    asked: Body = {"terms": terms, "sha256": bytes(32)}
    judged: Body = {"state": run.rounds, "splits": ["validation"], "final": False, "sha256": bytes(32)}
    opening, opened = _size("open", SERVER, site, asked), _size("open", site, SERVER, {"needs_weights": False})
    up = {"open": float(opened)}
    down = opening + encoded_size(to_numpy(parts.initial_weights)) * (run.rounds + 1) // run.rounds
    if session is None:
        up["train"] = _size("train", site, SERVER, {"done": True})
        down += _size("train", SERVER, site, {})
    else:
        up |= session.predicted_bytes()
        down += sum(_size(stage, SERVER, site, {}) for stage in session.predicted_bytes())
    if run.metrics != "none":
        often = math.ceil(run.rounds / run.evaluate_every) / run.rounds
        kinds = evaluation.weight_kinds(parts.personalization)
        up["evaluate"] = often * _size("evaluate", site, SERVER, _scores(parts, site, kinds))
        down += int(often * _size("evaluate", SERVER, site, judged))
        if run.metrics == "sum":
            value = evaluation.sum_layout(parts.spec, ["validation"], kinds)[1].spec
            summed = parts.aggregator.plan(value, tuple(cohort)).predicted_bytes()
            up["open"] += often * opened
            for stage, size in summed.items():
                up[stage] = up.get(stage, 0) + often * size
            down += int(often * (opening + sum(_size(stage, SERVER, site, {}) for stage in summed)))
    by_stage = {stage: round(size) for stage, size in up.items()}
    return {"up_per_site_round": sum(by_stage.values()), "down_per_site_round": down, "by_stage": by_stage}


def _scores(parts: Assembly, site: str, kinds: Sequence[str]) -> Body:
    if parts.config.run.metrics == "sum":
        return {"needs_weights": False}
    sites = [s.slug for s in evaluated_sites(parts.task)] if parts.config.pool else [site]
    values = dict.fromkeys(parts.spec.metrics, 0.0)
    scores = evaluation.to_wire({(name, "validation", kind): values for name in sites for kind in kinds})
    return {"needs_weights": False, "scores": scores}


def _size(stage: str, sender: str, recipient: str, body: Body) -> int:
    return len(encode_message(Message(bytes(16), 1, 1, "session", stage, sender, recipient, body)))
