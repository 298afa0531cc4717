"""10,000 damaged messages, most with the checksum made right again so that the structure itself is what is tested."""

import contextlib
import struct
import time
import tracemalloc

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import WireError
from pppml_core.wire.codec import decode, decode_message, encode, encode_message
from pppml_core.wire.messages import Message

LENGTHS = [0, 1, 2, 3, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def rectified(data: bytes) -> bytes:
    """The frame with its length and checksum made right: an attacker can do that."""
    head = data[:8] + struct.pack("<Q", len(data))
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + data[24:])) + data[24:]


def originals() -> list[bytes]:
    rng = np.random.default_rng(1)
    shares = {f"site_{i}": rng.bytes(60) for i in range(12)}
    bodies = [
        {"values": rng.integers(-99, 99, 300).astype(np.int32), "note": "ä" * 20, "ok": True, "none": None},
        {"shares": shares, "n": [1, -5, 2**200, 0.25, [], {}, [[["x"]]]]},
        {
            "w": {"a.b": rng.random((3, 4, 5)).astype(np.float32), "c": np.array(True), "d": np.zeros((0, 7), np.float16)},
            "m": [rng.random(9) > 0.5],
        },
    ]
    return [encode_message(Message(bytes(range(16)), 3, 1, "reply", "share", "a", "server", body)) for body in bodies]


def mutated(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(24, max(25, len(damaged))))
        match rng.integers(7):
            case 0:
                if at < len(damaged):
                    damaged[at] ^= 1 << int(rng.integers(8))
            case 1:
                del damaged[at:]
            case 2:
                other = others[rng.integers(len(others))]
                start = int(rng.integers(24, len(other)))
                damaged[at:at] = other[start : start + int(rng.integers(1, 200))]
            case 3:
                del damaged[at : at + int(rng.integers(1, 60))]
            case 4:
                form = "<" + "BHIQ"[rng.integers(4)]
                size = struct.calcsize(form)
                damaged[at : at + size] = struct.pack(form, LENGTHS[rng.integers(len(LENGTHS))] % 2 ** (8 * size))
            case 5:
                damaged[at : at + 1] = b"NTFidsbalm"[(k := int(rng.integers(10))) : k + 1]
            case 6:
                damaged[at:at] = rng.bytes(int(rng.integers(1, 16)))
    return bytes(damaged)


def attempt(data: bytes) -> bool:
    """Whether the frame was accepted; then it is the one encoding of its value. Anything but a WireError fails the test."""
    with contextlib.suppress(WireError):
        decode_message(data)
    try:
        value = decode(data)
    except WireError:
        return False
    assert encode(value) == data
    return True


def test_ten_thousand_mutations_give_a_value_or_a_wire_error():
    frames, rng = originals(), np.random.default_rng(2)
    accepted = 0
    started = time.monotonic()
    for turn in range(10_000):
        data = mutated(frames[turn % len(frames)], frames, rng)
        accepted += attempt(rectified(data) if turn % 5 else data)
    assert 100 < accepted < 5_000, "the mutations must reach past the checksum and still break most frames"
    assert time.monotonic() - started < 60


def test_without_a_new_checksum_no_mutation_is_accepted():
    frames, rng = originals(), np.random.default_rng(3)
    for turn in range(1_000):
        data = mutated(frames[turn % 3], frames, rng)
        if data != frames[turn % 3]:
            with pytest.raises(WireError):
                decode(data)


def test_every_single_bit_of_a_frame_is_covered():
    data = encode({"a": np.arange(3, dtype=np.uint8), "b": "x"})
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode(damaged)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_edits_found_by_search(data):
    frame = bytearray(data.draw(st.sampled_from(originals())))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(24, len(frame)))
        stop = data.draw(st.integers(start, min(len(frame), start + 20)))
        frame[start:stop] = data.draw(st.binary(max_size=20))
    attempt(rectified(bytes(frame)))


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_arbitrary_bytes_as_a_value(value):
    attempt(rectified(encode(None)[:24] + value))


def test_a_damaged_frame_costs_little_memory():
    """The worst over the mutations, against what the frame's own bytes allow (each byte at most one small object)."""
    frames, rng = originals(), np.random.default_rng(4)
    damaged = [rectified(mutated(frames[i % 3], frames, rng)) for i in range(1_500)]
    tracemalloc.start()
    try:
        for data in damaged:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            attempt_decode(data)
            assert tracemalloc.get_traced_memory()[1] - before < 64 * len(data) + 20_000
        # The most that a frame of 300 KB can ask for: as many small values as the limits allow.
        bomb = rectified(encode(None)[:24] + b"l" + struct.pack("<I", 262_000) + b"l\0\0\0\0" * 262_000)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        attempt_decode(bomb)
        assert tracemalloc.get_traced_memory()[1] - before < 64 * 2**20
    finally:
        tracemalloc.stop()


def attempt_decode(data: bytes) -> None:
    with contextlib.suppress(WireError):
        decode(data)
