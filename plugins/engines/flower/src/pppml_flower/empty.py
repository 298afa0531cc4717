"""Stages that do nothing: what Flower itself takes on a machine, to hold ours against. Nothing of pppml happens in them.

``app_of(count)`` asks all nodes for an echo, ``count`` times, looking for answers as often as a run does, and writes the seconds of each
stage as JSON to ``out``. The nodes run Flower's own commands.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    """The content again."""
    return Message(message.content, reply_to=message)


def app_of(count: int, poll: float) -> ServerApp:
    """The app of ``count`` stages over the nodes that are there."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        out, nodes = Path(str(context.run_config["out"])), int(str(context.run_config["homes"]))
        while len(list(grid.get_node_ids())) < nodes:
            time.sleep(poll)
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            waiting = set(grid.push_messages([Message(RecordDict(), node, "train") for node in grid.get_node_ids()]))
            while waiting:
                waiting -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(waiting)}
                time.sleep(poll if waiting else 0)
            seconds.append(time.perf_counter() - began)
        out.write_text(json.dumps(seconds))

    return server
