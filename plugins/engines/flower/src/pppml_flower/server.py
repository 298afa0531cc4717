"""The ServerApp: conducts a run beside the SuperLink, with Flower's grid in the engine's hands."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pppml_flower.at_hand import using
from pppml_flower.grid import GridPost


def app_of(config: Path) -> ServerApp:
    """The app that runs a config.

    What differs from run to run comes from Flower's run config: ``out``, the run's folder (a folder that holds this run unfinished is
    gone on with), and ``homes``, the folder of ``server``'s home. Both are paths at the machine of the SuperLink.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        from pppml_core.api import Experiment

        out, homes = (str(context.run_config.get(name) or "") for name in ("out", "homes"))
        with using(GridPost(grid)):
            Experiment(config, overrides=(f"engine.homes={homes}",) if homes else ()).run(out or None)

    return app
