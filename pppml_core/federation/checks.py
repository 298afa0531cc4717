"""The checks of a plan, each on its own, so that one run of them lists every misfit of config, data and model."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pppml_core.config.run_config import TrainingSection
from pppml_core.errors import PppmlError, nearest
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.pipeline import levels_of, rounded_weight, weight_error
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.interfaces.task import SPLITS, Examples, SiteData, TaskSpec
from pppml_core.learning.data.inspection import faults
from pppml_core.learning.elsewhere import noise_like
from pppml_core.learning.pool import evaluated_sites, held_out
from pppml_core.learning.training import device_of, step_ends
from pppml_core.randomness import seeded
from pppml_core.registry import Registry
from pppml_core.wire.messages import SERVER

if TYPE_CHECKING:
    from pppml_core.federation.plan import Plan


#: Seconds in which images that are read one by one are looked at, of all sites together.
LOOKING = 10.0


#: A site's effective weight may differ from its true one by this share without a word.
WEIGHT_ERROR = 0.01
#: Steps of an explicit range, in learning rates, above which updates are mostly rounding.
COARSE = 10.0


def of_section(section: str, texts: Iterable[str]) -> list[str]:
    """Misfits that begin with their section."""
    return [text if text.startswith((f"{section}:", f"{section}.")) else f"{section}: {text}" for text in texts]


def check_engine(plan: Plan, registry: Registry, objects: Mapping[str, Any]) -> None:
    """Whether the engine can run this job."""
    engine, name = registry.build("engine", plan.config.engine, objects), plan.config.engine.use  # type: ignore[attr-defined]
    plan.misfits += engine.misfits(objects)
    if plan.config.sites is not None and engine.sites_here:
        text = f"the data are said to be at {', '.join(plan.config.sites)}, but engine {name} runs every site here, with the data of task"
        plan.misfits.append(f"sites: {text}; take an engine that reaches them, or leave `sites` out where all data are here")


def check_data(plan: Plan, parts: Assembly) -> bool:
    """Load every site; sizes, classes, values. False where something is wrong with them.

    Of data that are elsewhere the plan knows what was announced; each site looks at its own when it joins (:func:`own_misfits`).
    """
    spec = parts.spec
    plan.task = {
        "kind": spec.kind,
        "classes": list(spec.classes),
        "primary_metric": spec.primary_metric,
        "metrics": list(spec.metrics),
        "channels": spec.channels,
        "size": list(spec.size),
    }
    if plan.config.sites is not None:
        plan.sizes = dict(plan.config.sites)
        plan.sites = [{"slug": site, "name": site, "train": count} for site, count in plan.sizes.items()]
        plan.warnings.append("sites: the data are elsewhere: each site looks at its own when it joins, and nothing of that is told here")
        return True
    wrong = of_section("task", parts.task.misfits())
    until = time.monotonic() + LOOKING
    try:
        sites = () if wrong else parts.task.sites()
    except PppmlError as error:
        wrong, sites = of_section("task", [str(error)]), ()
    for site in sites:
        if site.slug == SERVER:
            wrong.append(f"task: a site is named {SERVER!r}, which is the coordinator's name; give it another")
        try:
            data = parts.load(site.slug)
        except PppmlError as error:
            wrong += of_section("task", [str(error)])
            continue
        plan.sizes[site.slug] = len(data.train)
        if not len(data.train):
            wrong.append(f"task: site {site.name!r} has no training examples; leave it out or give it data")
        for slug, part in held_out(parts.task, site.slug, data):
            name = next(s.name for s in evaluated_sites(parts.task) if s.slug == slug)
            counts: dict[str, Any] = {split: len(part.part(split)) for split in SPLITS}
            plan.sites.append({"slug": slug, "name": name, **counts})
            wrong += _check_examples(slug, part, spec, until)
            if not counts["test"]:
                plan.warnings.append(f"site {name!r} has no test examples: it is not in the final scores")
    if spec.kind == "classification" and not wrong:
        wrong += _check_classes(plan, parts)
    run = plan.config.run
    if plan.sites and (run.stop is not None or run.select == "best-validation") and not any(s["validation"] for s in plan.sites):
        wrong.append("run.select, run.stop: no site has validation data; give some, or use run.select: last")
    # What is wrong with a file of several sites is said by each of them.
    plan.misfits += dict.fromkeys(wrong)
    return not wrong


def own_misfits(parts: Assembly, site: str, privacy: PrivacyPlan) -> list[str]:
    """What is wrong with one site's own data, as that site finds it when it joins a run: what a plan says of data that it can see."""
    until, data = time.monotonic() + LOOKING, parts.load(site)
    out = of_section("task", parts.task.misfits()) or _check_examples(site, data, parts.spec, until)
    if not len(data.train):
        out.append(f"task: site {site!r} has no training examples")
    if privacy.statement.unit == "patient" and 1 < len(data.train) == len(groups_in(data.train)):
        out.append(NO_PATIENTS)
    return out


#: said where the groups of the data cannot be patients.
NO_PATIENTS = (
    "privacy.unit: patient, but every example is a group of its own: the data do not say which images are of one patient; give groups, "
    "or use unit: example"
)


def groups_in(examples: Examples) -> set[str]:
    """The groups of some examples."""
    return set(map(str, np.asarray(examples.groups).tolist())) if len(examples) else set()


def examples_to_try(plan: Plan, parts: Assembly) -> Examples | None:
    """Training examples to try the network on: a site's, or noise of their shape where the data are elsewhere."""
    if plan.config.sites is not None:
        return noise_like(parts.spec, 2 * plan.config.training.batch_size)
    site = next((s for s, n in plan.sizes.items() if n), None)
    return None if site is None else parts.load(site).train


def _check_examples(site: str, part: SiteData, spec: TaskSpec, until: float) -> list[str]:
    """The examples of each split are what the task says; groups do not lie in two splits."""
    out = []
    groups: dict[str, set[Any]] = {}
    for split in SPLITS:
        examples = part.part(split)
        groups[split] = set(np.asarray(examples.groups).tolist()) if len(examples) else set()
        try:
            found = faults(examples, spec, training=split == "train", until=until)
        except PppmlError as error:
            found = [str(error)]
        out += [f"task: site {site!r}, {split}: {text}" for text in found]
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(map(str, groups[first] & groups[second]))
        if shared:
            out.append(f"task: site {site!r}: {shared[0]!r} is in {first} and in {second}; a patient must be in one part only")
    return out


def _check_classes(plan: Plan, parts: Assembly) -> list[str]:
    """Every class is somewhere in the training data, and nothing else is."""
    total = np.zeros(len(parts.spec.classes), np.int64)
    for site in parts.task.sites():
        counts = np.bincount(parts.load(site.slug).train.labels(), minlength=len(total))
        absent = [parts.spec.classes[i] for i in np.flatnonzero(counts == 0)]
        # Under a privacy mechanism which labels a site has stays there, also beside the plan of a simulation.
        if absent and plan.sizes[site.slug] and plan.config.privacy.use == "none":  # type: ignore[attr-defined]
            plan.warnings.append(f"site {site.name!r} has no training example of {', '.join(absent)}")
        total += counts
    absent = [parts.spec.classes[i] for i in np.flatnonzero(total == 0)]
    return [f"task: no site has a training example of {', '.join(absent)}; remove the class or add data"] if absent else []


def check_model(plan: Plan, parts: Assembly) -> bool:
    """The network is built and one example goes through it."""
    wrong = of_section("model", parts.factory.misfits(parts.spec)) + _check_device(plan.config.training)
    if not wrong:
        try:
            wrong = _check_network(plan, parts, parts.model)
        except PppmlError as error:
            wrong = [str(error)]
    plan.misfits += wrong
    return not wrong


def _check_network(plan: Plan, parts: Assembly, model: torch.nn.Module) -> list[str]:
    plan.model = {"name": getattr(parts.config.model, "use", "?"), "parameters": sum(p.numel() for p in model.parameters())}
    reference = next(model.parameters(), None)
    if reference is None:
        return ["model: it has no parameters, so there is nothing to train"]
    examples = examples_to_try(plan, parts)
    if examples is None:
        return []
    image, target = examples.example(0)
    expected = (len(parts.spec.classes),) if parts.spec.kind == "classification" else (len(parts.spec.classes), *target.shape)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), seeded(0):
            out = model(torch.from_numpy(np.asarray(image))[None].to(reference.device, reference.dtype))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return [f"model: an image of shape {tuple(image.shape)} does not go through it: {first}; choose another model or task size"]
    finally:
        model.train(was_training)
    shape = tuple(getattr(out, "shape", ()))
    if shape[1:] != expected:
        return [f"model: gives {shape[1:]} for one image, the task needs {expected}; check classes and head"]
    return []


def _check_device(training: TrainingSection) -> list[str]:
    if training.device == "cuda" and not torch.cuda.is_available():
        return ["training.device: cuda, but there is no usable GPU; use auto or cpu"]
    if training.precision == "bf16" and device_of(training).type == "cuda" and not torch.cuda.is_bf16_supported():
        return ["training.precision: this GPU has no bf16; use float32"]
    return []


def check_settings(plan: Plan, parts: Assembly) -> None:
    """Settings against each other and against the task, before any image is read."""
    run, training = plan.config.run, plan.config.training
    _check_cohort(plan, parts)
    metric = run.stop.metric if run.stop else None
    if metric is not None and metric not in parts.spec.metrics:
        close = nearest(metric, parts.spec.metrics)
        hint = f"did you mean {close!r}?" if close else f"it has {', '.join(parts.spec.metrics)}"
        plan.misfits.append(f"run.stop.metric: the task has no metric {metric!r}; {hint}")
    if run.metrics == "none" and (run.stop is not None or run.select == "best-validation"):
        plan.misfits.append("run.metrics: none, but early stopping or run.select needs validation results; use per-site or sum")
    if isinstance(training.class_weights, list) and len(training.class_weights) != len(parts.spec.classes):
        classes = parts.spec.classes
        weights = f"{len(training.class_weights)} numbers for {len(classes)} classes"
        plan.misfits.append(f"training.class_weights: {weights}; give one for each of {', '.join(classes)}")


def check_weights(plan: Plan, weights: Mapping[str, int]) -> None:
    """What fixed point leaves of each site's weight: refused where it is nothing, a warning where it is off by more than 1 %."""
    bits, remedy = plan.config.encoding.bits, "lower encoding.max_weight or use more encoding.bits"
    for site, weight in weights.items():
        if rounded_weight(weight, plan.max_weight, bits) == 0:
            plan.misfits.append(
                f"encoding.max_weight: the weight {weight} of site {site!r} is nothing beside {plan.max_weight} in {bits} bits; {remedy}"
            )
        elif (error := weight_error(weight, plan.max_weight, bits)) > WEIGHT_ERROR:
            plan.warnings.append(f"encoding: {bits} bits change the weight of site {site!r} by {error:.1%}; {remedy}")


def _check_cohort(plan: Plan, parts: Assembly) -> None:
    run = plan.config.run
    try:
        sites = len(parts.task.sites())
    except PppmlError:  # check_data says why
        return
    if run.cohort is not None and run.cohort > sites:
        plan.misfits.append(f"run.cohort: {run.cohort} sites a round, but there are {sites}; lower it")
    if run.min_cohort > min(run.cohort or sites, sites):
        plan.misfits.append(
            f"run.min_cohort: {run.min_cohort} is more than the {min(run.cohort or sites, sites)} sites of a round; lower it"
        )


def check_together(plan: Plan, parts: Assembly) -> bool:
    """Model and settings against each other, and against what data could be read. False where no site's steps can be counted."""
    encoding, size = plan.config.encoding, plan.config.training.batch_size
    if isinstance(encoding.range, dict):
        shared = [t.name for t in parts.shared]
        for pattern in encoding.range:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in shared):
                plan.misfits.append(f"encoding.range: {pattern!r} matches no shared tensor; the first is {next(iter(shared), 'none')!r}")
    settings = plan.config.training.model_dump()
    plan.misfits += of_section("personalization", parts.personalization.misfits(parts.model, plan.sizes, settings))
    plan.warnings += of_section("personalization", parts.personalization.remarks(settings))
    if parts.personalization.shares and not parts.shared:
        if any(p.requires_grad for p in parts.model.parameters()):
            plan.misfits.append("personalization: it keeps every tensor of this model at the site, so nothing would be shared")
        else:
            frozen = "every parameter is frozen (requires_grad is False), so nothing would be trained or shared"
            plan.misfits.append(f"model: {frozen}; unfreeze the layers to be trained")
    if not (parts.personalization.has_global_model or parts.personalization.personalizes):
        plan.misfits.append("personalization: it makes neither a shared model nor one of each site, so there is nothing to score")
    normalized = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in parts.model.modules())
    each = parts.personalization.batches_per_step
    # Adapting takes one batch a step, whatever training does.
    kinds = {each, 1} if parts.personalization.personalizes else {each}
    cuts = [step_ends(n, size, k) for n in plan.sizes.values() for k in kinds if n >= k]
    if normalized and any(1 in np.diff(ends) for cut in cuts for ends in cut):
        plan.warnings.append("training.batch_size: a batch of one example occurs, on which batch normalization is unreliable or fails")
    few = {site: n for site, n in plan.sizes.items() if 0 < n < each}
    for site, n in few.items():
        text = f"site {site!r} has {n} training examples, and a step of the personalization takes {each} batches that share none"
        plan.misfits.append(f"training: {text}; leave it out (task.leave_out)")
    return not few


def check_grid(plan: Plan, privacy: PrivacyPlan) -> None:
    """Warns where what is configured of the integers has no effect, since a mechanism has a grid of its own, or is too coarse."""
    encoding, rate = plan.config.encoding, plan.config.training.optimizer.lr
    if (grid := privacy.encoding(1)) is not None:
        # (A saved config spells out the defaults.)
        given = [n for n in ("range", "start", "bits") if getattr(encoding, n) != type(encoding).model_fields[n].default]
        if given:
            own = f"{privacy.statement.mechanism} has a grid of integers of its own ({grid.bits} bits, one range for all tensors)"
            plan.warnings.append(f"{' and '.join(f'encoding.{n}' for n in given)}: without effect here; {own}")
        return
    explicit = encoding.range.values() if isinstance(encoding.range, dict) else [] if encoding.range == "auto" else [encoding.range]
    step = max(explicit, default=0.0) / levels_of(encoding.bits)
    if encoding.use == "fixed" and step > COARSE * rate:
        plan.warnings.append(f"encoding.range: one step is {step:.2g} at learning rate {rate:g}; use a smaller range or more bits")
