"""The post office over Flower's ``Grid``, and its bytes as Flower carries them.

They lie in an array record: arrays travel in pieces, the bytes of a config record do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from pppml_core.errors import WireError
from pppml_flower.post import CHALLENGE, FRAME, INTRODUCTION, Answer

#: the one type of message: actions are bound when the app is loaded.
ACTION = "pppml"
MESSAGE_TYPE = f"train.{ACTION}"
_RECORD = "pppml"
_FORM = ("uint8", "pppml.bytes")


def pack(kind: str, data: bytes) -> RecordDict:
    """A message's content: one array of bytes under its kind."""
    dtype, serialization = _FORM
    return RecordDict({_RECORD: ArrayRecord({kind: Array(dtype, (len(data),), serialization, data)})})


def unpack(content: RecordDict) -> tuple[str, bytes]:
    """Kind and bytes. Raises WireError for anything :func:`pack` does not make."""
    if list(content.keys()) != [_RECORD] or not isinstance(record := content[_RECORD], ArrayRecord) or len(record) != 1:
        raise WireError("a message must hold one array", place="Flower message")
    ((kind, array),) = record.items()
    if (array.dtype, array.stype) != _FORM or array.shape != (len(array.data),):
        raise WireError("a message must hold bytes", place="Flower message")
    if kind not in (FRAME, CHALLENGE, INTRODUCTION):
        raise WireError(f"a message of an unknown kind: {kind!r:.40}", place="Flower message")
    return kind, array.data


class GridPost:
    """Over Flower's ``Grid``."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> list[int]:
        """As the SuperLink knows them."""
        return sorted(self._grid.get_node_ids())

    def push(self, node: int, kind: str, data: bytes, ttl: float) -> str | None:
        """One at a time: one message in memory, and one that is not taken does not keep the others back."""
        ids = list(self._grid.push_messages([Message(pack(kind, data), node, MESSAGE_TYPE, ttl=ttl)]))
        return ids[0] if ids and ids[0] else None

    def pull(self, ids: Sequence[str]) -> list[Answer]:
        """In one request."""
        return [_answer(message) for message in self._grid.pull_messages(list(ids))]


def _answer(message: Message) -> Answer:
    message_id = message.metadata.reply_to_message_id
    if message.has_error():
        return message_id, "", f"Flower reports: {message.error.reason or f'error {message.error.code}'}"[:500].encode()
    try:
        return message_id, *unpack(message.content)
    except WireError as error:
        return message_id, "", f"its answer could not be read: {error.message}".encode()
