"""Settings, chosen on validation data with a seed that is not reported: ``run.py --tune`` writes ``tuned.yaml``.

The scores are of noised models, so choosing by them tells something of the images: what all tries together cost is written beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jobs import Tell, is_done, read_job, run_all
from selection import NOISED, Data, Row, Selection, Settings, make_job, read_tuned

from pppml_core.federation.files import write_atomic
from pppml_core.sweeps import Point


def tune(selection: Selection, data: Data, out: Path, into: Path, full: bool, workers: int, tell: Tell | None = None) -> dict[str, str]:
    """Every row of the tuning with every try: in the default selection's first cell, or with ``full`` in all. Returns what failed."""
    cells = list(selection.variants(full)) if full else list(selection.variants())[:1]
    how, tuned = selection.tuning, read_tuned(into)
    trials = {
        (cell, row, i): make_job(
            selection,
            data,
            cell,
            row,
            how.epsilon if row in NOISED else None,
            how.seed,
            out / "tuning" / cell.name / row / Point(settings, how.seed).name,
            settings,
        )
        for cell in cells
        for row in how.rows
        for i, settings in enumerate(how.tries_of(row))
    }
    failed = run_all(list(trials.values()), workers, tell)
    for cell in cells:
        for row in how.rows:
            made = [(settings, trials[cell, row, i]) for i, settings in enumerate(how.tries_of(row))]
            done = [(settings, read_job(job.folder)) for settings, job in made if is_done(job)]
            if done:
                tuned.setdefault(cell.name, {})[row] = choice(row, done)
    head = f"# Written by `run.py --tune`: validation accuracy over all sites' images, seed {how.seed}. The first of equals is taken.\n"
    write_atomic(into, (head + yaml.dump(tuned, Dumper=Plain, sort_keys=False, width=140, default_flow_style=None)).encode())
    return failed


def choice(row: Row, done: list[tuple[Settings, dict[str, Any]]]) -> dict[str, Any]:
    """The best try, every try with its score, and epsilon of all tries together."""
    tries = [{"settings": settings, "score": round(record["validation"]["accuracy"], 4)} for settings, record in done]
    found: dict[str, Any] = {"chosen": dict(max(tries, key=lambda one: one["score"])["settings"]), "tries": tries}
    if row in NOISED:
        found["epsilon_of_all_tries"] = round(epsilon_of_all([record for _, record in done]), 2)
    return found


def epsilon_of_all(records: list[dict[str, Any]]) -> float:
    """Of the models of all these runs together, which is what a choice among them costs at most.

    Every run here is over the same images at the same sites, with noise at the same place.
    """
    from pppml_dp.accounting import epsilon_of_choice
    from pppml_dp.events import Event

    runs = [[Event.from_charge(charge) for charge in record["charges"]] for record in records]
    return epsilon_of_choice(runs, records[0]["privacy"]["delta"])


class Plain(yaml.SafeDumper):
    """Writes equal settings out each time."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors."""
        return True
