"""``pppml export bundle RUN``: a trained model for programs that do not have pppml. ``pppml export ENGINE CONFIG``: a run for an engine."""

from __future__ import annotations

from pathlib import Path

import click


class _Exports(click.Group):
    """Besides its own commands one for each installed engine, found when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The engines that came with a plugin: only they may have jobs of their own."""
        from pppml_core.discovery import CORE
        from pppml_core.registry import Registry

        offered = [one for offer in Registry.discover().offers if offer.distribution != CORE for one in offer.components]
        return [*super().list_commands(ctx), *sorted(component.name for kind, component in offered if kind == "engine")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Its own, or that of an engine."""
        found = super().get_command(ctx, cmd_name)
        return found if found is not None or cmd_name not in self.list_commands(ctx) else _job_for(cmd_name)


@click.group(cls=_Exports)
def command() -> None:
    """Write a trained model in another program's format, or a run as a job of an engine for real sites.

    \b
      pppml export bundle runs/a
      pppml export nvflare config.yaml -o job
    """  # noqa: D301 - click wants the control character


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


def _job_for(engine: str) -> click.Command:
    """``pppml export ENGINE CONFIG -o DIR``: the same for every engine."""

    @click.command(engine, short_help=f"Write a run as a job for {engine}.")
    @click.argument("config", type=click.Path(path_type=Path))
    @click.option("--set", "settings", multiple=True, metavar="PATH=VALUE", help="Change a setting, e.g. --set run.rounds=20.")
    @click.option("-o", "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="New or empty folder.")
    def job(config: Path, settings: tuple[str, ...], out: Path) -> None:
        """Write the run of CONFIG as a job. Its README says how to start it; it holds no data, no key and no code.

        The engine's settings are those of CONFIG where it names this engine, else the defaults.
        """
        from pppml_core import api

        experiment = api.load(config, settings)
        if getattr(experiment.config.engine, "use", None) != engine:
            experiment = api.load(config, [*settings, f"engine={engine}"])
        click.echo(experiment.export(out))

    return job
