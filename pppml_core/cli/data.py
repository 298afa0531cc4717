"""``pppml data CONFIG``: the data card with counts and pictures."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a setting.")
@click.option("-o", "--pictures", type=click.Path(path_type=Path, dir_okay=False), help="Write a sheet of sample images (PNG) here.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(config: Path, settings: tuple[str, ...], pictures: Path | None, as_json: bool) -> None:
    """Print where a config's data come from, under which terms, and how they are spread over sites and splits.

    \b
      pppml data config.yaml -o samples.png
    """  # noqa: D301 - click wants the control character
    import json

    from pppml_core import api

    card = api.load(config, list(settings)).data(pictures)
    if as_json:
        click.echo(json.dumps(card.card, indent=2))
    else:
        from rich.console import Console

        Console().print(card)
    if pictures is not None:
        click.echo(f"pictures: {pictures}")
