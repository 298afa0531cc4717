"""TenSEAL contexts that are what was planned.

TenSEAL is told sizes of primes and chooses the primes; a received context even brings parameters of its own. Both are held against the
plan by SEAL's own name for parameters, a hash over scheme, ring degree, primes and plaintext modulus.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tenseal

from pppml_core.errors import PlanRefused, WireError
from pppml_core.interfaces.he import HEParams
from pppml_core.lattice import Ring, check_security, parms_id, ring_of

#: TenSEAL's own classes in C++; its Python classes around them copy every list once more
core = tenseal._ts_cpp


@dataclass(frozen=True)
class Setting:
    """What SEAL must be told: the scheme, a ring with a special prime, the plaintext modulus (exact) or the scale (CKKS)."""

    scheme: str
    ring: Ring
    modulus: int | None = None
    scale: float | None = None

    @classmethod
    def of(cls, params: HEParams) -> Setting:
        """The setting of planned parameters. Raises WireError or PlanRefused for parameters of another back end or insecure ones."""
        ring = ring_of(params)
        if params.backend != "tenseal" or params.scheme not in ("bfv", "ckks") or ring.special is None:
            raise WireError("these parameters are not a plan of tenseal", place="parameters")
        return cls(params.scheme, ring, params.plaintext_modulus, params.details.get("scale"))

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.ring.degree // 2 if self.scheme == "ckks" else self.ring.degree

    @property
    def key_id(self) -> bytes:
        """SEAL's name for the parameters of keys: all primes."""
        assert self.ring.special is not None
        return parms_id(self.scheme, self.ring.degree, (*self.ring.primes, self.ring.special), self.modulus)

    @property
    def data_id(self) -> bytes:
        """SEAL's name for the parameters of a fresh ciphertext: without the special prime."""
        return parms_id(self.scheme, self.ring.degree, self.ring.primes, self.modulus)


def create(setting: Setting) -> tenseal.Context:
    """A context of this setting with a fresh key pair. Raises PlanRefused unless TenSEAL made exactly this one."""
    check_security(setting.ring)
    assert setting.ring.special is not None
    sizes = [prime.bit_length() for prime in (*setting.ring.primes, setting.ring.special)]
    scheme = tenseal.SCHEME_TYPE.BFV if setting.scheme == "bfv" else tenseal.SCHEME_TYPE.CKKS
    modulus = -1 if setting.modulus is None else setting.modulus  # -1: TenSEAL's word for none
    try:
        context = tenseal.context(scheme, setting.ring.degree, modulus, sizes, n_threads=1)
    except (RuntimeError, ValueError) as error:
        raise PlanRefused([f"tenseal does not accept the parameters: {error}"]) from None
    check(setting, context)
    return context


@lru_cache(maxsize=64)
def accepted(setting: Setting) -> None:
    """Return where TenSEAL makes exactly this setting. Told once a process: a context comes with a key pair, and parties plan often.

    Raises PlanRefused.
    """
    create(setting)


def check(setting: Setting, context: tenseal.Context) -> None:
    """Raise PlanRefused unless a context has the parameters asked for and SEAL holds them for valid."""
    seal = context.seal_context().data
    if not seal.parameters_set():
        raise PlanRefused([f"tenseal does not accept the parameters: {seal.parameters_error_message()}"])
    if name(seal.key_parms_id()) != setting.key_id or name(seal.first_parms_id()) != setting.data_id:
        raise PlanRefused(["tenseal made other parameters than it was asked for"])


def name(words: list[int]) -> bytes:
    """Four 64-bit words, as TenSEAL gives SEAL's names, as bytes."""
    return b"".join(word.to_bytes(8, "little") for word in words)


def key_pair(setting: Setting, *, galois_keys: bool) -> tuple[bytes, bytes]:
    """(public context, secret context) of a fresh key pair, as TenSEAL writes them."""
    context = create(setting)
    # Before Galois keys are made: TenSEAL would note that there are some, and make them again wherever the secret is read.
    secret = context.serialize(save_public_key=False, save_secret_key=True, save_relin_keys=False, save_galois_keys=False)
    if galois_keys:
        context.generate_galois_keys()
    return context.serialize(save_public_key=True, save_secret_key=False, save_relin_keys=False, save_galois_keys=galois_keys), secret


@lru_cache(maxsize=4)
def encryptor(setting: Setting, public: bytes) -> tenseal.Context:
    """The public context of a key, read once a process. Raises WireError where the bytes are none of this setting."""
    context = _read(setting, public, "public key")
    if context.is_private():
        raise WireError("it holds a secret key", place="public key")
    if not context.has_public_key():
        raise WireError("no public key is in it", place="public key")
    return context


@lru_cache(maxsize=4)
def adder(setting: Setting) -> tenseal.Context:
    """A context that adds ciphertexts of any key. The key pair it was made with is never used, and its secret is dropped."""
    context = create(setting)
    context.make_context_public()
    return context


def decryptor(setting: Setting, secret: bytes) -> tenseal.Context:
    """The secret context of a key; it is for one use and not kept."""
    context = _read(setting, secret, "secret key")
    if not context.is_private():
        raise WireError("no secret key is in it", place="secret key")
    return context


def _read(setting: Setting, data: bytes, place: str) -> tenseal.Context:
    try:
        context = tenseal.context_from(data, n_threads=1)
        check(setting, context)
    except PlanRefused as error:
        raise WireError(f"a context of other parameters: {error.misfits[0]}", place=place) from None
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise WireError(f"TenSEAL does not accept it: {error}", place=place) from None
    return context


def read_vector(setting: Setting, context: tenseal.Context, data: bytes) -> Any:
    """One ciphertext as TenSEAL's vector. Raises WireError unless it is a fresh-level pair of polynomials with every slot in use."""
    try:
        vector = (core.BFVVector if setting.scheme == "bfv" else core.CKKSVector)(context.data, data)
        held = vector.ciphertext()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise WireError(f"TenSEAL does not accept it: {error}", place="ciphertext") from None
    # TenSEAL believes the size that the bytes state and would read beyond the slots; SEAL takes ciphertexts of other levels and scales.
    if len(held) != 1 or vector.size() != setting.slots:
        raise WireError(f"a ciphertext holds {setting.slots} numbers", place="ciphertext")
    one = held[0]
    if one.size() != 2 or name(one.parms_id()) != setting.data_id or one.scale != (setting.scale or 1.0):
        raise WireError("a ciphertext of another level, size or scale", place="ciphertext")
    return vector
