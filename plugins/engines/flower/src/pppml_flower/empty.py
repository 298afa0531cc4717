"""What a stage takes: Flower's own, empty, against ours, by turns on the same federation.

``app_of(count, poll)`` is an app for nodes of both kinds: Flower's own (:meth:`.LocalFederation.start_bare_node`), which echo, and ours,
which are asked something that needs no training (a run they have not joined: they look, write it down and say no). It writes
``{"empty": [...], "pppml": [...]}``, the seconds of each stage over all nodes of a kind, to ``out``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from pppml_core.randomness import entropy
from pppml_core.wire.codec import decode, encode, encode_message
from pppml_core.wire.messages import SERVER
from pppml_core.wire.messages import Message as Ours
from pppml_flower.grid import MESSAGE_TYPE, pack, unpack
from pppml_flower.post import CHALLENGE, FRAME

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    """The content again."""
    return Message(message.content, reply_to=message)


def app_of(count: int, poll: float) -> ServerApp:
    """The app of ``count`` stages of each kind, over as many nodes as the run config says (``homes``)."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        out, expected = Path(str(context.run_config["out"])), int(str(context.run_config["homes"]))
        while len(nodes := sorted(grid.get_node_ids())) < expected:
            time.sleep(poll)
        names = _names(grid, nodes, poll)
        bare = [node for node in nodes if node not in names]
        seconds: dict[str, list[float]] = {"empty": [], "pppml": []}
        for _ in range(count):
            seconds["empty"].append(_stage(grid, bare, lambda node: Message(RecordDict(), node, "train"), poll)[0])
            asked = partial(_asked, entropy(16), names)
            seconds["pppml"].append(_stage(grid, names, asked, poll)[0])
        out.write_text(json.dumps(seconds))

    return server


def _names(grid: Grid, nodes: list[int], poll: float) -> dict[int, str]:
    """The nodes of ours, with the names of their sites; the others know no such message."""
    challenge = encode({"run": entropy(16), "nonce": entropy(32)})
    _, replies = _stage(grid, nodes, lambda node: Message(pack(CHALLENGE, challenge), node, MESSAGE_TYPE), poll)
    return {reply.metadata.src_node_id: decode(unpack(reply.content)[1])["site"] for reply in replies if reply.has_content()}


def _asked(run: bytes, names: Mapping[int, str], node: int) -> Message:
    frame = encode_message(Ours(run, 0, 1, "hello", "hello", SERVER, names[node], {}))
    return Message(pack(FRAME, frame), node, MESSAGE_TYPE)


def _stage(grid: Grid, nodes: Iterable[int], ask: Callable[[int], Message], poll: float) -> tuple[float, list[Message]]:
    """Seconds until all these nodes have answered, and their answers."""
    began, replies = time.perf_counter(), list[Message]()
    waiting = {letter for node in nodes for letter in grid.push_messages([ask(node)])}
    while waiting:
        found = list(grid.pull_messages(waiting))
        replies += found
        waiting -= {reply.metadata.reply_to_message_id for reply in found}
        time.sleep(poll if waiting else 0)
    return time.perf_counter() - began, replies
