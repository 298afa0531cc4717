"""The wire manifest: everything that may leave a site, declared before the run, and the check that nothing else does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pppml_core.errors import UndeclaredField, WireError, nearest
from pppml_core.wire.codec import Encoded, encoded_size

#: Longest key, in bytes, that ``*`` matches: a name, not a place to hide data in.
MAX_KEY_BYTES = 128

_PLAIN = {
    "bool": (bool, np.bool_),
    "int": (int, np.integer),
    "float": (float, np.floating),
    "str": (str,),
    "bytes": (bytes, bytearray, memoryview),
    "map": (Mapping,),
    "list": (list, tuple),
}


@dataclass(frozen=True)
class WireField:
    """One entry of what a site may send: the field of a reply's body.

    Args:
        stage: stage it is sent in.
        name: key in the body, or a dotted path into nested maps (``shares.*``); ``*`` matches any one key.
        dtype: numpy dtype name, or ``bytes``, ``int``, ``float``, ``str``, ``bool``, ``map``, ``list`` (the last two: whatever is inside).
        shape: of an array; ``None`` entries match any length; ``()`` for a number.
        max_bytes: largest size: of an array its items, of text and bytes their length, of a number 8 (an int: its own length if more),
            of a map or list its encoding.
        mechanism: how it is protected, in words: ``in the clear``, ``masked``, ``encrypted to the initiator``.
        says: what it is, in words.

    """

    stage: str
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    max_bytes: int
    mechanism: str
    says: str

    @property
    def title(self) -> str:
        """One line for people: ``Values: int32 of 10 x any, at most 1,024 bytes, masked``."""
        name = self.name.replace(".*", ", for each").replace("*", "any field").replace("_", " ").replace(".", ", ")
        of = f" of {' x '.join('any' if n is None else f'{n:,}' for n in self.shape)}" if self.shape else ""
        return f"{name[:1].upper()}{name[1:]}: {self.dtype}{of}, at most {self.max_bytes:,} bytes, {self.mechanism}"


class Manifest:
    """The declared fields of a run.

    Args:
        fields: all of them, each stage and name once. Raises WireError for a doubled field or an unknown dtype.

    """

    def __init__(self, fields: Sequence[WireField]) -> None:
        self.fields = tuple(fields)
        self._stages: dict[str, dict[str, WireField]] = {}
        for field in self.fields:
            place = f"manifest, stage {field.stage!r}, field {field.name!r}"
            stage = self._stages.setdefault(field.stage, {})
            if field.name in stage:
                raise WireError("declared twice", place=place)
            if field.dtype not in _PLAIN and not _is_dtype(field.dtype):
                hint = nearest(field.dtype, [*_PLAIN, "int32", "int64", "uint8", "uint32", "uint64", "float32", "float64"])
                raise WireError(f"{field.dtype!r} is no dtype", place=place, hint=f"did you mean {hint!r}?" if hint else None)
            stage[field.name] = field

    def check(self, stage: str, body: Mapping[str, Any]) -> None:
        """Pass if every value of ``body`` is declared for ``stage`` with its dtype, shape and size; else raise UndeclaredField.

        An empty body may be sent in any stage: nothing leaves with it.
        """
        if not body:
            return
        if stage not in self._stages:
            close = nearest(stage, self._stages)
            raise UndeclaredField(
                f"nothing is declared for this stage, but {', '.join(map(repr, body))} would be sent",
                place=f"manifest, stage {stage!r}",
                hint=f"the nearest declared stage is {close!r}" if close else "declare the stage's fields",
            )
        self._walk(stage, (), body, list(self._stages[stage].items()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``manifest.json``: the fields by stage, each with a title for people."""

        def entry(field: WireField) -> dict[str, Any]:
            return {"title": field.title, **asdict(field), "shape": list(field.shape)}

        stages = self._stages.items()
        return {"version": 1, "stages": [{"stage": name, "fields": [entry(f) for f in fields.values()]} for name, fields in stages]}

    def _walk(self, stage: str, path: tuple[str, ...], body: Mapping[str, Any], patterns: list[tuple[str, WireField]]) -> None:
        """Check a map against what is left of the names below it: a key may contain dots itself, so names are matched key by key."""
        for key, value in body.items():
            where = (*path, key)
            heads = (key, "*") if len(key.encode(errors="replace")) <= MAX_KEY_BYTES else (key,)
            ends = [field for head in heads for rest, field in patterns if rest == head]
            deeper = [(rest[len(head) + 1 :], field) for head in heads for rest, field in patterns if rest.startswith(f"{head}.")]
            if deeper and isinstance(value, Mapping) and not any(field.dtype == "map" for field in ends):
                self._walk(stage, where, value, deeper)
            elif ends:
                _check_value(stage, where, value, ends[0])
            else:
                self._refuse_unknown(stage, where, value)

    def _refuse_unknown(self, stage: str, path: tuple[str, ...], value: Any) -> None:
        name, known = ".".join(path), self._stages[stage]
        close = nearest(name, known)
        hint = f"the nearest declared is {close} ({known[close].title})" if close else f"declared are {', '.join(known)}"
        raise UndeclaredField(f"{_describe(value)} would be sent but is not declared", place=_place(stage, path), hint=hint)


def _check_value(stage: str, path: tuple[str, ...], value: Any, field: WireField) -> None:
    plain = value.value if isinstance(value, Encoded) else value
    reason = None
    if not _has_dtype(plain, field.dtype):
        reason = "has another type"
    elif field.dtype not in _PLAIN and not _has_shape(plain.shape, field.shape):
        reason = "has another shape"
    elif (size := _size(plain)) > field.max_bytes:
        reason = f"takes {size:,} bytes, which is more"
    if reason:
        raise UndeclaredField(f"{_describe(plain)} {reason} than declared", place=_place(stage, path), hint=f"declared is {field.title}")


def _has_dtype(value: Any, dtype: str) -> bool:
    if dtype not in _PLAIN:
        return isinstance(value, np.ndarray) and value.dtype == np.dtype(dtype)
    return isinstance(value, _PLAIN[dtype]) and not (dtype == "int" and isinstance(value, bool))


def _has_shape(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    return len(shape) == len(declared) and all(want is None or have == want for have, want in zip(shape, declared, strict=True))


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray | memoryview):
        return value.nbytes
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, bytes | bytearray):
        return len(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return max(8, value.bit_length() // 8 + 1)
    return encoded_size(value) if isinstance(value, Mapping | list | tuple) else 8


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array ({value.dtype}, shape {value.shape})"
    return f"a value of type {type(value).__name__}"


def _place(stage: str, path: tuple[str, ...]) -> str:
    return f"manifest, stage {stage!r}, field {'.'.join(path)!r:.200}"


def _is_dtype(name: str) -> bool:
    try:
        return np.dtype(name).name == name and np.dtype(name).kind in "biuf"
    except TypeError:
        return False
