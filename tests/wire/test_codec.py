import hashlib
import math
import struct

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import WireError
from pppml_core.randomness import Secret
from pppml_core.wire.codec import MAX_INT_BITS, Encoded, Limits, decode, decode_message, encode, encode_message, encoded_size, sha256_of
from pppml_core.wire.messages import Message

CODES = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"]
ARRAYS = st.sampled_from(CODES).flatmap(lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20) | st.binary(max_size=70) | ARRAYS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return type(b) is float and struct.pack("<d", a) == struct.pack("<d", b)
    return type(a) is type(b) and a == b


def frame(value: bytes, version: int = 1) -> bytes:
    """A frame made by hand from the description in the module's docstring."""
    prologue = b"pppml" + bytes([version]) + b"\0\0" + struct.pack("<Q", 24 + len(value))
    return prologue + struct.pack("<Q", xxhash.xxh3_64_intdigest(prologue + value)) + value


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_every_value_comes_back_and_has_one_encoding(value):
    data = encode(value)
    back = decode(data)
    assert same(value, back)
    assert encode(back) == data
    assert encode(Encoded(value)) == data
    assert sha256_of({"x": Encoded(value)}) == sha256_of({"x": value})
    assert same(Encoded(value).value, value)


@given(st.lists(VALUES, max_size=3), ARRAYS)
@settings(max_examples=60, deadline=None)
def test_an_encoded_part_gives_the_same_bytes_wherever_it_stands(others, array):
    part = Encoded({"w": [array]})
    assert encode([*others, part, part]) == encode([*others, {"w": [array]}, {"w": [array]}])


def test_golden_bytes():
    body = {"b": b"\x01", "a": [None, True, -2, 0.5, "é"], "w": np.array([[1, 2]], np.int16)}
    array = b"ai2" + b"\x02" + struct.pack("<QQ", 1, 2)
    head = (
        b"m\x03\0\0\0"
        + (b"\x01\0a" + b"l\x05\0\0\0" + b"N" + b"T" + b"i\x01\0\xfe" + b"d" + struct.pack("<d", 0.5) + b"s\x02\0\0\0\xc3\xa9")
        + (b"\x01\0b" + b"b" + struct.pack("<Q", 1) + b"\x01")
        + b"\x01\0w"
        + array
    )
    padding = -(24 + len(head)) % 64
    assert encode(body) == frame(head + bytes(padding) + struct.pack("<hh", 1, 2))
    assert encode(None).hex() == "7070706d6c0100001900000000000000180d4fbdaf8546874e"
    assert sha256_of(body) == hashlib.sha256(b"pppml-value-v1" + head + struct.pack("<hh", 1, 2)).digest()
    assert sha256_of(body).hex() == "625234f7b6a1eb2ba565346f921a4b1107d4365888b188c85e93928e2cd914e9"


def test_order_of_keys_strides_and_byte_order_do_not_matter():
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    variants = [np.asfortranarray(plain), plain.astype(">f4"), np.repeat(plain, 2, axis=0)[::2]]
    assert {encode({"b": 1, "a": v}) for v in variants} == {encode({"a": plain, "b": 1})}


def test_numbers_of_numpy_become_numbers_of_python():
    back = decode(encode([np.float32(0.5), np.int64(3), np.bool_(True), (1, 2), bytearray(b"x"), memoryview(b"y")]))
    assert back == [0.5, 3, True, [1, 2], b"x", b"y"]
    assert [type(v) for v in back[:3]] == [float, int, bool]


def test_arrays_are_aligned_read_only_views_of_the_frame():
    data = encode({"n": 1, "x": np.arange(100, dtype=np.float64), "y": np.float16([1, 2])})
    back = decode(data)
    start = np.frombuffer(data, np.uint8).ctypes.data
    for array in (back["x"], back["y"]):
        offset = array.ctypes.data - start
        assert 0 < offset < len(data)
        assert offset % 64 == 0
        assert array.flags.aligned
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_frame_in_a_writable_or_odd_buffer_is_decoded_to_read_only_arrays():
    data = encode({"x": np.arange(5, dtype=np.float64)})
    for buffer in (bytearray(data), memoryview(b"z" + data)[1:]):
        array = decode(buffer)["x"]
        assert array.tolist() == [0, 1, 2, 3, 4]
        assert array.flags.aligned
        assert not array.flags.writeable


def test_encoded_keeps_the_values_it_was_given():
    array = np.zeros(4, np.float32)
    pre = Encoded({"w": array})
    array += 1
    assert decode(encode(pre))["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "number", [0, 1, -1, 127, 128, -128, -129, 2**63, 2 ** (MAX_INT_BITS - 1), 2**MAX_INT_BITS - 1, -(2**MAX_INT_BITS) + 1]
)
def test_integers_of_any_size(number):
    assert decode(encode(number)) == number


@pytest.mark.parametrize(
    ("body", "place", "reason"),
    [
        ({"a": {"b": [1, {2, 3}]}}, "body.a.b[1]", "a set cannot be sent"),
        ({"a": object()}, "body.a", "a object cannot"),
        ({"key": Secret(b"k")}, "body.key", "Secret cannot"),
        ({1: 2}, "body", "not a str"),
        ({"x": np.array(["a"])}, "body.x", "array of <U1"),
        ({"x": np.array([None])}, "body.x", "array of object"),
        ({"x": np.array([1j])}, "body.x", "complex128"),
        ({"x": np.zeros(3, "M8[s]")}, "body.x", "datetime64"),
        ({"x": 2**MAX_INT_BITS}, "body.x", "4097 bits"),
        ({"x": "\ud800"}, "body.x", "surrogate"),
        ({"\ud800": 1}, "body", "surrogate"),
        ({"k" * 70_000: 1}, "body", "length of 70,000"),
        ({"x": [0] * 300_000}, "body.x[", "more than 262,144 values"),
        ({"x": np.zeros((1,) * 17)}, "body.x", "beyond the limits"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(body, place, reason):
    with pytest.raises(WireError, match=reason) as caught:
        encode(body)
    assert caught.value.place.startswith(place)


def test_circular_and_deep_bodies_are_refused():
    circle: dict = {}
    circle["again"] = circle
    with pytest.raises(WireError, match="deeper than 32"):
        encode(circle)
    deep: list = []
    for _ in range(31):
        deep = [deep]
    assert decode(encode(deep)) == deep
    with pytest.raises(WireError, match="deeper"):
        encode([deep])
    with pytest.raises(WireError, match="deeper"):
        encode([Encoded(deep)])
    with pytest.raises(WireError, match="deeper"):
        decode(encode([deep], limits=Limits(max_depth=40)))


def test_limits_hold_on_both_sides():
    body = {"x": np.zeros(100, np.uint8)}
    with pytest.raises(WireError, match="allowed are 100"):
        encode(body, limits=Limits(max_bytes=100))
    with pytest.raises(WireError, match="allowed are 100"):
        decode(encode(body), limits=Limits(max_bytes=100))
    with pytest.raises(WireError, match="more than 3 values"):
        decode(encode([1, 2, 3]), limits=Limits(max_items=3))
    with pytest.raises(WireError, match="more than 5 values"):
        encode([Encoded([1, 2]), Encoded([3, 4])], limits=Limits(max_items=5))
    with pytest.raises(WireError, match="max_depth"):
        Limits(max_depth=10_000)


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "ends inside"),
        (b"x", "begins with the byte 0x78"),
        (b"NN", "follow the end"),
        (b"i\x00\x00", "shortest"),
        (b"i\x02\x00\x01\x00", "shortest"),
        (b"i\x01\x02" + bytes(513), "shortest"),
        (b"i\xff\xff" + bytes(0xFFFF), "shortest"),
        (b"i\x05\x00\x01", "ends inside"),
        (b"d1234", "ends inside"),
        (b"s" + u32(2**32 - 1) + b"a", "ends inside"),
        (b"s" + u32(2) + b"\xff\xfe", "UTF-8"),
        (b"s" + u32(3) + b"\xed\xa0\x80", "UTF-8"),
        (b"b" + u64(2**64 - 1), "ends inside"),
        (b"b" + u64(2**40), "ends inside"),
        (b"l" + u32(2**32 - 1), "more than the message can hold"),
        (b"m" + u32(2**31), "more than the message can hold"),
        (b"l\x01\0\0\0" * 40, "nested deeper"),
        (b"l" + u32(400_000) + b"N" * 400_000, "262,144 values"),
        (b"m" + u32(2) + b"\x01\0bN\x01\0aN", "doubled or out of order"),
        (b"m" + u32(2) + b"\x01\0aN\x01\0aN", "doubled or out of order"),
        (b"ao8\x00", "unknown dtype"),
        (b"aO8\x01" + u64(1), "unknown dtype"),
        (b"a\xff\xfe\x01" + u64(1), "unknown dtype"),
        (b"af4\xff", "too many axes"),
        (b"af4\x01" + u64(2**62), "beyond the limits"),
        (b"af8\x03" + u64(2**62) * 3, "beyond the limits"),
        (b"af4\x02" + u64(0) + u64(2**63), "beyond the limits"),
        (b"af4\x01" + u64(2**29) + bytes(64), "ends inside"),
        (b"ab1\x01" + u64(1) + bytes(28) + b"\x02", "bool array"),
        (b"ab1\x01" + u64(1) + bytes(27) + b"\x01\x01", "padding"),
    ],
)
def test_hostile_values_with_a_good_checksum(value, reason):
    with pytest.raises(WireError, match=reason):
        decode(frame(value))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (bytes(100), "not a pppml message"),
        (frame(b"N")[:-1], "was cut or joined"),
        (frame(b"N") + b"N", "was cut or joined"),
        (frame(b"N", version=2), "version 2, this side speaks 1"),
        (frame(b"N")[:-1] + b"T", "checksum"),
        (b"\x80\x04N.", "too few"),
    ],
)
def test_frames_that_are_not_whole(data, reason):
    with pytest.raises(WireError, match=reason):
        decode(data)


def message(**changes) -> Message:
    fields = {"run": bytes(16), "round": 1, "attempt": 1, "kind": "session", "stage": "share", "sender": "a_1", "recipient": "server"}
    return Message(**{**fields, "body": {"x": np.arange(3)}, **changes})


def test_a_message_comes_back():
    back = decode_message(encode_message(message()))
    assert back.body["x"].tolist() == [0, 1, 2]
    assert Message(**{**vars(back), "body": {}}) == message(body={})
    assert decode_message(encode_message(message(body=Encoded({"a": 1}).value))).body == {"a": 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run", b"short"),
        ("run", "0" * 16),
        ("round", -1),
        ("round", True),
        ("round", 1.0),
        ("round", 2**31),
        ("attempt", 0),
        ("kind", ""),
        ("kind", "Session"),
        ("stage", "two words"),
        ("stage", "x" * 65),
        ("stage", "x\n"),
        ("stage", None),
        ("sender", "../etc"),
        ("sender", "A"),
        ("sender", ""),
        ("sender", "server"),
        ("recipient", "a-b"),
        ("recipient", "a" * 65),
        ("body", [1]),
        ("body", None),
    ],
)
def test_a_header_out_of_range_is_refused_on_both_sides(field, value):
    with pytest.raises(WireError) as caught:
        encode_message(message(**{field: value}))
    assert caught.value.place.startswith("message.")
    with pytest.raises(WireError) as caught:
        decode_message(encode(vars(message(**{field: value}))))
    assert caught.value.place.startswith("message.")


@pytest.mark.parametrize(
    "fields", [[], None, {}, {**vars(message()), "extra": 1}, {k: v for k, v in vars(message()).items() if k != "run"}]
)
def test_a_frame_that_is_no_message(fields):
    with pytest.raises(WireError, match="does not hold a message"):
        decode_message(encode(fields))


def test_encoded_size_is_what_the_value_adds_to_a_frame():
    assert encoded_size([1, "abc"]) == len(encode([1, "abc"])) - 24
    assert encoded_size(np.zeros(10, np.float32)) == 1 + 2 + 1 + 8 + 40
    assert math.isnan(decode(encode(math.nan)))
