"""Pyfhel contexts that are what was planned, and the bytes of SEAL objects.

Pyfhel reports bad parameters as a returned string and chooses primes of its own where it is not given any, so every context is compared
with the plan before it is used. SEAL writes an object as a 16-byte header, the object's fields and its coefficients; all but the
coefficients follow from the parameters, so only coefficients travel: what comes in can name no other size, level, scale or scheme.
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pppml_core.errors import PlanRefused, WireError
from pppml_core.interfaces.he import HEParams
from pppml_core.lattice import Ring, check_security, parms_id, ring_of
from pppml_he_pyfhel.packing import Words, pack, row_bytes, unpack

if TYPE_CHECKING:
    from Pyfhel import Pyfhel

SEAL_VERSION = (4, 1)
VALID = "success: valid"


@dataclass(frozen=True)
class Setting:
    """What SEAL must be told: the scheme, a ring with one prime, the plaintext modulus (exact) or the scale (CKKS)."""

    scheme: str
    ring: Ring
    modulus: int | None = None
    scale: float | None = None

    @classmethod
    def of(cls, params: HEParams) -> Setting:
        """The setting of planned parameters. Raises WireError or PlanRefused for parameters of another back end or insecure ones."""
        ring = ring_of(params)
        if params.backend != "pyfhel" or params.scheme not in ("bfv", "bgv", "ckks") or len(ring.primes) != 1 or ring.special:
            raise WireError("these parameters are not a plan of pyfhel", place="parameters")
        return cls(params.scheme, ring, params.plaintext_modulus, params.details.get("scale"))

    @property
    def prime(self) -> int:
        """The modulus of every coefficient."""
        return self.ring.primes[0]

    @property
    def bits(self) -> int:
        """Bits of a coefficient."""
        return self.prime.bit_length()

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.ring.degree // 2 if self.scheme == "ckks" else self.ring.degree

    @property
    def words(self) -> int:
        """Coefficients of one ciphertext or public key: two polynomials."""
        return 2 * self.ring.degree

    @property
    def part_bytes(self) -> int:
        """Bytes of one ciphertext or public key on the wire."""
        return row_bytes(self.words, self.bits)

    def preamble(self, *, key: bool = False) -> bytes:
        """All that SEAL writes before the coefficients of a ciphertext, or of a public key (which is one, in NTT form, of scale 1)."""
        ntt = key or self.scheme != "bfv"
        scale = self.scale if self.scale is not None and not key else 1.0
        name = parms_id(self.scheme, self.ring.degree, self.ring.primes, self.modulus)
        fields = name + struct.pack("<BQQQdQ", ntt, 2, self.ring.degree, 1, scale, 1)
        data = struct.pack("<Q", self.words)
        return _seal_header(len(fields) + 16 + 8 + 8 * self.words) + fields + _seal_header(8 + 8 * self.words) + data


def _seal_header(size: int) -> bytes:
    """SEAL's header before ``size`` bytes: magic, its own size, version, no compression, zero, the whole size."""
    return struct.pack("<HBBBBHQ", 0xA15E, 16, *SEAL_VERSION, 0, 0, 16 + size)


def create(setting: Setting) -> Pyfhel:
    """A context of this setting without keys. Raises PlanRefused unless Pyfhel made exactly this one and holds it for valid."""
    from Pyfhel import Pyfhel

    check_security(setting.ring)
    library = Pyfhel()
    what = {"t": setting.modulus} if setting.scale is None else {"scale": setting.scale}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about rescaling, which a sum never does
            # sec: SEAL then refuses what the security standard's table refuses
            status = library.contextGen(scheme=setting.scheme, n=setting.ring.degree, sec=128, qi=list(setting.ring.primes), **what)
    except (RuntimeError, ValueError) as error:
        raise PlanRefused([f"pyfhel does not accept the parameters: {error}"]) from None
    check(setting, library, status)
    return library


def check(setting: Setting, library: Pyfhel, status: str | bytes) -> None:
    """Raise PlanRefused unless Pyfhel says that the parameters are valid, and they are the ones asked for."""
    text = status.decode() if isinstance(status, bytes) else status
    if text != VALID:
        raise PlanRefused([f"pyfhel does not accept the parameters: {text}"])
    made = [library.get_poly_modulus_degree(), list(library.get_qi()), library.scheme.name]
    asked = [setting.ring.degree, list(setting.ring.primes), setting.scheme]
    if setting.scale is None:
        made.append(library.get_plain_modulus())
        asked.append(setting.modulus)
    else:
        made.append(library.scale)
        asked.append(setting.scale)
    if made != asked:
        raise PlanRefused([f"pyfhel changed the parameters: asked for {asked}, it made {made}"])


@lru_cache(maxsize=8)
def encryptor(setting: Setting, public: bytes) -> Pyfhel:
    """A context that holds this public key, made once a process. Raises WireError where the bytes are no key of this setting."""
    library = create(setting)
    if len(public) != setting.part_bytes:
        raise WireError(f"a public key of {len(public):,} bytes, it has {setting.part_bytes:,}", place="public key")
    words = read_words(setting, public, "public key")
    _load(library.from_bytes_public_key, setting.preamble(key=True) + words.tobytes(), "public key")
    return library


def decryptor(setting: Setting, secret: bytes) -> Pyfhel:
    """A context that holds this secret key; it is for one use and not kept."""
    library = create(setting)
    library.keyGen()  # Pyfhel 3.5 decrypts only where there is an encryptor, too; this pair is replaced at once
    _load(library.from_bytes_secret_key, secret, "secret key")
    return library


def public_bytes(setting: Setting, library: Pyfhel) -> bytes:
    """The coefficients of a context's public key, packed."""
    raw = library.to_bytes_public_key("none")
    words = strip(setting, raw, setting.preamble(key=True))
    return pack(words.reshape(1, -1), setting.bits).tobytes()


def strip(setting: Setting, raw: bytes, preamble: bytes) -> Words:
    """The coefficients of SEAL's bytes. Raises PlanRefused where these do not begin as the plan says."""
    if len(raw) != len(preamble) + 8 * setting.words or not raw.startswith(preamble):
        raise PlanRefused(["pyfhel wrote other bytes than its parameters say: this version of SEAL is not supported"])
    return np.frombuffer(raw, "<u8", offset=len(preamble))


def read_words(setting: Setting, packed: bytes | memoryview, place: str) -> Words:
    """The coefficients of packed ciphertexts or of a key, shape ``(parts, 2N)``. Raises WireError where one is beyond the modulus."""
    words = unpack(packed, setting.bits, setting.words)
    if int(words.max(initial=0)) >= setting.prime:
        raise WireError("a coefficient is beyond the modulus", place=place)
    return words


def _load(load: object, data: bytes, place: str) -> None:
    try:
        load(data)  # type: ignore[operator]
    except (RuntimeError, ValueError) as error:
        raise WireError(f"SEAL does not accept it: {error}", place=place) from None
