"""The noise in a BFV ciphertext, measured by hand on SEAL's bytes in Python integers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard

from pppml_core import lattice
from pppml_core.interfaces.he import HEParams
from pppml_core.randomness import Secret

#: SEAL's own header within what is unpacked: 32 bytes that name the parameters, and what follows them in a ciphertext and in a plaintext.
CIPHERTEXT, PLAINTEXT = 32 + 41, 32 + 16


@pytest.fixture
def noise_by_hand() -> Callable[[HEParams, Secret, bytes], np.ndarray]:
    return noise_of


def noise_of(params: HEParams, secret: Secret, ciphertext: bytes) -> np.ndarray:
    """``c0 + c1 s`` of every chunk of an encryption of zero modulo the first prime, nearest to zero, in order."""
    ring = lattice.ring_of(params)
    q, n = ring.primes[0], ring.degree
    key = np.empty(n, dtype=object)
    key[bit_reversed(n)] = words(field(field(lattice.without_header("secret key", params, secret.reveal())[1], 3), 1), PLAINTEXT)[:n]
    _, body = lattice.without_header("ciphertext", params, ciphertext)
    noise, at = [], 0
    while at < len(body):
        (length,) = struct.unpack_from("<I", body, at)
        seal = field(body[at + 4 : at + 4 + length], 2)
        ntt, polynomials, degree, primes, _, correction = struct.unpack_from("<BQQQdQ", expanded(seal), 32)
        assert (ntt, polynomials, degree, primes, correction) == (0, 2, n, len(ring.primes), 1)
        c0, c1 = words(seal, CIPHERTEXT).reshape(2, primes, n)[:, 0]
        plain = (c0 + from_roots(at_roots(c1, q) * key % q, q)) % q
        noise.append(np.where(plain > q // 2, plain - q, plain))
        at += 4 + length
    return np.concatenate(noise).astype(np.float64)


# -- SEAL's bytes: a protobuf field, a header of 16 bytes, zstd; within, a header, its length, the number of words, the words -------------


def field(message: bytes | memoryview, number: int) -> bytes:
    """The first field of that number of a protobuf message; all are of varying length."""
    message, at = bytes(message), 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        size = varint()
        if tag & 7 == 2:
            if tag >> 3 == number:
                return message[at : at + size]
            at += size
    raise AssertionError(f"no field {number}")


def expanded(seal: bytes) -> bytes:
    magic, size, _, _, compression = struct.unpack_from("<HBBBB", seal)
    assert (magic, size, compression) == (0xA15E, 16, 2)
    return zstandard.ZstdDecompressor().decompressobj().decompress(seal[16:])


def words(seal: bytes, header: int) -> Any:
    raw = expanded(seal)
    (count,) = struct.unpack_from("<Q", raw, header + 16)
    return np.frombuffer(raw, "<u8", count, header + 24).astype(object)


# -- the number theoretic transform: place j holds the value at psi^(2 j + 1), psi the smallest root; SEAL keeps it at bitrev(j) ----------


def bit_reversed(n: int) -> list[int]:
    bits = n.bit_length() - 1
    return [int(f"{j:0{bits}b}"[::-1], 2) for j in range(n)]


def smallest_root(n: int, q: int) -> int:
    """Of order 2 n modulo ``q``, as SEAL chooses it."""
    step = next(pow(a, (q - 1) // (2 * n), q) for a in range(2, 99) if pow(a, (q - 1) // 2, q) == q - 1)
    return min(powers(step, 2 * n, q)[1::2])


def at_roots(polynomial: np.ndarray, q: int) -> np.ndarray:
    psi = smallest_root(len(polynomial), q)
    return cyclic(polynomial * powers(psi, len(polynomial), q) % q, psi * psi % q, q)


def from_roots(values: np.ndarray, q: int) -> np.ndarray:
    n = len(values)
    inverse = pow(smallest_root(n, q), -1, q)
    return cyclic(values, inverse * inverse % q, q) * powers(inverse, n, q) % q * pow(n, -1, q) % q


def powers(base: int, n: int, q: int) -> np.ndarray:
    out = [1]
    for _ in range(n - 1):
        out.append(out[-1] * base % q)
    return np.array(out, dtype=object)


def cyclic(values: np.ndarray, omega: int, q: int) -> np.ndarray:
    """Values of a polynomial at 1, omega, omega^2 ... (Cooley and Tukey)."""
    if len(values) == 1:
        return values
    half, square = len(values) // 2, omega * omega % q
    even, odd = cyclic(values[::2], square, q), cyclic(values[1::2], square, q)
    odd = odd * powers(omega, half, q) % q
    return np.concatenate([(even + odd) % q, (even - odd) % q])
