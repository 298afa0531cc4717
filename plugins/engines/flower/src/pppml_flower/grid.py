"""The post office over Flower's ``Grid``, and its bytes as Flower carries them.

Flower carries each object of a message by itself, in a request of its own on each of six ways; who asks for one too early rests a second.
A few bytes lie in a config record, which is one object; many in an array record, which is three and more: arrays travel in pieces.
"""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from pppml_core.errors import WireError
from pppml_flower.post import CHALLENGE, FRAME, INTRODUCTION, Answer

#: the one type of message: actions are bound when the app is loaded.
ACTION = "pppml"
MESSAGE_TYPE = f"train.{ACTION}"
_RECORD = "pppml"
_FORM = ("uint8", "pppml.bytes")
#: bytes that travel in one piece.
_FEW = 1 << 20
#: what Flower raises where an answer has the form of its objects, and is none; hardly an error of the way to the SuperLink is one of these.
_UNREADABLE = (ArithmeticError, AttributeError, DecodeError, LookupError, RecursionError, TypeError, ValueError)


def pack(kind: str, data: bytes) -> RecordDict:
    """A message's content: its bytes under its kind, in a config record where they are few, else as an array."""
    if len(data) <= _FEW:
        return RecordDict({_RECORD: ConfigRecord({kind: data})})
    dtype, serialization = _FORM
    return RecordDict({_RECORD: ArrayRecord({kind: Array(dtype, (len(data),), serialization, data)})})


def unpack(content: RecordDict) -> tuple[str, bytes]:
    """Kind and bytes. Raises WireError for content of another form than :func:`pack` makes."""
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

    def pull(self, message_id: str) -> Answer | None:
        """In a request of its own: the SuperLink forgets what it hands out, and one answer that cannot be read would take all others of its
        request with it. What an answer says it answers, its node says.
        """
        try:
            for message in self._grid.pull_messages([message_id]):
                if message.metadata.reply_to_message_id == message_id:
                    return _answer(message)
        except _UNREADABLE as error:
            return "", f"its answer could not be read: {type(error).__name__}".encode()
        return None


def _answer(message: Message) -> Answer:
    if message.has_error():
        return "", f"Flower reports: {message.error.reason or f'error {message.error.code}'}"[:500].encode()
    try:
        return unpack(message.content)
    except WireError as error:
        return "", f"its answer could not be read: {error.message}".encode()
