"""The numbers as Markdown and JSON. Every sentence and figure comes from the records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pppml_core.federation.files import write_atomic

Record = Mapping[str, Any]
TITLES = ["row", "accuracy", "sd over seeds", "balanced accuracy", "macro F1", "AUC", "seeds", "settings", "processor seconds"]


def write_tables(results: Record, tuned: Record, out: Path) -> None:
    """``results.json`` and ``tables.md``."""
    write_atomic(out / "results.json", json.dumps(results, indent=1).encode())
    write_atomic(out / "tables.md", markdown(results, tuned).encode())


def markdown(results: Record, tuned: Record) -> str:
    """All tables."""
    parts = [cell_table(name, cell) for name, cell in results["cells"].items()]
    if tuned:
        parts.append(f"## What was tried in tuning\n\n{tries(tuned)}\n\n{tuning_note(tuned)}")
    cost = results["cost"]
    parts.append(
        f"{cost['runs']} runs, {cost['cpu_seconds'] / 60:.0f} processor minutes on {', '.join(results['devices'])}. "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    )
    return "\n\n".join(parts) + "\n"


def cell_table(name: str, cell: Record) -> str:
    """One network on one division of the data."""
    images = cell["images"]
    head = (
        f"## {name}\n\n{cell['parameters']:,} weights; {cell['sites']} sites with {images['train']:,} training images together, "
        f"{cell['smallest_site']} at the smallest; {images['test']:,} test images of {cell['groups']:,} groups. "
        "Accuracy: mean over seeds [95 % interval over test groups]; other metrics: mean over seeds.\n\n" + claims(cell)
    )
    rows = [
        [
            row,
            cell_of({**found["interval"], "estimate": found["metrics"]["accuracy"]}),
            "" if found["seed_sd"]["accuracy"] is None else f"{found['seed_sd']['accuracy']:.3f}",
            *(f"{found['metrics'][metric]:.3f}" for metric in ("balanced_accuracy", "macro_f1", "auc")),
            " ".join(map(str, found["seeds"])),
            said(found["settings"]),
            f"{found['cpu_seconds']:.0f}",
        ]
        for row, found in cell["rows"].items()
    ]
    parts = [head, grid(TITLES, rows), elsewhere(name, cell), *(verdict(eps, d) for eps, d in cell["differences"].items())]
    return "\n\n".join(part for part in parts if part)


def claims(cell: Record) -> str:
    """What the epsilons of a table are: unit, adjacency, delta, accountant, placement and adversary."""
    noised = [found["privacy"] for found in cell["rows"].values() if found["row"] in ("distributed", "local")]
    by_placement = {claim["placement"]: claim for claim in noised}
    if not by_placement:
        return "No row has a finite epsilon: nothing is guaranteed."
    first = next(iter(by_placement.values()))
    adversaries = "; ".join(f"{name}: {claim['adversary']}" for name, claim in by_placement.items())
    return (
        f"Every epsilon is for the whole run, unit {first['unit']}, adjacency {first['adjacency']}, delta {first['delta']:g}, accountant "
        f"{first['accountant']}, with the placement that the row names. Adversary with placement {adversaries}. clip-only and no-dp have "
        "no guarantee: their epsilon is infinite. Outside the claim: these scores, and the choice of settings (see tuning)."
    )


def verdict(epsilon: str, found: Record) -> str:
    """Distributed against local, and whether the difference is what the study asks for."""
    groups, seeds = found["over_groups"], found["over_seeds"]
    asked = 100 * found["asked"]
    low = groups["low"]
    judged = (
        f"at least {asked:.0f} points, also at the lower end of the interval over test groups"
        if low is not None and low >= found["asked"]
        else f"at least {asked:.0f} points as measured, not at the lower end of the interval over test groups"
        if groups["estimate"] >= found["asked"]
        else f"less than {asked:.0f} points"
    )
    return (
        f"**Distributed minus local at epsilon {epsilon} (unit, adjacency, delta, accountant and adversary as above): "
        f"{points(groups)} points of accuracy** over test groups: {judged}. Over {len(found['seeds'])} seeds (Student's t) "
        f"{points(seeds)}{includes_zero(seeds)}."
    )


def includes_zero(found: Record) -> str:
    """Whether the interval says that there is a difference at all; nothing where there is no interval."""
    if None in (found["low"], found["high"]):
        return ""
    return ", an interval that includes zero" if found["low"] <= 0 <= found["high"] else ", an interval without zero"


def elsewhere(name: str, cell: Record) -> str:
    """Which rows have settings that were tuned in another cell, or none."""
    taken = {row: found["tuned_in"] for row, found in cell["rows"].items() if found["tuned_in"] != name}
    if not taken:
        return ""
    return "Settings tuned elsewhere: " + "; ".join(f"{row} in {where or 'no cell: the defaults'}" for row, where in taken.items()) + "."


def tries(tuned: Record) -> str:
    """What was tried, with each try's validation accuracy; what was chosen is bold."""
    lines = [
        [
            cell,
            row,
            "; ".join(bold(f"{said(one['settings'])}: {one['score']:.3f}", one["settings"] == found["chosen"]) for one in found["tries"]),
            f"{found['epsilon_of_all_tries']:g}" if "epsilon_of_all_tries" in found else "infinite",
        ]
        for cell, rows in tuned.items()
        for row, found in rows.items()
    ]
    return grid(["cell", "row", "tried: validation accuracy", "epsilon of all tries together"], lines)


def bold(text: str, on: bool) -> str:
    """Where it is asked for."""
    return f"**{text}**" if on else text


def tuning_note(tuned: Record) -> str:
    """What choosing cost."""
    found = [(cell, row, one.get("epsilon_of_all_tries")) for cell, rows in tuned.items() for row, one in rows.items()]
    text = ", ".join(f"{value:g} with placement {row} in {cell}" for cell, row, value in found if value is not None)
    return (
        "The scores of tries are of noised models, so what is chosen by them tells something of the training images. Epsilon of all tries "
        f"of a row together, with the unit, adjacency, delta and accountant of the tables: {text}. The epsilons in the tables do not "
        "include it: they are claims for a run whose settings were known beforehand, from other data for example."
    )


def points(found: Record) -> str:
    """``+12.3 [+10.1, +14.6]``, in points of a hundred."""
    text = f"{100 * found['estimate']:+.1f}"
    return text if None in (found["low"], found["high"]) else f"{text} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def cell_of(found: Record) -> str:
    """``0.612 [0.580, 0.644]``."""
    text = f"{found['estimate']:.3f}"
    return text if None in (found["low"], found["high"]) else f"{text} [{found['low']:.3f}, {found['high']:.3f}]"


def said(settings: Record) -> str:
    """Settings in short: ``lr 1.0, batch 32, 100 steps``."""
    names = {"training.batch_size": "batch {}", "run.rounds": "{} steps"}
    return ", ".join(names.get(path, f"{path.rpartition('.')[2]} {{}}").format(value) for path, value in settings.items())


def grid(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, numbers to the right."""
    titles = list(titles)
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
