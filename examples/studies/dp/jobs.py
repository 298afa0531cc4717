"""One job, in a worker process: train, score all sites' test images together; and the pool that does all of them."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from selection import Job

import pppml_core as pppml
from pppml_core.config import Difference, diff, to_plain
from pppml_core.errors import ConfigError
from pppml_core.federation.files import write_atomic
from pppml_core.registry import Registry
from pppml_core.sweeps import as_settings

Tell = Callable[[str], None]
DONE, CONFIG = "job.json", "config.resolved.yaml"


@cache
def registry() -> Registry:
    """Of this process."""
    return Registry.discover()


def experiment(job: Job) -> pppml.Experiment:
    """The job's experiment; it is scored once, after the last round."""
    plain = yaml.safe_load(job.base.read_text("utf-8"))
    rounds = job.settings.get("run.rounds", plain["run"]["rounds"])
    fixed = {"run.evaluate_every": rounds, "run.name": "dp-study", "engine": {"use": "local", "workers": 1}, "reporters": []}
    return pppml.Experiment(job.base, overrides=as_settings({**job.settings, **fixed}), registry=registry())


def is_done(job: Job) -> bool:
    """Whether nothing of the job is left to do."""
    return (job.folder / DONE).exists()


def read_job(folder: Path) -> dict[str, Any]:
    """``job.json``."""
    return dict(json.loads((folder / DONE).read_text("utf-8")))


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config without what changes no number: names, reporters, the engine, the folder of the data (not the file's name)."""
    plain = {key: value for key, value in config.items() if key not in ("reporters", "engine")}
    plain["run"] = {key: value for key, value in plain["run"].items() if key != "name"}
    if path := plain["task"].get("path"):
        plain["task"] = {**plain["task"], "path": Path(path).name}
    return plain


def differing(job: Job) -> list[Difference]:
    """Settings of what lies in the job's folder, against those that the job has now; none where nothing lies there."""
    from pppml_core.federation.assembly import with_task_defaults

    if not (job.folder / CONFIG).exists():
        return []
    config = experiment(job).config
    now = to_plain(with_task_defaults(config, registry().build("task", config.task).spec(), registry()))
    return diff(comparable(yaml.safe_load((job.folder / CONFIG).read_text("utf-8"))), comparable(now))


def refuse_other_settings(every: Sequence[Job]) -> None:
    """Raise ConfigError where a folder holds a run with other settings: it would be taken for a run of this study."""
    others = [(job.folder, found) for job in every if (found := differing(job))]
    if others:
        folder, found = others[0]
        more = f" (and {len(others) - 1} more folders)" if len(others) > 1 else ""
        said = ", ".join(str(one) for one in found)
        text = f"what lies here was made with other settings: {said}{more}"
        raise ConfigError(text, place=str(folder), hint="give another --out, or delete the folder")


def run_job(job: Job) -> dict[str, Any]:
    """Train (or go on), score the shared model on all sites' images together, and leave ``job.json``."""
    began, used = time.perf_counter(), cpu_seconds()
    run = experiment(job).run(job.folder, reporters=False, report=False)
    plan = json.loads((job.folder / "plan.json").read_text("utf-8"))
    record = {
        "cell": job.cell.model_dump(),
        "row": job.row,
        "epsilon": job.epsilon,
        "seed": job.seed,
        "validation": scores(run, "validation")[0],
        "test": (test := scores(run, "test"))[0],
        "groups": test[1],
        "privacy": {**plan["privacy"], "spent": json.loads((job.folder / "result.json").read_text("utf-8"))["privacy"]["spent"]},
        "charges": charges(job.folder),
        "parameters": plan["model"]["parameters"],
        "images": {split: sum(site[split] for site in plan["sites"]) for split in ("train", "validation", "test")},
        "smallest_site": min(site["train"] for site in plan["sites"]),
        "sites": len(plan["sites"]),
        "device": device(),
        "versions": plan["versions"],
        "cpu_seconds": round(cpu_seconds() - used, 2),
        "seconds": round(time.perf_counter() - began, 2),
    }
    write_atomic(job.folder / DONE, json.dumps(record).encode())
    return record


def scores(run: Any, split: str) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Metrics over the images of all sites together, and for each group (smear, patient or single image) its images and right ones."""
    import numpy as np

    from pppml_core.interfaces.task import Predictions
    from pppml_core.learning.evaluation import predict_examples
    from pppml_core.learning.metrics import default_score

    task, model = run.task, run.model()
    parts = [getattr(task.load(site.slug), split) for site in task.sites()]
    found = [predict_examples(model, part, task.spec().size) for part in parts if len(part)]
    probabilities, targets, groups = (np.concatenate([getattr(f, n) for f in found]) for n in ("probabilities", "targets", "groups"))
    whole = Predictions(probabilities, targets, groups)
    names, at = np.unique(groups.astype(str), return_inverse=True)
    right = np.bincount(at, probabilities.argmax(axis=1) == targets, minlength=len(names)).astype(int)
    record = {"names": names.tolist(), "right": right.tolist(), "images": np.bincount(at, minlength=len(names)).tolist()}
    return default_score(task.spec(), whole), record


def charges(folder: Path) -> list[dict[str, Any]]:
    """What the run's ledger holds: equal charges together."""
    path = folder / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        count = line.pop("count")
        line.pop("round")
        found.setdefault(json.dumps(line, sort_keys=True), {**line, "count": 0})["count"] += count
    return list(found.values())


def device() -> str:
    """What the run was made on."""
    import platform

    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cpu_seconds() -> float:
    """Of this process, so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_all(every: Sequence[Job], workers: int, tell: Tell | None = None) -> dict[str, str]:
    """Run what is not done, in order. Returns the reason of each job that failed, by name.

    Raises ConfigError, before anything is run, where a job's folder holds a run with other settings.
    """
    refuse_other_settings(every)
    tell = tell or (lambda line: print(line, file=sys.stderr, flush=True))
    left = [job for job in every if not is_done(job)]
    if len(left) < len(every):
        tell(f"{len(every) - len(left)} of {len(every)} runs were done before")
    failed: dict[str, str] = {}
    began = time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: one torch thread each
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet)
    try:
        waiting: dict[Future[dict[str, Any]], Job] = {pool.submit(run_job, job): job for job in left}
        for number, future in enumerate(as_completed(waiting), 1):
            job = waiting[future]
            try:
                made = future.result()
                said = f"validation {made['validation']['accuracy']:.3f}, {made['cpu_seconds']:.0f} processor seconds"
            except Exception as error:  # one job must not cost the others
                failed[job.name] = said = " ".join(str(error).split())
            tell(f"[{number}/{len(left)}] {job.name}: {said}; {(time.perf_counter() - began) / 60:.1f} min")
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C ends the study after the runs that are being made
    return failed


def _quiet() -> None:
    import warnings

    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
