"""``pppml evidence MATRIX``: runs with several defences, attacked from several vantages, and one page of what came of it."""

from __future__ import annotations

from pathlib import Path

import click

from pppml_core.errors import RunFailed


@click.command()
@click.argument("matrix", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: evidence/NAME OF MATRIX]")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), metavar="MIN", help="Begin no further victim after so many minutes.")
def command(matrix: Path, out: Path | None, budget: float | None) -> None:
    """Make what is missing of a matrix of evidence, and write report.html.

    \b
      pppml evidence examples/evidence/matrix.yaml -o evidence/default --budget 30

    Call it again to go on: a cell is kept as soon as its last victim was
    tried. Records that MATRIX does not ask for any more are put aside, in
    attacks/earlier of their runs. Exit code 1 where an attack refutes a claim of privacy: then something is broken.
    """  # noqa: D301 - click wants the control character
    from pppml_core.cli.evidence_progress import Progress
    from pppml_core.matrix import load_matrix, run_matrix
    from pppml_core.report import write_report

    folder = out or Path("evidence") / matrix.stem
    with Progress() as progress:
        result = run_matrix(load_matrix(matrix), folder, budget=budget, emit=progress.told)
    progress.table(result)
    if result.runs:
        click.echo(f"Open {write_report(result.runs, folder / 'report.html')} in a browser.")
    if result.missing:
        click.echo(f"{result.missing} cells are missing; the same command goes on.")
    if result.violations:
        worst = result.violations[0]
        text = f"{len(result.violations)} cells refute a claim of privacy, the first: {worst['attack']} from {worst['vantage']}"
        raise RunFailed(text, place=str(folder), hint="this is a bug of the mechanism or of its accounting; the records say more")
