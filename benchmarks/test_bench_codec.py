"""The codec on a 10 MB array and on a message of many small values; GB/s is in the extra info."""

import numpy as np
import pytest

from pppml_core.wire.codec import Encoded, decode, encode, encode_message
from pppml_core.wire.messages import Message

ARRAY = np.random.default_rng(0).random(2_500_000, dtype=np.float32)
SMALL = {f"site_{i}": {"share": bytes(80), "index": i, "ok": True} for i in range(200)}


def rate(benchmark, size: int) -> None:
    benchmark.extra_info["GB_per_s"] = round(size / benchmark.stats["median"] / 1e9, 2)


@pytest.mark.benchmark(group="codec, 10 MB float32")
def test_encode_10_mb(benchmark):
    benchmark(encode, {"weights": ARRAY})
    rate(benchmark, ARRAY.nbytes)


@pytest.mark.benchmark(group="codec, 10 MB float32")
def test_decode_10_mb(benchmark):
    frame = encode({"weights": ARRAY})
    benchmark(decode, frame)
    rate(benchmark, ARRAY.nbytes)


@pytest.mark.benchmark(group="codec, 10 MB float32")
def test_message_around_encoded_10_mb(benchmark):
    pre = Encoded({"weights": ARRAY})
    benchmark(encode_message, Message(bytes(16), 1, 1, "open", "model", "server", "a", {"common": pre}))
    rate(benchmark, ARRAY.nbytes)


@pytest.mark.benchmark(group="codec, 800 small values")
def test_encode_small_values(benchmark):
    benchmark(encode, SMALL)


@pytest.mark.benchmark(group="codec, 800 small values")
def test_decode_small_values(benchmark):
    benchmark(decode, encode(SMALL))
