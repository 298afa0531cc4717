"""Messages that no honest party sends: every field left out, of another type, cut, doubled, of another site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pppml_core.wire.codec import decode, encode
from pppml_core.wire.messages import Body

#: what is put in the place of a value.
STRANGERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    0.5,
    "",
    "nobody",
    b"",
    b"\0" * 32,
    [],
    ["nobody", 7],
    {},
    {"nobody": b"?"},
    np.zeros(3),
)


def plain(body: Body) -> dict[str, Any]:
    """A body as it looks after the codec."""
    return dict(decode(encode(body)))


def malformed(body: Body, most: int) -> list[dict[str, Any]]:
    """Variants of a body: without anything, without each field, with something more; and up to ``most`` others, spread evenly."""
    whole = plain(body)
    every = list(_changed(whole))
    step = max(1, -(-len(every) // max(1, most)))
    fewer = [{k: v for k, v in whole.items() if k != key} for key in whole] if len(whole) > 1 else []
    return [{}, *fewer, *every[::step], {**whole, "more": 1}]


def _changed(value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key in value:
        yield {k: v for k, v in value.items() if k != key}
        yield from ({**value, key: other} for other in _variants(value[key]))
    if value:
        first = next(iter(value))
        yield {**{k: v for k, v in value.items() if k != first}, "nobody": value[first]}


def _variants(value: Any) -> Iterator[Any]:
    """Other types, then the same type with another content."""
    yield from (other for other in STRANGERS if type(other) is not type(value))
    if isinstance(value, np.ndarray):
        yield from (
            value[:-1],
            np.append(value, value[:1]),
            value.astype(np.float32),
            value.astype(np.int8),
            value.reshape(1, -1),
            value[:0],
        )
        if value.dtype.kind in "iu" and value.size:
            yield np.full_like(value, np.iinfo(value.dtype).max)
    elif isinstance(value, bytes):
        yield from (b"", value[:-1], value + b"\0", bytes(len(value)), value[:-1] + bytes([value[-1] ^ 1]) if value else b"?")
    elif isinstance(value, str):
        yield from ("", "nobody", value + value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (-1, 0, value + 1, 2**70)
    elif isinstance(value, Mapping):
        yield {}
        yield from _changed(value)
    elif isinstance(value, list):
        yield from ([], value[:-1], [*value, *value[:1]], value[::-1], [*value, "nobody"])
        if value:
            yield from ([other, *value[1:]] for other in _variants(value[0]))
