"""Peak memory of a run with many sites and a model of 2.4 million parameters: it must not grow with the number of sites.

``python benchmarks/memory.py --sites 5 200`` runs each in a process of its own and prints the peak resident size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

from peak import peak


def measure(sites: int) -> None:
    """Run in this process and print parameters and peak resident size in MiB."""
    import pppml_core as pppml

    experiment = pppml.Experiment(
        task={"use": "tiny", "sites": sites, "examples": 8},
        model={"use": "tiny-net", "width": 360},
        training={"steps": 1},
        run={"rounds": 2},
        reporters=[],
    )
    with tempfile.TemporaryDirectory() as folder:
        experiment.run(f"{folder}/run", report=False)
    parameters = experiment.plan().to_dict()["model"]["parameters"]
    print(sites, parameters, peak())


def main() -> None:
    """One process for each number of sites."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sites", type=int, nargs="+", default=[5, 200])
    arguments.add_argument("--here", action="store_true", help="run in this process")
    options = arguments.parse_args()
    if options.here:
        measure(options.sites[0])
        return
    peaks = []
    for sites in options.sites:
        command = [sys.executable, __file__, "--here", "--sites", str(sites)]
        number, parameters, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        peaks.append(peak)
        print(f"{number} sites, {parameters:,} parameters: peak {peak:,} MiB", flush=True)
    print(f"ratio of the last to the first: {peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
