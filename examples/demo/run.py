"""The demo: personalized, encrypted federated training on simulated chest CT of five scanners, beside what it must be compared with.

Per-FedAvg over homomorphic rings; FedAvg, and FedAvg with fine-tuning at each site (one training gives both); every site alone; all data at
one place. The same network, optimizer and passes over the data; a table at the end, what three small attacks find, and one page to read.
Two processor cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import attacks

import pppml_core as pppml
from pppml_core.report import write_report
from pppml_core.report.tables import comparison_grid

ROUNDS = 24
PLAIN = ["aggregator=plain", "training.batch_size=16"]
ARMS = {
    "per-fedavg": [],
    "fedavg-finetune": ["personalization=fedavg-finetune", *PLAIN],
    "local-only": ["personalization=local-only", *PLAIN],
    "centralized": ["task.pool=true", "personalization=fedavg", "engine.workers=1", *PLAIN],
}


def main() -> None:
    """Run (or go on with) the four arms and write the report."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the runs and of report.html")
    arguments.add_argument("--rounds", type=int, default=ROUNDS, help="communication rounds of each arm")
    arguments.add_argument("--set", dest="settings", action="append", default=[], help="change a setting of all arms, as in `pppml run`")
    options = arguments.parse_args()
    config = Path(__file__).parent / "demo.yaml"

    began = time.perf_counter()
    runs = {}
    for number, (name, changes) in enumerate(ARMS.items(), 1):
        print(f"\n[{number}/{len(ARMS)}] {name}", flush=True)
        overrides = [f"run.name={name}", f"run.rounds={options.rounds}", *changes, *options.settings]
        runs[name] = pppml.load(config, overrides).run(options.out / name)

    from rich.console import Console

    print()
    grid = comparison_grid({name: run.result for name, run in runs.items()}, "dice")
    Console(width=max(120, Console().width)).print(grid.transposed().rich())
    print("\nWho could learn what: three small attacks", flush=True)
    arms = {name: [*ARMS[name], *options.settings] for name in ("per-fedavg", "fedavg-finetune")}
    made = attacks.attacked(config, arms, options.out)
    print(attacks.told(made))
    for folder in made[len(arms) :]:
        print(f"Its pictures are in {write_report([folder], folder / 'report.html')}.")
    report = write_report([run.folder for run in runs.values()], options.out / "report.html")
    print(f"{time.perf_counter() - began:.0f} s in all. Open {report} in a browser.")


if __name__ == "__main__":
    main()
