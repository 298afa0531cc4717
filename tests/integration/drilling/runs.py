"""A federation that is disturbed, what came of each of its rounds, and the sums it should have made.

The sums are checked without the code that made them: the same configuration is run again in one process, with ``plain``, each round over
the sites that the disturbed run says its sum was over. Sums are exact, so the weights after every round must be the same bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pppml_core.api import Experiment
from pppml_core.federation import checkpoint
from pppml_core.interfaces.reporter import Reporter
from pppml_core.wire.codec import sha256_of

Event = Mapping[str, Any]
TRAINING = {"steps": 1, "batch_size": 4}
HE = {"use": "cyclic-he", "backend": "tenseal"}


def sites(count: int) -> list[str]:
    return [f"site_{i + 1}" for i in range(count)]


def tiny(count: int, rounds: int, **sections: Any) -> dict[str, Any]:
    """A small configuration of so many sites."""
    run = {"rounds": rounds, "seed": 11, **sections.pop("run", {})}
    return {"task": {"use": "tiny", "sites": count, "examples": 8}, "training": TRAINING, **sections, "run": run}


class Watcher(Reporter):
    """Notes all events, takes down the weights after each round from its checkpoint, and acts when something happens."""

    def __init__(self, *acts: Callable[[Event], None]) -> None:
        self.acts = list(acts)
        self.events: list[Event] = []
        self.weights: dict[int, str] = {}
        self.folder = Path()

    def handle(self, event: Event) -> None:
        self.events.append(event)
        if event["event"] == "run-started":
            self.folder = Path(event["folder"])
        if event["event"] == "stage" and event["stage"] == "checkpoint":
            self.weights[event["round"]] = weights_after(self.folder, event["round"])
        for act in self.acts:
            act(event)


def weights_after(folder: Path, round: int) -> str:
    """A hash of the weights in the checkpoint after a round."""
    found = checkpoint.load(folder / "checkpoints", [round])
    assert found is not None
    return sha256_of(found[1]["server"]["weights"]).hex()


@dataclass
class Disturbed:
    """A disturbed run that came to its end.

    Args:
        sections: its configuration.
        folder: its run directory.
        result: ``result.json``.
        events: of all its parts, in order.
        weights: round -> hash of the weights after it, as far as it was seen.
    """

    sections: Mapping[str, Any]
    folder: Path
    result: Mapping[str, Any]
    events: Sequence[Event]
    weights: Mapping[int, str] = field(default_factory=dict)

    @property
    def survivors(self) -> dict[int, list[str]]:
        return {int(round): list(names) for round, names in self.result["survivors"].items()}

    def told(self, round: int | None = None) -> list[str]:
        """All that an operator is told of what went wrong (in a round)."""
        kinds = ("site-lost", "round-aborted", "warning", "sum-kept", "run-failed")
        chosen = [e for e in self.events if e["event"] in kinds and round in (None, e.get("round"))]
        return [str(e.get("reason") or e.get("text") or e.get("error") or e["event"]) for e in chosen]

    def aborted(self, round: int) -> int:
        return sum(1 for e in self.events if e["event"] == "round-aborted" and e["round"] == round)

    def lost(self, round: int) -> bool:
        return any(e["event"] == "round-aborted" and e["round"] == round and e["lost"] for e in self.events)


def disturbed(folder: Path, sections: Mapping[str, Any], *acts: Callable[[Event], None], resume: bool | None = None) -> Disturbed:
    """Run it in this process, which is the coordinator."""
    watcher = Watcher(*acts)
    run = Experiment(**{**sections, "reporters": ["jsonl", watcher]}).run(folder, report=False, resume=resume)
    return Disturbed(sections, run.folder, run.result, watcher.events, watcher.weights)


def finished(folder: Path, sections: Mapping[str, Any]) -> Disturbed:
    """A run that other processes brought to its end."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    rounds = checkpoint.rounds(folder / "checkpoints")
    return Disturbed(
        sections, folder, json.loads((folder / "result.json").read_text()), events, {r: weights_after(folder, r) for r in rounds}
    )


def reference(folder: Path, run: Disturbed) -> Disturbed:
    """The same rounds over the same survivors: one process, nothing disturbed, every update added in the clear."""
    everyone = sites(run.sections["task"]["sites"])
    faults = [
        {"site": site, "stage": "contribute", "round": round, "do": "drop", "times": 99}
        for round, names in run.survivors.items()
        for site in everyone
        if site not in names
    ]
    settings = {**run.sections["run"], "on_abort": "skip", "min_cohort": 1, "transcript": "sizes"}
    return disturbed(
        folder, {**run.sections, "aggregator": "plain", "engine": {"use": "local", "topology": "star", "faults": faults}, "run": settings}
    )


def wrong_sums(run: Disturbed, folder: Path) -> list[int]:
    """Rounds after which the weights are not those of the sum over the survivors; 0 stands for the model at the end."""
    right = reference(folder, run)
    assert right.survivors == run.survivors
    wrong = [round for round, seen in sorted(run.weights.items()) if seen != right.weights[round]]
    return wrong if run.result["model_sha256"] == right.result["model_sha256"] else [*wrong, 0]
