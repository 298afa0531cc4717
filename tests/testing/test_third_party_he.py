"""A back end that somebody else could write: additively homomorphic encryption after Paillier (1999), in one class over the interface.

TOY: 256-bit keys that a laptop factors, plain Python integers, no constant time. For tests only; it claims no security.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pppml_core.component import Component, ComponentConfig
from pppml_core.errors import PlanRefused, WireError
from pppml_core.interfaces.he import HEBackend, HEParams, limbs_for
from pppml_core.randomness import Secret, entropy
from pppml_core.testing import HEBackendSuite
from pppml_core.testing.he_suite import refused
from pppml_core.values import ValueSpec

MAGIC = b"TOYPAIL1"
MODULUS = 1_032_193  # of the residues
KEY = 32  # bytes of N = p q
HEADER = len(MAGIC) + 32 + KEY
WORD = 2 * KEY  # bytes of a number modulo N^2


class ToyPaillier(HEBackend):
    """c = (1 + m N) r^N mod N^2. Residues are packed, several a plaintext, with room for the carries of all additions.

    Adding is multiplication modulo N^2, so N, which is public, is what a header names the key by.
    """

    def plan(self, value: ValueSpec, additions: int) -> HEParams:
        """Bounded integers whose sum fits 63 bits."""
        if value.kind != "integer" or value.bound is None or additions < 1 or value.bound * additions >= 2**63:
            raise PlanRefused(["toy-paillier: adds bounded integers whose sum fits 63 bits only"])
        limbs, bits = limbs_for(value.bound, additions, MODULUS)
        length, slot = limbs * value.length, (additions * MODULUS).bit_length()
        slots = (8 * KEY - 2) // slot
        return HEParams(
            backend="toy-paillier",
            scheme="paillier",
            arithmetic="exact",
            length=length,
            plaintext_modulus=MODULUS,
            limbs=limbs,
            limb_bits=bits,
            additions=additions,
            security_bits=0,
            log2_failure=-1024.0,
            error_std=None,
            ciphertext_bytes=HEADER + WORD * -(-length // slots),
            details={"key_bits": 8 * KEY, "slot_bits": slot, "slots": slots},
        )

    def keygen(self, params: HEParams) -> tuple[bytes, Secret]:
        """Two primes of 128 bits with the top two bits set, so that N has all of its 256."""
        p, q = _prime(4 * KEY), _prime(4 * KEY)
        header = _header(params, p * q)
        return header, Secret(header + p.to_bytes(KEY // 2, "big") + q.to_bytes(KEY // 2, "big"))

    def encrypt(self, params: HEParams, public: bytes, values: Any) -> bytes:
        """Packed residues, each plaintext with randomness of its own."""
        n = _checked(params, public)
        if len(public) != HEADER or n.bit_length() != 8 * KEY:
            raise WireError("not a public key of toy-paillier", place="public key")
        fits = isinstance(values, np.ndarray) and values.dtype == np.uint64 and values.shape == (params.length,)
        if not fits or int(values.max()) >= MODULUS:
            raise WireError(f"not {params.length} residues modulo {MODULUS}", place="plaintext")
        slot, slots = params.details["slot_bits"], params.details["slots"]
        numbers = []
        for start in range(0, params.length, slots):
            packed = sum(int(v) << (slot * i) for i, v in enumerate(values[start : start + slots]))
            numbers.append((1 + packed * n) * pow(_unit(n), n, n * n) % (n * n))
        return _header(params, n) + b"".join(c.to_bytes(WORD, "big") for c in numbers)

    def add(self, params: HEParams, left: bytes, right: bytes) -> bytes:
        """Products modulo N^2."""
        (n, one), (other_n, other) = _opened(params, left), _opened(params, right)
        if n != other_n:
            raise WireError("two ciphertexts of different keys cannot be added", place="ciphertext")
        return _header(params, n) + b"".join((a * b % (n * n)).to_bytes(WORD, "big") for a, b in zip(one, other, strict=True))

    def decrypt(self, params: HEParams, secret: Secret, ciphertext: bytes) -> Any:
        """m = L(c^lambda) / lambda modulo N, with L(x) = (x - 1) / N; then unpacked and reduced."""
        held = secret.reveal()
        own = _checked(params, held[:HEADER])
        p, q = int.from_bytes(held[HEADER : HEADER + KEY // 2], "big"), int.from_bytes(held[HEADER + KEY // 2 :], "big")
        if len(held) != HEADER + KEY or p * q != own:
            raise WireError("not a secret key of toy-paillier", place="secret key")
        n, numbers = _opened(params, ciphertext)
        if n != own:
            raise WireError("this ciphertext is of another key", place="ciphertext")
        order = math.lcm(p - 1, q - 1)
        inverse = pow(order, -1, n)
        slot, slots = params.details["slot_bits"], params.details["slots"]
        residues = []
        for c in numbers:
            packed = (pow(c, order, n * n) - 1) // n * inverse % n
            residues += [(packed >> (slot * i)) % (1 << slot) % MODULUS for i in range(slots)]
        return np.array(residues[: params.length], np.uint64)


def _header(params: HEParams, n: int) -> bytes:
    return MAGIC + params.sha256 + n.to_bytes(KEY, "big")


def _checked(params: HEParams, header: bytes) -> int:
    if len(header) != HEADER or not header.startswith(MAGIC + params.sha256):
        raise WireError("not of toy-paillier, or of other parameters", place="header")
    return int.from_bytes(header[-KEY:], "big")


def _opened(params: HEParams, ciphertext: bytes) -> tuple[int, list[int]]:
    n = _checked(params, ciphertext[:HEADER])
    if len(ciphertext) != params.ciphertext_bytes:
        raise WireError("a ciphertext of another length", place="ciphertext")
    numbers = [int.from_bytes(ciphertext[i : i + WORD], "big") for i in range(HEADER, len(ciphertext), WORD)]
    if any(c >= n * n or math.gcd(c, n) != 1 for c in numbers):
        raise WireError("a ciphertext with a number that is no unit modulo N^2", place="ciphertext")
    return n, numbers


def _unit(n: int) -> int:
    while True:
        r = int.from_bytes(entropy(KEY), "big") % n
        if math.gcd(r, n) == 1:
            return r


def _prime(bits: int) -> int:
    """A random prime (Miller-Rabin, 30 rounds) with its top two bits set."""
    while True:
        candidate = int.from_bytes(entropy(bits // 8), "big") | 3 << (bits - 2) | 1
        if candidate % 3 and candidate % 5 and candidate % 7 and _probably_prime(candidate):
            return candidate


def _probably_prime(n: int) -> bool:
    odd = n - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    for _ in range(30):
        x = pow(2 + int.from_bytes(entropy(16), "big") % (n - 3), odd, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


class TestToyPaillier(HEBackendSuite):
    component = Component("toy-paillier", ComponentConfig, f"{__name__}:ToyPaillier", "TOY: Paillier with 256-bit keys, for tests only")
    toy = True
    header_bytes = HEADER
    length = 20

    def build(self, settings: ComponentConfig) -> ToyPaillier:
        return ToyPaillier(settings)


def test_only_the_claim_of_security_is_waived():
    class Serious(TestToyPaillier):
        toy = False

    with pytest.raises(AssertionError, match="0 bits of security"):
        Serious().test_plan()


def test_foreign_ciphertexts_are_told_apart():
    """Known answer: the product of encryptions of 2 and 3 decrypts to 5."""
    backend = ToyPaillier(ComponentConfig())
    params = backend.plan(ValueSpec(3, "integer", 10), 4)
    public, secret = backend.keygen(params)
    two, three = (backend.encrypt(params, public, np.full(3, v, np.uint64)) for v in (2, 3))
    assert backend.decrypt(params, secret, backend.add(params, two, three)).tolist() == [5, 5, 5]
    refused("zeros", backend.decrypt, params, secret, two[:HEADER] + bytes(len(two) - HEADER))
