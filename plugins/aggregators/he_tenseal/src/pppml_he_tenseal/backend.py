"""``tenseal``: vectors encrypted chunk by chunk with TenSEAL, each chunk in TenSEAL's own compressed bytes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import PlanRefused, WireError
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.lattice import (
    HEADER_BYTES,
    Ring,
    Shape,
    chunked,
    error_std,
    plan_approximate,
    plan_exact,
    seal_primes,
    with_header,
    without_header,
)
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_he_tenseal.config import TenSEALConfig
from pppml_he_tenseal.context import Setting, accepted, adder, core, decryptor, encryptor, key_pair, read_vector

#: TenSEAL insists on a special prime; 2048 is then too small a ring to be of use. Whole bytes are what its compression is quick with.
SHAPES = (Shape(4096, (32, 40, 48, 54), special=True), Shape(8192, (60,), special=True))
PAPER_DEGREE, PAPER_BITS, PAPER_SCALE = 8192, (31, 26, 26, 26, 26, 26, 26, 31), 2.0**26
#: bits of a prime -> bytes of a coefficient, after zstd: measured once, so that the plan is the same everywhere
PACKED = {26: 4.16, 31: 4.16, 32: 4.15, 40: 6.0, 48: 6.85, 54: 7.54, 60: 8.01}

_LENGTH = struct.Struct("<I")


class TenSEALBackend(HEBackend):
    """TenSEAL's BFV or CKKS with the smallest ring and prime that hold the sums."""

    config: TenSEALConfig

    def plan(self, value: ValueSpec, additions: int) -> HEParams:
        """Ring, primes and plaintext modulus or scale; TenSEAL is asked for the context once, so that it refuses here and not later."""
        failure, error, limbs = None, None, 1
        limb_bits = int(value.bound or 0).bit_length() + 1
        if self.config.preset == "paper":
            setting = _paper(value, additions)
            error = error_std(setting.ring, PAPER_SCALE, additions)
        elif self.config.scheme == "ckks":
            plan = plan_approximate(value, additions, SHAPES)
            setting, error = Setting("ckks", plan.ring, scale=plan.scale), plan.error_std
        else:
            exact = plan_exact(value, additions, SHAPES)
            setting, failure = Setting("bfv", exact.ring, exact.modulus), float(round(exact.log2_failure))
            limbs, limb_bits = exact.limbs, exact.limb_bits
        accepted(setting)
        length = limbs * value.length
        details = {"preset": self.config.preset, "library": f"TenSEAL {version('tenseal')}"}
        return HEParams(
            backend="tenseal",
            scheme=self.config.scheme,
            arithmetic="approximate" if failure is None else "exact",
            length=length,
            plaintext_modulus=setting.modulus,
            limbs=limbs,
            limb_bits=limb_bits,
            additions=additions,
            security_bits=128,
            log2_failure=failure,
            error_std=None if error is None else float(f"{error:.3g}"),
            ciphertext_bytes=HEADER_BYTES + -(-length // setting.slots) * _expected_bytes(setting.ring),
            details={**setting.ring.describe(), "slots": setting.slots, **({"scale": setting.scale} if setting.scale else {}), **details},
        )

    def keygen(self, params: HEParams) -> tuple[bytes, Secret]:
        """A key pair from SEAL's generator, which seeds itself from the operating system."""
        public, secret = key_pair(Setting.of(params), galois_keys=self.config.galois_keys)
        key = hashlib.sha256(public).digest()
        return with_header("public key", params, key, [public]), Secret(with_header("secret key", params, key, [secret]))

    def encrypt(self, params: HEParams, public: bytes, values: npt.NDArray[Any]) -> bytes:
        """Each chunk of ``slots`` numbers is one ciphertext; the last is filled with zeros."""
        setting = Setting.of(params)
        key, body = without_header("public key", params, public)
        context = encryptor(setting, bytes(body)).data
        rows = chunked(params, setting.ring, setting.scale, setting.slots, values)
        if setting.scale is None:
            vectors = (core.BFVVector(context, row.tolist()) for row in rows)
        else:
            vectors = (core.CKKSVector(context, row.tolist(), setting.scale) for row in rows)
        return with_header("ciphertext", params, key, _framed(vectors))

    def add(self, params: HEParams, left: bytes, right: bytes) -> bytes:
        """Chunk by chunk; no key is needed, only a context of these parameters."""
        setting = Setting.of(params)
        key, one = without_header("ciphertext", params, left)
        _, other = without_header("ciphertext", params, right, key)
        context = adder(setting)
        pairs = zip(_chunks(params, setting, one), _chunks(params, setting, other), strict=True)
        sums = (read_vector(setting, context, mine).add_(read_vector(setting, context, theirs)) for mine, theirs in pairs)
        return with_header("ciphertext", params, key, _framed(sums))

    def decrypt(self, params: HEParams, secret: Secret, ciphertext: bytes) -> npt.NDArray[Any]:
        """The summed vector."""
        setting = Setting.of(params)
        approximate = params.plaintext_modulus is None
        numbers: npt.NDArray[Any] = np.empty((_parts(params, setting), setting.slots), np.float64 if approximate else np.int64)
        for row, (_, vector) in zip(numbers, self._loaded(params, setting, secret, ciphertext), strict=True):
            row[:] = vector.decrypt()
        flat = numbers.reshape(-1)[: params.length]
        if approximate:
            return flat
        flat[flat < 0] += params.plaintext_modulus  # TenSEAL gives the residue nearest to zero
        return flat.view(np.uint64)

    def noise_budget(self, params: HEParams, secret: Secret, ciphertext: bytes) -> float | None:
        """Whole bits, rounded down, in the worst chunk; None for ckks, which has none."""
        setting = Setting.of(params)
        if params.scheme != "bfv":
            return None
        loaded = self._loaded(params, setting, secret, ciphertext)
        return float(min(context.decryptor().invariant_noise_budget(vector.ciphertext()[0]) for context, vector in loaded))

    @staticmethod
    def _loaded(params: HEParams, setting: Setting, secret: Secret, ciphertext: bytes) -> Iterator[tuple[Any, Any]]:
        """(context with the secret key, TenSEAL's vector) of each chunk."""
        key, own = without_header("secret key", params, secret.reveal())
        _, body = without_header("ciphertext", params, ciphertext, key)
        context = decryptor(setting, bytes(own))
        for chunk in _chunks(params, setting, body):
            yield context.data, read_vector(setting, context, chunk)


def _paper(value: ValueSpec, additions: int) -> Setting:
    """The CKKS parameters of the PPPML-HMI code. Raises PlanRefused for sums so large that doubles would round them."""
    if value.length < 1 or additions < 1:
        raise PlanRefused(["there is nothing to encrypt or to add"])
    if value.bound is not None and value.bound * additions >= 2**48:
        raise PlanRefused([f"sums up to {value.bound * additions:,} are beyond what these parameters hold; lower `encoding.bits`"])
    primes = seal_primes(PAPER_DEGREE, PAPER_BITS)
    assert primes is not None
    return Setting("ckks", Ring(PAPER_DEGREE, primes[:-1], primes[-1]), scale=PAPER_SCALE)


def _parts(params: HEParams, setting: Setting) -> int:
    return -(-params.length // setting.slots)


def _framed(vectors: Iterator[Any]) -> list[bytes]:
    """TenSEAL's bytes of each ciphertext behind their length."""
    out: list[bytes] = []
    for vector in vectors:
        data = vector.serialize()
        out += (_LENGTH.pack(len(data)), data)
    return out


def _chunks(params: HEParams, setting: Setting, body: memoryview) -> Iterator[bytes]:
    """The inverse of :func:`_framed`, for exactly as many ciphertexts as the vector has. Raises WireError for other lengths."""
    most = 2 * 8 * setting.ring.degree * len(setting.ring.primes) + 1024  # what no honest ciphertext exceeds, compressed or not
    at = 0
    for _ in range(_parts(params, setting)):
        length = _LENGTH.unpack_from(body, at)[0] if len(body) - at >= _LENGTH.size else most + 1
        at += _LENGTH.size
        if length > min(most, len(body) - at):
            raise WireError("the ciphertexts do not fit their lengths", place="ciphertext")
        yield bytes(body[at : at + length])
        at += length
    if at != len(body):
        raise WireError("bytes follow the last ciphertext", place="ciphertext")


def _expected_bytes(ring: Ring) -> int:
    """What TenSEAL makes of one fresh or summed ciphertext, to about 1 %: two polynomials, compressed by zstd."""
    return _LENGTH.size + round(2 * ring.degree * sum(PACKED[prime.bit_length()] for prime in ring.primes))
