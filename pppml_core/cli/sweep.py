"""``pppml sweep CONFIG --grid a.b=x,y --seeds 1..5``: a grid of settings, with intervals over seeds."""

from __future__ import annotations

from pathlib import Path

import click

from pppml_core.errors import RunFailed


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--grid", multiple=True, metavar="PATH=X,Y", help="Values of a setting or section; several make all combinations.")
@click.option("--seeds", default="1..3", show_default=True, metavar="A..B|A,B", help="Seeds of every combination.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="MIN", help="Begin no run after this many minutes.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: sweeps/NAME OF CONFIG]")
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change the config for all runs.")
def command(config: Path, grid: tuple[str, ...], seeds: str, budget: float | None, out: Path | None, settings: tuple[str, ...]) -> None:
    """Run CONFIG with every combination of the grid and every seed, and tabulate the results.

    \b
      pppml sweep config.yaml --grid personalization=fedavg,local-only --grid training.optimizer.lr=0.1,0.01 --seeds 1..5

    Call it again to go on after an interruption or a spent budget, to try failed runs again, or with more seeds or values. Tables are in
    table.md and table.csv of the folder, its runs in one folder each.
    """  # noqa: D301 - click wants the control character
    from rich.console import Console

    from pppml_core import api
    from pppml_core.sweeps import parse_grid, parse_seeds

    choices, numbers = parse_grid(grid), parse_seeds(seeds)
    experiment = api.load(config, list(settings))
    folder = out or Path("sweeps") / config.stem
    result = api.sweep(experiment, choices, seeds=numbers, budget=budget, out=folder)
    Console().print(result.table())
    click.echo(f"{folder / 'table.md'} and {folder / 'table.csv'} hold this table.")
    if result.failed:
        error = RunFailed(
            f"{len(result.failed)} of {len(result.points)} runs failed",
            place=str(folder),
            hint="the reasons are below the table; the same command tries them again.",
        )
        error.exit_code = result.exit_code
        raise error
