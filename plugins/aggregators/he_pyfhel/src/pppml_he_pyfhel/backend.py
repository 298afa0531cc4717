"""``pyfhel``: vectors encrypted chunk by chunk with Pyfhel; ciphertexts are added as what they are, polynomials modulo a prime."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import WireError
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.lattice import HEADER_BYTES, Shape, chunked, plan_approximate, plan_exact, with_header, without_header
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_he_pyfhel.config import PyfhelConfig
from pppml_he_pyfhel.context import Setting, create, decryptor, encryptor, public_bytes, read_words, strip
from pppml_he_pyfhel.packing import Words, pack

#: one ciphertext prime and, as sums never switch keys, no special prime
SHAPES = (Shape(2048, range(20, 55), special=False), Shape(4096, range(20, 61), special=False))
#: ciphertexts packed at a time: a few MB, which stay in cache
BLOCK = 64


class PyfhelBackend(HEBackend):
    """Pyfhel's BFV, BGV or CKKS with the smallest ring and prime that hold the sums."""

    config: PyfhelConfig

    def plan(self, value: ValueSpec, additions: int) -> HEParams:
        """Ring, prime and plaintext modulus or scale; Pyfhel is asked for the context once, so that it refuses here and not later."""
        if self.config.scheme == "ckks":
            plan = plan_approximate(value, additions, SHAPES)
            setting = Setting("ckks", plan.ring, scale=plan.scale)
            limbs, limb_bits, failure, error = 1, int(value.bound or 0).bit_length() + 1, None, float(f"{plan.error_std:.3g}")
            details: dict[str, Any] = {"scale": plan.scale}
        else:
            exact = plan_exact(value, additions, SHAPES)
            setting = Setting(self.config.scheme, exact.ring, exact.modulus)
            limbs, limb_bits, failure, error = exact.limbs, exact.limb_bits, float(round(exact.log2_failure)), None
            details = {"noise_budget_bits": int(exact.budget)}
        create(setting)
        length = limbs * value.length
        return HEParams(
            backend="pyfhel",
            scheme=self.config.scheme,
            arithmetic="exact" if error is None else "approximate",
            length=length,
            plaintext_modulus=setting.modulus,
            limbs=limbs,
            limb_bits=limb_bits,
            additions=additions,
            security_bits=128,
            log2_failure=failure,
            error_std=error,
            ciphertext_bytes=HEADER_BYTES + -(-length // setting.slots) * setting.part_bytes,
            details={**setting.ring.describe(), "slots": setting.slots, **details, "library": f"Pyfhel {version('Pyfhel')}"},
        )

    def keygen(self, params: HEParams) -> tuple[bytes, Secret]:
        """A key pair from SEAL's generator, which seeds itself from the operating system."""
        setting = Setting.of(params)
        library = create(setting)
        library.keyGen()
        public = public_bytes(setting, library)
        key = hashlib.sha256(public).digest()
        secret = with_header("secret key", params, key, [library.to_bytes_secret_key("none")])
        return with_header("public key", params, key, [public]), Secret(secret)

    def encrypt(self, params: HEParams, public: bytes, values: npt.NDArray[Any]) -> bytes:
        """Each chunk of ``slots`` numbers is one ciphertext; the last is filled with zeros."""
        from Pyfhel import PyCtxt

        setting = Setting.of(params)
        key, body = without_header("public key", params, public)
        library = encryptor(setting, bytes(body))
        rows = chunked(params, setting.ring, setting.scale, setting.slots, values)
        one = {"bfv": library.encryptInt, "bgv": library.encryptBGV, "ckks": library.encryptFrac}[params.scheme]
        preamble, scratch = setting.preamble(), PyCtxt(pyfhel=library)
        words = np.empty((BLOCK, setting.words), np.uint64)
        packed = []
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            for row, place in zip(block, words, strict=False):
                place[:] = strip(setting, one(row, scratch).to_bytes("none"), preamble)
            packed.append(pack(words[: len(block)], setting.bits).data)
        return with_header("ciphertext", params, key, packed)

    def add(self, params: HEParams, left: bytes, right: bytes) -> bytes:
        """Coefficients are added modulo the prime. (All three schemes add like this, and no key or context is needed.)"""
        setting = Setting.of(params)
        key, one = _opened(params, setting, left)
        _, other = _opened(params, setting, right, key)
        packed = []
        for mine, theirs in zip(_blocks(setting, one), _blocks(setting, other), strict=True):
            mine += theirs  # below 2^61
            np.subtract(mine, np.uint64(setting.prime), out=mine, where=mine >= setting.prime)
            packed.append(pack(mine, setting.bits).data)
        return with_header("ciphertext", params, key, packed)

    def decrypt(self, params: HEParams, secret: Secret, ciphertext: bytes) -> npt.NDArray[Any]:
        """The summed vector."""
        setting = Setting.of(params)
        approximate = params.plaintext_modulus is None
        numbers: npt.NDArray[Any] = np.empty((_parts(params, setting), setting.slots), np.float64 if approximate else np.int64)
        one = {"bfv": "decryptInt", "bgv": "decryptBGV", "ckks": "decryptFrac"}[params.scheme]
        for row, (library, part) in zip(numbers, self._loaded(params, setting, secret, ciphertext), strict=True):
            row[:] = getattr(library, one)(part)
        flat = numbers.reshape(-1)[: params.length]
        if approximate:
            return flat
        flat[flat < 0] += params.plaintext_modulus  # Pyfhel gives the residue nearest to zero
        return flat.view(np.uint64)

    def noise_budget(self, params: HEParams, secret: Secret, ciphertext: bytes) -> float | None:
        """Whole bits, rounded down, in the worst chunk; None for bgv and ckks, of which Pyfhel does not tell."""
        setting = Setting.of(params)
        if params.scheme != "bfv":
            return None
        return float(min(library.noise_level(part) for library, part in self._loaded(params, setting, secret, ciphertext)))

    @staticmethod
    def _loaded(params: HEParams, setting: Setting, secret: Secret, ciphertext: bytes) -> Iterator[tuple[Any, Any]]:
        """(context with the secret key, ciphertext of Pyfhel) of each chunk."""
        from Pyfhel import PyCtxt

        key, own = without_header("secret key", params, secret.reveal())
        _, body = _opened(params, setting, ciphertext, key)
        library = decryptor(setting, bytes(own))
        preamble = setting.preamble()
        for words in _blocks(setting, body):
            for row in words:
                yield library, PyCtxt(pyfhel=library, bytestring=preamble + row.tobytes(), scheme=params.scheme)


def _parts(params: HEParams, setting: Setting) -> int:
    return -(-params.length // setting.slots)


def _opened(params: HEParams, setting: Setting, data: bytes, key: bytes | None = None) -> tuple[bytes, memoryview]:
    """(hash of the key, packed coefficients) of a ciphertext of these parameters."""
    held, body = without_header("ciphertext", params, data, key)
    if len(body) != _parts(params, setting) * setting.part_bytes:
        raise WireError(f"a ciphertext of {len(body):,} bytes is of another length", place="ciphertext")
    return held, body


def _blocks(setting: Setting, body: memoryview) -> Iterator[Words]:
    size = BLOCK * setting.part_bytes
    for start in range(0, len(body), size):
        yield read_words(setting, body[start : start + size], "ciphertext")
