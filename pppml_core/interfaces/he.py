"""HE back ends: additively homomorphic encryption of whole vectors.

A back end is five functions over bytes. It plans public parameters, makes keys, encrypts, adds and decrypts; what its bytes mean it alone
knows. Exact schemes work on residues modulo ``params.plaintext_modulus``, approximate ones on floating-point numbers. A whole back end::

    class MyBackend(HEBackend):
        def plan(self, value, additions):            # public parameters, or PlanRefused with every reason
            limbs, bits = limbs_for(value.bound, additions, modulus)
            return HEParams("mine", "bfv", "exact", limbs * value.length, modulus, limbs, bits, additions, 128, ...)

        def keygen(self, params):                    # (public key, secret key)
        def encrypt(self, params, public, values):   # fresh randomness from the operating system each time
        def add(self, params, left, right):          # neither key is needed
        def decrypt(self, params, secret, ciphertext):

Every ciphertext begins with a versioned header that names back end, parameters and key (by hash), so that foreign, mixed or truncated
bytes are refused with WireError instead of decrypted to garbage. A ciphertext or a public key never contains secret key material.
``HEBackendSuite`` of ``pppml_core.testing`` is what a back end must pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig
from pppml_core.errors import WireError
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import sha256_of

Residues = npt.NDArray[np.uint64]
Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HEParams:
    """Public parameters of one session, chosen for the value, the number of additions and 128-bit security.

    Args:
        backend, scheme: names, ``pyfhel`` and ``bfv``.
        arithmetic: ``exact`` (residues) or ``approximate`` (floats).
        length: plaintext numbers in a vector: ``limbs`` times the value's length.
        plaintext_modulus: of an exact scheme.
        limbs, limb_bits: how one integer is written as ``limbs`` balanced digits of ``limb_bits`` bits, each summed on its own.
        additions: ciphertexts that may be summed, the first included.
        security_bits: classical, by the HomomorphicEncryption.org standard table; at least 128.
        log2_failure: exact schemes: log2 of a bound on the chance that decrypting one summed vector is wrong; at most -64.
        error_std: approximate schemes: standard deviation of one number of a decrypted sum, in units of the encrypted numbers.
        ciphertext_bytes: size of one ciphertext on the wire.
        details: what else a person may want to know: ring degree, primes, scale, library version. Plain data.
    """

    backend: str
    scheme: str
    arithmetic: Literal["exact", "approximate"]
    length: int
    plaintext_modulus: int | None
    limbs: int
    limb_bits: int
    additions: int
    security_bits: int
    log2_failure: float | None
    error_std: float | None
    ciphertext_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> bytes:
        """What headers, adverts and transcripts name these parameters by."""
        plain = {name: getattr(self, name) for name in sorted(self.__dataclass_fields__) if name != "details"}
        return sha256_of({**plain, "details": {name: self.details[name] for name in sorted(self.details)}})

    def residues(self, integers: npt.NDArray[np.integer[Any]]) -> Residues:
        """Integers, shape ``(n,)``, as residues modulo the plaintext modulus, shape ``(limbs * n,)``: all lowest digits first.

        Raises WireError where an integer does not fit ``limbs`` digits.
        """
        modulus = self._modulus()
        rest = integers.astype(np.int64)
        out = np.empty((self.limbs, len(rest)), np.uint64)
        half, base = 1 << (self.limb_bits - 1), 1 << self.limb_bits
        for digit in out[:-1]:
            low = ((rest + half) & (base - 1)) - half  # in [-half, half)
            digit[:] = np.where(low < 0, low + modulus, low)
            rest = (rest - low) >> self.limb_bits
        if len(rest) and max(int(rest.max()), -int(rest.min())) > half:
            raise WireError(f"an integer does not fit {self.limbs} digits of {self.limb_bits} bits", place="limbs")
        out[-1] = np.where(rest < 0, rest + modulus, rest)
        return out.reshape(-1)

    def integers(self, residues: Residues) -> npt.NDArray[np.int64]:
        """The sum that summed residues stand for, shape ``(n,)``: each digit is the one nearest to zero."""
        modulus = self._modulus()
        if residues.shape != (self.length,) or (len(residues) and int(residues.max()) >= modulus):
            raise WireError(f"not {self.length} residues modulo {modulus}", place="limbs")
        total = np.zeros(self.length // self.limbs, np.int64)
        for digit in residues.reshape(self.limbs, -1)[::-1]:
            signed = digit.astype(np.int64)
            signed[signed > modulus // 2] -= modulus
            total = (total << self.limb_bits) + signed
        return total

    def _modulus(self) -> int:
        if self.plaintext_modulus is None:
            raise WireError("an approximate scheme has no plaintext modulus", place="limbs")
        return self.plaintext_modulus


def limbs_for(bound: int, additions: int, modulus: int) -> tuple[int, int]:
    """(limbs, bits a limb): the fewest digits so that ``additions`` times the largest digit stays below ``modulus / 2``.

    ``bound``: largest absolute value of one integer. Raises ValueError where not even one bit a digit fits.
    """
    # A digit of b bits is at most 2**(b-1) in absolute value.
    bits = ((modulus - 1) // 2 // additions).bit_length()
    if bits < 2:
        raise ValueError(f"a modulus of {modulus} holds no sum of {additions} digits")
    limbs = 1
    while bound > _largest(limbs, bits):
        limbs += 1
    if limbs == 1:
        return 1, (max(1, bound) - 1).bit_length() + 1
    while bits > 2 and bound <= _largest(limbs, bits - 1):
        bits -= 1
    return limbs, bits


def _largest(limbs: int, bits: int) -> int:
    """Largest integer that surely has ``limbs`` balanced digits in [-2**(bits-1), 2**(bits-1)), the highest up to 2**(bits-1)."""
    half = 1 << (bits - 1)
    lower = sum(half << (bits * i) for i in range(limbs - 1))  # what the lower digits may need to borrow from the highest
    return half * (1 << (bits * (limbs - 1))) - lower


class HEBackend(ABC):
    """Encrypts, adds and decrypts whole vectors."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def plan(self, value: ValueSpec, additions: int) -> HEParams:
        """Parameters for sums of ``additions`` contributions to ``value``. Raises PlanRefused with every reason there is."""

    @abstractmethod
    def keygen(self, params: HEParams) -> tuple[bytes, Secret]:
        """A fresh key pair: public key and secret key, both bytes that begin with a versioned header."""

    @abstractmethod
    def encrypt(self, params: HEParams, public: bytes, values: npt.NDArray[Any]) -> bytes:
        """A fresh ciphertext of a vector of shape ``(params.length,)``: uint64 residues (exact) or float64 (approximate)."""

    @abstractmethod
    def add(self, params: HEParams, left: bytes, right: bytes) -> bytes:
        """A ciphertext of the coordinate-wise sum. Raises WireError unless both are of these parameters and one key."""

    @abstractmethod
    def decrypt(self, params: HEParams, secret: Secret, ciphertext: bytes) -> npt.NDArray[Any]:
        """The vector, shape ``(params.length,)``: uint64 residues or float64. Raises WireError for another key's ciphertext."""

    def noise_budget(self, params: HEParams, secret: Secret, ciphertext: bytes) -> float | None:
        """Bits of noise budget left in the worst part of an exact ciphertext; None where it cannot be measured."""
        return None
