"""The numbers as Markdown and JSON. Every sentence and figure comes from the records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pppml_core.federation.files import write_atomic
from pppml_core.report.personalization import LEVEL

REFERENCE = "fedavg-finetune"
#: what intervals are over, and what they say, by how test data were resampled.
OVER = {"groups": "patients, smears or images", "images": "images within patients"}
MEANING = {
    "groups": "An interval says how far a number would move with other patients, smears or images of the same sites.",
    "images": "An interval says how far a number would move with other images of the same patients, and nothing of other patients: a site "
    "has too few of them.",
}

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
    head = (
        f"## {name}: {task['about']}\n\n"
        f"Test {task['metric']}, mean of {len(task['seeds'])} seeds [95 % interval over {OVER[task['units']]}]. "
        f"Network: {task['model']['name']}, {task['model']['parameters']:,} parameters."
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
            span(found["training_gradients"].values()),
            span(found["adapting_gradients"].values()),
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
        "gradients: training",
        "adapting",
    ]
    sites = [
        [
            f"{site['name']} ({site['train']}, {site['units']})",
            *(f"{found['sites'][slug]['estimate']:.3f}" for found in task["rows"].values()),
        ]
        for slug, site in task["sites"].items()
    ]
    counted = "training images, test units" if task["units"] == "groups" else "training images, test images"
    parts = [head, grid(titles, rows), budget(task["rows"]), f"By site ({counted}):", grid(["site", *task["rows"]], sites)]
    return "\n\n".join([*parts, *(text for text in (MEANING[task["units"]], caveat(task), against_alone(task)) if text)])


def budget(rows: Record) -> str:
    """What training took and what adapting took on top, and who had more than the reference at some site."""
    training = {row: max(found["training_gradients"].values()) for row, found in rows.items()}
    most = max(training.values())
    fewer = [f"{row} ({n}, its steps rounded down)" for row, n in training.items() if n < most]
    text = "Gradient evaluations of a site over the whole run. Training: " + (
        f"{most} with every method" if not fewer else f"{most}, fewer with {', '.join(fewer)}"
    )
    text += "; adapting, before a site is scored, comes on top."
    if REFERENCE not in rows:
        return text

    def total(row: str) -> dict[str, int]:
        return {site: n + rows[row]["adapting_gradients"][site] for site, n in rows[row]["training_gradients"].items()}

    reference = total(REFERENCE)
    more = [row for row in rows if any(n > reference[site] for site, n in total(row).items())]
    if not more:
        return f"{text} Both together, no method has more than {REFERENCE} ({span(reference.values())})."
    over = ", ".join(f"{row} ({span(total(row).values())})" for row in more)
    return f"{text} Both together, these have more than {REFERENCE} ({span(reference.values())}) at some site: {over}."


def caveat(task: Record) -> str:
    """Which sites have too few test units for anything to be clear there, and whose worst site they are."""
    few, fewest = task["few"], task["fewest"]
    if not few:
        return ""
    what = "test units" if task["units"] == "groups" else "patients (or sources of unknown patients) in the test part"
    text = (
        f"Fewer than {fewest} {what}: {listed(task['sites'], few)}. Nothing is called clear there, and intervals of such sites, of the "
        "mean and of the worst site are a rough guide only."
    )
    worst = {site: [row for row, found in task["rows"].items() if found["worst_site"] == site] for site in few}
    for site, rows in worst.items():
        if rows:
            text += f" {task['sites'][site]['name']} is the worst site of {', '.join(rows)}."
    return text


def against_alone(task: Record) -> str:
    """What below and clearly mean, and which methods are clearly above local-only."""
    if "local-only" not in task["rows"]:
        return ""
    text = (
        f"Below local-only: by {LEVEL} or more. Clearly: the 95 % interval of the paired difference excludes zero too, at a site with "
        f"at least {task['fewest']} {'test units' if task['units'] == 'groups' else 'test patients'}. "
    )
    if task["few"]:
        return text + "Which methods are clearly above it on the mean and on the worst site is not judged, for the sites named above."
    better = ", ".join(task["clearly_better_than_alone"]) or "none"
    return text + f"Above local-only on the mean and on the worst site, with intervals that do not overlap: {better}."


def listed(sites: Record, slugs: Sequence[str]) -> str:
    """``A (4), B (3)``: names and how many independent test units."""
    return ", ".join(f"{sites[slug]['name']} ({sites[slug]['groups']})" for slug in slugs)


def span(numbers: Iterable[int]) -> str:
    """``200``, or ``200 to 230`` where sites differ."""
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


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
            out.append(f"{task}, without {site}: its test {found['metric']}{on(found)}\n\n{grid(titles, rows)}\n\n{adapting(found)}")
    out.append(
        "Adapting to the new site takes these gradient evaluations and no round of training. The learning rate and the methods' settings "
        "were tuned with every site in training and in the validation score, these too: such a site is new to the trained weights, and its "
        "test images are new to all, but it is not untouched by tuning."
    )
    return "\n\n".join(out)


def on(found: Record) -> str:
    """How often and on what a new site was scored."""
    units = f"{found['units']} test {'units' if found['resampled'] == 'groups' else 'images'}"
    return f" on {units}, mean of {len(found['seeds'])} seeds and {found['draws']} draws [95 % interval over {OVER[found['resampled']]}]."


def adapting(found: Record) -> str:
    """Gradient evaluations on the new site's images, by model; and what its intervals are worth."""
    steps: dict[str, list[int]] = {}
    for count, models in found["examples"].items():
        for name, entry in models.items():
            if count != "0":
                steps.setdefault(name, []).append(entry["adapting_gradients"])
    text = f"Gradient evaluations on its images: {', '.join(f'{name} {span(numbers)}' for name, numbers in steps.items())}. "
    text += MEANING[found["resampled"]]
    if found["few"]:
        what = "test units" if found["resampled"] == "groups" else "patients (or sources of unknown patients) in its test part"
        text += f" It has fewer than {found['fewest']} {what} ({found['groups']}): the intervals are a rough guide only."
    return text


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
