"""All numbers of a study's folder, from the runs' records alone."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from later import later_summary
from records import DONE
from selection import Selection
from summary import task_summary


def summarize(selection: Selection, out: Path) -> dict[str, Any]:
    """All numbers of the runs in ``out``: tasks, sites that come later, and what the selected methods' runs cost."""
    tasks = {task: found for task in selection.tasks if (found := task_summary(selection, task, out))}
    later = {task: found for task in selection.new_site.sites if (found := later_summary(selection, task, out))}
    seeds = {f"seed-{seed}" for seed in selection.seeds}
    done = [path for path in sorted(out.rglob(DONE)) if path.parent.name in seeds and path.parent.parent.name in selection.methods]
    every = [json.loads(path.read_text("utf-8")) for path in done if "tuning" not in path.relative_to(out).parts]
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
