"""The study of differential privacy: accuracy against epsilon, noise at each site against noise shared in a secure sum.

    python examples/studies/dp/run.py --data DIR --out runs/dp

DIR holds the npz file that the config names. An interrupted study goes on when the command is given again. ``--tune`` chooses settings on
validation data first, and writes ``tuned.yaml``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# One torch thread: what a fair count of processors depends on. Before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

from jobs import run_all
from selection import HERE, Data, Selection, jobs_of, read_tuned

from pppml_core.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; 1 where a run failed, 2 where finished runs have other settings."""
    options = parser().parse_args(arguments)
    try:
        return study(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def study(options: argparse.Namespace) -> int:
    """The study, or a part of it. Raises ConfigError where finished runs have other settings."""
    selection = Selection.read(options.selection)
    data = Data(folder=options.data, file=options.file, features=options.features)
    failed: dict[str, str] = {}
    if options.tune:
        from tune import tune

        failed = tune(selection, data, options.out, options.tuned, options.full, options.workers)
        print(f"chosen: {options.tuned}")
    else:
        tuned = read_tuned(options.tuned)
        if not options.tables:
            every = jobs_of(selection, tuned, options.out, data, options.full, options.seeds or ())
            failed = run_all(every, options.workers)
        from summary import summarize
        from tables import write_tables

        write_tables(summarize(selection, tuned, options.out, options.full), tuned, options.out)
        print((options.out / "tables.md").read_text("utf-8"))
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--data", type=Path, help="folder of the npz file")
    out.add_argument("--file", help="another npz file in that folder, such as bloodmnist.npz")
    out.add_argument("--features", type=Path, help="safetensors file with weights of the network whose features linear-head freezes")
    out.add_argument("--out", type=Path, default=Path("runs/dp"), help="folder of the runs and the tables")
    out.add_argument("--seeds", nargs="+", type=int, help="only these of the selection's seeds")
    out.add_argument("--full", action="store_true", help="the whole grid, not only the default selection; for a GPU")
    out.add_argument("--workers", type=int, default=2, help="processes that train, one run each at a time")
    out.add_argument("--tune", action="store_true", help="choose settings on validation data and write them, instead of running")
    out.add_argument("--tables", action="store_true", help="only tables of what was run; needs --out alone")
    out.add_argument("--selection", type=Path, default=HERE / "selection.yaml", help="another selection")
    out.add_argument("--tuned", type=Path, default=HERE / "tuned.yaml", help="chosen settings")
    return out


if __name__ == "__main__":
    sys.exit(main())
