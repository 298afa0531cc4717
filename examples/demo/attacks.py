"""What three small attacks find of the demo: two on a recorded round, one on a single training step. A minute on two cores.

1. ``gallery`` on a recorded round of the flagship's parts: can the server pick a patient of a training set out of look-alikes?
2. The same on the plain arm's parts, where the server reads every site's own update.
3. ``idlg`` on one step on one image, on the small network with which gradient matching was published: the attacker's best case.

A recorded round takes a transcript with every message and key, 90 MB a round with the flagship's parts. So the arms of the demo write none;
companion runs of their first round do, with the same parts and seed, and what is found is noted in the arms' folders.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pppml_core as pppml

STEP: dict[str, Any] = {
    "task": {"use": "lung-lesions", "target": "lesion", "size": 32},
    "model": "sigmoid-lenet",
    "training": {"batch_size": 16, "steps": 1, "optimizer": {"use": "sgd", "lr": 0.1}},
    "run": {"name": "one-image-step", "rounds": 1, "seed": 1},
}
GALLERY = {"use": "gallery", "vantage": "server", "recorded": True, "victims": 5, "gallery": 12, "public": 16}
IDLG = {"use": "idlg", "vantage": "server", "round": 1, "victims": 3, "seconds": 4.0, "restarts": 2}
OUTCOMES = {
    "recovered": "SUCCEEDS",
    "not_shown_to_leak": "fails, and succeeds with the defence off",
    "inconclusive": "says nothing either way",
    "not_applicable": "does not apply",
}


def attacked(config: Path, arms: Mapping[str, Sequence[str]], out: Path) -> list[Path]:
    """Make the companion runs and their records, where they are not there yet, and note these in the arms' folders; the companions.

    ``arms``: name -> overrides of the config. Two of the three work at a time, each in a process of its own.
    """
    one = ["run.rounds=1", "run.transcript=secrets", "engine.workers=1"]
    jobs = [
        {"folder": out / f"{name}-one-round", "source": str(config), "overrides": [*changes, *one, f"run.name={name}-one-round"]} | GALLERY
        for name, changes in arms.items()
    ]
    jobs.append({"folder": out / "one-image-step", "source": STEP, "overrides": []} | IDLG)
    waiting = [job for job in jobs if not list(job["folder"].glob("attacks/*.json"))]
    for pair in (waiting[:2], waiting[2:]):
        made = [subprocess.Popen([sys.executable, __file__, json.dumps(job, default=str)]) for job in pair]
        for process in made:
            if process.wait():
                print("This attack was not made; see above.", flush=True)
    for name in arms:
        for path in (out / f"{name}-one-round").glob("attacks/*.json"):
            record = json.loads(path.read_text())
            record["about"] += " The messages of that round were kept by a companion run of one round, with the same parts and seed."
            (out / name / "attacks").mkdir(exist_ok=True)
            (out / name / "attacks" / path.name).write_text(json.dumps(record, indent=2) + "\n")
    return [job["folder"] for job in jobs if list(job["folder"].glob("attacks/*.json"))]


def told(folders: Sequence[Path]) -> str:
    """A paragraph for each record."""
    return "\n".join(_told(folder, json.loads(path.read_text())) for folder in folders for path in folder.glob("attacks/*.json"))


def _told(folder: Path, record: Mapping[str, Any]) -> str:
    decoded = [len(sight["sites"]) for sight in record["exposed"] if record["site"] in sight["sites"]]
    whose = {None: "no update", 1: "this site's own update"}.get(min(decoded, default=None), f"a sum over {min(decoded, default=0)} sites")
    return (
        f"{folder.name}: {record['attack']} from the server, which decodes {whose}, {OUTCOMES[record['outcome']]}.\n"
        f"    {record['about']}\n    {record['reason']}\n"
    )


def _make(job: dict[str, Any]) -> None:
    folder, source, overrides = (job.pop(name) for name in ("folder", "source", "overrides"))
    experiment = pppml.load(Path(source), overrides) if isinstance(source, str) else pppml.Experiment(source)
    experiment.run(folder, reporters=False, report=False).attack(job.pop("use"), **job)


if __name__ == "__main__":
    _make(json.loads(sys.argv[1]))
