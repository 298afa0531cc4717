"""What a stage takes: Flower's own, empty, against ours, by turns on the same federation.

``app_of(count, poll, sites)`` is an app for a node of each kind and site: Flower's own (:meth:`.LocalFederation.start_bare_node`), which
echo (:mod:`.echo`), and ours, which are asked something that needs no training (a run they have not joined: they verify, look, write it
down and say no). It writes ``{"own, empty": [...], "stage": [...]}``, the seconds of each stage over all nodes of a kind, to ``out``;
``homes`` in the run config is the folder of the homes, the coordinator's among them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from pppml_core.errors import RunFailed
from pppml_core.federation.identity import load_identity, load_roster
from pppml_core.federation.letter import written
from pppml_core.interfaces.engine import Loss
from pppml_core.randomness import entropy
from pppml_core.wire.codec import encode_message
from pppml_core.wire.messages import SERVER
from pppml_core.wire.messages import Message as Ours
from pppml_flower.grid import GridPost
from pppml_flower.introduction import Directory
from pppml_flower.transport import FlowerTransport

#: seconds for all nodes to be there, and for one answer.
_WAIT = 300.0


def app_of(count: int, poll: float, sites: Sequence[str]) -> ServerApp:
    """The app of ``count`` stages of each kind, after one of each that is not counted."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        out, homes = (Path(str(context.run_config[name])) for name in ("out", "homes"))
        run, identity, post = entropy(16), load_identity(homes / SERVER), GridPost(grid)
        while len(list(grid.get_node_ids())) < 2 * len(sites):
            time.sleep(poll)
        directory = Directory(post, run, sites, load_roster(homes / SERVER), identity, poll, _WAIT)
        directory.look(_WAIT)
        bare = sorted(set(grid.get_node_ids()) - set(directory.nodes.values()))
        transport = FlowerTransport(post, directory, sites, _WAIT, poll)
        seconds: dict[str, list[float]] = {"own, empty": [], "stage": []}
        for turn in range(count + 1):
            own = _own(grid, bare, poll)
            began = time.perf_counter()
            frames = ((site, encode_message(Ours(run, turn, 1, "hello", "hello", SERVER, site, {}))) for site in sites)
            for site, reply in transport.deliver((site, written(identity, SERVER, frame)) for site, frame in frames):
                if isinstance(reply, Loss):
                    raise RunFailed(f"{site} did not answer: {reply.reason}")
            ours = time.perf_counter() - began
            if turn:
                seconds["own, empty"].append(own)
                seconds["stage"].append(ours)
                out.write_text(json.dumps(seconds))

    return server


def _own(grid: Grid, nodes: Sequence[int], poll: float) -> float:
    """Seconds until all of Flower's own nodes have answered."""
    began = time.perf_counter()
    waiting = {letter for node in nodes for letter in grid.push_messages([Message(RecordDict(), node, "train")])}
    while waiting:
        waiting -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(waiting)}
        time.sleep(poll if waiting else 0)
    return time.perf_counter() - began
