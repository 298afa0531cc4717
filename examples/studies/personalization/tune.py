"""Hyper-parameters, chosen on validation data with a seed that is not reported: ``run.py --tune`` writes ``tuned.yaml``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jobs import Tell, run_all
from selection import Job, Selection, Settings, make_job, read_tuned

from pppml_core.errors import ConfigError
from pppml_core.federation.files import write_atomic
from pppml_core.sweeps import Point

#: The learning rate that all methods of a task share is best for these two together.
FOR_RATE = ("local-only", "fedavg-finetune")


def tune(selection: Selection, data: Path | None, out: Path, into: Path, workers: int, tell: Tell | None = None) -> dict[str, str]:
    """First each task's learning rate, then each method's own settings at that rate; says so when they are written. Returns what failed.

    Raises ConfigError where a method that the learning rate is chosen with is not selected.
    """
    if missing := [method for method in FOR_RATE if method not in selection.methods]:
        raise ConfigError(f"a task's learning rate is chosen with {', '.join(missing)} too", place="--methods", hint="name it as well")
    tuned = read_tuned(into)
    seed = selection.tuning_seed

    def job(task: str, method: str, folder: str, lr: float | None, settings: Settings) -> Job:
        return make_job(selection, {}, task, method, seed, out / "tuning" / task / method / folder, data, lr=lr, settings=settings)

    rates = {
        (task, lr, method): job(task, method, f"lr-{lr}", lr, {"steps": 10} if method == "fedavg-finetune" else {})
        for lr in selection.learning_rates
        for task in selection.tasks
        for method in FOR_RATE
    }
    failed = run_all(list(rates.values()), workers, tell)
    if failed:
        return failed
    for task in selection.tasks:
        tries = [{"lr": lr, **{m: score(selection, rates[task, lr, m]) for m in FOR_RATE}} for lr in selection.learning_rates]
        best = max(tries, key=lambda row: sum(row[m] for m in FOR_RATE))
        tuned[task] = {**tuned.get(task, {}), "lr": {"chosen": best["lr"], "tries": tries}}
    trials = {
        (task, method, i): job(task, method, Point(settings, seed).name, tuned[task]["lr"]["chosen"], settings)
        for task in selection.tasks
        for method, how in selection.methods.items()
        for i, settings in enumerate(how.tries_for(selection.tasks[task]))
    }
    failed = run_all(list(trials.values()), workers, tell)
    for task in selection.tasks:
        methods = tuned[task].setdefault("methods", {})
        for method, how in selection.methods.items():
            made = [(settings, trials[task, method, i]) for i, settings in enumerate(how.tries_for(selection.tasks[task]))]
            scores = [{"settings": settings, "score": score(selection, one)} for settings, one in made if one.name not in failed]
            if scores:
                methods[method] = {"chosen": max(scores, key=lambda row: row["score"])["settings"], "tries": scores}
    head = f"# Written by `run.py --tune`: mean validation score over sites, seed {seed}. The first of equals is taken.\n"
    write_atomic(into, (head + yaml.dump(tuned, Dumper=Plain, sort_keys=False, width=140, default_flow_style=None)).encode())
    print(f"chosen: {into}")
    return failed


def table(tuned: Mapping[str, Any]) -> str:
    """What was tried as Markdown, with the mean validation score of each try; what was chosen is bold."""
    lines = ["| task | for | tried |", "|---|---|---|"]
    for task, found in tuned.items():
        rate = found["lr"]["chosen"]
        rates = [tried(f"lr={row['lr']}", row["lr"] == rate, *(row[method] for method in FOR_RATE)) for row in found["lr"]["tries"]]
        lines.append(f"| {task} | {' and '.join(FOR_RATE)} | {'; '.join(rates)} |")
        for method, made in found.get("methods", {}).items():
            tries = [tried(named(row["settings"]), row["settings"] == made["chosen"], row["score"]) for row in made["tries"]]
            lines.append(f"| {task} | {method} | {'; '.join(tries)} |")
    return "\n".join(lines)


def named(settings: Settings) -> str:
    """Settings on one line."""
    return ", ".join(f"{key}={' '.join(value) if isinstance(value, list) else value}" for key, value in settings.items())


def tried(text: str, bold: bool, *scores: float) -> str:
    """A try; settings as code, so that patterns are not taken for Markdown."""
    code = f"**`{text}`**" if bold else f"`{text}`"
    return " ".join((code, " and ".join(f"{score:.3f}" for score in scores)))


class Plain(yaml.SafeDumper):
    """Writes equal settings out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True


def score(selection: Selection, job: Job) -> float:
    """The mean over sites of the primary metric on validation data after the last round, of the weights that are reported."""
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    plan = json.loads((job.folder / "plan.json").read_text("utf-8"))
    metric, last = plan["task"]["primary_metric"], max(row["round"] for row in rows)
    kinds = selection.methods[job.method].rows
    weights = "personalized" if "personalized" in kinds else "global"
    found: list[Any] = [r[metric] for r in rows if (r["round"], r["split"], r["weights"]) == (last, "validation", weights)]
    return round(sum(0.0 if value is None else value for value in found) / len(found), 4)
