"""``pppml status RUN``: how a run stands."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--watch", is_flag=True, help="Look again and again, until no process holds the run.")
@click.option("--every", type=click.FloatRange(min=0.1), default=2.0, show_default=True, metavar="SECONDS", help="How often, with --watch.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON; with --watch, one object a line.")
@click.pass_context
def command(ctx: click.Context, run: Path, watch: bool, every: float, as_json: bool) -> None:
    """Tell how a run stands: state, round, stage and who has not answered, pace, bytes, epsilon, last warning and error.

    \b
      pppml status runs/a
      pppml status runs/a --watch
      pppml status runs/a --json

    Only files of the run's folder are read; the run is not disturbed and may be dead. Exit code 1 where it failed.
    """  # noqa: D301 - click wants the control character
    from rich.console import Console
    from rich.live import Live

    from pppml_core.federation.status import Watcher
    from pppml_core.report.status_view import status_table

    watcher, console = Watcher(run), Console()
    with Live(console=console, auto_refresh=False) if watch and not as_json and console.is_terminal else nullcontext() as screen:
        while True:
            status = watcher.look()
            if as_json:
                click.echo(json.dumps(status, indent=None if watch else 2))
            elif screen is not None:
                screen.update(status_table(status), refresh=True)
            else:
                console.print(status_table(status), soft_wrap=True)
            if not watch or status["state"] not in ("starting", "running"):
                break
            time.sleep(every)
    ctx.exit(1 if status["state"] == "failed" else 0)
