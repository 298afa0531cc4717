"""The post office over Flower's ``Grid``, and its bytes as Flower carries them.

Flower carries each object of a message by itself, in a request of its own on each of four ways; who asks for one too early rests a second.
A few bytes lie in a config record, which is one object; many in an array record, which is three and more: arrays travel in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from pppml_core.errors import WireError
from pppml_flower.post import CHALLENGE, FRAME, INTRODUCTION, Answer

#: the one type of message: actions are bound when the app is loaded.
ACTION = "pppml"
MESSAGE_TYPE = f"train.{ACTION}"
_RECORD = "pppml"
_FORM = ("uint8", "pppml.bytes")
#: bytes that travel in one piece.
_FEW = 1 << 20


def pack(kind: str, data: bytes) -> RecordDict:
    """A message's content: its bytes under its kind, in a config record where they are few, else as an array."""
    if len(data) <= _FEW:
        return RecordDict({_RECORD: ConfigRecord({kind: data})})
    dtype, serialization = _FORM
    return RecordDict({_RECORD: ArrayRecord({kind: Array(dtype, (len(data),), serialization, data)})})


def unpack(content: RecordDict) -> tuple[str, bytes]:
    """Kind and bytes. Raises WireError for anything :func:`pack` does not make."""
    record = content[_RECORD] if list(content.keys()) == [_RECORD] else None
    if not isinstance(record, ArrayRecord | ConfigRecord) or len(record) != 1:
        raise WireError("a message must hold one array or one string of bytes", place="Flower message")
    ((kind, value),) = record.items()
    if kind not in (FRAME, CHALLENGE, INTRODUCTION):
        raise WireError(f"a message of an unknown kind: {kind!r:.40}", place="Flower message")
    return kind, value if isinstance(value, bytes) else _bytes_of(value)


def _bytes_of(array: object) -> bytes:
    if not isinstance(array, Array) or (array.dtype, array.stype) != _FORM or array.shape != (len(array.data),):
        raise WireError("a message must hold bytes", place="Flower message")
    return array.data


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
