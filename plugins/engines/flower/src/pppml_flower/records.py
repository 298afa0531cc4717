"""Bytes as Flower carries them. A frame lies in an array record: arrays travel in pieces, the bytes of a config record do not."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from pppml_core.errors import WireError

#: the one type of message: actions are bound when the app is loaded.
ACTION = "pppml"
MESSAGE_TYPE = f"train.{ACTION}"
#: what a message may hold: a frame of the run, a question who this node is, or the answer to it.
FRAME, CHALLENGE, INTRODUCTION = "frame", "challenge", "introduction"
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
