"""The post office: letters to nodes and the answers to them. Over a Flower ``Grid``, or over a line to a process that has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from pppml_core.errors import WireError
from pppml_flower.records import MESSAGE_TYPE, pack, unpack

#: letter, kind and bytes of its answer; or letter, an empty kind, and why there is none, in UTF-8.
Answer = tuple[str, str, bytes]


class Post(Protocol):
    """What the transport needs of Flower."""

    def nodes(self) -> list[int]:
        """The nodes that are connected."""

    def push(self, node: int, kind: str, data: bytes, ttl: float) -> str | None:
        """Send a letter; its id, or None where the SuperLink did not take it. Raises Exception where that is not known."""

    def pull(self, letters: Sequence[str]) -> list[Answer]:
        """Answers that have come to these letters. May hold answers to others, and the same one twice."""


class GridPost:
    """Over Flower's ``Grid``."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> list[int]:
        """As the SuperLink knows them."""
        return sorted(self._grid.get_node_ids())

    def push(self, node: int, kind: str, data: bytes, ttl: float) -> str | None:
        """One letter at a time: one message in memory, and one that is not taken does not keep the others back."""
        ids = list(self._grid.push_messages([Message(pack(kind, data), node, MESSAGE_TYPE, ttl=ttl)]))
        return ids[0] if ids and ids[0] else None

    def pull(self, letters: Sequence[str]) -> list[Answer]:
        """In one request."""
        return [_answer(message) for message in self._grid.pull_messages(list(letters))]


def _answer(message: Message) -> Answer:
    letter = message.metadata.reply_to_message_id
    if message.has_error():
        return letter, "", f"Flower reports: {message.error.reason or f'error {message.error.code}'}"[:500].encode()
    try:
        return letter, *unpack(message.content)
    except WireError as error:
        return letter, "", f"its answer could not be read: {error.message}".encode()
