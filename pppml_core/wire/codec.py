"""Bodies and messages as bytes, without pickle.

A frame is ``pppml`` + version (1 byte) + 2 zero bytes + total length (u64) + XXH3-64 (u64) + one value; all numbers are little-endian, the
checksum covers every byte but itself. A value is a tag and its content:

====== ====================== ====================================================================================================
``N``  None
``T F``  bool
``i``  int                    u16 length, two's complement of the least length (at most ``MAX_INT_BITS`` bits)
``d``  float                  float64
``s``  str                    u32 length, UTF-8
``b``  bytes                  u64 length, bytes
``a``  array                  dtype (as numpy writes it, ``f4``), number of axes (u8), each length (u64), zero bytes up to the next
                              multiple of 64 in the frame, the items in C order
``l``  list                   u32 count, values
``m``  map                    u32 count, then for each key, in the order of its UTF-8 bytes: u16 length, key, value
====== ====================== ====================================================================================================

There is one way to write a value: equal values give equal frames, and a frame that decodes encodes to itself again. The checksum finds
accidents; it is not a signature. Everything is bounded before it is allocated, so a hostile frame costs no more than its own size.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pppml_core.errors import WireError
from pppml_core.wire.header import KEYS, check_header
from pppml_core.wire.messages import Message

MAGIC = b"pppml"
VERSION = 1
ALIGNMENT = 64
MAX_INT_BITS = 4096
MAX_AXES = 16
DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])

Data = bytes | bytearray | memoryview
_Part = bytes | memoryview  # bytes follow on directly; views are the items of arrays and start at the next multiple of 64

_PROLOGUE = struct.Struct("<5sBHQ")
_U16, _U32, _U64, _F64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<d")
_HEADER_SIZE = _PROLOGUE.size + _U64.size
_ZEROS = bytes(ALIGNMENT)


@dataclass(frozen=True)
class Limits:
    """What a frame may cost, checked before anything is allocated, on both sides.

    Args:
        max_bytes: whole frame.
        max_depth: containers within containers, 1 to 64.
        max_items: values in one frame, those within lists and maps included; an array is one value.

    """

    max_bytes: int = 2**32
    max_depth: int = 32
    max_items: int = 2**18

    def __post_init__(self) -> None:
        if not 1 <= self.max_depth <= 64:
            raise WireError(f"max_depth must be 1 to 64, not {self.max_depth}", place="limits")


_DEFAULT = Limits()


def encode(body: Any, *, limits: Limits = _DEFAULT) -> bytes:
    """The frame of a value: None, bool, int, float, str, bytes, array, list, tuple (as list), map with str keys, :class:`Encoded`.

    numpy numbers become Python numbers. Arrays may be bool, signed or unsigned integers, float16, 32 or 64, of any strides and byte
    order, with at most 16 axes. Raises WireError, naming the place in the body, for anything else and beyond the limits.
    """
    writer = _Writer(limits)
    writer.value(body, "body", 0)
    pieces = list(_aligned(writer.parts, _HEADER_SIZE))
    size = _HEADER_SIZE + sum(len(piece) for piece in pieces)
    if size > limits.max_bytes:
        raise WireError(f"the message would have {size:,} bytes, allowed are {limits.max_bytes:,}", place="body")
    prologue = _PROLOGUE.pack(MAGIC, VERSION, 0, size)
    checksum = xxhash.xxh3_64(prologue)
    for piece in pieces:
        checksum.update(piece)
    return b"".join([prologue, _U64.pack(checksum.intdigest()), *pieces])


def decode(data: Data, *, limits: Limits = _DEFAULT) -> Any:
    """The value of a frame. Arrays are read-only views of ``data`` (which they keep alive); everything else is copied.

    Raises WireError for anything that is not a whole, undamaged frame within the limits.
    """
    view = memoryview(data).toreadonly().cast("B")
    if len(view) > limits.max_bytes:
        raise WireError(f"the message has {len(view):,} bytes, allowed are {limits.max_bytes:,}", place="frame")
    if len(view) < _HEADER_SIZE:
        raise WireError(f"{len(view)} bytes are too few for a message", place="frame")
    magic, version, zero, size = _PROLOGUE.unpack_from(view)
    if magic != MAGIC or zero:
        raise WireError("these bytes are not a pppml message", place="frame")
    if version != VERSION:
        raise WireError(f"wire version {version}, this side speaks {VERSION}", place="frame", hint="install one pppml-core everywhere")
    if size != len(view):
        raise WireError(f"the message says it has {size:,} bytes, {len(view):,} are here", place="frame", hint="it was cut or joined")
    if _U64.unpack_from(view, _PROLOGUE.size)[0] != _checksum(view):
        raise WireError("the checksum does not fit: the message was damaged on its way", place="frame")
    reader = _Reader(view, limits)
    value = reader.value(0)
    if reader.at != len(view):
        raise reader.error("bytes follow the end of the value")
    return value


class Encoded:
    """A value encoded once, to be put into many bodies. It decodes as the plain value, and gives the same bytes.

    Large arrays are copied here and read from that copy ever after, so the original may change.
    """

    __slots__ = ("depth", "items", "parts")

    def __init__(self, value: Any, *, limits: Limits = _DEFAULT) -> None:
        writer = _Writer(limits)
        writer.value(value, "body", 0)
        self.parts: tuple[_Part, ...] = tuple(part if isinstance(part, bytes) else memoryview(bytes(part)) for part in writer.parts)
        self.items, self.depth = writer.items, writer.deepest

    @property
    def value(self) -> Any:
        """The plain value, its arrays read-only."""
        return decode(encode(self))

    def __repr__(self) -> str:
        return f"Encoded({sum(len(part) for part in self.parts):,} bytes)"


def encoded_size(value: Any, *, limits: Limits = _DEFAULT) -> int:
    """Bytes of a value on the wire, frame header and padding excluded."""
    writer = _Writer(limits)
    writer.value(value, "body", 0)
    return sum(len(part) for part in writer.parts)


def sha256_of(body: Any) -> bytes:
    """SHA-256 of a value: the same 32 bytes for equal values at every party, whether or not parts of it were :class:`Encoded`."""
    writer = _Writer(_DEFAULT)
    writer.value(body, "body", 0)
    digest = hashlib.sha256(b"pppml-value-v1")
    for part in writer.parts:
        digest.update(part)
    return digest.digest()


def _aligned(parts: Iterable[_Part], position: int) -> Iterator[_Part]:
    for part in parts:
        padding = 0 if isinstance(part, bytes) else -position % ALIGNMENT
        if padding:
            yield _ZEROS[:padding]
        yield part
        position += padding + len(part)


def _checksum(frame: memoryview) -> int:
    checksum = xxhash.xxh3_64(frame[: _PROLOGUE.size])
    checksum.update(frame[_HEADER_SIZE:])
    return int(checksum.intdigest())


class _Writer:
    """Collects the parts of a frame; large arrays stay where they are until the frame is joined."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.parts: list[_Part] = []
        self.items = 0
        self.deepest = 0

    def value(self, value: Any, place: str, depth: int) -> None:
        self._count(1, depth, place)
        add = self.parts.append
        if value is None:
            add(b"N")
        elif isinstance(value, bool | np.bool_):
            add(b"T" if value else b"F")
        elif isinstance(value, int | np.integer):
            number = int(value)
            if number.bit_length() > MAX_INT_BITS:
                raise WireError(f"an integer of {number.bit_length()} bits; allowed are {MAX_INT_BITS}", place=place, hint="use bytes")
            length = number.bit_length() // 8 + 1
            add(b"i" + _U16.pack(length) + number.to_bytes(length, "little", signed=True))
        elif isinstance(value, float | np.floating):
            add(b"d" + _F64.pack(value))
        elif isinstance(value, str):
            text = _utf8(value, place)
            add(b"s" + self._length(_U32, len(text), place) + text)
        elif isinstance(value, np.ndarray):
            self._array(value, place)
        elif isinstance(value, bytes | bytearray | memoryview):
            add(b"b" + _U64.pack(memoryview(value).nbytes))
            add(bytes(value))
        elif isinstance(value, Mapping):
            self._map(value, place, depth + 1)
        elif isinstance(value, list | tuple):
            self._count(0, depth + 1, place)
            add(b"l" + self._length(_U32, len(value), place))
            for index, item in enumerate(value):
                self.value(item, f"{place}[{index}]", depth + 1)
        elif isinstance(value, Encoded):
            self._count(value.items - 1, depth + value.depth, place)
            self.parts.extend(value.parts)
        else:
            kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            raise WireError(f"a {kind} cannot be sent", place=place, hint="send numbers, text, bytes, numpy arrays, lists and maps")

    def _map(self, value: Mapping[Any, Any], place: str, depth: int) -> None:
        self._count(0, depth, place)
        entries = []
        for key, item in value.items():
            if not isinstance(key, str):
                raise WireError(f"the key {key!r} is not a str", place=place)
            entries.append((_utf8(key, place), key, item))
        self.parts.append(b"m" + self._length(_U32, len(entries), place))
        for text, key, item in sorted(entries, key=lambda entry: entry[0]):
            self.parts.append(self._length(_U16, len(text), place) + text)
            self.value(item, f"{place}.{key}", depth)

    def _array(self, array: npt.NDArray[Any], place: str) -> None:
        code = array.dtype.str[1:]
        if code not in DTYPES:
            raise WireError(f"an array of {array.dtype} cannot be sent", place=place, hint="use bool, integers or float16, 32 or 64")
        if array.ndim > MAX_AXES or not _fits(array.shape, array.itemsize, self.limits):
            raise WireError(f"an array of shape {array.shape} is beyond the limits of a message", place=place)
        plain = np.asarray(array, dtype="<" + code, order="C")
        self.parts.append(b"a" + code.encode() + bytes([array.ndim]) + struct.pack(f"<{array.ndim}Q", *array.shape))
        self.parts.append(plain.reshape(-1).view(np.uint8).data)

    def _count(self, items: int, depth: int, place: str) -> None:
        self.items += items
        self.deepest = max(self.deepest, depth)
        if self.items > self.limits.max_items:
            raise WireError(f"more than {self.limits.max_items:,} values in one message", place=place, hint="send numbers as one array")
        if depth > self.limits.max_depth:
            raise WireError(f"containers are nested deeper than {self.limits.max_depth}", place=place[:80])

    @staticmethod
    def _length(form: struct.Struct, length: int, place: str) -> bytes:
        if length >> (8 * form.size):
            raise WireError(f"a length of {length:,} is beyond the limits of a message", place=place)
        return form.pack(length)


class _Reader:
    """Reads values from a frame; every length is held against what is left before anything is made of it."""

    def __init__(self, view: memoryview, limits: Limits) -> None:
        self.view, self.limits = view, limits
        self.at = _HEADER_SIZE
        self.items = 0

    def error(self, message: str) -> WireError:
        return WireError(message, place=f"frame, byte {self.at}")

    def take(self, length: int) -> memoryview:
        if length > len(self.view) - self.at:
            raise self.error("the message ends inside a value")
        self.at += length
        return self.view[self.at - length : self.at]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def text(self, length: int) -> str:
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            raise self.error("a text is not UTF-8") from None

    def value(self, depth: int) -> Any:
        self.items += 1
        if self.items > self.limits.max_items:
            raise self.error(f"more than {self.limits.max_items:,} values in one message")
        read = _READERS.get(self.take(1)[0])
        if read is None:
            self.at -= 1
            raise self.error(f"no value begins with the byte {self.view[self.at]:#04x}")
        return read(self, depth)

    def integer(self, depth: int) -> int:
        length = self.number(_U16)
        number = int.from_bytes(self.take(length), "little", signed=True) if length <= MAX_INT_BITS // 8 + 1 else 0
        if length != number.bit_length() // 8 + 1 or number.bit_length() > MAX_INT_BITS:
            raise self.error("an integer is too long or not in its shortest form")
        return number

    def count(self, depth: int, least: int) -> int:
        """The number of entries of a container at ``depth``, each of which takes ``least`` bytes or more."""
        count = int(self.number(_U32))
        if depth > self.limits.max_depth:
            raise self.error(f"containers are nested deeper than {self.limits.max_depth}")
        if count * least > len(self.view) - self.at:
            raise self.error(f"a container says it has {count:,} entries, more than the message can hold")
        return count

    def list(self, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(self.count(depth + 1, 1))]

    def map(self, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        last: bytes | None = None
        for _ in range(self.count(depth + 1, 3)):
            start = self.at + _U16.size
            key = self.text(self.number(_U16))
            raw = bytes(self.view[start : self.at])
            if last is not None and raw <= last:
                raise self.error("the keys of a map are doubled or out of order")
            last = raw
            entries[key] = self.value(depth + 1)
        return entries

    def array(self, depth: int) -> npt.NDArray[Any]:
        code = str(self.take(2), "latin-1")
        axes = self.number(_U8)
        if code not in DTYPES or axes > MAX_AXES:
            raise self.error("an array has an unknown dtype or too many axes")
        shape = struct.unpack(f"<{axes}Q", self.take(8 * axes))
        dtype = np.dtype("<" + code)
        if not _fits(shape, dtype.itemsize, self.limits):
            raise self.error("an array is beyond the limits of a message")
        if any(self.take(-self.at % ALIGNMENT)):
            raise self.error("the padding before an array is not zero")
        raw = self.take(math.prod(shape) * dtype.itemsize)
        if code == "b1" and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
            raise self.error("a bool array holds something else")
        array = np.frombuffer(raw, dtype).reshape(shape)
        if not array.flags.aligned:  # the caller's buffer begins at an odd address
            array = array.copy()
            array.flags.writeable = False
        return array


_U8 = struct.Struct("<B")
_READERS = {
    ord("N"): lambda reader, depth: None,
    ord("T"): lambda reader, depth: True,
    ord("F"): lambda reader, depth: False,
    ord("i"): _Reader.integer,
    ord("d"): lambda reader, depth: reader.number(_F64),
    ord("s"): lambda reader, depth: reader.text(reader.number(_U32)),
    ord("b"): lambda reader, depth: bytes(reader.take(reader.number(_U64))),
    ord("a"): _Reader.array,
    ord("l"): _Reader.list,
    ord("m"): _Reader.map,
}


def _utf8(text: str, place: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise WireError("a text holds half a surrogate pair, which UTF-8 cannot write", place=place) from None


def _fits(shape: Iterable[int], itemsize: int, limits: Limits) -> bool:
    """Whether the shape is one numpy can make; lengths of zero do not hide absurd others."""
    return math.prod(max(1, length) for length in shape) * itemsize <= limits.max_bytes


def encode_message(message: Message, *, limits: Limits = _DEFAULT) -> bytes:
    """The frame of a message. Raises WireError if a field of its header is out of range or the body cannot be sent."""
    fields = {key: getattr(message, key) for key in KEYS}
    check_header(fields)
    return encode(fields, limits=limits)


def decode_message(data: Data, *, limits: Limits = _DEFAULT) -> Message:
    """The message of a frame. Raises WireError unless every field of the header is there, of its type and in range, and no other is."""
    fields = decode(data, limits=limits)
    if not isinstance(fields, dict) or fields.keys() != KEYS:
        raise WireError("the frame does not hold a message", place="message")
    check_header(fields)
    return Message(**fields)
