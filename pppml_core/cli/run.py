"""``pppml run CONFIG``: train, and write a run folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a setting, e.g. --set run.rounds=20.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write.  [default: runs/NAME]")
@click.option("--resume", type=click.Path(path_type=Path, file_okay=False), help="Go on with the unfinished run in this folder.")
@click.option("--seed", type=int, help="Same as --set run.seed=N.")
def command(config: Path | None, settings: tuple[str, ...], out: Path | None, resume: Path | None, seed: int | None) -> None:
    """Train as CONFIG says. What the plan refuses is refused here too, before anything is trained (exit code 2).

    \b
      pppml run config.yaml --out runs/a
      pppml run config.yaml --set personalization=local-only --set run.rounds=20 --seed 3 --out runs/b
      pppml run --resume runs/a
    """  # noqa: D301 - click wants the control character
    from pppml_core import api

    if out is not None and resume is not None:
        raise click.UsageError("Give --out for a new run or --resume for an old one, not both.")
    if config is None:
        if resume is None:
            raise click.UsageError("Give a CONFIG, or --resume with a run folder.")
        config = api.open(resume).folder / "config.resolved.yaml"
    changes = [*settings, *([] if seed is None else [f"run.seed={seed}"])]
    run = api.load(config, changes).run(resume or out, resume=resume is not None)
    click.echo(f"report: {run.folder / 'report.html'}")
