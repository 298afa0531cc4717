"""The plan: every part built and checked against every other before the first batch; all misfits at once, in words.

``make_plan`` never raises for a misfit: it lists them. ``pppml plan`` prints the plan, ``pppml run`` refuses what it refuses.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from pppml_core.config import RunConfig
from pppml_core.errors import PlanRefused, PppmlError
from pppml_core.federation import checks, claims, evaluation
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.pipeline import METRIC_RANGES, contribution_ranges
from pppml_core.federation.secret_record import SECRETS, WARNING
from pppml_core.federation.terms import ROUND_FIELDS
from pppml_core.federation.traffic import predicted_traffic
from pppml_core.interfaces.aggregation import Guarantees, Session, WireField
from pppml_core.interfaces.privacy import PrivacyPlan, claim_words, plain_epsilon
from pppml_core.learning.arrays import to_numpy
from pppml_core.registry import Registry
from pppml_core.values import rms
from pppml_core.wire.manifest import Manifest


@dataclass
class Stage:
    """One line of the pipeline: what it takes, what it gives, who sees that."""

    name: str
    takes: str
    gives: str
    seen_by: str


@dataclass
class Plan:
    """The checked run. ``misfits`` empty: it can start."""

    config: RunConfig
    headline: str = ""
    misfits: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    guarantees: Guarantees | None = None
    bytes: dict[str, Any] = field(default_factory=dict)
    sites: list[dict[str, Any]] = field(default_factory=list)
    task: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    plugins: list[dict[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    #: public bound of a site's weight, and training examples of each site.
    max_weight: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    #: seconds of one batch and one sum on this machine, when asked for.
    measured: dict[str, float] = field(default_factory=dict)
    #: the built parts, reused by an engine that runs in this process.
    assembly: Assembly | None = None

    def refuse_misfits(self) -> None:
        """Raise PlanRefused where anything does not fit."""
        if self.misfits:
            raise PlanRefused(self.misfits)

    def to_dict(self) -> dict[str, Any]:
        """``plan.json``."""
        return {
            "headline": self.headline,
            "misfits": self.misfits,
            "warnings": self.warnings,
            "stages": [vars(s) for s in self.stages],
            "guarantees": {} if self.guarantees is None else self.guarantees.to_dict(),
            "bytes": self.bytes,
            "sites": self.sites,
            "task": self.task,
            "model": self.model,
            "training": self.training,
            "privacy": self.privacy,
            "plugins": self.plugins,
            "versions": self.versions,
            **({"measured": self.measured} if self.measured else {}),
        }


def make_plan(config: RunConfig, registry: Registry, objects: Mapping[str, Any] | None = None) -> Plan:
    """Build every part, load the data, and check all of it. Raises only for parts that cannot be built at all."""
    parts = Assembly.build(config, registry, objects)
    plan = Plan(parts.config, assembly=parts)
    plan.warnings += [WARNING] if parts.config.run.transcript == SECRETS else []
    plan.plugins = [{"kind": r.kind, "name": r.name, "distribution": r.distribution, "version": r.version} for r in registry.rows()]
    plan.versions = _versions(registry)
    checks.check_engine(plan, registry, objects or {})
    checks.check_settings(plan, parts)
    loaded, built = checks.check_data(plan, parts), checks.check_model(plan, parts)
    fits = built and checks.check_together(plan, parts)
    if loaded and fits:
        _plan_exchange(plan, parts)
    plan.headline = _headline(plan, parts)
    return plan


def _versions(registry: Registry) -> dict[str, str]:
    import torch

    monai = metadata.version("monai")  # its import takes seconds, and a run that needs none of it should not wait for it
    own = {"python": platform.python_version(), "torch": str(torch.__version__), "monai": monai, "numpy": np.__version__}
    return {**own, **registry.versions()}


def _plan_exchange(plan: Plan, parts: Assembly) -> None:
    """Privacy, encoding, session: bounds, bytes, guarantees, manifest."""
    config = plan.config
    sites = tuple(s.slug for s in parts.task.sites())
    cohort = sites[: config.run.cohort] if config.run.cohort else sites
    setting = parts.privacy_setting(plan.sizes)
    plan.training = {"steps": dict(setting.local_steps), "gradient_calls": setting.gradient_calls}
    refused = parts.mechanism.misfits(setting, parts.personalization, parts.model, config.training.model_dump())
    if refused:
        plan.misfits += [f"privacy: {text}" for text in refused]
        return
    try:
        privacy = parts.mechanism.plan(setting)
    except PppmlError as error:  # the numbers of this run, which the mechanism learns only here
        plan.misfits.append("; ".join(filter(None, (f"privacy: {error.message}", error.hint))))
        return
    claims.check_mean(plan, parts, privacy)
    claims.check_gradients(plan, parts, privacy)
    claims.check_claim(plan, parts, privacy)
    checks.check_grid(plan, privacy)
    cross_checks = {name: plain_epsilon(epsilon) for name, epsilon in privacy.cross_checks().items()}
    plan.privacy = {**privacy.statement.to_dict(), "cross_checks": cross_checks}
    _bound_weight(plan, parts, privacy)
    session = _plan_session(plan, parts, cohort, privacy) if parts.personalization.shares else None
    if plan.misfits:
        return
    evaluated = evaluation.evaluation_fields(parts.spec, [s["slug"] for s in plan.sites], config.run.metrics)
    fields: tuple[WireField, ...] = (*ROUND_FIELDS, *evaluated, *(session.fields if session else ()))
    plan.bytes = predicted_traffic(parts, privacy, session, cohort, plan.max_weight)
    plan.manifest = {
        **Manifest(fields).to_dict(),
        "contribution": _contribution(parts, plan, privacy),
        "evaluation": _evaluation(parts, config),
    }
    plan.stages = _stages(parts, plan, session, privacy)


def _bound_weight(plan: Plan, parts: Assembly, privacy: PrivacyPlan) -> None:
    """The public bound of a site's weight: the mechanism's constant, what is configured, or the largest site's."""
    encoding = plan.config.encoding
    largest = privacy.constant_weight or max(parts.personalization.weight(n) for n in plan.sizes.values())
    if privacy.constant_weight is not None and encoding.max_weight not in ("auto", largest):
        text = f"{privacy.statement.mechanism} gives every site the weight {largest}, and its noise is sized for that; leave it out"
        plan.misfits.append(f"encoding.max_weight: {text}")
    cap = getattr(plan.config.personalization, "weight_cap", None)
    if privacy.constant_weight is not None and cap not in (None, largest):
        text = f"{privacy.statement.mechanism} gives every site the weight {largest}, so a cap of {cap} has no effect; leave it out"
        plan.misfits.append(f"personalization.weight_cap: {text}")
    plan.max_weight = largest if encoding.max_weight == "auto" else encoding.max_weight
    if encoding.max_weight == "auto" and privacy.constant_weight is None and plan.config.aggregator.use != "plain":  # type: ignore[attr-defined]
        plan.warnings.append("encoding.max_weight is auto: the largest site's number of training examples is public")
    if encoding.use == "fixed" and parts.personalization.shares:
        checks.check_weights(plan, {s: privacy.constant_weight or parts.personalization.weight(n) for s, n in plan.sizes.items()})
    if largest > plan.max_weight:
        plan.misfits.append(
            f"encoding.max_weight: {plan.max_weight} is below the largest site's weight {largest}; raise it or cap the weights"
        )
    on_integers = privacy.placement in ("distributed", "server") or privacy.noise_bound or privacy.encoding(1) is not None
    if on_integers and encoding.use == "float":
        plan.misfits.append("encoding: float, but the noise is added to integers; use encoding: fixed")


def _plan_session(plan: Plan, parts: Assembly, cohort: tuple[str, ...], privacy: PrivacyPlan) -> Session | None:
    ranges = _ranges(parts)
    value = parts.pipeline(1, ranges, max(1, plan.max_weight), privacy).spec
    bound = value.sum_bound(len(cohort))
    if bound is not None and bound >= 2**63:
        plan.misfits.append(f"encoding.bits: the sum of {len(cohort)} sites does not fit 64 bits; use fewer bits")
        return None
    refused = parts.aggregator.misfits(value, cohort)
    plan.misfits += refused
    if refused:
        return None
    session = parts.aggregator.plan(value, cohort)
    plan.guarantees = session.guarantees
    if any("INSECURE" in text for text in plan.guarantees.assumes):
        plan.warnings.append(f"INSECURE: {' '.join(plan.guarantees.assumes)}")
    return session


def _ranges(parts: Assembly) -> tuple[float, ...]:
    if parts.config.encoding.use == "float":
        return ()
    weights = to_numpy(parts.initial_weights)
    return contribution_ranges(parts.shared, parts.config.encoding, None, rms(weights, list(weights)))


def _contribution(parts: Assembly, plan: Plan, privacy: PrivacyPlan) -> list[dict[str, Any]]:
    """Every tensor and number inside a contribution."""
    if not parts.personalization.shares:
        return []
    real = parts.config.encoding.use == "float"
    layout = parts.layout(metrics=privacy.admits_metrics)
    automatic = parts.config.encoding.range == "auto"
    ranges, bits, grid = _ranges(parts), parts.config.encoding.bits, privacy.encoding(1)
    if grid is not None:
        ranges, bits, automatic = (grid.range,) * len(parts.shared), grid.bits, False
    seen = plan.guarantees.sees_update if plan.guarantees else ()
    mechanism = f"{parts.config.aggregator.use}: " + (f"read by {', '.join(seen)}" if seen else "only the sum is read")  # type: ignore[attr-defined]
    noised = "" if privacy.statement.mechanism == "none" else f", after {privacy.statement.mechanism}"
    rows = []
    for i, tensor in enumerate(layout.tensors):
        known = ranges[i] if i < len(ranges) else METRIC_RANGES.get(tensor.name, 1.0)
        rows.append(
            {
                "name": tensor.name,
                "role": tensor.role,
                "shape": list(tensor.shape),
                "dtype": "float" if real else "integer",
                "bits": None if real else bits,
                "range": None if real else known,
                "range_rule": "auto after round 1" if automatic and i < len(ranges) else "fixed",
                "mechanism": mechanism + (noised if tensor.role in ("parameter", "buffer") else ""),
            }
        )
    return rows


def _evaluation(parts: Assembly, config: RunConfig) -> list[dict[str, str]]:
    how = {"per-site": "each site's own value, in the clear", "sum": "only summed over sites, through the aggregator", "none": ""}
    if config.run.metrics == "none":
        return []
    return [{"name": metric, "says": how[config.run.metrics]} for metric in parts.spec.metrics]


def _stages(parts: Assembly, plan: Plan, session: Session | None, privacy: PrivacyPlan) -> list[Stage]:
    config = plan.config
    name = config.personalization.use  # type: ignore[attr-defined]
    here = "this site only"
    if session is None:
        return [Stage(f"train ({name})", "the site's images", "the site's own weights, which stay there", here)]
    length = session.value.length
    real = config.encoding.use == "float"
    shared = sum(t.size for t in parts.shared)
    g = session.guarantees
    update = ", ".join(g.sees_update) or "nobody"
    stages = [Stage(f"train ({name})", "the site's images, shared weights", f"an update of {shared:,} real numbers", here)]
    if privacy.statement.mechanism != "none":
        unnoised = privacy.statement.epsilon == math.inf
        placed = f"no noise; rounds as with placement {privacy.placement}" if unnoised else f"placement {privacy.placement}"
        said = "; ".join((placed, *privacy.remarks(parts.model)))
        stages.append(Stage(f"privacy ({privacy.statement.mechanism})", "the update", said, here))
    weighted = f"{length:,} numbers: update x weight / {plan.max_weight}, the weight" + (
        ", training metrics" if privacy.admits_metrics else ""
    )
    stages.append(Stage("weight", "the update", weighted, here))
    bound = session.value.bound
    bits, whose = config.encoding.bits, ""
    if (grid := privacy.encoding(1)) is not None:
        bits, whose = grid.bits, f", on the grid of {privacy.statement.mechanism} (not encoding.bits and encoding.range)"
    gives = "real numbers as they are" if real else f"integers of {bits} bits, at most {bound:,} each"
    stages.append(Stage("encode", "real numbers", gives + whose, here))
    total = session.value.sum_bound(len(session.cohort))
    summed = "the sum of real numbers" if total is None else f"the sum over {len(session.cohort)} sites, at most {total:,} a coordinate"
    stages.append(Stage(f"sum ({config.aggregator.use})", gives, summed, f"sum: {', '.join(g.sees_sum)}; one site's update: {update}"))  # type: ignore[attr-defined]
    stages.append(Stage("decode and update", "the sum", "new shared weights", "every site and the server"))
    stages.append(
        Stage(
            "evaluate", "new weights, the site's held-out images", f"{', '.join(parts.spec.metrics)}", f"run.metrics: {config.run.metrics}"
        )
    )
    return stages


def _headline(plan: Plan, parts: Assembly) -> str:
    """The first line of plan, console and report: who sees what."""
    if plan.misfits:
        return "This plan is refused."
    if not parts.personalization.shares:
        return "Centralized training: all data are at one place." if plan.config.pool else "Every site trains alone: nothing is shared."
    dp = claim_words(plan.privacy)
    if plan.config.pool:
        kept = "nothing is protected" if plan.privacy.get("epsilon") in (None, "inf") else dp
        return f"Centralized training: all data are at one place; {kept}."
    assert plan.guarantees is not None
    seen = plan.guarantees.sees_update
    who = f"{' and '.join(seen)} sees every site's update" if seen else "nobody sees one site's update, only the sum"
    if seen == ("server",):
        who = "The server sees every update"
    return f"{who[0].upper()}{who[1:]}; {dp}."
