"""One job, in a worker process: train, score, and for a site that was left out adapt; and the pool that does all of them."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from typing import Any

from records import CONFIG, DONE, NEW_SITE, comparable, config_of, job_of, said
from selection import Job, NewSite
from units import scored, write_image_scores

import pppml_core as pppml
from pppml_core.config import Difference, diff, to_plain
from pppml_core.errors import ConfigError
from pppml_core.federation.files import write_atomic
from pppml_core.registry import Registry
from pppml_core.sweeps import as_settings

Tell = Callable[[str], None]


@cache
def registry() -> Registry:
    """Of this process."""
    return Registry.discover()


def experiment(job: Job, **changes: Any) -> pppml.Experiment:
    """The job's experiment. Its steps a round are the config's, divided by the method's gradient evaluations a step."""
    import yaml

    plain = yaml.safe_load(job.config.read_text("utf-8"))
    settings: dict[str, Any] = {
        "run.name": "-".join((job.task, job.method)).replace(" ", "-"),
        "run.seed": job.seed,
        "run.evaluate_every": plain["run"]["rounds"],
        "personalization": job.personalization,
        "engine": {"use": "local", "workers": 1},
        "reporters": [],
    }
    if job.data is not None:
        settings["task.path"] = str(job.data.resolve())
    if job.lr is not None:
        settings["training.optimizer.lr"] = job.lr
    if job.left_out is not None:
        settings["task.leave_out"] = [job.left_out]
    overrides = as_settings({**settings, **changes})
    whole = pppml.Experiment(job.config, overrides=overrides, registry=registry())
    calls = registry().build("personalization", whole.config.personalization).gradient_calls
    steps = max(1, plain["training"]["steps"] // calls)
    return pppml.Experiment(job.config, overrides=[*overrides, f"training.steps={steps}"], registry=registry())


def is_done(job: Job) -> bool:
    """Whether nothing of the job is left to do."""
    return (job.folder / DONE).exists()


def scoring(job: Job) -> dict[str, Any]:
    """What is scored beside what the core scores; the network from scratch is made in the jobs of the first method only."""
    how = job.new_site
    if how is None:
        return {"units": job.units}
    alone = how.scratch_steps if job.method == how.methods[0] else None
    return {"units": job.units, "examples": how.examples, "draws": how.draws, "scratch_steps": alone}


def settings_of(job: Job) -> dict[str, Any]:
    """The resolved config that a run of the job has, with the task's defaults."""
    from pppml_core.federation.assembly import with_task_defaults

    config = experiment(job).config
    return to_plain(with_task_defaults(config, registry().build("task", config.task).spec(), registry()))


def differing(job: Job) -> list[Difference]:
    """Settings of what lies in the job's folder, against those that the job has now; none where nothing lies there."""
    if not (job.folder / CONFIG).exists():
        return []
    found = diff(comparable(config_of(job.folder)), comparable(settings_of(job)))
    if is_done(job) and (scored_with := job_of(job.folder).get("scoring")) is not None:
        # A network from scratch that is there and not asked for does no harm.
        wanted = {key: value for key, value in scoring(job).items() if value is not None}
        found += diff({key: scored_with.get(key) for key in wanted}, wanted)
    return found


def refuse_other_settings(every: Sequence[Job]) -> None:
    """Raise ConfigError where a folder holds a run with other settings: it would be taken for a run of this study."""
    others = [(job.folder, found) for job in every if (found := differing(job))]
    if others:
        folder, found = others[0]
        more = f" (and {len(others) - 1} more folders)" if len(others) > 1 else ""
        raise ConfigError(
            f"what lies here was made with other settings: {said(found)}{more}",
            place=str(folder),
            hint="give another --out, or delete the folder",
        )


def run_job(job: Job) -> dict[str, Any]:
    """Train (or go on), score what the core does not, and leave ``job.json``: processor and wall-clock seconds."""
    began, used = time.perf_counter(), cpu_seconds()
    run = experiment(job).run(job.folder, reporters=False, report=False)
    if job.left_out is None and job.units == "images":
        write_image_scores(run)
    if job.new_site is not None:
        adapt_new_site(job, run, job.new_site)
    record = {
        "name": job.name,
        "personalization": job.personalization,
        "cpu_seconds": round(cpu_seconds() - used, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "scoring": scoring(job),
    }
    write_atomic(job.folder / DONE, json.dumps(record).encode())
    return record


def adapt_new_site(job: Job, run: Any, how: NewSite) -> None:
    """Adapt the result to a few training images of the site that was left out, and score each model on that site's test part.

    ``global``: the shared weights as they are. ``adapted``: by the run's own method. ``scratch``: as many images, from the initial
    weights, without any other site; made in the jobs of the first method only.
    """
    from pppml_core.federation.assembly import Assembly
    from pppml_core.federation.newcomer import adapted

    assert job.left_out is not None
    site, task = job.left_out, run.task
    data, spec = task.load(site), task.spec()

    def score(model: Any) -> dict[str, Any]:
        return {"units": scored(model, spec, data.test, job.units)}

    rows = [{"model": "global", "examples": 0, "draw": 0, **score(run.model())}]
    alone = None
    if job.method == how.methods[0]:
        tuned = {"use": "fedavg-finetune", "steps": how.scratch_steps}
        alone = Assembly.build(experiment(job, personalization=tuned).config, registry())
        initial = dict(alone.initial_weights)
    for count in sorted({min(k, len(data.train)) for k in how.examples}):
        for draw in range(how.draws):
            about = {"examples": count, "draw": draw}
            rows.append({"model": "adapted", **about, **score(run.adapt(site, count, draw))})
            if alone is not None:
                rows.append({"model": "scratch", **about, **score(adapted(alone, initial, site, count, draw))})
    metric = "dice" if spec.kind == "segmentation" else "accuracy"
    write_atomic(job.folder / NEW_SITE, json.dumps({"site": site, "metric": metric, "units": job.units, "rows": rows}).encode())


def cpu_seconds() -> float:
    """Of this process, so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_all(every: Sequence[Job], workers: int, tell: Tell | None = None) -> dict[str, str]:
    """Run what is not done, in order, and say what is left after each. Returns the reason of each job that failed, by name.

    Raises ConfigError, before anything is run, where a job's folder holds a run with other settings.
    """
    refuse_other_settings(every)
    tell = tell or (lambda line: print(line, file=sys.stderr, flush=True))
    left = [job for job in every if not is_done(job)]
    if len(left) < len(every):
        tell(f"{len(every) - len(left)} of {len(every)} jobs were done before")
    failed: dict[str, str] = {}
    spent: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    began = time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: one torch thread each
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet)
    try:
        waiting: dict[Future[dict[str, Any]], Job] = {pool.submit(run_job, job): job for job in left}
        open_jobs = list(left)
        for number, future in enumerate(as_completed(waiting), 1):
            job = waiting[future]
            open_jobs.remove(job)
            try:
                spent[job.kind].append(future.result()["seconds"])
                said = f"{spent[job.kind][-1]:.0f} s"
            except Exception as error:  # one job must not cost the others
                failed[job.name] = " ".join(str(error).split())
                said = f"failed: {failed[job.name]}"
            minutes = time_left(open_jobs, spent, workers) / 60
            tell(f"[{number}/{len(left)}] {job.name}: {said}; {(time.perf_counter() - began) / 60:.1f} min, about {minutes:.0f} min left")
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends the study after the runs that are being made
    return failed


def time_left(open_jobs: Sequence[Job], spent: Mapping[tuple[str, str, bool], Sequence[float]], workers: int) -> float:
    """Seconds, from the mean of finished jobs of the same kind, else of all."""
    means = {kind: sum(found) / len(found) for kind, found in spent.items() if found}
    usual = sum(means.values()) / len(means) if means else 0.0
    return sum(means.get(job.kind, usual) for job in open_jobs) / workers


def _quiet() -> None:
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
