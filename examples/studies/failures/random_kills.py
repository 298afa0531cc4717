"""Sites as processes, killed (SIGKILL) and started again at random all the time: is every sum that comes about that of its survivors?

    python examples/studies/failures/random_kills.py --out runs/kills

Each site is killed at each stage of each attempt with a given chance: before it has the request, once it has it, or after its reply. Each
sum is then computed again by other code, in one process and in the clear, over the sites that the run names as its survivors: the weights
after every round must be the same bit for bit. It exits with 1 where one is not, or where a round at the rates in ``--whole`` has no sum.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# One torch thread a process: what a fair count of processors depends on. Before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

import psutil

from pppml_core.api import Experiment
from pppml_core.federation import checkpoint
from pppml_core.interfaces.reporter import Reporter
from pppml_core.wire.codec import sha256_of

STAGES = ("open", "advertise", "share", "mask", "agree", "unmask")
MOMENTS = ("kill-before", "kill", "kill-after")
#: attempts of a round for which kills are drawn; `run.retries` allows no more.
ATTEMPTS = 8


def kills(sites: Sequence[str], rounds: int, chance: float, seed: int) -> list[dict[str, Any]]:
    """Who is killed when, in the form of ``engine.faults``."""
    generator = random.Random(seed)
    return [
        {"site": site, "stage": stage, "round": round, "attempt": attempt, "do": generator.choice(MOMENTS)}
        for round in range(1, rounds + 1)
        for attempt in range(1, ATTEMPTS + 1)
        for stage in STAGES
        for site in sites
        if generator.random() < chance
    ]


def sections(count: int, rounds: int, width: int, **more: Any) -> dict[str, Any]:
    """The run: ``secagg-plus`` as it is by default, one local step."""
    return {
        "task": {"use": "tiny", "sites": count, "examples": 8},
        "model": {"use": "tiny-net", "width": width},
        "training": {"steps": 1, "batch_size": 2},
        "aggregator": "secagg-plus",
        "run": {"rounds": rounds, "seed": 11, "metrics": "none", "on_abort": "skip"},
        **more,
    }


class Weights(Reporter):
    """Notes the events, and a hash of the weights after every round."""

    def __init__(self) -> None:
        self.after: dict[int, str] = {}
        self.events: list[Mapping[str, Any]] = []
        self._folder = Path()

    def handle(self, event: Mapping[str, Any]) -> None:
        """As every reporter."""
        self.events.append(event)
        if event["event"] == "run-started":
            self._folder = Path(event["folder"])
        if event["event"] == "stage" and event["stage"] == "checkpoint":
            held = checkpoint.load(self._folder / "checkpoints", [event["round"]])
            assert held is not None
            self.after[event["round"]] = sha256_of(held[1]["server"]["weights"]).hex()


class Memory:
    """The most memory that this process and its children held at once, in bytes; what they share is divided among them."""

    def __init__(self) -> None:
        self.most, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(1):
            held = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.most = max(self.most, held)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def survivors(result: Mapping[str, Any]) -> dict[int, list[str]]:
    """Round -> the sites its sum is over; none: it has no sum."""
    return {int(round): list(names) for round, names in result["survivors"].items()}


def wrong_sums(given: Mapping[str, Any], result: Mapping[str, Any], after: Mapping[int, str], folder: Path) -> list[int]:
    """Rounds after which the weights are not those of a plain sum over the survivors in one process; 0: the model at the end."""
    names = survivors(result)
    everyone = [f"site_{i + 1}" for i in range(given["task"]["sites"])]
    away = [
        {"site": site, "stage": "contribute", "round": round, "do": "drop", "times": 99}
        for round, present in names.items()
        for site in everyone
        if site not in present
    ]
    own = {"aggregator": "plain", "engine": {"use": "local", "topology": "star", "faults": away}}
    watcher = Weights()
    settings = {**given["run"], "on_abort": "skip", "min_cohort": 1}
    right = Experiment(**{**given, **own, "run": settings, "reporters": [watcher]}).run(folder, report=False)
    if survivors(right.result) != names:
        raise RuntimeError(f"the sums cannot be compared: {survivors(right.result)} instead of {names}")
    wrong = [round for round, hashed in sorted(after.items()) if hashed != watcher.after[round]]
    return wrong if right.result["model_sha256"] == result["model_sha256"] else [*wrong, 0]


def held(count: int, rounds: int, width: int, chance: float, seed: int, on_abort: str, retries: int, out: Path) -> dict[str, Any]:
    """One run under kills, and what came of it."""
    strikes = kills([f"site_{i + 1}" for i in range(count)], rounds, chance, seed)
    given = sections(count, rounds, width)
    given["run"] |= {"on_abort": on_abort, "retries": min(retries, ATTEMPTS - 1)}
    watcher, began = Weights(), time.monotonic()
    with Memory() as memory:
        settings = {**given, "engine": {"use": "processes", "parallel": count, "faults": strikes}, "reporters": ["jsonl", watcher]}
        result = Experiment(**settings).run(out / "run", report=False).result
    seconds = time.monotonic() - began
    assert set(watcher.after) == set(range(1, rounds + 1))
    wrong = wrong_sums(given, result, watcher.after, out / "reference")
    aborts = [e for e in watcher.events if e["event"] == "round-aborted"]
    never = sum(1 for e in watcher.events if e["event"] == "warning" and "never struck" in e["text"])
    names = survivors(result)
    return {
        "chance": chance,
        "seed": seed,
        "sites": count,
        "rounds": rounds,
        "kills": len(strikes) - never,
        "sums": sum(map(bool, names.values())),
        "survivors": [len(names[round]) for round in sorted(names)],
        "aborts": len(aborts),
        "lost after a release": sum(1 for e in aborts if e["lost"]),
        "wrong": wrong,
        "seconds": round(seconds),
        "MiB": round(memory.most / 2**20),
    }


COLUMNS = (
    *("chance", "kills", "rounds with a sum", "survivors in each", "attempts given up", "of these after a release", "wrong sums"),
    *("minutes", "memory, GiB"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        f"| {r['chance']:.0%} | {r['kills']} | {r['sums']} of {r['rounds']} | {', '.join(map(str, r['survivors']))} | {r['aborts']} "
        f"| {r['lost after a release']} | {len(r['wrong'])} | {r['seconds'] / 60:.0f} | {r['MiB'] / 1024:.1f} |"
        for r in rows
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Run, check, print."""
    parser = argparse.ArgumentParser(description="Random kills of sites under a secure sum.")
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--width", type=int, default=362, help="of the network; 362: 2.4 million parameters")
    parser.add_argument("--chances", type=float, nargs="+", default=[0.02, 0.10], help="of a kill, per site and stage of an attempt")
    parser.add_argument("--whole", type=float, default=0.02, help="up to this chance a round is begun anew until it has its sum")
    parser.add_argument("--retries", type=int, default=5, help="further attempts of such a round")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for chance in options.chances:
        on_abort, folder = "retry" if chance <= options.whole else "skip", options.out / f"chance-{chance:g}"
        row = held(options.sites, options.rounds, options.width, chance, options.seed, on_abort, options.retries, folder)
        rows.append(row)
        (folder / "row.json").write_text(json.dumps(row, indent=2))
        print(json.dumps(row), flush=True)
    print("\n" + table(rows))
    whole = all(row["sums"] == row["rounds"] for row in rows if row["chance"] <= options.whole)
    return int(any(row["wrong"] for row in rows) or not whole)


if __name__ == "__main__":
    sys.exit(main())
