"""INSECURE: a back end of the HE interface that encrypts nothing. It lets tests look into ciphertexts; never use it on real data.

A ciphertext is a header (magic, hash of the parameters, key id), a nonce and the residues in the clear. A public key is the key id, a
secret key 32 random bytes that hash to it; foreign keys, foreign parameters and damaged headers are refused as a real back end does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.component import ComponentConfig
from pppml_core.errors import PlanRefused, WireError
from pppml_core.interfaces.he import HEBackend, HEParams, Residues, limbs_for
from pppml_core.randomness import Secret, entropy
from pppml_core.testing.parties import acting
from pppml_core.values import ValueSpec

MAGIC = b"INSECURE"
ID_BYTES = 16
HEADER_BYTES = len(MAGIC) + 32 + ID_BYTES
NONCE_BYTES = 8

#: called, while a test listens, with (party whose code runs, key id, residues) for every ciphertext that is made, read or added, and with
#: None for the residues where that party makes or uses the secret key.
listener: Callable[[str, bytes, Residues | None], None] | None = None


class TransparentBackend(HEBackend):
    """Residues in the clear modulo ``config.modulus``."""

    config: Any

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)

    def plan(self, value: ValueSpec, additions: int) -> HEParams:
        """Any integers whose sums fit 63 bits."""
        modulus = int(self.config.modulus)
        reasons = []
        if value.kind != "integer" or value.bound is None:
            reasons.append("insecure-transparent: adds bounded integers only; use `encoding: fixed`")
        elif value.bound * max(1, additions) >= 2**63:
            reasons.append("insecure-transparent: the sum does not fit 63 bits; lower `encoding.bits`")
        if additions < 1 or value.length < 1:
            reasons.append("insecure-transparent: needs at least one coordinate and one contribution")
        if reasons:
            raise PlanRefused(reasons)
        try:
            limbs, bits = limbs_for(value.bound or 0, additions, modulus)
        except ValueError as error:
            raise PlanRefused([f"insecure-transparent: {error}; choose a larger `modulus`"]) from error
        length = limbs * value.length
        return HEParams(
            backend="insecure-transparent",
            scheme="none",
            arithmetic="exact",
            length=length,
            plaintext_modulus=modulus,
            limbs=limbs,
            limb_bits=bits,
            additions=additions,
            security_bits=int(self.config.security_bits),
            log2_failure=-1024.0,
            error_std=None,
            ciphertext_bytes=HEADER_BYTES + NONCE_BYTES + 8 * length,
            details={"INSECURE": "nothing is encrypted", "slots": 64},
        )

    def keygen(self, params: HEParams) -> tuple[bytes, Secret]:
        """A key id, and the bytes that hash to it."""
        secret = entropy(32)
        _tell(_key_id(secret), None)
        return _header(params, _key_id(secret)), Secret(_header(params, _key_id(secret)) + secret)

    def encrypt(self, params: HEParams, public: bytes, values: npt.NDArray[Any]) -> bytes:
        """The values behind a header."""
        key = _checked(params, public)
        wanted = (np.dtype(np.uint64), (params.length,))
        if not isinstance(values, np.ndarray) or (values.dtype, values.shape) != wanted or int(values.max()) >= _modulus(params):
            raise WireError(f"not {params.length} residues modulo {params.plaintext_modulus}", place="plaintext")
        return _noted(params, key, values)

    def add(self, params: HEParams, left: bytes, right: bytes) -> bytes:
        """The sum modulo the modulus."""
        (key, one), (other_key, other) = _opened(params, left), _opened(params, right)
        if key != other_key:
            raise WireError("two ciphertexts of different keys cannot be added", place="ciphertext")
        return _noted(params, key, (one + other) % np.uint64(_modulus(params)))

    def decrypt(self, params: HEParams, secret: Secret, ciphertext: bytes) -> Residues:
        """The residues, for the holder of the secret."""
        held = secret.reveal()
        own = _checked(params, held[:HEADER_BYTES])
        key, residues = _opened(params, ciphertext)
        if len(held) != HEADER_BYTES + 32 or _key_id(held[HEADER_BYTES:]) != own:
            raise WireError("not a secret key of insecure-transparent", place="secret key")
        if key != own:
            raise WireError("this ciphertext is of another key", place="ciphertext")
        _tell(own, None)
        return residues

    @staticmethod
    def read(params: HEParams, ciphertext: bytes) -> tuple[bytes, Residues]:
        """(key id, residues) of a ciphertext, without any key: for tests. Raises WireError for other bytes."""
        return _opened(params, ciphertext)

    @staticmethod
    def key_id(secret: Secret) -> bytes:
        """The id that ciphertexts of this key name."""
        return _key_id(secret.reveal()[HEADER_BYTES:])


def _key_id(secret: bytes) -> bytes:
    return hashlib.sha256(b"insecure-transparent key" + secret).digest()[:ID_BYTES]


def _header(params: HEParams, key: bytes) -> bytes:
    return MAGIC + params.sha256 + key


def _modulus(params: HEParams) -> int:
    assert params.plaintext_modulus is not None
    return params.plaintext_modulus


def _checked(params: HEParams, header: bytes) -> bytes:
    """The key id of a header of these parameters."""
    if len(header) != HEADER_BYTES or not header.startswith(MAGIC + params.sha256):
        raise WireError("not of insecure-transparent, or of other parameters", place="header")
    return header[-ID_BYTES:]


def _opened(params: HEParams, ciphertext: bytes) -> tuple[bytes, Residues]:
    key = _checked(params, ciphertext[:HEADER_BYTES])
    if len(ciphertext) != params.ciphertext_bytes:
        raise WireError("a ciphertext of another length", place="ciphertext")
    residues = np.frombuffer(ciphertext, "<u8", offset=HEADER_BYTES + NONCE_BYTES).astype(np.uint64)
    if int(residues.max()) >= _modulus(params):
        raise WireError("a ciphertext with a number beyond the modulus", place="ciphertext")
    _tell(key, residues)
    return key, residues


def _noted(params: HEParams, key: bytes, residues: Residues) -> bytes:
    _tell(key, residues)
    return _header(params, key) + entropy(NONCE_BYTES) + residues.astype("<u8").tobytes()


def _tell(key: bytes, residues: Residues | None) -> None:
    if listener is not None:
        listener(acting(), key, residues)
