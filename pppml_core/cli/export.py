"""``pppml export bundle RUN``: a trained model for programs that do not have pppml."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def command() -> None:
    """Write a trained model in another program's format: `pppml export bundle --help`."""


@command.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--site", metavar="SITE", help="This site's personalized model.  [default: the global one]")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="New or empty folder.  [default: RUN/bundle, RUN/bundle-SITE]"
)
def bundle(run: Path, site: str | None, out: Path | None) -> None:
    """Write the model of the finished run folder RUN as a MONAI bundle, usable with MONAI alone.

    \b
      pppml export bundle runs/a
      pppml export bundle runs/a --site hospital_a -o cells
      cd cells && python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES

    Network, reading of files, windows and output give what `pppml predict` gives. docs/README.md in the bundle says which files it takes.
    """  # noqa: D301 - click wants the control character
    from pppml_core import api

    click.echo(api.open(run).export_bundle(out, site))
