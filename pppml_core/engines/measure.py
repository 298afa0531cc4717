"""``pppml plan --measure``: the seconds of one training batch and of one sum over the cohort, on this machine, through the real code."""

from __future__ import annotations

import time

from pppml_core.engines.rehearsal import Rehearsal, numbers_for
from pppml_core.federation.checks import examples_to_try
from pppml_core.federation.plan import Plan
from pppml_core.learning.gradients import plain_gradients
from pppml_core.learning.training import LocalTraining
from pppml_core.randomness import seeded


def measure_plan(plan: Plan) -> dict[str, float]:
    """``{"one batch": seconds, "one sum": seconds}``; the sum is over the whole cohort, all parties one after another."""
    parts = plan.assembly
    assert parts is not None
    site = parts.task.sites()[0].slug
    train = examples_to_try(plan, parts)
    assert train is not None
    data = LocalTraining(train, parts.config.training, parts.seeds, site=site, round=1, rounds=1)
    rule = plain_gradients(lambda outputs, targets: parts.task.loss(outputs, targets), parts.config.training.precision)
    with seeded(0):
        batch = next(iter(data.sample("measure", 1)))
        rule(parts.model, batch)
        began = time.perf_counter()
        rule(parts.model, batch)
        measured = {"one batch": time.perf_counter() - began}
    if plan.guarantees is not None:
        cohort = tuple(plan.sizes)[: parts.config.run.cohort]
        ranges = tuple(1.0 for _ in parts.shared) if parts.config.encoding.use == "fixed" else ()
        pipeline = parts.pipeline(1, ranges, plan.max_weight, parts.mechanism.plan(parts.privacy_setting(plan.sizes)))
        numbers = numbers_for(pipeline.spec, seed=0)  # one array for all: the machine need not hold a model for each site
        rehearsal = Rehearsal(parts.aggregator.plan(pipeline.spec, cohort), dict.fromkeys(cohort, lambda: numbers))
        began = time.perf_counter()
        rehearsal.run()
        measured["one sum"] = time.perf_counter() - began
    return measured
