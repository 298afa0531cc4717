"""An in-process Grid that drives the real ClientApp handler, one Context a node, and small configurations to run over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from pppml_core.federation.home import init_home, open_home
from pppml_core.federation.identity import pin
from pppml_core.wire.messages import SERVER
from pppml_flower.grid import unpack
from pppml_flower.keeper import kept

#: what a test does to an answer on its way: the answers that come instead of it.
Meddle = Callable[[str, Message], list[Message]]


class FakeGrid(Grid):
    """Messages are answered by the ClientApp when they are pulled, each with the Context of its node and nothing else kept."""

    def __init__(self, homes: Mapping[int, Path]) -> None:
        from pppml_flower.client import app

        self.homes, self.app = dict(homes), app
        self.online = set(homes)
        self.waiting: dict[str, Message] = {}
        #: all that were ever taken.
        self.asked: dict[str, Message] = {}
        self.pushed = 0
        #: whose answers were handed out.
        self.forgotten: set[str] = set()
        #: whether the SuperLink takes a message: node, kind, bytes.
        self.takes: Callable[[int, str, bytes], bool] = lambda node, kind, data: True
        self.meddle: Meddle = lambda letter, reply: [reply]

    def set_run(self, run: Any) -> None:
        """Unused."""

    @property
    def run(self) -> Any:
        """Unused."""
        raise NotImplementedError

    def create_message(self, *given: Any, **settings: Any) -> Message:
        """Deprecated in Flower."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Unused: the transport looks for answers itself."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Those that are on."""
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> list[Any]:
        """As the SuperLink: content goes as bytes, and the message gets its id."""
        ids: list[str | None] = []
        for message in messages:
            self.pushed += 1
            if not self.takes(message.metadata.dst_node_id, *unpack(message.content)):
                ids.append(None)
                continue
            letter = f"letter-{self.pushed}"
            message.metadata.__dict__["_message_id"] = letter
            self.waiting[letter] = self.asked[letter] = message
            ids.append(letter)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answers of nodes that are on, each once: who asks again is told that it is gone."""
        out: list[Message] = []
        for letter in message_ids:
            if letter in self.forgotten:
                out.append(Message(Error(4, "Message Unavailable"), reply_to=self.asked[letter]))
            message = self.waiting.get(letter)
            if message is None or (node := message.metadata.dst_node_id) not in self.online:
                continue
            del self.waiting[letter]
            context = Context(1, node, {"home": str(self.homes[node])}, RecordDict(), {}, 0)
            reply = self.app(message, context)
            assert not context.state  # nothing of a site is left with Flower
            if came := self.meddle(letter, reply):
                self.forgotten.add(letter)
            out += came
        return out


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Flower's messages want to know whose they are; its processes set this."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture
def grid_of() -> Iterator[Callable[[Mapping[str, Path]], FakeGrid]]:
    """A grid over the homes of sites, each with its keeper; the first has node 101."""
    with ExitStack() as keepers:

        def made(homes: Mapping[str, Path]) -> FakeGrid:
            for site, home in homes.items():
                if site != SERVER:
                    keepers.enter_context(kept(home))
            return FakeGrid({101 + i: home for i, (site, home) in enumerate(homes.items()) if site != SERVER})

        yield made


@pytest.fixture
def homes(tmp_path: Path) -> Callable[[Iterable[str]], dict[str, Path]]:
    """Homes of these sites and of the coordinator, who have all pinned each other."""

    def make(sites: Iterable[str]) -> dict[str, Path]:
        made = {party: init_home(tmp_path / "homes" / party, party) for party in (*sites, SERVER)}
        for home in made.values():
            for other in made.values():
                pin(home.folder, other.name, open_home(other.folder).public)
        return {party: home.folder for party, home in made.items()}

    return make
