"""All numbers of a study's folder, from the runs' records alone."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from later import finished_later, later_summary
from records import job_of
from selection import Selection
from summary import finished_runs, task_summary


def summarize(selection: Selection, out: Path) -> dict[str, Any]:
    """All numbers of the runs in ``out``: tasks, sites that come later, and what the runs cost that these are made of."""
    tasks = {task: found for task in selection.tasks if (found := task_summary(selection, task, out))}
    later = {task: found for task in selection.new_site.sites if (found := later_summary(selection, task, out))}
    used = [finished_runs(selection, task, out) for task in selection.tasks]
    used += [finished_later(selection, task, site, out) for task, sites in selection.new_site.sites.items() for site in sites]
    every = [job_of(folder) for found in used for seeds in found.values() for folder in seeds.values()]
    cost = {"runs": len(every), "cpu_seconds": sum(r["cpu_seconds"] for r in every), "seconds": sum(r["seconds"] for r in every)}
    return {"tasks": tasks, "new_site": later, "cost": cost, "machine": machine(), "versions": versions(out)}


def machine() -> dict[str, Any]:
    """What the study ran on."""
    model = ""
    if (info := Path("/proc/cpuinfo")).exists():
        model = next((line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")), "")
    return {"processor": model or platform.processor(), "cores": os.cpu_count(), "system": platform.system()}


def versions(out: Path) -> dict[str, str]:
    """As the first plan has them."""
    for path in sorted((out / "runs").rglob("plan.json")):
        return dict(json.loads(path.read_text("utf-8"))["versions"])
    return {}
