"""``pppml bench he|aggregator``: parts of a round side by side, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pppml_core.benchmarking.show import Row

#: option -> default and help, the last one first in ``--help``.
_SIZES = {
    "repeats": (3, "Times each step is timed."),
    "sites": (5, "Contributions to the sum."),
    "length": (100_000, "Integers in a vector."),
}


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What both comparisons take."""
    for name, (default, says) in _SIZES.items():
        command = click.option(f"--{name}", type=click.IntRange(1, 10**8), default=default, show_default=True, help=says)(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print as JSON, with every stage.")(command)
    return click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="Draw the comparison into this file.")(command)


@click.group()
def command() -> None:
    """Time the parts of a round, side by side, on this machine.

    \b
      pppml bench he --use tenseal,pyfhel -o he.png
      pppml bench aggregator --use plain,secagg-plus --length 1000000

    All parties run in this process, one after another, one thread; nothing goes over a network.
    """  # noqa: D301 - click wants the control character


@command.command()
@click.option("--use", "uses", required=True, metavar="NAME,...", help="Back ends; {use: pyfhel, scheme: bgv} with settings.")
@_options
def he(uses: str, length: int, sites: int, repeats: int, out: Path | None, as_json: bool) -> None:
    """Compare homomorphic encryption back ends in each of their schemes.

    \b
      pppml bench he --use tenseal,pyfhel
      pppml bench he --use "pyfhel,{use: tenseal, scheme: ckks}" --length 1900000 -o he.png

    Every one encrypts the same 16-bit integers, for a sum of --sites vectors, at 128-bit security, with the parameters it plans itself.
    """  # noqa: D301
    from pppml_core.benchmarking.he import compare_he

    title = f"HE back ends: {length:,} integers of 16 bits, sums of {sites}"
    _tell(compare_he(_listed(uses), length=length, additions=sites, repeats=repeats), title, out, as_json)


@command.command()
@click.option("--use", "uses", required=True, metavar="NAME,...", help="Aggregators; {use: secagg-plus, preset: large} with settings.")
@_options
def aggregator(uses: str, length: int, sites: int, repeats: int, out: Path | None, as_json: bool) -> None:
    """Compare secure sums: what one site and the server work and send, and what is promised.

    \b
      pppml bench aggregator --use plain,secagg-plus --sites 20 --length 1000000
      pppml bench aggregator --use "secagg-plus,{use: cyclic-he, backend: pyfhel, rings: 1}" -o sums.png

    "safe from": so many sites, together with the server, learn no more than the sum of the others; 0: the server alone learns no more.
    """  # noqa: D301
    from pppml_core.benchmarking.sums import compare_sums

    title = f"Secure sums: {length:,} integers of 16 bits from each of {sites} sites"
    _tell(compare_sums(_listed(uses), sites=sites, length=length, repeats=repeats), title, out, as_json)


def _listed(uses: str) -> list[Any]:
    from pppml_core.config.source import scalar
    from pppml_core.errors import ConfigError

    try:
        found: list[Any] = scalar(f"[{uses}]")
    except ConfigError as error:
        raise ConfigError(error.message, place="--use", hint=error.hint) from error
    if not found:
        raise ConfigError("nothing to compare", place="--use", hint="name one or more, by comma; `pppml plugins` lists them")
    return found


def _tell(rows: Iterable[Row], title: str, out: Path | None, as_json: bool) -> None:
    import json

    from rich.console import Console

    from pppml_core.benchmarking.show import picture, plain, table
    from pppml_core.errors import ConfigError, PlanRefused

    if out is not None and out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"{out.suffix or 'no suffix'} is no kind of picture", place="-o", hint="name it .png, .pdf or .svg")
    done: Sequence[Row] = list(rows)
    if as_json:
        click.echo(json.dumps(plain(done), indent=2))
    else:
        console = Console()
        # Into a pipe, one line a row, whatever its length.
        Console(width=None if console.is_terminal else 10_000).print(table(done, title))
    if all(row.refused for row in done):
        raise PlanRefused([f"{row.name}: {row.refused}" for row in done])
    if out is not None:
        picture(done, title, out)
        click.echo(f"picture: {out}", err=as_json)
