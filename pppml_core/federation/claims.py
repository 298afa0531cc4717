"""The checks of a claim of privacy: what it covers, what it leaves out, and whether the mechanism can protect what is made here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from pppml_core.federation.assembly import Assembly
from pppml_core.federation.checks import NO_PATIENTS, examples_to_try, groups_in, of_section
from pppml_core.interfaces.privacy import PrivacyPlan
from pppml_core.learning.carried import carrying
from pppml_core.learning.gradients import plain_gradients

if TYPE_CHECKING:
    from pppml_core.federation.plan import Plan


#: What happens to a site's evaluation metrics, by ``run.metrics``.
_METRICS = {"per-site": "each site's own leave it in the clear", "sum": "they leave the sites in sums", "none": "they stay at the sites"}


def check_claim(plan: Plan, parts: Assembly, privacy: PrivacyPlan) -> None:
    """Beside a claim of epsilon: what it covers and what it does not."""
    epsilon, rule = privacy.statement.epsilon, parts.personalization
    if epsilon is None:
        return
    if math.isinf(epsilon):
        plan.warnings.append(f"privacy: {privacy.statement.words()}; the model may reveal its training images")
        return
    if not rule.shares:
        covered = "what each site's training makes of its images; nothing of it is shared"
    elif privacy.placement == "server":
        covered = "what the server makes of the noised sum; the sum itself, before its noise, is not covered"
    else:
        covered = "the shared weights, as they leave a site and in every sum of them"
    plan.misfits += _check_choice(plan, parts, privacy)
    if privacy.statement.unit == "patient":
        plan.misfits += _check_patients(plan, parts)
    said = "; ".join(_outside(plan, parts, privacy))
    plan.warnings.append(f"privacy: {privacy.statement.words()} is claimed for {covered}; outside the claim: {said}")


def _chosen(plan: Plan) -> str | None:
    """The setting by which validation images choose what is released."""
    return "run.select: best-validation" if plan.config.run.select != "last" else "run.stop" if plan.config.run.stop else None


def _check_choice(plan: Plan, parts: Assembly, privacy: PrivacyPlan) -> list[str]:
    """Whether scores without noise, of what is protected, would choose what is released."""
    rule, chosen = parts.personalization, _chosen(plan)
    if not (rule.shares and chosen):
        return []
    remedy = "would choose what is released; use run.select: last, and no run.stop"
    if rule.personalizes:
        return [f"{chosen}: scores of personalized models, made of training images without noise, {remedy}"]
    if privacy.statement.unit == "site":
        return [f"{chosen}: privacy.unit is site, and scores without noise on a site's own validation images {remedy}"]
    return []


def _check_patients(plan: Plan, parts: Assembly) -> list[str]:
    """Whether the groups of the data can be patients, and each is at one site: the noise is sized for that.

    Where validation images choose what is released, no patient whose images are trained on may be among them at another site either
    (a site's own parts are compared with the data).
    """
    if plan.config.sites is not None:
        text = "each site checks that its data name patients; whether one person is a patient of two of them nobody can check"
        plan.warnings.append(f"privacy.unit: patient: {text}")
        return []
    remedy = "deal whole patients to sites (task.partition.unit: group), name different people apart, or use unit: example"
    seen: dict[str, str] = {}
    single = True
    for site, count in plan.sizes.items():
        groups = groups_in(parts.load(site).train)
        single = single and len(groups) == count
        if twice := sorted(groups & seen.keys()):
            where = f"{twice[0]!r} is at {seen[twice[0]]!r} and at {site!r}, and would count twice"
            return [f"privacy.unit: patient, but {where}; {remedy}"]
        seen |= dict.fromkeys(groups, site)
    if single:
        return [NO_PATIENTS]
    for site in plan.sizes if parts.personalization.shares and _chosen(plan) else ():
        if both := sorted(groups_in(parts.load(site).validation) & seen.keys()):
            where = f"{both[0]!r} trains at {seen[both[0]]!r} and is a validation patient of {site!r}, whose scores have no noise"
            return [f"privacy.unit: patient, but {where} and choose what is released ({_chosen(plan)}); {remedy}, or use run.select: last"]
    return []


def _outside(plan: Plan, parts: Assembly, privacy: PrivacyPlan) -> list[str]:
    """What leaves a site, or is kept there, and is not protected by the noise."""
    rule, metrics = parts.personalization, plan.config.run.metrics
    out = [f"evaluation metrics (run.metrics: {metrics}, so {_METRICS[metrics]})"]
    if rule.shares and (chosen := _chosen(plan)):
        out.append(f"the choice of the round by validation images ({chosen})")
    if rule.shares and privacy.admits_metrics:
        out.append("the training loss and the count of saturated coordinates, which enter the sums without noise")
    if rule.shares and privacy.constant_weight is None:
        out.append("the number of training examples, which enters the sums as a site's weight")
    init, weights = plan.config.training.init is not None, getattr(parts.config.model, "weights", None) is not None
    if given := [name for name, on in (("training.init", init), ("model.weights", weights)) if on]:
        out.append(f"what {' and '.join(given)} was trained on, which should be none of these images, unless with noise")
    frozen = {n for n, p in parts.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    kept = [n for n, t in parts.initial_personal.items() if n not in frozen and t.is_floating_point()]
    if rule.personalizes and rule.shares:
        out.append("each site's personalized model, which stays there and must not be passed on as private")
    elif rule.shares and kept:
        out.append(f"what each site keeps of its model ({kept[0]!r}, ...), which stays there")
    return out


def check_mean(plan: Plan, parts: Assembly, privacy: PrivacyPlan) -> None:
    """What the personalization says of its weights, where they are the ones that count."""
    if parts.personalization.shares and privacy.constant_weight is None:
        plan.warnings += of_section("personalization", parts.personalization.weight_remarks())


def check_gradients(plan: Plan, parts: Assembly, privacy: PrivacyPlan) -> None:
    """Whether the privacy mechanism can protect what this personalization makes of gradients."""
    rule, training, mechanism = parts.personalization, plan.config.training, privacy.statement.mechanism
    name = plan.config.personalization.use  # type: ignore[attr-defined]
    probe = plain_gradients(lambda outputs, targets: outputs.sum())
    if privacy.gradient_rule(probe) is probe:
        return  # what is made of gradients is protected as a whole, or not at all
    plan.misfits += _check_layers(plan, parts)
    plan.warnings += of_section("personalization", rule.noise_remarks(training.model_dump()))
    if rule.needs_hessian:
        plan.misfits.append(
            f"personalization: {name} needs Hessian-vector products, which {mechanism} neither clips nor noises; take an order that "
            "needs gradients only"
        )
    epsilon = privacy.statement.epsilon
    claims = epsilon is not None and math.isfinite(epsilon)
    if privacy.placement == "local" or (privacy.placement == "none" and not claims):
        return  # each gradient is clipped, and noised if at all, by itself
    # An infinite epsilon is that of a row without noise, made as its placement would have it.
    noised = privacy.placement != "none" and (epsilon is None or claims)
    what = f"{privacy.placement} noise" if noised else f"{mechanism} with placement {privacy.placement}"
    if not rule.shares_one_gradient or rule.gradient_calls > 1:
        calls = f"it makes {rule.gradient_calls} gradients a step" if rule.gradient_calls > 1 else "what it shares is no plain gradient"
        if noised:
            text = f"cannot be protected by {what}: {calls}, and all but the last would enter the sum without noise"
        else:
            text = f"does not fit {what}: {calls}, and a sum is of one clipped gradient a site"
        plan.misfits.append(f"personalization: {name} {text}; use fedavg, or a mechanism with placement local")
    for site, steps in plan.training["steps"].items():
        if steps != 1:
            text = f"{what} {'protects' if noised else 'clips'} one gradient a sum, and {site!r} makes {steps} steps a round"
            plan.misfits.append(f"training: {text}; set training.steps: 1")
            break
    optimizer = training.optimizer
    if optimizer.use != "sgd" or training.keep_optimizer or optimizer.weight_decay:
        plan.misfits.append(
            f"training.optimizer: with {what} what a site shares must be its gradient alone: use sgd, without keep_optimizer and "
            "weight_decay (the server may have momentum or Adam)"
        )


def _check_layers(plan: Plan, parts: Assembly) -> list[str]:
    """Layers that keep something of the images they see: no clip of single gradients bounds that."""
    train, reference = examples_to_try(plan, parts), next(parts.model.parameters())
    if train is None:
        return []
    images = np.stack([np.asarray(train.example(i)[0]) for i in (0, len(train) - 1)])
    first = torch.from_numpy(images).to(reference.device, reference.dtype)
    try:
        found = carrying(parts.model, first, 0.9 * first.flip(0) + 0.05)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return [f"privacy: whether its layers keep something of the images cannot be told, as two images in training mode fail: {why}"]
    kept = "in a forward pass: what it keeps of images no clip bounds and no noise hides; use a layer without a memory, such as GroupNorm"
    return [f"privacy: {text} {kept}" for text in found]
