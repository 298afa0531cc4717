"""HE back ends: each other's schemes at the same security and precision, the bare libraries, and how others use them.

Integers of 16 bits, sums of five, 128-bit security. ``raw``: the library's own calls with the parameters that the back end planned, one
vector a chunk, serialized by the library itself (with zstd where it was built with it); ``raw_unserialized``: the same without bytes.
``nvflare``: TenSEAL as NVFlare 2.9 configures it; ``pppml_hmi``: as the code of the PPPML-HMI paper does. Sides are timed in alternated
pairs; ratios are in the extra info and in the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from pppml_core.benchmarking.he import BOUND, backends_of, he_row
from pppml_core.benchmarking.memory import peak_memory
from pppml_core.config import resolve
from pppml_core.engines.rehearsal import Rehearsal
from pppml_core.errors import PppmlError
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.lattice import ring_of
from pppml_core.registry import Registry
from pppml_core.values import ValueSpec

MILLION, SITES = 1_000_000, 5
SCHEMES = [("pyfhel", "bfv"), ("pyfhel", "bgv"), ("pyfhel", "ckks"), ("tenseal", "bfv"), ("tenseal", "ckks")]
#: 64 tensors, 1,942,594 parameters and 522 ciphertexts of 4,096 slots, as the U-Net of the PPPML-HMI code has.
UNET = [256] * 50 + [33 * 4096] * 13 + [172_610]
STEP = 8.0 / BOUND  # one unit of an encoded number, as a real one

Side = Callable[[], Callable[[], Any]]


@lru_cache(maxsize=8)
def backend_of(name: str, scheme: str) -> HEBackend:
    try:
        ((_, backend),) = backends_of(Registry.discover(), {"use": name, "scheme": scheme})
    except PppmlError as error:
        pytest.skip(str(error))
    return backend


def integers(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-BOUND, BOUND, length, np.int32, endpoint=True)


class Ours:
    """A back end with a key pair and a vector to encrypt."""

    def __init__(self, name: str, scheme: str, length: int) -> None:
        self.backend, self.name = backend_of(name, scheme), name
        self.params: HEParams = self.backend.plan(ValueSpec(length, "integer", BOUND), SITES)
        self.public, self.secret = self.backend.keygen(self.params)
        exact = self.params.arithmetic == "exact"
        self.plain = self.params.residues(integers(length)) if exact else integers(length).astype(np.float64)

    def encrypt(self) -> bytes:
        return self.backend.encrypt(self.params, self.public, self.plain)

    def chunks(self) -> np.ndarray:
        """The plaintext as the library takes it, one row a ciphertext."""
        slots = int(self.params.details["slots"])
        whole = np.zeros(-(-len(self.plain) // slots) * slots, self.plain.dtype)
        whole[: len(self.plain)] = self.plain
        return whole.reshape(-1, slots).astype(np.int64 if self.params.arithmetic == "exact" else np.float64)

    def raw(self) -> tuple[Callable[[], list[Any]], Callable[[], list[bytes]]]:
        """The library alone: (encrypt, encrypt and serialize)."""
        one, to_bytes = {"pyfhel": self._pyfhel, "tenseal": self._tenseal}[self.name]()
        rows = self.chunks()
        return lambda: [one(row) for row in rows], lambda: [to_bytes(one(row)) for row in rows]

    def _pyfhel(self) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], bytes]]:
        from Pyfhel import Pyfhel

        ring, library = ring_of(self.params), Pyfhel()
        what = {"scale": self.params.details["scale"]} if self.params.scheme == "ckks" else {"t": self.params.plaintext_modulus}
        library.contextGen(scheme=self.params.scheme, n=ring.degree, qi=list(ring.primes), sec=128, **what)
        library.keyGen()
        one = {"bfv": library.encryptInt, "bgv": library.encryptBGV, "ckks": library.encryptFrac}[self.params.scheme]
        return one, lambda ciphertext: ciphertext.to_bytes("zstd")

    def _tenseal(self) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], bytes]]:
        import tenseal

        ring = ring_of(self.params)
        assert ring.special is not None
        sizes = [prime.bit_length() for prime in (*ring.primes, ring.special)]
        if self.params.scheme == "ckks":
            context, scale = tenseal.context(tenseal.SCHEME_TYPE.CKKS, ring.degree, -1, sizes, n_threads=1), self.params.details["scale"]
            return lambda row: tenseal.ckks_vector(context, row, scale), lambda vector: vector.serialize()
        context = tenseal.context(tenseal.SCHEME_TYPE.BFV, ring.degree, self.params.plaintext_modulus, sizes, n_threads=1)
        return lambda row: tenseal.bfv_vector(context, row.tolist()), lambda vector: vector.serialize()


class Tensorwise:
    """TenSEAL's CKKS as others use it: a vector for each tensor, reals as they are, parameters with room for multiplications."""

    def __init__(self, sizes: Sequence[int], primes: Sequence[int], scale: float, *, symmetric: bool, context_each: bool) -> None:
        tenseal = pytest.importorskip("tenseal")
        self.tenseal, self.context_each = tenseal, context_each
        kind = tenseal.ENCRYPTION_TYPE.SYMMETRIC if symmetric else tenseal.ENCRYPTION_TYPE.ASYMMETRIC
        self.context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, -1, list(primes), encryption_type=kind, n_threads=1)
        self.context.global_scale = scale
        ends = np.cumsum(sizes)
        self.tensors = np.split(integers(int(ends[-1])) * STEP, ends[:-1])

    def encrypt(self) -> list[Any]:
        return [self.tenseal.ckks_vector(self.context, tensor) for tensor in self.tensors]

    def serialized(self) -> int:
        """Bytes on the wire, the context beside each vector where that is how it is done."""
        size = 0
        for vector in self.encrypt():
            size += len(vector.serialize())
            if self.context_each:
                size += len(self.context.serialize())
        return size

    def error(self) -> float:
        """Of a sum of five, in units of the 16-bit step."""
        tensor = self.tensors[0]
        total = self.tenseal.ckks_vector(self.context, tensor)
        for _ in range(SITES - 1):
            total += self.tenseal.ckks_vector(self.context, tensor)
        return float(np.abs(np.array(total.decrypt()) - SITES * tensor).max()) / STEP


@lru_cache(maxsize=2)
def ours(name: str, scheme: str, length: int) -> Ours:
    return Ours(name, scheme, length)


@lru_cache(maxsize=1)
def nvflare(length: int) -> Tensorwise:
    return Tensorwise([length // 20] * 20, [60, 40, 40], 2.0**40, symmetric=True, context_each=True)


@lru_cache(maxsize=1)
def pppml_hmi() -> Tensorwise:
    return Tensorwise(UNET, [31, *[26] * 6, 31], 2.0**26, symmetric=False, context_each=False)


# -- one back end against another ---------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="one vector of 1e6: encrypt, add, decrypt")
@pytest.mark.parametrize(("name", "scheme"), SCHEMES, ids=[f"{name}_{scheme}-{MILLION}" for name, scheme in SCHEMES])
def test_swap(benchmark: Any, name: str, scheme: str) -> None:
    """The same integers, additions and security with every back end and scheme: seconds, bytes, error and peak memory."""
    row = benchmark.pedantic(lambda: he_row(f"{name} {scheme}", backend_of(name, scheme), MILLION, SITES, 3), rounds=1)
    assert not row.refused, row.refused
    assert row.error < 0.5, "not even the nearest integers are right"
    benchmark.extra_info |= {
        "seconds": dict(row.seconds),
        "bytes per parameter": row.bytes_per_number,
        "error of a sum of 5, in units": row.error,
        "noise budget left": row.noise_budget,
        "peak MiB": None if row.peak_bytes is None else row.peak_bytes / 2**20,
        "params": {key: value for key, value in row.params.items() if key != "primes"},
    }


@pytest.mark.benchmark(group="encrypt 1e6")
@pytest.mark.parametrize("side", ["ours", "raw", "raw_unserialized"])
@pytest.mark.parametrize(("name", "scheme"), SCHEMES, ids=[f"{name}_{scheme}" for name, scheme in SCHEMES])
def test_encrypt(alternated: Any, benchmark: Any, name: str, scheme: str, side: str) -> None:
    """The whole vector in, bytes out, against the library's own calls with the same parameters."""
    case = ours(name, scheme, MILLION)
    bare, with_bytes = case.raw()
    sides: dict[str, Side] = {"ours": lambda: case.encrypt, "raw": lambda: with_bytes, "raw_unserialized": lambda: bare}
    alternated(side, sides, rounds=5)
    size = {"ours": len(case.encrypt()), "raw": sum(map(len, with_bytes())), "raw_unserialized": 0}[side]
    benchmark.extra_info |= {"bytes per parameter": size / MILLION}


# -- against others -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="encrypt and serialize 1e6, beside TenSEAL as NVFlare configures it")
@pytest.mark.parametrize("side", ["pyfhel_bfv", "tenseal_bfv", "nvflare"])
def test_nvflare(alternated: Any, benchmark: Any, side: str) -> None:
    pyfhel, tenseal, theirs = ours("pyfhel", "bfv", MILLION), ours("tenseal", "bfv", MILLION), nvflare(MILLION)
    sides: dict[str, Side] = {
        "pyfhel_bfv": lambda: pyfhel.encrypt,
        "tenseal_bfv": lambda: tenseal.encrypt,
        "nvflare": lambda: theirs.serialized,
    }
    alternated(side, sides, rounds=3)
    made = sides[side]()()
    size = made if isinstance(made, int) else len(made)
    error = theirs.error() if side == "nvflare" else 0.0
    benchmark.extra_info |= {"bytes per parameter": size / MILLION, "error of a sum of 5, in units": error}


@pytest.mark.benchmark(group="encrypt 1,942,594 parameters, beside the parameters of the PPPML-HMI code")
@pytest.mark.parametrize("side", ["pyfhel_bfv", "tenseal_bfv", "pppml_hmi", "pppml_hmi_unserialized"])
def test_pppml_hmi(alternated: Any, benchmark: Any, side: str) -> None:
    """One hop. Their code keeps ciphertexts in memory (``unserialized``); what a hop would send is counted for both."""
    length = sum(UNET)
    pyfhel, tenseal, theirs = ours("pyfhel", "bfv", length), ours("tenseal", "bfv", length), pppml_hmi()
    sides: dict[str, Side] = {
        "pyfhel_bfv": lambda: pyfhel.encrypt,
        "tenseal_bfv": lambda: tenseal.encrypt,
        "pppml_hmi": lambda: theirs.serialized,
        "pppml_hmi_unserialized": lambda: theirs.encrypt,
    }
    alternated(side, sides, rounds=2)
    if side == "pyfhel_bfv":
        size = len(pyfhel.encrypt())
    elif side == "tenseal_bfv":
        size = len(tenseal.encrypt())
    else:
        size = theirs.serialized()
        benchmark.extra_info["error of a sum of 5, in units"] = theirs.error()
    benchmark.extra_info |= {"bytes per parameter": size / length, "MiB a hop": size / 2**20}


# -- a whole round ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="a whole hardened ring round: 5 sites, 1 ring, 1,942,594 parameters")
@pytest.mark.parametrize("name", ["pyfhel", "tenseal"])
def test_hardened_round(benchmark: Any, name: str) -> None:
    """All five sites and the server in this process, one after another; the sum is checked."""
    registry = Registry.discover()
    config = {"task": "tiny", "aggregator": {"use": "cyclic-he", "rings": 1, "backend": {"use": name, "scheme": "bfv"}}}
    try:
        aggregator = registry.build("aggregator", resolve(config, registry=registry).aggregator)
    except PppmlError as error:
        pytest.skip(str(error))
    length, cohort = sum(UNET), tuple(f"s{i}" for i in range(SITES))
    session, numbers = aggregator.plan(ValueSpec(length, "integer", BOUND), cohort), integers(length)
    rehearsal = Rehearsal(session, dict.fromkeys(cohort, lambda: numbers))
    with peak_memory() as peak:
        rehearsal.run()
    done = benchmark.pedantic(rehearsal.run, rounds=3)
    assert np.array_equal(done.sum.total, SITES * numbers.astype(np.int64))
    benchmark.extra_info |= {
        "peak MiB": None if peak.bytes is None else peak.bytes / 2**20,
        "site s": done.of_a_site(),
        "server s": done.of_the_server(),
        "MiB sent by a site": done.sent_by_a_site() / 2**20,
        "by stage": {party: dict(stages) for party, stages in done.seconds.items()},
    }
