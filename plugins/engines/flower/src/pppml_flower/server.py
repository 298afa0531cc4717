"""The ServerApp: conducts a run beside the SuperLink, with Flower's grid in the engine's hands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pppml_flower.post import GridPost, Post

#: folder of homes, where neither the config nor the run says it.
HOMES = "PPPML_HOMES"

_post: ContextVar[Post | None] = ContextVar("pppml_flower_post", default=None)


def post_at_hand() -> Post | None:
    """The post office of the app this code runs in; None outside of one."""
    return _post.get()


@contextmanager
def serving(grid: Grid) -> Iterator[None]:
    """Engines that connect meanwhile use this grid."""
    token = _post.set(GridPost(grid))
    try:
        yield
    finally:
        _post.reset(token)


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
        homes = homes or os.environ.get(HOMES, "")
        with serving(grid):
            Experiment(config, overrides=(f"engine.homes={homes}",) if homes else ()).run(out or None)

    return app
