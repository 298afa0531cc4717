"""SEAL's bytes as TenSEAL sends them, opened by hand: what a curious party can read from a message, in Python integers.

A chunk is a protobuf message whose field 2 is SEAL's object: a header of 16 bytes, then zstd. Within: 32 bytes that name the parameters,
a flag (number theoretic transform), three 64-bit integers (polynomials, ring degree, primes), the scale, a correction factor, a further
header, the number of words and the words, polynomial by polynomial and prime by prime.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from pppml_core import lattice
from pppml_core.errors import WireError
from pppml_core.interfaces.he import HEParams

Numbers = npt.NDArray[Any]


def fields(message: bytes) -> list[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message."""
    out: list[tuple[int, Any]] = []
    at = 0

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
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            out.append((tag >> 3, varint()))
            continue
        if size is None:
            size = varint()
        out.append((tag >> 3, message[at : at + size]))
        at += size
    return out


def field(message: bytes, number: int) -> Any:
    """The value of the first field of that number."""
    return next(value for found, value in fields(message) if found == number)


def expanded(seal: bytes) -> bytes:
    """What is behind SEAL's 16-byte header, which says that it is packed by zstd."""
    magic, size, _, _, compression = struct.unpack_from("<HBBBB", seal)
    if (magic, size, compression) != (0xA15E, 16, 2):
        raise WireError("not a zstd-packed object of SEAL", place="he-key-recovery")
    return zstandard.ZstdDecompressor().decompressobj().decompress(seal[16:])


@dataclass(frozen=True)
class Ciphertext:
    """Two polynomials modulo each prime: ``parts[polynomial][prime]``, N Python integers; ``scale``: of the encoding."""

    parts: Numbers
    scale: float


class Seal:
    """The reader of one set of parameters.

    Raises WireError on bytes that are not what TenSEAL writes.
    """

    def __init__(self, params: HEParams) -> None:
        self.params = params
        self.ring = lattice.ring_of(params)
        self.degree = self.ring.degree

    def ciphertexts(self, data: bytes) -> list[Ciphertext]:
        """Each chunk of an encrypted vector."""
        _, body = lattice.without_header("ciphertext", self.params, data)
        out, at = [], 0
        while at < len(body):
            (length,) = struct.unpack_from("<I", body, at)
            out.append(self._ciphertext(expanded(field(bytes(body[at + 4 : at + 4 + length]), 2))))
            at += 4 + length
        return out

    def _ciphertext(self, raw: bytes) -> Ciphertext:
        _, size, degree, primes, scale, correction = struct.unpack_from("<BQQQdQ", raw, 32)
        if (size, degree, primes, correction) != (2, self.degree, len(self.ring.primes), 1):
            raise WireError("not a fresh ciphertext of these parameters", place="he-key-recovery")
        (count,) = struct.unpack_from("<Q", raw, 32 + 41 + 16)
        if count != 2 * primes * degree:
            raise WireError("a ciphertext of another size", place="he-key-recovery")
        words = np.frombuffer(raw, "<u8", count, 32 + 41 + 24)
        return Ciphertext(words.reshape(2, primes, degree).astype(object), scale)

    # -- the number theoretic transform, in SEAL's order: place j holds the value at psi^(2 bitrev(j) + 1), psi the smallest root

    def psi(self, q: int) -> int:
        """The smallest primitive root of unity of order 2N modulo ``q``, as SEAL chooses it."""
        step = next(pow(a, (q - 1) // (2 * self.degree), q) for a in range(2, 99) if pow(a, (q - 1) // 2, q) == q - 1)
        square, root, least = step * step % q, step, step
        for _ in range(self.degree):
            least, root = min(least, root), root * square % q
        return least

    def order(self) -> Numbers:
        """Place j of SEAL's order is place ``order[j]`` of the natural one."""
        bits = self.degree.bit_length() - 1
        return np.array([int(f"{j:0{bits}b}"[::-1], 2) for j in range(self.degree)])

    def forward(self, polynomial: Numbers, q: int) -> Numbers:
        """Values at psi, psi^3, psi^5 ..., from N coefficients."""
        psi = self.psi(q)
        return _cyclic(polynomial * _powers(psi, self.degree, q) % q, psi * psi % q, q)

    def backward(self, values: Numbers, q: int) -> Numbers:
        """Coefficients nearest to zero, the inverse of :meth:`forward`."""
        psi = self.psi(q)
        inverse = pow(psi, -1, q)
        twisted = _cyclic(values % q, inverse * inverse % q, q) * _powers(inverse, self.degree, q) % q
        plain = twisted * pow(self.degree, -1, q) % q
        return np.where(plain > q // 2, plain - q, plain)

    def natural(self, values: Numbers) -> Numbers:
        """From SEAL's order to the natural one."""
        out = np.empty_like(values)
        out[self.order()] = values
        return out


def _powers(base: int, n: int, q: int) -> Numbers:
    out, power = [], 1
    for _ in range(n):
        out.append(power)
        power = power * base % q
    return np.array(out, dtype=object)


def _cyclic(values: Numbers, omega: int, q: int) -> Numbers:
    """Values of a polynomial at 1, omega, omega^2 ... (Cooley and Tukey)."""
    if len(values) == 1:
        return values
    half, square = len(values) // 2, omega * omega % q
    even, odd = _cyclic(values[::2], square, q), _cyclic(values[1::2], square, q)
    odd = odd * _powers(omega, half, q) % q
    return np.concatenate([(even + odd) % q, (even - odd) % q])
