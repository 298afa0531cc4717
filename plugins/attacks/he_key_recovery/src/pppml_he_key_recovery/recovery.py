"""The secret key from ciphertexts and their decrypted numbers (Li and Micciancio 2021, On the Security of Homomorphic Encryption on
Approximate Numbers, EUROCRYPT, eprint 2020/1533).

Decrypting CKKS gives p = c0 + c1 s with its error, so whoever has a ciphertext and p can solve for s. TenSEAL gives real parts only, that
is p(X) + p(1/X): one equation a chunk for the key at a root of unity and at its inverse. Two chunks determine both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pppml_he_key_recovery.seal import Ciphertext, Numbers, Seal


def recover(reader: Seal, chunks: Sequence[Ciphertext], numbers: Sequence[Numbers]) -> Numbers:
    """The secret key's coefficients modulo the first prime, nearest to zero, shape ``(ring degree,)``; of a true key all are -1, 0 or 1.

    Args:
        reader: of the parameters.
        chunks: two chunks of a sum.
        numbers: what each decrypts to, float64 ``(slots,)``, as far as it was published.

    """
    q, n = reader.ring.primes[0], reader.degree
    rows = []
    for chunk, found in zip(chunks, numbers, strict=True):
        known = reader.forward(real_parts_as_polynomial(found, chunk.scale, n) % q, q)
        c0, c1 = (reader.natural(chunk.parts[i][0]) for i in (0, 1))
        # c1(z) s(z) + c1(1/z) s(1/z) = known(z) - c0(z) - c0(1/z); place n-1-i of the natural order is the inverse of place i
        rows.append((c1, c1[::-1], (known - c0 - c0[::-1]) % q))
    (a, b, y), (c, d, z) = rows
    determinant = (a * d - b * c) % q
    inverse = np.array([pow(int(x), -1, q) if x else 0 for x in determinant], dtype=object)
    return reader.backward((y * d - b * z) * inverse % q, q)


def is_key(found: Numbers) -> bool:
    """Whether these are the coefficients of a secret key: wrong ones would be anything below the prime."""
    return set(found.tolist()) <= {-1, 0, 1}


def real_parts_as_polynomial(numbers: Numbers, scale: float, degree: int) -> Numbers:
    """The integer coefficients of p(X) + p(1/X), from the real parts of p at zeta^(3^j), zeta = exp(i pi / N)."""
    values = np.empty(degree)
    power = 1
    for number in numbers:
        values[(power - 1) // 2] = values[(2 * degree - power - 1) // 2] = number  # a root and its conjugate
        power = power * 3 % (2 * degree)
    coefficients = np.fft.fft(values) / degree * np.exp(-1j * np.pi * np.arange(degree) / degree)
    whole: Numbers = np.rint(2 * scale * coefficients.real).astype(np.int64).astype(object)
    return whole


def read(reader: Seal, ciphertext: bytes, key: Numbers) -> Numbers:
    """The numbers of a ciphertext's first chunk, decrypted by hand with a recovered key, float64 ``(slots,)``."""
    q, n = reader.ring.primes[0], reader.degree
    chunk = reader.ciphertexts(ciphertext)[0]
    c0, c1 = (reader.natural(chunk.parts[i][0]) for i in (0, 1))
    plain = reader.backward((c0 + c1 * reader.forward(key % q, q)) % q, q).astype(np.float64)
    values = np.fft.ifft(plain * np.exp(1j * np.pi * np.arange(n) / n)) * n
    power, out = 1, np.empty(n // 2)
    for j in range(n // 2):
        out[j] = values[(power - 1) // 2].real / chunk.scale
        power = power * 3 % (2 * n)
    return out
