"""The demo: federated training on simulated chest CT of five scanners, beside its two brackets.

FedAvg, every site alone, and all data at one place, with the same network and the same passes over the data; a table at the end and one
page to read. About 2,800 gradient evaluations, two processor cores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pppml_core as pppml
from pppml_core.report import write_report
from pppml_core.report.tables import comparison_grid

ROUNDS = 24
ARMS = {
    "fedavg": [],
    "local-only": ["personalization=local-only"],
    "centralized": ["task.pool=true", "engine.workers=1"],
}


def main() -> None:
    """Run (or go on with) the three arms and write the report."""
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
    names = {site["slug"]: site["name"] for site in json.loads((runs["fedavg"].folder / "plan.json").read_text())["sites"]}
    Console().print(comparison_grid({name: run.result for name, run in runs.items()}, "dice", names=names).rich())
    report = write_report([run.folder for run in runs.values()], options.out / "report.html")
    print(f"{time.perf_counter() - began:.0f} s in all. Open {report} in a browser.")


if __name__ == "__main__":
    main()
