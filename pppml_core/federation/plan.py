"""The plan: every part built and checked against every other before the first batch; all misfits at once, in words.

``make_plan`` never raises for a misfit: it lists them. ``pppml plan`` prints the plan, ``pppml run`` refuses what it refuses.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pppml_core.config import RunConfig
from pppml_core.config.run_config import TrainingSection
from pppml_core.errors import PlanRefused, PppmlError
from pppml_core.federation import evaluation
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.pipeline import METRIC_RANGES, contribution_ranges
from pppml_core.federation.site import ROUND_FIELDS
from pppml_core.interfaces.aggregation import Guarantees, Session, WireField
from pppml_core.interfaces.privacy import PrivacyPlan, PrivacySetting
from pppml_core.interfaces.task import SPLITS
from pppml_core.learning.arrays import to_numpy
from pppml_core.learning.pool import evaluated_sites, held_out
from pppml_core.learning.training import steps_per_round
from pppml_core.registry import Registry
from pppml_core.values import rms
from pppml_core.wire.codec import encoded_size
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
    plan.plugins = [{"kind": r.kind, "name": r.name, "distribution": r.distribution, "version": r.version} for r in registry.rows()]
    plan.versions = _versions(registry)
    _check_engine(plan, registry, objects or {})
    if _check_data(plan, parts) and _check_model(plan, parts):
        _check_run(plan, parts)
        _plan_exchange(plan, parts)
    plan.headline = _headline(plan, parts)
    return plan


def _versions(registry: Registry) -> dict[str, str]:
    import monai
    import torch

    own = {"python": platform.python_version(), "torch": str(torch.__version__), "monai": str(monai.__version__), "numpy": np.__version__}
    return {**own, **registry.versions()}


def _check_engine(plan: Plan, registry: Registry, objects: Mapping[str, Any]) -> None:
    plan.misfits += registry.build("engine", plan.config.engine, objects).misfits(objects)


def _check_data(plan: Plan, parts: Assembly) -> bool:
    """Load every site; sizes, classes, values. False where the data cannot be used at all."""
    spec = parts.spec
    plan.task = {
        "kind": spec.kind,
        "classes": list(spec.classes),
        "primary_metric": spec.primary_metric,
        "metrics": list(spec.metrics),
        "channels": spec.channels,
        "size": list(spec.size),
    }
    plan.misfits += [f"task: {text}" for text in parts.task.misfits()]
    if plan.misfits:
        return False
    for site in parts.task.sites():
        try:
            data = parts.load(site.slug)
        except PppmlError as error:
            plan.misfits.append(str(error))
            continue
        plan.sizes[site.slug] = len(data.train)
        if not len(data.train):
            plan.misfits.append(f"task: site {site.name!r} has no training examples; leave it out or give it data")
        for slug, part in held_out(parts.task, site.slug, data):
            name = next(s.name for s in evaluated_sites(parts.task) if s.slug == slug)
            counts: dict[str, Any] = {split: len(part.part(split)) for split in SPLITS}
            plan.sites.append({"slug": slug, "name": name, **counts})
            plan.misfits += _check_examples(slug, part)
            if not counts["test"]:
                plan.warnings.append(f"site {name!r} has no test examples: it is not in the final scores")
    if plan.misfits:
        return False
    if spec.kind == "classification":
        _check_classes(plan, parts)
    return not plan.misfits


def _check_examples(site: str, part: Any) -> list[str]:
    """The first example of each split is what the task says, and finite; groups do not lie in two splits."""
    out = []
    groups: dict[str, set[Any]] = {}
    for split in SPLITS:
        examples = part.part(split)
        groups[split] = set(np.asarray(examples.groups).tolist()) if len(examples) else set()
        if len(examples) and not np.isfinite(examples.example(0)[0]).all():
            out.append(f"task: site {site!r}, {split}: the first image holds NaN or infinity; remove or repair it")
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(map(str, groups[first] & groups[second]))
        if shared:
            out.append(f"task: site {site!r}: {shared[0]!r} is in {first} and in {second}; a patient must be in one part only")
    return out


def _check_classes(plan: Plan, parts: Assembly) -> None:
    total = np.zeros(len(parts.spec.classes), np.int64)
    for site in parts.task.sites():
        counts = np.bincount(parts.load(site.slug).train.labels(), minlength=len(total))
        if len(counts) > len(total):
            plan.misfits.append(f"task: site {site.name!r} has label {len(counts) - 1}, but there are only {len(total)} classes")
            return
        absent = [parts.spec.classes[i] for i in np.flatnonzero(counts == 0)]
        if absent and plan.sizes[site.slug]:
            plan.warnings.append(f"site {site.name!r} has no training example of {', '.join(absent)}")
        total += counts
    absent = [parts.spec.classes[i] for i in np.flatnonzero(total == 0)]
    if absent:
        plan.misfits.append(f"task: no site has a training example of {', '.join(absent)}; remove the class or add data")


def _check_model(plan: Plan, parts: Assembly) -> bool:
    """The network is built and one example goes through it."""
    import torch

    from pppml_core.randomness import seeded

    plan.misfits += [f"model: {text}" for text in parts.factory.misfits(parts.spec)]
    if plan.misfits:
        return False
    model = parts.model
    trained = sum(p.numel() for p in model.parameters())
    plan.model = {"name": getattr(parts.config.model, "use", "?"), "parameters": trained}
    reference = next(model.parameters())
    image, target = parts.load(parts.task.sites()[0].slug).train.example(0)
    expected = (len(parts.spec.classes),) if parts.spec.kind == "classification" else (len(parts.spec.classes), *target.shape)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), seeded(0):
            out = model(torch.from_numpy(np.asarray(image))[None].to(reference.device, reference.dtype))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).splitlines()[0]
        plan.misfits.append(f"model: an image of shape {tuple(image.shape)} does not go through it: {first}; choose another model or task size")
        return False
    finally:
        model.train(was_training)
    if tuple(out.shape[1:]) != expected:
        plan.misfits.append(f"model: gives {tuple(out.shape[1:])} for one image, the task needs {expected}; check classes and head")
        return False
    return True


def _check_run(plan: Plan, parts: Assembly) -> None:
    """Settings of the run against each other."""
    import torch

    run, training, encoding = plan.config.run, plan.config.training, plan.config.encoding
    sites = [s.slug for s in parts.task.sites()]
    if run.cohort is not None and run.cohort > len(sites):
        plan.misfits.append(f"run.cohort: {run.cohort} sites a round, but there are {len(sites)}; lower it")
    if run.min_cohort > (run.cohort or len(sites)):
        plan.misfits.append(f"run.min_cohort: {run.min_cohort} is more than the {run.cohort or len(sites)} sites of a round; lower it")
    metric = run.stop.metric if run.stop else None
    if metric is not None and metric not in parts.spec.metrics:
        plan.misfits.append(f"run.stop.metric: the task has no metric {metric!r}; it has {', '.join(parts.spec.metrics)}")
    if run.metrics == "none" and (run.stop is not None or run.select == "best-validation"):
        plan.misfits.append("run.metrics: none, but early stopping or run.select needs validation results; use per-site or sum")
    if (run.stop is not None or run.select == "best-validation") and not any(s["validation"] for s in plan.sites):
        plan.misfits.append("run.select, run.stop: no site has validation data; give some, or use run.select: last")
    if isinstance(training.class_weights, list) and len(training.class_weights) != len(parts.spec.classes):
        plan.misfits.append(f"training.class_weights: {len(training.class_weights)} numbers for {len(parts.spec.classes)} classes")
    plan.misfits += _check_device(training)
    largest = max(parts.personalization.weight(n) for n in plan.sizes.values())
    plan.max_weight = largest if encoding.max_weight == "auto" else encoding.max_weight
    if encoding.max_weight == "auto" and plan.config.aggregator.use != "plain":  # type: ignore[attr-defined]
        plan.warnings.append("encoding.max_weight is auto: the largest site's number of training examples is public")
    if largest > plan.max_weight:
        plan.misfits.append(f"encoding.max_weight: {plan.max_weight} is below the largest site's weight {largest}; raise it or cap the weights")
    if isinstance(encoding.range, dict):
        import fnmatch

        for pattern in encoding.range:
            if not any(fnmatch.fnmatchcase(t.name, pattern) for t in parts.shared):
                plan.misfits.append(f"encoding.range: {pattern!r} matches no shared tensor; the first is {parts.shared[0].name!r}")
    normalized = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in parts.model.modules())
    if normalized and any(n % training.batch_size == 1 or training.batch_size == 1 for n in plan.sizes.values()):
        plan.warnings.append("training.batch_size: a batch of one example occurs, on which batch normalization is unreliable or fails")


def _check_device(training: TrainingSection) -> list[str]:
    import torch

    from pppml_core.learning.training import device_of

    if training.device == "cuda" and not torch.cuda.is_available():
        return ["training.device: cuda, but there is no usable GPU; use auto or cpu"]
    if training.precision == "bf16" and device_of(training).type == "cuda" and not torch.cuda.is_bf16_supported():
        return ["training.precision: this GPU has no bf16; use float32"]
    return []


def _plan_exchange(plan: Plan, parts: Assembly) -> None:
    """Privacy, encoding, session: bounds, bytes, guarantees, manifest."""
    config = plan.config
    sites = tuple(s.slug for s in parts.task.sites())
    cohort = sites[: config.run.cohort] if config.run.cohort else sites
    steps = {s: steps_per_round(config.training, n) for s, n in plan.sizes.items()}
    plan.training = {"steps": steps, "gradient_calls": parts.personalization.gradient_calls}
    calls = parts.personalization.gradient_calls
    setting = PrivacySetting(config.run.rounds, len(cohort), plan.sizes, config.training.batch_size, steps, calls)
    refused = parts.mechanism.misfits(setting, parts.personalization, parts.model)
    if refused:
        plan.misfits += [f"privacy: {text}" for text in refused]
        return
    privacy = parts.mechanism.plan(setting)
    plan.privacy = privacy.statement.to_dict()
    session = _plan_session(plan, parts, cohort, privacy) if parts.personalization.shares else None
    if plan.misfits:
        return
    evaluated = evaluation.evaluation_fields(parts.spec, [s["slug"] for s in plan.sites], config.run.metrics)
    fields: tuple[WireField, ...] = (*ROUND_FIELDS, *evaluated, *(session.fields if session else ()))
    weights = encoded_size(to_numpy(parts.initial_weights))
    by_stage = session.predicted_bytes() if session else {}
    plan.bytes = {"up_per_site_round": sum(by_stage.values()), "down_per_site_round": weights, "by_stage": by_stage}
    plan.manifest = {**Manifest(fields).to_dict(), "contribution": _contribution(parts, plan, privacy), "evaluation": _evaluation(parts, config)}
    plan.stages = _stages(parts, plan, session, privacy)


def _plan_session(plan: Plan, parts: Assembly, cohort: tuple[str, ...], privacy: PrivacyPlan) -> Session | None:
    ranges = _ranges(parts)
    pipeline = parts.pipeline(ranges, max(1, plan.max_weight), metrics=privacy.admits_metrics)
    value = pipeline.spec
    bound = value.sum_bound(len(cohort))
    if bound is not None and bound >= 2**63:
        plan.misfits.append(f"encoding.bits: the sum of {len(cohort)} sites does not fit 64 bits; use fewer bits")
    plan.misfits += parts.aggregator.misfits(value, cohort)
    if plan.misfits:
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
    ranges = _ranges(parts)
    seen = plan.guarantees.sees_update if plan.guarantees else ()
    mechanism = f"{parts.config.aggregator.use}: " + (f"read by {', '.join(seen)}" if seen else "only the sum is read")  # type: ignore[attr-defined]
    rows = []
    for i, tensor in enumerate(layout.tensors):
        known = ranges[i] if i < len(ranges) else METRIC_RANGES.get(tensor.name, 1.0)
        rows.append(
            {
                "name": tensor.name,
                "role": tensor.role,
                "shape": list(tensor.shape),
                "dtype": "float" if real else "integer",
                "bits": None if real else parts.config.encoding.bits,
                "range": None if real else known,
                "range_rule": "auto after round 1" if automatic and i < len(ranges) else "fixed",
                "mechanism": mechanism,
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
        stages.append(Stage(f"privacy ({privacy.statement.mechanism})", "the update", f"noised, placement {privacy.placement}", here))
    weighted = f"{length:,} numbers: update x weight / {plan.max_weight}, the weight" + (", training metrics" if privacy.admits_metrics else "")
    stages.append(Stage("weight", "the update", weighted, here))
    bound = session.value.bound
    gives = "real numbers as they are" if real else f"integers of {config.encoding.bits} bits, at most {bound:,} each"
    stages.append(Stage("encode", "real numbers", gives, here))
    total = session.value.sum_bound(len(session.cohort))
    summed = "the sum of real numbers" if total is None else f"the sum over {len(session.cohort)} sites, at most {total:,} a coordinate"
    stages.append(Stage(f"sum ({config.aggregator.use})", gives, summed, f"sum: {', '.join(g.sees_sum)}; one site's update: {update}"))  # type: ignore[attr-defined]
    stages.append(Stage("decode and update", "the sum", "new shared weights", "every site and the server"))
    stages.append(Stage("evaluate", "new weights, the site's held-out images", f"{', '.join(parts.spec.metrics)}", f"run.metrics: {config.run.metrics}"))
    return stages


def _headline(plan: Plan, parts: Assembly) -> str:
    """The first line of plan, console and report: who sees what."""
    if plan.misfits:
        return "This plan is refused."
    if not parts.personalization.shares:
        what = "Centralized training: all data are at one place." if plan.config.pool else "Every site trains alone: nothing is shared."
        return what
    if plan.config.pool:
        return "Centralized training: all data are at one place, nothing is protected."
    assert plan.guarantees is not None
    seen = plan.guarantees.sees_update
    who = f"{' and '.join(seen)} sees every site's update" if seen else "nobody sees one site's update, only the sum"
    epsilon = plan.privacy.get("epsilon")
    dp = "no differential privacy" if epsilon is None else f"differential privacy claimed (epsilon {epsilon:g}; see the privacy statement)"
    if seen == ("server",):
        who = "The server sees every update"
    return f"{who[0].upper()}{who[1:]}; {dp}."
