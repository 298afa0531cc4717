"""An app that lends its grid to a process of this machine; the other end of :mod:`.bridge`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pppml_core.engines.sockets import knock
from pppml_core.wire.codec import decode, encode
from pppml_flower.grid import GridPost


def app_of() -> ServerApp:
    """The app that lends its grid. The run config names a file in a folder that only this user enters, with a port and a token."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        where = decode(Path(str(context.run_config["out"])).read_bytes())
        line, post = knock(where["port"], where["token"]), GridPost(grid)
        try:
            while True:
                number, _, asked = line.receive()
                line.send(number, b"", encode(_done(post, decode(asked))))
        except (OSError, EOFError):
            return  # the run is over

    return app


def _done(post: GridPost, asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if asked["do"] == "nodes":
            return {"nodes": [str(node) for node in post.nodes()]}
        if asked["do"] == "push":
            return {"id": post.push(int(asked["node"]), asked["kind"], asked["data"], asked["ttl"]) or ""}
        answer = post.pull(asked["id"], asked["seconds"])
        return {"answer": None if answer is None else list(answer)}
    except Exception as error:
        # It is the other end's to decide what to make of it, as it would be with a grid of its own.
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
