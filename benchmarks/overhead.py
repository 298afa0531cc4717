"""What the engine costs over a loop written by hand: alternated pairs, same model, data, steps, threads and evaluation.

``python benchmarks/overhead.py --rounds 40 --pairs 5`` prints each pair, the median ratio with its spread, and the share of the run's
own clock that is neither training nor evaluation. Both sides are timed from the first round to the last, data loaded before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fedavg_by_hand import fedavg_by_hand

import pppml_core as pppml
from pppml_core.interfaces.task import Predictions


def by_hand(experiment: pppml.Experiment, rounds: int) -> float:
    """Seconds of the hand-written loop."""
    plan = experiment.plan().plan
    parts, training = plan.assembly, plan.config.training
    tensors: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {"train": {}, "validation": {}}
    groups = {}
    for site in parts.task.sites():
        data = parts.load(site.slug)
        groups[site.slug] = np.asarray(data.validation.groups)
        for split, examples in (("train", data.train), ("validation", data.validation)):
            pairs = [examples.example(i) for i in range(len(examples))]
            tensors[split][site.slug] = tuple(torch.from_numpy(np.stack([p[k] for p in pairs])) for k in (0, 1))

    def score(site: str, probabilities: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        return parts.task.score(Predictions(probabilities.numpy(), targets.numpy(), groups[site]))

    model = parts.model
    began = time.perf_counter()
    fedavg_by_hand(
        model, tensors["train"], tensors["validation"], parts.task.loss, score,
        rounds=rounds, batch_size=training.batch_size, lr=training.optimizer.lr,
    )  # fmt: skip
    return time.perf_counter() - began


def by_engine(experiment: pppml.Experiment) -> tuple[float, float]:
    """Seconds from the first round's start to the last round's end, and the share of them outside training and evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        experiment.run(Path(folder) / "run", report=False)
        events = [json.loads(line) for line in (Path(folder) / "run" / "events.jsonl").read_text().splitlines()]
    first = next(e["time"] for e in events if e["event"] == "round-started")
    last = [e["time"] for e in events if e["event"] == "round-finished"][-1]
    stages = next(e["result"]["seconds"] for e in events if e["event"] == "run-finished")
    inside = stages["by_stage"]["train"] + stages["by_stage"]["evaluate"]
    return last - first, (stages["total"] - inside) / stages["total"]


def main() -> None:
    """Run the pairs and print them."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--task", default="lung-lesions")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    experiment = pppml.Experiment(task=options.task, run={"rounds": options.rounds}, reporters=["jsonl"])
    ratios, shares = [], []
    for pair in range(options.pairs):
        # The order alternates, so that a machine that slows down or speeds up does not favour one side.
        if pair % 2:
            engine, share = by_engine(experiment)
            hand = by_hand(experiment, options.rounds)
        else:
            hand = by_hand(experiment, options.rounds)
            engine, share = by_engine(experiment)
        ratios.append(engine / hand)
        shares.append(share)
        print(f"pair {pair + 1}: by hand {hand:.1f} s, engine {engine:.1f} s, ratio {engine / hand:.3f}, outside {share:.2%}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")
    print(f"outside training and evaluation: median {statistics.median(shares):.2%} (from {min(shares):.2%} to {max(shares):.2%})")


if __name__ == "__main__":
    main()
