"""The post office over Flower's ``Grid``, and its bytes as Flower carries them.

Flower carries each object of a message by itself, in a request of its own on each of six ways; who asks for one too early rests a second.
A few bytes lie in a config record, which is one object; many in an array record, which is three and more: arrays travel in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from pppml_core.errors import WireError
from pppml_flower.gate import module_with
from pppml_flower.post import CHALLENGE, FRAME, INTRODUCTION, Answer

#: the one type of message: actions are bound when the app is loaded.
ACTION = "pppml"
MESSAGE_TYPE = f"train.{ACTION}"
_RECORD = "pppml"
_FORM = ("uint8", "pppml.bytes")
#: bytes that travel in one piece.
_FEW = 1 << 20
#: seconds between two questions for the rest of an answer.
_AGAIN = 0.5
#: where Flower fetches the objects of an answer.
_FETCHING = "flwr.superlink.grid.http_grid"


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
        module_with(_FETCHING, "pull_objects")

    def nodes(self) -> list[int]:
        """As the SuperLink knows them."""
        return sorted(self._grid.get_node_ids())

    def push(self, node: int, kind: str, data: bytes, ttl: float) -> str | None:
        """One at a time: one message in memory, and one that is not taken does not keep the others back."""
        ids = list(self._grid.push_messages([Message(pack(kind, data), node, MESSAGE_TYPE, ttl=ttl)]))
        return ids[0] if ids and ids[0] else None

    def pull(self, message_id: str, seconds: float) -> Answer | None:
        """In a request of its own: the SuperLink forgets what it hands out, and one answer that cannot be read would take all others of its
        request with it. Asked for again, it is said to be gone. What an answer says it answers, its node says.
        """
        with _the_rest_within(seconds):
            for message in self._grid.pull_messages([message_id]):
                if message.metadata.reply_to_message_id == message_id:
                    return _answer(message)
        return None


@contextmanager
def _the_rest_within(seconds: float) -> Iterator[None]:
    """Flower waits for hours for the rest of an answer that has begun to arrive, and all others wait with it."""
    fetching = module_with(_FETCHING, "pull_objects")
    whole = fetching.pull_objects
    fetching.pull_objects = partial(whole, max_time=seconds, initial_backoff=_AGAIN, backoff_cap=_AGAIN)
    try:
        yield
    finally:
        fetching.pull_objects = whole


def _answer(message: Message) -> Answer:
    if message.has_error():
        return "", f"Flower reports: {message.error.reason or f'error {message.error.code}'}"[:500].encode()
    try:
        return unpack(message.content)
    except WireError as error:
        return "", f"its answer could not be read: {error.message}".encode()
