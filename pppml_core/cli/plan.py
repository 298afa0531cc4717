"""``pppml plan CONFIG``: check and explain, train nothing."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a setting.")
@click.option("--json", "as_json", is_flag=True, help="Print plan.json instead of tables.")
@click.option("--measure", is_flag=True, help="Also time one batch and one sum on this machine.")
def command(config: Path, settings: tuple[str, ...], as_json: bool, measure: bool) -> None:
    """Explain every stage of a round, who sees what, the bytes, the guarantees, and list every misfit at once.

    \b
      pppml plan config.yaml
      pppml plan config.yaml --set encoding.bits=12 --json

    Exit code 2 where the plan is refused.
    """  # noqa: D301 - click wants the control character
    from pppml_core import api

    plan = api.load(config, list(settings)).plan(measure=measure)
    if as_json:
        click.echo(json.dumps(plan.to_dict(), indent=2))
    else:
        from rich.console import Console

        Console().print(plan)
    plan.plan.refuse_misfits()
