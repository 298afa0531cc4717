"""Self-masks and shares: exactly uniform, the documented stream, sums without carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from scipy import stats

from pppml_cyclic_he import uniform

SEED = bytes(range(32))
MODULI = [2, 3, 257, 520_193, 1_032_193, 2**20, 2**32 - 5, 2**32, 2**32 + 15, 2**61 - 1]


def oracle(seed: bytes, length: int, modulus: int) -> list[int]:
    """The documented stream in Python's integers, AES called block by block on a counter."""
    block = Cipher(AES(seed), ECB()).encryptor()
    size = 4 if modulus <= 2**32 else 8
    bits = (modulus - 1).bit_length()
    out: list[int] = []
    counter, stream = 0, b""
    while len(out) < length:
        if len(stream) < size:
            stream += block.update(counter.to_bytes(16, "big"))
            counter += 1
        word, stream = int.from_bytes(stream[:size], "little") % 2**bits, stream[size:]
        if word < modulus:
            out.append(word)
    return out


@pytest.mark.parametrize("modulus", MODULI)
def test_the_documented_stream(modulus: int) -> None:
    for length in (1, 7, 1000):
        found = uniform.residues(SEED, length, modulus)
        assert found.dtype == np.uint64
        assert found.tolist() == oracle(SEED, length, modulus)


def test_the_stream_does_not_depend_on_how_much_is_asked_for() -> None:
    whole = uniform.residues(SEED, 300_000, 520_193)
    for length in (1, 65_535, 65_536, 131_073):
        assert np.array_equal(uniform.residues(SEED, length, 520_193), whole[:length])
    assert uniform.residues(SEED, 0, 520_193).shape == (0,)


def test_aes_is_the_standard_one() -> None:
    """FIPS 197, appendix C.3: the first block of the stream is AES-256 of the zero block under this key."""
    key, plain = bytes(range(32)), bytes.fromhex("00112233445566778899aabbccddeeff")
    encryptor = Cipher(AES(key), ECB()).encryptor()
    assert encryptor.update(plain).hex() == "8ea2b7ca516745bfeafc49904b496089"
    first = uniform.residues(key, 4, 2**32).astype("<u4").tobytes()
    assert first == Cipher(AES(key), ECB()).encryptor().update(bytes(16))


@pytest.mark.parametrize("modulus", [3, 257, 1000])
def test_uniform(modulus: int) -> None:
    """A remainder instead of a rejection would favour small residues: by 1 in 2 for a modulus of 3, which this sees at once."""
    counts = np.bincount(uniform.residues(SEED, 600_000, modulus).astype(np.int64), minlength=modulus)
    assert len(counts) == modulus
    assert stats.chisquare(counts).pvalue > 1e-6


def test_other_seeds_give_other_masks() -> None:
    one, other = (uniform.residues(seed, 1000, 520_193) for seed in (SEED, bytes(32)))
    assert np.count_nonzero(one == other) < 5


@pytest.mark.parametrize("modulus", [2, 257, 2**32 + 15, 2**61 - 1])
@pytest.mark.parametrize("do", ["add", "subtract"])
def test_sums_of_residues(modulus: int, do: str) -> None:
    edge = np.array([0, 1, modulus - 1, modulus // 2], np.uint64)
    left = np.concatenate([np.repeat(edge, 4), uniform.residues(SEED, 500, modulus)])
    right = np.concatenate([np.tile(edge, 4), uniform.residues(bytes(32), 500, modulus)])
    sign = 1 if do == "add" else -1
    expected: list[Any] = [(int(a) + sign * int(b)) % modulus for a, b in zip(left, right, strict=True)]
    before = right.copy()
    getattr(uniform, do)(left, right, modulus)
    assert left.tolist() == expected
    assert np.array_equal(right, before)
