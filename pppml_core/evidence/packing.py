"""A view as bytes, and back. Large arrays and texts are written once, however often they occur: a model goes to every site."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from pppml_core.interfaces.attack import AdversaryView, Seen, Sight, Vantage
from pppml_core.wire.codec import Limits, decode, encode
from pppml_core.wire.messages import Message

_LIMITS = Limits(max_bytes=2**36, max_items=2**24)
#: bytes from which on a value is written once and referred to.
_LARGE = 256
#: key of a reference; no part of a message or state is named so.
_REFERENCE = "\0at"


def encode_view(view: AdversaryView) -> bytes:
    """Bytes of a view, as :mod:`pppml_core.wire.codec` writes them. Equal views give equal bytes."""
    table = _Table()
    vantage = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(view.vantage).items()}
    rounds = [
        {
            "round": seen.round,
            "weights": seen.weights,
            "after": seen.after,
            "cohort": seen.cohort,
            "sights": [{"sites": s.sites, "update": s.update, "weight": s.weight, "released": s.released} for s in seen.sights],
            "messages": [{f.name: getattr(m, f.name) for f in fields(Message)} for m in seen.messages],
            "secrets": seen.secrets,
            "members": seen.members,
        }
        for seen in view.rounds
    ]
    packed = table.pack(rounds)
    return encode({"vantage": vantage, "rounds": packed, "table": table.values}, limits=_LIMITS)


def decode_view(data: bytes) -> AdversaryView:
    """The inverse of :func:`encode_view`; arrays are read-only views of ``data``. Raises WireError for anything that is no frame."""
    held = decode(data, limits=_LIMITS)
    v = held["vantage"]
    links = frozenset((a, b) for a, b in v["links"])
    vantage = Vantage(v["text"], v["server"], frozenset(v["sites"]), frozenset(v["neighbours"]), links, v["public"])
    return AdversaryView(vantage, tuple(_seen(_unpack(one, held["table"])) for one in held["rounds"]))


def _seen(plain: Mapping[str, Any]) -> Seen:
    return Seen(
        round=plain["round"],
        weights=plain["weights"],
        after=plain["after"],
        cohort=tuple(plain["cohort"]),
        sights=tuple(Sight(tuple(s["sites"]), s["update"], s["weight"], s["released"]) for s in plain["sights"]),
        messages=tuple(Message(**m) for m in plain["messages"]),
        secrets=plain["secrets"],
        members=tuple(plain["members"]),
    )


class _Table:
    """Large values, each once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[tuple[Any, ...], int] = {}
        #: what was looked at before, by identity; the value is held, so that no other one takes its place.
        self._seen: dict[int, tuple[Any, int]] = {}

    def pack(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self.pack(value[key]) for key in sorted(value)}
        if isinstance(value, list | tuple):
            return [self.pack(item) for item in value]
        size = value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, bytes) else 0
        return {_REFERENCE: self._place(value)} if size >= _LARGE else value

    def _place(self, value: Any) -> int:
        if id(value) not in self._seen:
            form = (str(value.dtype), value.shape) if isinstance(value, np.ndarray) else ()
            digest = (*form, hashlib.sha256(value.tobytes() if isinstance(value, np.ndarray) else value).digest())
            if digest not in self._places:
                self._places[digest] = len(self.values)
                self.values.append(value)
            self._seen[id(value)] = (value, self._places[digest])
        return self._seen[id(value)][1]


def _unpack(value: Any, table: list[Any]) -> Any:
    if isinstance(value, Mapping):
        return table[value[_REFERENCE]] if value.keys() == {_REFERENCE} else {key: _unpack(item, table) for key, item in value.items()}
    return [_unpack(item, table) for item in value] if isinstance(value, list) else value
