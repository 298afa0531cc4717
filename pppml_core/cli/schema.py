"""``pppml schema``: the JSON Schema of configs."""

from __future__ import annotations

import json

import click

from pppml_core.config import json_schema
from pppml_core.registry import Registry


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file instead of the terminal.")
def command(output: str | None) -> None:
    """Print the JSON Schema of configs: every installed name, range, default and description.

    \b
      pppml schema -o pppml.schema.json
      # then, as the first line of a config, for editors with the YAML language server:
      # yaml-language-server: $schema=pppml.schema.json
    """  # noqa: D301 - click wants the control character
    text = json.dumps(json_schema(Registry.discover()), indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
    else:
        with open(output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
