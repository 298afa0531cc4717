"""Parameters of ring-LWE encryption for sums: BFV, BGV and CKKS as Microsoft SEAL implements them, and the header of their bytes.

A ciphertext of ``m`` under the public key ``(p0, p1)`` is ``(p0 u + e1 + [m], p1 u + e2)``. With ``p0 + p1 s = -e``, decryption
``c0 + c1 s`` leaves ``[m] + v`` with the noise ``v = e1 + e2 s - e u``. SEAL draws ``u`` and ``s`` uniformly from {-1, 0, 1} and every
``e`` from the centred binomial distribution of 42 fair bits (variance 10.5, SEAL ``rlwe.cpp``), so a coefficient of ``v`` has variance
``10.5 (1 + 2 * 2N/3)`` (Fan and Vercauteren 2012, section 3, with these distributions). Where there is a special prime ``P``, SEAL
encrypts modulo ``q P`` and divides by ``P``: the noise shrinks by ``P`` and the rounding of both polynomials, uniform in [-1/2, 1/2], adds
``(1 + 2N/3) / 12``. BFV places ``m`` as ``round(q m / t)``, one more rounding of at most 1/2 a summand; BGV adds ``t v`` to a message of at
most ``t / 2``. Both decrypt a sum of ``n`` fresh ciphertexts rightly as long as ``|v1 + ... + vn| + n / 2 < q / (2 t)``.

The chance that this fails is bounded, not estimated: given ``s`` and ``e``, a coefficient of ``v`` is a sum of independent sub-Gaussian
variables (binomial bits, ternary, uniform) whose variance proxies add up to at most ``10.5 (1 + 2N)``, because ``|s|^2 <= N`` always and
``|e|^2 <= 1.5 * 10.5 N`` but for a chance of ``exp(-0.0429 N)`` (Hsu, Kakade and Zhang 2012, theorem 2.1). A sum of ``n`` has at most
``n^2`` times that, however its parts depend on each other: one ciphertext added ``n`` times is the worst case and covered. A union bound
runs over all coefficients of the vector. That the rounding after the special prime is uniform and independent is the usual heuristic.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from pppml_core.errors import PlanRefused, WireError
from pppml_core.interfaces.he import HEParams, limbs_for
from pppml_core.values import ValueSpec

#: ring degree -> most bits of the whole modulus, special prime included, at 128 bits of classical security with a ternary secret
#: (Albrecht et al., Homomorphic Encryption Standard, 2018, table 1).
STANDARD_128 = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}

ERROR_VARIANCE = 10.5
LOG2_FAILURE = -64
#: bits of noise budget that must be left; one more, because SEAL reports whole bits, rounded down.
BUDGET = 4 + 1
#: the release rule of approximate schemes: at most this standard deviation, in units, so that the nearest integer is the sum.
RELEASE_STD = 1 / 24
MOST_LIMBS = 16


@dataclass(frozen=True)
class Ring:
    """Z[X]/(X^N + 1) modulo ``primes`` (the ciphertext's) and, where a library insists on one, a ``special`` prime that only keys use."""

    degree: int
    primes: tuple[int, ...]
    special: int | None = None

    @property
    def modulus(self) -> int:
        """The modulus q of a ciphertext."""
        return math.prod(self.primes)

    @property
    def total_bits(self) -> int:
        """Bits of the whole modulus, which security depends on."""
        return (self.modulus * (self.special or 1)).bit_length()

    @property
    def variance(self) -> float:
        """Variance of one coefficient of a fresh ciphertext's noise, for the usual ``|s|^2 = |u|^2 = 2N/3``."""
        return self._variance(2 * self.degree / 3)

    @property
    def proxy(self) -> float:
        """Sub-Gaussian variance proxy of one coefficient of a fresh ciphertext's noise, for every secret."""
        return self._variance(self.degree)

    def _variance(self, norm: float) -> float:
        fresh = ERROR_VARIANCE * (1 + 2 * norm)
        return fresh if self.special is None else fresh / self.special**2 + (1 + norm) / 12

    def describe(self) -> dict[str, Any]:
        """Plain data for ``HEParams.details``, read by :func:`ring_of`."""
        return {"degree": self.degree, "primes": list(self.primes), "special_prime": self.special, "modulus_bits": self.total_bits}


@dataclass(frozen=True)
class Shape:
    """Rings with one ciphertext prime of one of ``sizes`` (bits, ascending) and a special prime of that size, or without one."""

    degree: int
    sizes: Sequence[int]
    special: bool

    def rings(self) -> Iterator[Ring]:
        """The rings of this family within the security standard, the smallest prime first."""
        for bits in self.sizes:
            primes = seal_primes(self.degree, [bits] * (1 + self.special))
            if primes is not None:
                ring = Ring(self.degree, primes[:1], primes[1] if self.special else None)
                if ring.total_bits <= STANDARD_128[self.degree]:
                    yield ring


@dataclass(frozen=True)
class Exact:
    """A plan of BFV or BGV: the residues modulo ``modulus`` of ``limbs`` digits, and the bound on a wrong decryption."""

    ring: Ring
    modulus: int
    limbs: int
    limb_bits: int
    log2_failure: float
    budget: float


@dataclass(frozen=True)
class Approximate:
    """A plan of CKKS: numbers are multiplied by ``scale``; a decrypted sum has this ``error_std``."""

    ring: Ring
    scale: float
    error_std: float


def check_security(ring: Ring) -> None:
    """Raise PlanRefused unless the standard's table gives this ring at least 128 bits."""
    limit = STANDARD_128.get(ring.degree)
    if limit is None:
        raise PlanRefused([f"the security standard knows ring degrees {', '.join(map(str, STANDARD_128))}, not {ring.degree}"])
    if ring.total_bits > limit:
        found = f"a modulus of {ring.total_bits} bits at ring degree {ring.degree}"
        raise PlanRefused([f"{found} is not secure: at most {limit} bits give 128 bits of security"])


def plan_exact(value: ValueSpec, additions: int, shapes: Sequence[Shape]) -> Exact:
    """The first shape that holds the sums, with the smallest plaintext modulus and the smallest prime that leave ``BUDGET`` bits.

    More limbs are tried only where no shape holds the sums with fewer. Raises PlanRefused with every reason.
    """
    misfits = _misfits(value, additions)
    if misfits:
        raise PlanRefused(misfits)
    assert value.bound is not None
    for limbs in range(1, MOST_LIMBS + 1):
        for shape in shapes:
            coefficients = -(-limbs * value.length // shape.degree) * shape.degree
            for modulus, bits in _plaintexts(value.bound, additions, limbs, shape):
                for ring in shape.rings():
                    left = budget(ring, modulus, additions, coefficients)
                    if left >= BUDGET:
                        failure = log2_failure(ring, modulus, additions, coefficients)
                        return Exact(ring, modulus, limbs, bits, failure, left)
    reason = f"sums of {additions:,} integers up to {value.bound:,} do not fit {MOST_LIMBS} limbs: lower `encoding.bits` or add fewer"
    raise PlanRefused([reason])


def plan_approximate(value: ValueSpec, additions: int, shapes: Sequence[Shape]) -> Approximate:
    """The first shape, and in it the smallest prime and scale, that obey the release rule. Raises PlanRefused with every reason."""
    misfits = _misfits(value, additions)
    if misfits:
        raise PlanRefused(misfits)
    assert value.bound is not None
    for shape in shapes:
        for ring in shape.rings():
            scale = 2.0 ** math.ceil(math.log2(error_std(ring, 1.0, additions) / RELEASE_STD))
            if holds(ring, scale, additions, value.bound):
                return Approximate(ring, scale, error_std(ring, scale, additions))
    raise PlanRefused([f"no ring holds sums of {additions:,} integers up to {value.bound:,} with an error of at most 1/24 of a unit"])


def log2_failure(ring: Ring, modulus: int, additions: int, coefficients: int) -> float:
    """log2 of a bound on the chance that any of ``coefficients`` of a sum of ``additions`` ciphertexts decrypts wrongly."""
    room = ring.modulus / (2 * modulus) - additions / 2
    if room <= 0:
        return 0.0
    odd_key = -0.0429 * ring.degree * math.log2(math.e)
    tail = 1 + math.log2(coefficients) - room**2 / (2 * additions**2 * ring.proxy) * math.log2(math.e)
    high, low = max(odd_key, tail), min(odd_key, tail)
    return min(0.0, high + math.log2(1 + 2.0 ** max(low - high, -1000.0)))


def budget(ring: Ring, modulus: int, additions: int, coefficients: int) -> float:
    """Bits of noise budget that every coefficient of a sum has left but for a chance of 2^-64; negative where it may decrypt wrongly."""
    noise = additions * (math.sqrt(2 * ring.proxy * math.log(coefficients * 2 ** (2 - LOG2_FAILURE))) + 1 / 2)
    return math.log2(ring.modulus / (2 * modulus)) - math.log2(noise)


def error_std(ring: Ring, scale: float, additions: int) -> float:
    """Bound on the standard deviation of one number of a decrypted CKKS sum, for every secret and however its parts depend on each other.

    A number is the real part of N noise coefficients at a root of unity, by the scale; 1/12 is the encoder's rounding. Sums of fresh
    ciphertexts under a usual key have ``sqrt(1.5 * additions)`` times less.
    """
    return additions * math.sqrt(ring.degree / 2 * (ring.proxy + 1 / 12)) / scale


def holds(ring: Ring, scale: float, additions: int, bound: float) -> bool:
    """Whether sums of scaled numbers stay below a quarter of the modulus (a coefficient is never larger than the largest number)."""
    return additions * max(1.0, bound) * scale < ring.modulus / 4


def seal_primes(degree: int, bits: Sequence[int]) -> tuple[int, ...] | None:
    """The primes that SEAL's ``CoeffModulus::Create`` makes: of each size the largest that are 1 mod 2N, used from the smallest on."""
    stock: dict[int, list[int]] = {}
    for size in set(bits):
        found = _ntt_primes(size, 2 * degree, list(bits).count(size))
        if found is None:
            return None
        stock[size] = list(found)
    return tuple(stock[size].pop() for size in bits)


def batching_prime(degree: int, bits: int) -> int | None:
    """The largest plaintext modulus of ``bits`` bits that lets one ciphertext carry N numbers (SEAL's ``PlainModulus::Batching``)."""
    found = _ntt_primes(bits, 2 * degree, 1)
    return found[0] if found else None


def parms_id(scheme: str, degree: int, primes: Iterable[int], modulus: int | None) -> bytes:
    """How SEAL names parameters: BLAKE2b-256 over scheme, degree, primes and plaintext modulus (``encryptionparams.cpp``)."""
    # a plaintext modulus of zero (CKKS) has one word too
    words = [{"bfv": 1, "ckks": 2, "bgv": 3}[scheme], degree, *primes, modulus or 0]
    return hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=32).digest()


def ring_of(params: HEParams) -> Ring:
    """The ring of planned parameters. Raises WireError where the details are not those of a plan, PlanRefused where it is not secure."""
    details: Mapping[str, Any] = params.details
    try:
        special = details["special_prime"]
        ring = Ring(int(details["degree"]), tuple(int(p) for p in details["primes"]), None if special is None else int(special))
    except (KeyError, TypeError, ValueError):
        raise WireError("these parameters do not describe a ring", place="parameters") from None
    check_security(ring)
    return ring


# -- bytes ------------------------------------------------------------------------------------------------------------------------------

Kind = Literal["ciphertext", "public key", "secret key"]

_MAGIC = b"pppml-he"
_VERSION = 1
_KINDS: dict[str, int] = {"public key": 1, "secret key": 2, "ciphertext": 3}
#: magic, version, kind, back end, scheme, hash of the parameters, hash of the public key, numbers in the vector, bytes that follow, XXH3
_HEADER = struct.Struct("<8sHH4x16s8s32s32sQQ")
_CHECK = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size + _CHECK.size


def with_header(kind: Kind, params: HEParams, key: bytes, body: Sequence[bytes | memoryview]) -> bytes:
    """The parts of a body behind the versioned header. ``key``: SHA-256 of the public key's body."""
    size = sum(len(part) for part in body)
    backend, scheme = params.backend.encode(), params.scheme.encode()
    header = _HEADER.pack(_MAGIC, _VERSION, _KINDS[kind], backend, scheme, params.sha256, key, params.length, size)
    checksum = xxhash.xxh3_64(header)
    for part in body:
        checksum.update(part)
    return b"".join([header, _CHECK.pack(checksum.intdigest()), *body])


def without_header(kind: Kind, params: HEParams, data: object, key: bytes | None = None) -> tuple[bytes, memoryview]:
    """(hash of the key, body) of bytes of this kind and these parameters and, where ``key`` is given, of that key.

    Raises WireError for anything else, cut or damaged bytes included. (The checksum finds accidents; it is no signature.)
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise WireError(f"a {kind} is bytes, not {type(data).__name__}", place=kind)
    view = memoryview(data).toreadonly().cast("B")
    if len(view) < HEADER_BYTES or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise WireError(f"these bytes are no {kind} of a lattice scheme", place=kind)
    _, version, number, backend, scheme, names, held, count, size = _HEADER.unpack_from(view)
    if version != _VERSION:
        raise WireError(f"version {version}, this side reads {_VERSION}", place=kind, hint="install one pppml-core everywhere")
    if number != _KINDS[kind]:
        found = next((name for name, code in _KINDS.items() if code == number), "something else")
        raise WireError(f"this is a {found}, not a {kind}", place=kind)
    if backend.rstrip(b"\0") != params.backend.encode() or scheme.rstrip(b"\0") != params.scheme.encode():
        raise WireError(f"this is of another back end or scheme than {params.backend} {params.scheme}", place=kind)
    if names != params.sha256 or count != params.length:
        raise WireError("this is of other parameters", place=kind, hint="every site must run the same plan and versions")
    if size != len(view) - HEADER_BYTES:
        raise WireError(f"{size:,} bytes are announced, {len(view) - HEADER_BYTES:,} are here: it was cut or joined", place=kind)
    checksum = xxhash.xxh3_64(view[: _HEADER.size])
    checksum.update(view[HEADER_BYTES:])
    if _CHECK.unpack_from(view, _HEADER.size)[0] != checksum.intdigest():
        raise WireError("the checksum does not fit: it was damaged", place=kind)
    if kind == "public key" and hashlib.sha256(view[HEADER_BYTES:]).digest() != held:
        raise WireError("the key is not the one that its header names", place=kind)
    if key is not None and held != key:
        raise WireError("this is of another key", place=kind)
    return held, view[HEADER_BYTES:]


def chunked(params: HEParams, ring: Ring, scale: float | None, slots: int, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A vector in chunks of ``slots`` numbers, shape ``(parts, slots)``, int64 or float64, the last filled with zeros.

    Raises WireError for what is no plaintext of these parameters.
    """
    modulus = params.plaintext_modulus
    dtype = np.dtype(np.float64 if modulus is None else np.uint64)
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.shape != (params.length,):
        raise WireError(f"a plaintext is {dtype} of ({params.length},)", place="plaintext")
    if modulus is not None and int(values.max()) >= modulus:
        raise WireError(f"not residues modulo {modulus}", place="plaintext")
    if modulus is None:
        largest = float(np.abs(values).max())
        if not (np.isfinite(largest) and holds(ring, scale or 1.0, params.additions, largest)):
            raise WireError("a number is not finite, or too large for the scale", place="plaintext")
    whole = np.zeros(-(-params.length // slots) * slots, values.dtype)
    whole[: params.length] = values
    return whole.view(np.float64 if modulus is None else np.int64).reshape(-1, slots)


# -- arithmetic -------------------------------------------------------------------------------------------------------------------------


def _misfits(value: ValueSpec, additions: int) -> list[str]:
    reasons = []
    if value.kind != "integer" or value.bound is None:
        reasons.append("a lattice scheme adds integers of a known bound here: use `encoding: fixed`")
    elif value.bound * max(1, additions) >= 2**63:
        reasons.append(f"sums of {additions:,} integers up to {value.bound:,} do not fit 63 bits: lower `encoding.bits`")
    if value.length < 1:
        reasons.append("there is nothing to encrypt: the value has no coordinates")
    if additions < 1:
        reasons.append(f"a sum has at least one contribution, not {additions}")
    return reasons


def _plaintexts(bound: int, additions: int, limbs: int, shape: Shape) -> Iterator[tuple[int, int]]:
    """The smallest plaintext modulus (and bits a limb) with which sums fit exactly ``limbs`` limbs: one or none."""
    for bits in range(16, max(shape.sizes)):
        modulus = batching_prime(shape.degree, bits)
        if modulus is not None and 2 * additions < modulus - 1:
            try:
                needed, limb_bits = limbs_for(bound, additions, modulus)
            except ValueError:
                continue
            if needed == limbs:
                yield modulus, limb_bits
                return


@lru_cache(maxsize=1024)
def _ntt_primes(bits: int, factor: int, count: int) -> tuple[int, ...] | None:
    """The ``count`` largest primes of ``bits`` bits that are 1 modulo ``factor``, largest first; None where there are fewer."""
    found: list[int] = []
    candidate = (2**bits - 1) // factor * factor + 1
    while len(found) < count and candidate > 2 ** (bits - 1):
        if _is_prime(candidate):
            found.append(candidate)
        candidate -= factor
    return tuple(found) if len(found) == count else None


def _is_prime(number: int) -> bool:
    """Miller-Rabin with the first twelve primes as bases, which decides every number below 2^64 (Sorenson and Webster 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    twos = ((number - 1) & -(number - 1)).bit_length() - 1
    for base in bases:
        x = pow(base, (number - 1) >> twos, number)
        if x in (1, number - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % number
            if x == number - 1:
                break
        else:
            return False
    return True
