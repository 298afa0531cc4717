"""Shamir's secret sharing (1979, *How to share a secret*) of 32-byte secrets over a prime field.

A secret is the value at 0 of a random polynomial of degree t - 1; the share of holder x is its value at x. Any t shares give the secret
(Lagrange interpolation), t - 1 are uniform and say nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from pppml_core.errors import WireError

#: the largest prime below 2**264: above every 32-byte secret, and so close to a power of two that uniform bytes are nearly always below it.
PRIME = 2**264 - 275
SECRET_BYTES = 32
SHARE_BYTES = 33

Entropy = Callable[[int], bytes]


def split(secret: bytes, threshold: int, points: Iterable[int], draw: Entropy) -> dict[int, bytes]:
    """Point -> share, 33 bytes each; any ``threshold`` of them give the secret.

    Args:
        secret: 32 bytes.
        threshold: at least 1.
        points: distinct, each 1 or more.
        draw: uniform bytes from the operating system.
    """
    coefficients = [int.from_bytes(secret, "big"), *(_uniform(draw) for _ in range(threshold - 1))]
    shares = {}
    for x in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * x + coefficient) % PRIME
        shares[x] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The 32-byte secret that goes through all these shares, as many as the threshold. Raises WireError where there is none.

    A wrong share gives a wrong secret, or none: compare what comes out with what was committed to.
    """
    values = [int.from_bytes(share, "big") for share in shares.values()]
    secret = sum(value * weight for value, weight in zip(values, _weights(tuple(shares)), strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise WireError("these shares do not belong together", place="Shamir")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=4096)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's basis polynomials at 0, modulo the prime. The same holders stand behind many secrets."""
    weights = []
    for x in points:
        over, under = 1, 1
        for other in points:
            if other != x:
                over, under = over * other % PRIME, under * (other - x) % PRIME
        weights.append(over * pow(under, -1, PRIME) % PRIME)
    return tuple(weights)


def _uniform(draw: Entropy) -> int:
    while True:
        value = int.from_bytes(draw(SHARE_BYTES), "big")
        if value < PRIME:
            return value
