"""The study of personalization: methods x tasks x seeds, hospitals that come later, tables and pictures.

    python examples/studies/personalization/run.py --data DIR --out runs/personalization

DIR holds the npz files that the configs name; tasks without their file are left out, and it is said so. An interrupted study goes on when
the command is given again. ``--tune`` chooses the methods' settings on validation data first, and writes ``tuned.yaml``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# One torch thread: what bit-identical results and a fair count of processors depend on. Before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

from jobs import run_all
from pydantic import ValidationError
from selection import HERE, Selection, jobs_of, read_tuned

from pppml_core.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; 1 where a job failed, 2 where it cannot be asked for or finished runs have other settings."""
    options = parser().parse_args(arguments)
    try:
        return study(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def study(options: argparse.Namespace) -> int:
    """The study, or a part of it; 1 where a job failed. Raises ConfigError where finished runs have other settings, and as `selected`."""
    tuned_file = options.tuned
    selection = selected(options)
    if not options.tables:  # tables need records alone
        selection = with_data(selection, options.data)
    if not options.new_site:
        selection = selection.model_copy(update={"new_site": selection.new_site.model_copy(update={"sites": {}})})
    if options.tune:
        from tune import tune

        failed = tune(selection, options.data, options.out, tuned_file, options.workers)
    else:
        failed = {} if options.tables else run_all(jobs_of(selection, read_tuned(tuned_file), options.out, options.data), options.workers)
        from pictures import draw
        from results import summarize
        from tables import write_tables

        found = summarize(selection, options.out)
        write_tables(found, options.out)
        draw(found, options.out / "pictures")
        print((options.out / "tables.md").read_text("utf-8"))
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def selected(options: argparse.Namespace) -> Selection:
    """What the command line leaves of the selection. Raises ConfigError on unknown names and where the rest would mislead."""
    try:
        whole = Selection.read(options.selection)
        return whole.narrowed(tasks=options.tasks, methods=options.methods, seeds=options.seeds, full=options.full)
    except ValidationError as error:
        wrong = [(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
        raise ConfigError(
            "; ".join(": ".join(filter(None, one)) for one in wrong), place=f"selection of {options.selection.name}"
        ) from error
    except ValueError as error:
        raise ConfigError(str(error), place="--tasks or --methods") from error


def workers(text: str) -> int:
    """A number of processes."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--data", type=Path, help="folder of the npz files")
    out.add_argument("--out", type=Path, default=Path("runs/personalization"), help="folder of the runs, the tables and the pictures")
    out.add_argument("--tasks", nargs="+", help="only these tasks")
    out.add_argument("--methods", nargs="+", help="only these methods")
    out.add_argument("--seeds", nargs="+", type=int, help="other seeds")
    out.add_argument("--full", action="store_true", help="all methods, not only the default selection")
    out.add_argument("--workers", type=workers, default=2, help="processes that train, one run each at a time")
    out.add_argument("--no-new-site", dest="new_site", action="store_false", help="without the sites that come later")
    out.add_argument("--tune", action="store_true", help="choose settings on validation data and write them, instead of running")
    out.add_argument("--tables", action="store_true", help="only tables and pictures of what was run; needs --out alone")
    out.add_argument("--selection", type=Path, default=HERE / "selection.yaml", help="another selection")
    out.add_argument("--tuned", type=Path, default=HERE / "tuned.yaml", help="chosen settings")
    return out


def with_data(selection: Selection, data: Path | None) -> Selection:
    """Without the tasks whose file is not there."""
    kept = []
    for name, task in selection.tasks.items():
        if task.file is None or (data is not None and (data / task.file).exists()):
            kept.append(name)
        else:
            print(f"{name} is left out: {task.file} is not in {data or 'any folder; give --data'}", file=sys.stderr)
    return selection.narrowed(tasks=kept, methods=selection.methods)


if __name__ == "__main__":
    sys.exit(main())
