"""The distinguisher: blind where there is nothing, sharp where a single bit says it."""

import os

import numpy as np
import pytest

from pppml_core.testing import distinguish

BLIND = (0.42, 0.58)


def blind(view, **options):
    """Whether one of two accuracies is that of a coin. Both are outside with probability 8e-8 (500 fair coins: 2.8e-4)."""
    return any(BLIND[0] <= distinguish(view, **options) <= BLIND[1] for _ in range(2))


@pytest.mark.parametrize("length", [8, 200, 5000])
def test_uniform_bytes_say_nothing(length):
    draw = np.random.Generator(np.random.PCG64(length))
    assert BLIND[0] <= distinguish(lambda world, trial: draw.bytes(length)) <= BLIND[1]


@pytest.mark.parametrize("place", [0, 1999, 4999])
def test_one_bit_among_forty_thousand_is_found(place):
    def view(world, trial):
        data = bytearray(os.urandom(5000))
        data[place] = data[place] & 0xFE | world
        return bytes(data)

    assert distinguish(view) == 1.0


def test_the_length_counts():
    assert distinguish(lambda world, trial: os.urandom(100 + world)) == 1.0
    assert distinguish(lambda world, trial: bytes(world)) == 1.0


def test_a_byte_that_is_larger_on_average_is_found():
    draw = np.random.Generator(np.random.PCG64(5))

    def view(world, trial):
        return bytes([int(draw.integers(0, 150)) + 90 * world]) + draw.bytes(50)

    # The best threshold on it is right in 1 - (150 - 90) / 150 / 2 of the trials.
    assert distinguish(view) == pytest.approx(0.8, abs=0.06)


def test_a_contribution_in_the_clear_and_behind_a_mask():
    inputs = [np.arange(-5, 5, dtype=np.int32), np.arange(5, -5, -1, dtype=np.int32)]

    def masked(world, trial):
        return (inputs[world].view(np.uint32) + np.frombuffer(os.urandom(40), np.uint32)).tobytes()

    def small_mask(world, trial):
        noise = np.frombuffer(os.urandom(10), np.int8).astype(np.int32)
        return ((1000 * inputs[world]) + noise).tobytes()

    assert blind(masked)
    assert distinguish(small_mask) >= 0.99
    assert distinguish(lambda world, trial: inputs[world].tobytes()) == 1.0


def test_it_is_the_trial_that_is_new_and_worlds_are_even():
    seen = []
    distinguish(lambda world, trial: seen.append((world, trial)) or b"x", trials=101)
    assert [trial for _, trial in seen] == list(range(101))
    assert sum(world for world, _ in seen) == 50
    assert len({tuple(w for w, _ in seen[i : i + 10]) for i in range(90)}) > 20


def test_too_few_trials_are_refused():
    with pytest.raises(ValueError, match="at least 40"):
        distinguish(lambda world, trial: b"", trials=39)
