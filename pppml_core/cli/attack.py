"""``pppml attack RUN --use NAME --vantage V``: attack a finished run, or audit what it claims."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--use", required=True, metavar="NAME", help="The attack; {use: dp-audit, canaries: 5000} with settings.")
@click.option("--vantage", default="server", show_default=True, metavar="V", help="server, site:A, public ..., joined by +.")
@click.option("--round", "round_", type=int, metavar="R", help="Whose model; an audit covers all rounds up to it.  [default: the last]")
@click.option("--site", metavar="A", help="The site that is attacked.  [default: the largest outside of the coalition]")
@click.option("--victims", type=click.IntRange(min=1), help="How many.  [default: 100 of an attack that takes milliseconds, else 3]")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True, help="Budget for each victim.")
@click.option("--gallery", type=click.IntRange(min=2), default=100, show_default=True, help="Images among which a victim is picked.")
@click.option("--recorded/--staged", default=None, help="The round as it was, or held again for the attack.  [default: as it needs]")
@click.option("--json", "as_json", is_flag=True, help="Print the record instead of a table.")
def command(run: Path, use: str, vantage: str, round_: int | None, as_json: bool, **options: Any) -> None:
    """Attack the finished run folder RUN from a named vantage. The record is written to RUN/attacks.

    Most attacks are made on a staged round: it is held again with one image as one training step of the site, through the run's own clip,
    noise and secure sum. What an attack gets is what that vantage saw, and public knowledge. --recorded takes the round as it happened
    (run.transcript: secrets).

    \b
      pppml attack runs/a --use gallery --vantage server+site:hospital_b --round 1
      pppml attack runs/a --use idlg --site hospital_a --victims 3 --seconds 60
      pppml attack runs/a --use dp-audit --vantage server
      pppml attack runs/a --use "{use: dp-audit, guesses: 400}" --vantage server+site:hospital_a --round 5 --json

    Exit code 0 also where the attack succeeds: what it found is in the outcome. 1 where it refutes a claim of privacy: something is broken.
    """  # noqa: D301 - click wants the control character
    import json

    from pppml_core import api

    name, settings = _chosen(use)
    record = api.open(run).attack(name, vantage=vantage, round=round_, **options, **settings)
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        _print(record)
    if record.get("violation"):
        from pppml_core.errors import RunFailed

        text = f"{name} picks patients more often than the claimed privacy allows"
        raise RunFailed(text, place=str(run), hint="this is a bug of the mechanism or of its accounting; the record says more")


def _chosen(use: str) -> tuple[str, dict[str, Any]]:
    """The attack's name and its settings."""
    from pppml_core.config.source import scalar
    from pppml_core.errors import ConfigError

    hint = "--use dp-audit, or --use '{use: dp-audit, canaries: 5000}'"
    try:
        found = scalar(use)
    except ConfigError as error:
        raise ConfigError(error.message, place="--use", hint=hint) from error
    settings: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {"use": found}
    name = settings.pop("use", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{use!r} names no attack", place="--use", hint=hint)
    return name, settings


def _print(record: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"recovered": "bold red", "not_shown_to_leak": "green"}
    outcome = Text(record["outcome"].replace("_", " "), style=colours.get(record["outcome"], "yellow"))
    title = f"{record['attack']}, vantage {record['vantage']}, round {record['round']}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("outcome", outcome)
    table.add_row("reason", Text(record["reason"]))
    for part in ("metrics", "control", "best_guess", "effort"):
        for name, value in record[part].items():
            label = name if part == "metrics" else f"{part}: {name}"
            table.add_row(label.replace("_", " "), Text(f"{value:.4g}" if isinstance(value, float) else str(value)))
    console = Console()
    # Into a pipe, one line a row, whatever its length.
    Console(width=None if console.is_terminal else 10_000).print(table)
