"""The numbers as Markdown and JSON. Every sentence and figure comes from the records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.federation.files import write_atomic

Record = Mapping[str, Any]


def write_tables(results: Record, out: Path) -> None:
    """``results.json`` and ``tables.md``."""
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "tables.md", markdown(results).encode())


def markdown(results: Record) -> str:
    """All tables."""
    parts = [task_table(name, task) for name, task in results["tasks"].items()]
    if results["new_site"]:
        parts.append(new_site_table(results["new_site"]))
    cost = results["cost"]
    parts.append(
        f"{cost['runs']} runs, {cost['cpu_seconds'] / 60:.0f} processor minutes on {results['machine']['processor']}. "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    )
    return "\n\n".join(parts) + "\n"


def task_table(name: str, task: Record) -> str:
    """A task: the methods, then their score at every site."""
    units = {"groups": "patients, smears or images", "images": "images within patients"}[task["units"]]
    head = (
        f"## {name}: {task['about']}\n\n"
        f"Test {task['metric']}, mean of {len(task['seeds'])} seeds [95 % interval over {units}]. Network: {task['model']['name']}, "
        f"{task['model']['parameters']:,} parameters."
    )
    rows = [
        [
            row,
            cell(found["mean"]),
            cell(found["worst"]),
            cell(found.get("difference"), signed=True),
            cell(found.get("difference_alone"), signed=True),
            harm(found),
            "" if found["seed_sd"] is None else f"{found['seed_sd']:.3f}",
            str(found["evaluations"]),
        ]
        for row, found in task["rows"].items()
    ]
    titles = [
        "method",
        "mean of sites",
        "worst site",
        "minus fedavg-finetune",
        "minus local-only",
        "below local-only (clearly)",
        "sd over seeds",
        "gradients",
    ]
    sites = [
        [
            f"{site['name']} ({site['train']}, {site['units']})",
            *(f"{found['sites'][slug]['estimate']:.3f}" for found in task["rows"].values()),
        ]
        for slug, site in task["sites"].items()
    ]
    better = task["clearly_better_than_alone"]
    said = (
        f"Above local-only on the mean and on the worst site, with intervals that do not overlap: {', '.join(better) or 'none'}."
        if "local-only" in task["rows"]
        else ""
    )
    return "\n\n".join(
        [head, grid(titles, rows), "By site (training images, test units):", grid(["site", *task["rows"]], sites), said]
    ).rstrip()


def new_site_table(later: Record) -> str:
    """Sites that were left out of training: a column for each number of images."""
    out = ["## A site that comes later"]
    for task, sites in later.items():
        for site, found in sites.items():
            counts = sorted(found["examples"], key=int)
            names = list(dict.fromkeys(name for count in counts for name in found["examples"][count]))
            rows = [[name, *(cell(found["examples"][count].get(name)) for count in counts)] for name in names]
            differences = [found["examples"][count].get("per-fedavg", {}).get("difference") for count in counts]
            if any(differences):
                rows.append(["per-fedavg minus fedavg-finetune", *(cell(d, signed=True) for d in differences)])
            titles = ["model", *("as it is" if count == "0" else f"{count} images" for count in counts)]
            out.append(
                f"{task}, without {site}: its test {found['metric']}, mean of {len(found['seeds'])} seeds and {found['draws']} draws.\n\n"
                + grid(titles, rows)
            )
    return "\n\n".join(out)


def harm(found: Record) -> str:
    """How many sites would be better off alone, and for how many the interval says so."""
    return f"{len(found['harmed'])} ({len(found['clearly_harmed'])})" if "harmed" in found else ""


def cell(found: Record | None, *, signed: bool = False) -> str:
    """``0.612 [0.580, 0.644]``; empty where there is nothing."""
    if found is None:
        return ""
    sign = "+" if signed else ""
    ends = (found["low"], found["high"])
    text = f"{found['estimate']:{sign}.3f}"
    return text if None in ends else f"{text} [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"


def grid(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, numbers to the right."""
    titles = list(titles)
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
