"""CKKS ciphertexts and their decrypted numbers give the secret key (Li and Micciancio 2021), unless the numbers were rounded.

The attacker holds what a server holds: every site's ciphertext, their sum, and the decrypted sum of two chunks. TenSEAL gives real parts
only, that is p(X) + p(1/X) for p = c0 + c1 s; with one equation a chunk, two chunks determine s at each root of unity and its inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pppml_core.values import ValueSpec
from pppml_he_tenseal.backend import TenSEALBackend
from pppml_he_tenseal.config import TenSEALConfig


def real_parts_as_polynomial(numbers: np.ndarray, scale: float, degree: int) -> np.ndarray:
    """The integer coefficients of p(X) + p(1/X), from the real parts of p at zeta^(3^j), zeta = exp(i pi / N)."""
    values = np.empty(degree)
    power = 1
    for number in numbers:
        values[(power - 1) // 2] = values[(2 * degree - power - 1) // 2] = number  # a root and its conjugate
        power = power * 3 % (2 * degree)
    coefficients = np.fft.fft(values) / degree * np.exp(-1j * np.pi * np.arange(degree) / degree)
    return np.rint(2 * scale * coefficients.real).astype(np.int64).astype(object)


def recover(reader: Any, chunks: list[Any], numbers: list[np.ndarray]) -> np.ndarray:
    """The secret key's coefficients modulo the first prime, nearest to zero."""
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


def world(config: TenSEALConfig, draw: Any, bound: int | None) -> tuple[Any, ...]:
    """Three sites' vectors of two chunks, their ciphertexts, the sum's ciphertext and its decryption."""
    backend = TenSEALBackend(config)
    slots = backend.plan(ValueSpec(1, "integer", bound), 3).details["slots"]
    params = backend.plan(ValueSpec(2 * slots, "integer", bound), 3)
    public, secret = backend.keygen(params)
    updates = [draw(np.random.default_rng(site), params.length) for site in range(3)]
    encrypted = [backend.encrypt(params, public, update) for update in updates]
    total = backend.add(params, backend.add(params, encrypted[0], encrypted[1]), encrypted[2])
    return params, secret, updates, encrypted, total, backend.decrypt(params, secret, total)


def true_key(reader: Any, secret: Any) -> np.ndarray:
    q = reader.ring.primes[0]
    return reader.backward(reader.natural(reader.secret(secret)), q)


def read_update(reader: Any, ciphertext: bytes, key: np.ndarray) -> np.ndarray:
    """Numbers of the first chunk of a site, decrypted by hand with a recovered key."""
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


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean(one == other))


def test_the_papers_parameters_give_the_key_and_an_update(seal: Any) -> None:
    config = TenSEALConfig(scheme="ckks", preset="paper")
    # Of the 4,096 pairs of equations modulo a prime of 31 bits one cannot be solved with probability 2e-6; then another sum is attacked.
    for _ in range(2):
        params, secret, updates, encrypted, total, decrypted = world(config, lambda g, d: g.normal(size=d), None)
        reader = seal(params)
        key = recover(reader, reader.ciphertexts(total), list(decrypted.reshape(2, -1)))
        if set(key) == {-1, 0, 1}:
            break
    assert set(key) == {-1, 0, 1}
    assert agreement(key, true_key(reader, secret)) == 1.0
    found = read_update(reader, encrypted[0], key)
    assert np.corrcoef(found, updates[0][: len(found)])[0, 1] > 0.999999


@pytest.mark.parametrize("bound", [100, 32767])
def test_the_release_rule_leaves_nothing_to_solve(bound: int, seal: Any) -> None:
    """The same attack on planned parameters: it succeeds on the numbers with their error (the control), not on the nearest integers."""
    config = TenSEALConfig(scheme="ckks")
    draw = lambda g, d: g.integers(-bound, bound, d, endpoint=True).astype(np.float64)  # noqa: E731
    params, secret, updates, encrypted, total, decrypted = world(config, draw, bound)
    reader = seal(params)
    chunks, own = reader.ciphertexts(total), true_key(reader, secret)
    control = recover(reader, chunks, list(decrypted.reshape(2, -1)))
    assert agreement(control, own) == 1.0
    found = read_update(reader, encrypted[0], control)
    assert np.corrcoef(found, updates[0][: len(found)])[0, 1] > 0.999999

    released = np.rint(decrypted)
    assert (released == sum(updates)).all()
    key = recover(reader, chunks, list(released.reshape(2, -1)))
    assert agreement(key, own) < 0.01
    assert np.abs(key.astype(np.float64)).mean() > reader.ring.primes[0] / 8, "uniform below the prime"
    found = read_update(reader, encrypted[0], key)
    assert abs(np.corrcoef(found, updates[0][: len(found)])[0, 1]) < 6 / np.sqrt(len(found)), "by chance with probability 2e-9"
