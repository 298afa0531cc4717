"""``pppml report``: one self-contained page about one or several runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File to write; default: report.html in the run, or here for several runs."
)
def command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write an HTML report of run directories.

    Runs that differ only in seed become one column with intervals; local-only and centralized runs stand beside the others.

    \b
      pppml report runs/a
      pppml report runs/fedavg-* runs/local-* runs/pooled -o compare.html
    """  # noqa: D301 - click wants the control character
    from pppml_core.report import write_report

    click.echo(write_report(runs, out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))))
