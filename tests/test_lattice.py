"""Ring-LWE parameters against simulation, exhaustive search and published values; the header of bytes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core import lattice
from pppml_core.errors import PlanRefused, WireError
from pppml_core.interfaces.he import HEParams, limbs_for
from pppml_core.lattice import Ring, Shape
from pppml_core.values import ValueSpec

Array = npt.NDArray[Any]
BARE = (Shape(2048, range(20, 55), special=False), Shape(4096, range(20, 61), special=False))
SPECIAL = (Shape(4096, (32, 40, 48, 54), special=True), Shape(8192, (60,), special=True))
N = 256


def ring(degree: int, bits: int, *, special: bool = False) -> Ring:
    primes = lattice.seal_primes(degree, [bits] * (1 + special))
    assert primes is not None
    return Ring(degree, primes[:1], primes[1] if special else None)


# -- simulation: the encryption of SEAL's rlwe.cpp in a small ring, with numpy's integers ------------------------------------------------


def product(a: Array, b: Array) -> Array:
    """In Z[X]/(X^N + 1)."""
    full = np.convolve(a, b)
    return np.append(full[: len(a)], 0)[: len(a)] - np.append(full[len(a) :], 0)


def binomial(generator: np.random.Generator, n: int = N) -> Array:
    return generator.binomial(21, 0.5, n).astype(np.int64) - generator.binomial(21, 0.5, n)


def ternary(generator: np.random.Generator) -> Array:
    return generator.integers(-1, 2, N, np.int64)


def noise(generator: np.random.Generator, secret: Array, error: Array) -> Array:
    """Of a fresh encryption of zero without a special prime: what ``c0 + c1 s`` leaves."""
    return binomial(generator) + product(binomial(generator), secret) - product(error, ternary(generator))


def noise_after_special(generator: np.random.Generator, secret: Array, error: Array, q: int, special: int) -> Array:
    """The same, encrypted modulo ``q * special`` and divided by ``special`` with rounding."""
    whole = q * special
    a, u = generator.integers(0, whole, N, np.int64), ternary(generator)
    c0 = (product((-product(a, secret) - error) % whole, u) + binomial(generator)) % whole
    c1 = (product(a, u) + binomial(generator)) % whole
    c0, c1 = (c0 + special // 2) // special, (c1 + special // 2) // special
    left = (c0 + product(c1, secret)) % q
    return np.where(left > q // 2, left - q, left)


def test_variance_of_fresh_noise() -> None:
    generator = np.random.default_rng(1)
    measured = np.mean([np.mean(noise(generator, ternary(generator), binomial(generator)) ** 2) for _ in range(200)])
    assert measured == pytest.approx(ring(N, 30).variance, rel=0.05)
    assert ring(N, 30).variance == pytest.approx(10.5 * (1 + 4 * N / 3))


def test_variance_after_the_special_prime() -> None:
    generator = np.random.default_rng(2)
    small = ring(N, 20, special=True)
    assert small.special is not None
    measured = np.mean(
        [
            np.mean(noise_after_special(generator, ternary(generator), binomial(generator), small.modulus, small.special) ** 2)
            for _ in range(200)
        ]
    )
    assert measured == pytest.approx(small.variance, rel=0.05)
    assert small.variance == pytest.approx((1 + 2 * N / 3) / 12, rel=1e-3)


def test_the_proxy_covers_the_worst_secret() -> None:
    """All ones: the largest norm there is."""
    generator = np.random.default_rng(3)
    ones = np.ones(N, np.int64)
    measured = np.mean([np.mean(noise(generator, ones, binomial(generator)) ** 2) for _ in range(200)])
    assert ring(N, 30).variance * 1.1 < measured < ring(N, 30).proxy


@pytest.mark.parametrize("repeated", [False, True], ids=["fresh", "one ciphertext again and again"])
@pytest.mark.parametrize("slack", [0.0, 0.5, 1.0])
def test_failures_are_at_most_as_frequent_as_bounded(repeated: bool, slack: float) -> None:
    """With a plaintext modulus so large that sums do fail: |v1 + ... + vn| >= q/2t - n/2."""
    generator, additions, trials = np.random.default_rng(4), 4, 400
    r = ring(N, 30)
    bound = math.sqrt(2 * additions**2 * r.proxy * math.log(2 * N)) * 2**slack  # where the bound begins to say something
    modulus = int(r.modulus / (2 * (bound + additions / 2)))
    log2 = lattice.log2_failure(r, modulus, additions, N)
    room = r.modulus / (2 * modulus) - additions / 2
    failed = 0
    for _ in range(trials):
        secret, error = ternary(generator), binomial(generator)
        parts = [noise(generator, secret, error) for _ in range(1 if repeated else additions)]
        total = np.sum(parts * additions if repeated else parts, axis=0)
        failed += int(np.abs(total).max() >= room)
    assert failed / trials <= 2**log2 + 3 * math.sqrt(2**log2 / trials)
    assert lattice.log2_failure(r, r.modulus, additions, N) == 0.0


@given(bits=st.integers(16, 45), additions=st.integers(1, 2000), coefficients=st.integers(1, 2**26))
def test_budget_and_bound_say_the_same(bits: int, additions: int, coefficients: int) -> None:
    """A budget of at least 0 bits is a failure bound of at most 2^-64, and half a bit less is not."""
    r, modulus = ring(2048, 54), 2**bits
    left = lattice.budget(r, modulus, additions, coefficients)
    log2 = lattice.log2_failure(r, modulus, additions, coefficients)
    assert (log2 <= -64) == (left >= 0) or abs(left) < 0.5
    assert lattice.log2_failure(r, 2 * modulus, additions, coefficients) >= log2
    assert lattice.log2_failure(r, modulus, additions + 1, coefficients) >= log2


def test_the_bound_counts_every_coefficient() -> None:
    """In the open where nothing else matters: 2 d exp(-room^2 / (2 n^2 proxy)), by logarithms of another base."""
    r, additions, room = ring(2048, 54), 3, 3 * 2200.0
    modulus = int(r.modulus / (2 * (room + additions / 2)))
    for coefficients in (1, 2048, 10**6):
        natural = math.log(2 * coefficients) - (r.modulus / (2 * modulus) - additions / 2) ** 2 / (2 * additions**2 * 10.5 * (1 + 2 * 2048))
        assert -100 < natural / math.log(2) < 0
        assert lattice.log2_failure(r, modulus, additions, coefficients) == pytest.approx(natural / math.log(2), rel=1e-6)


def test_the_chance_of_an_odd_key() -> None:
    """|e|^2 <= 1.5 * 10.5 N but for exp(-x), 2 sqrt(x/N) + 2x/N = 1/2; it is what remains where there is room without end."""
    assert 2 * math.sqrt(0.0429) + 2 * 0.0429 == pytest.approx(0.5, abs=1e-3)
    assert lattice.log2_failure(ring(2048, 54), 2, 1, 2048) == pytest.approx(-0.0429 * 2048 / math.log(2), abs=0.01)
    generator = np.random.default_rng(5)
    norms = [float(np.mean(binomial(generator, 2048) ** 2)) for _ in range(2000)]
    assert np.mean(norms) == pytest.approx(lattice.ERROR_VARIANCE, rel=0.01)
    assert max(norms) < 1.25 * lattice.ERROR_VARIANCE


def test_error_of_a_number_of_ckks() -> None:
    """Real parts at the odd powers of a 2N-th root of unity, by FFT, of simulated noise and the encoder's rounding."""
    generator = np.random.default_rng(6)
    roots = np.exp(1j * np.pi * np.arange(N) / N)
    values = []
    for _ in range(200):
        v = noise(generator, ternary(generator), binomial(generator)) + generator.uniform(-0.5, 0.5, N)
        values.append(np.fft.fft(v * roots).real / 2**10)
    measured, claimed = float(np.std(values)), lattice.error_std(ring(N, 30), 2.0**10, 1)
    assert measured < claimed
    assert claimed == pytest.approx(measured * math.sqrt(1.5), rel=0.03)
    assert lattice.error_std(ring(N, 30), 2.0**10, 7) == pytest.approx(7 * claimed)


# -- security and primes ------------------------------------------------------------------------------------------------------------------


def test_the_table_is_the_published_one() -> None:
    """Homomorphic Encryption Standard 2018, table 1, ternary secret, 128 bits, classical."""
    assert lattice.STANDARD_128 == {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}


def test_insecure_rings_are_refused() -> None:
    lattice.check_security(ring(2048, 54))
    with pytest.raises(PlanRefused, match="55 bits at ring degree 2048 is not secure: at most 54"):
        lattice.check_security(ring(2048, 55))
    with pytest.raises(PlanRefused, match="56 bits at ring degree 2048"):  # the special prime counts
        lattice.check_security(ring(2048, 28, special=True))
    with pytest.raises(PlanRefused, match="not 512"):
        lattice.check_security(Ring(512, (12289,)))


def test_primes_are_the_largest_of_their_size() -> None:
    """By trial division."""

    def prime(n: int) -> bool:
        return all(n % d for d in range(2, math.isqrt(n) + 1))

    for degree, bits in ((1024, 20), (2048, 22), (4096, 24)):
        found = [p for p in range(2 ** (bits - 1), 2**bits) if p % (2 * degree) == 1 and prime(p)][-3:]
        assert lattice.seal_primes(degree, [bits, bits, bits]) == tuple(found)
        assert lattice.batching_prime(degree, bits) == found[-1]
    assert lattice.seal_primes(8192, [14]) is None
    assert lattice.batching_prime(8192, 14) is None


def test_primes_against_published_ones() -> None:
    """SEAL's default moduli (globals.cpp): each is prime and 1 modulo 2N; composites nearby are not taken."""
    for prime in (0x3FFFFFFF000001, 0xFFFFEE001, 0xFFFFC4001, 0x1FFFFE0001, 0x7FFFFFD8001, 0xFFFFFEBC001):
        assert lattice._is_prime(prime)
        assert not lattice._is_prime(prime - 2)
    for composite in (3215031751, 3825123056546413051, 318665857834031151167461 % 2**63, 561, 2**61 + 1):  # strong pseudoprimes among them
        assert not lattice._is_prime(composite)


# -- plans --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [BARE, SPECIAL], ids=["bare", "special"])
@given(bound=st.integers(1, 2**40), additions=st.integers(1, 1000), length=st.integers(1, 10**7))
@settings(max_examples=60, deadline=None)
def test_exact_plans_hold_what_they_say(shapes: tuple[Shape, ...], bound: int, additions: int, length: int) -> None:
    plan = lattice.plan_exact(ValueSpec(length, "integer", bound), additions, shapes)
    lattice.check_security(plan.ring)
    assert plan.log2_failure <= -64
    assert plan.budget >= 5
    assert plan.modulus % (2 * plan.ring.degree) == 1
    assert limbs_for(bound, additions, plan.modulus) == (plan.limbs, plan.limb_bits)
    assert 2 * additions * 2 ** (plan.limb_bits - 1) < plan.modulus
    coefficients = -(-plan.limbs * length // plan.ring.degree) * plan.ring.degree
    shape = next(s for s in shapes if s.degree == plan.ring.degree)
    smaller = [r for r in shape.rings() if r.modulus < plan.ring.modulus]
    assert all(lattice.budget(r, plan.modulus, additions, coefficients) < 5 for r in smaller), "a smaller prime would do"
    assert plan == lattice.plan_exact(ValueSpec(length, "integer", bound), additions, shapes)


@given(bound=st.integers(1, 2**16), additions=st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_approximate_plans_obey_the_release_rule(bound: int, additions: int) -> None:
    for shapes in (BARE, SPECIAL):
        plan = lattice.plan_approximate(ValueSpec(1000, "integer", bound), additions, shapes)
        lattice.check_security(plan.ring)
        assert plan.error_std <= 1 / 24 < 2 * plan.error_std, "half the scale would break the rule"
        assert additions * bound * plan.scale * 4 < plan.ring.modulus
        assert plan.error_std == lattice.error_std(plan.ring, plan.scale, additions)


def test_five_sites_and_sixteen_bits() -> None:
    plan = lattice.plan_exact(ValueSpec(10**6, "integer", 32767), 5, BARE)
    assert (plan.ring.degree, plan.ring.total_bits, plan.limbs, plan.limb_bits) == (2048, 39, 1, 16)
    plan = lattice.plan_exact(ValueSpec(10**6, "integer", 32767), 5, SPECIAL)
    assert (plan.ring.degree, plan.ring.total_bits, plan.limbs) == (4096, 80, 1)
    assert lattice.plan_exact(ValueSpec(10**6, "integer", 2**40), 10, BARE).limbs == 2


@pytest.mark.parametrize("planner", [lattice.plan_exact, lattice.plan_approximate])
def test_plans_refuse_with_every_reason(planner: Any) -> None:
    with pytest.raises(PlanRefused) as refusal:
        planner(ValueSpec(0, "real", None), 0, BARE)
    assert len(refusal.value.misfits) == 3
    with pytest.raises(PlanRefused, match="do not fit 63 bits"):
        planner(ValueSpec(3, "integer", 2**60), 8, BARE)
    with pytest.raises(PlanRefused, match="1,000,000"):
        planner(ValueSpec(3, "integer", 2**20), 1_000_000, (Shape(2048, (30,), special=False),))


# -- bytes --------------------------------------------------------------------------------------------------------------------------------

PARAMS = HEParams("toy", "bfv", "exact", 7, 65537, 1, 9, 3, 128, -64.0, None, 100, ring(2048, 54).describe())
KEY = hashlib.sha256(b"public body").digest()


def test_bytes_come_back() -> None:
    data = lattice.with_header("ciphertext", PARAMS, KEY, [b"one", memoryview(b"two")])
    assert len(data) == lattice.HEADER_BYTES + 6
    for form in (data, bytearray(data), memoryview(data)):
        key, body = lattice.without_header("ciphertext", PARAMS, form, KEY)
        assert (key, bytes(body)) == (KEY, b"onetwo")


def test_every_byte_counts() -> None:
    data = lattice.with_header("ciphertext", PARAMS, KEY, [b"body"])
    for place in range(len(data)):
        for flip in (1, 0x80):
            with pytest.raises(WireError):
                lattice.without_header("ciphertext", PARAMS, data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
    for wrong in (*(data[:cut] for cut in range(len(data))), data + b"\0", data + data, None, "text", 7):
        with pytest.raises(WireError):
            lattice.without_header("ciphertext", PARAMS, wrong)


def test_other_bytes_are_named() -> None:
    data = lattice.with_header("ciphertext", PARAMS, KEY, [b"body"])
    public = lattice.with_header("public key", PARAMS, KEY, [b"public body"])
    assert lattice.without_header("public key", PARAMS, public)[0] == KEY
    with pytest.raises(WireError, match="a ciphertext, not a secret key"):
        lattice.without_header("secret key", PARAMS, data)
    with pytest.raises(WireError, match="another key"):
        lattice.without_header("ciphertext", PARAMS, data, bytes(32))
    for other in (replace(PARAMS, length=8), replace(PARAMS, additions=4), replace(PARAMS, details={"degree": 1})):
        with pytest.raises(WireError, match="other parameters"):
            lattice.without_header("ciphertext", other, data)
    for other in (replace(PARAMS, backend="other"), replace(PARAMS, scheme="bgv")):
        with pytest.raises(WireError, match="another back end or scheme"):
            lattice.without_header("ciphertext", other, data)
    with pytest.raises(WireError, match="not the one that its header names"):
        lattice.without_header("public key", PARAMS, lattice.with_header("public key", PARAMS, bytes(32), [b"public body"]))


def test_a_ring_is_read_from_parameters() -> None:
    assert lattice.ring_of(PARAMS) == ring(2048, 54)
    special = ring(4096, 40, special=True)
    assert lattice.ring_of(replace(PARAMS, details=special.describe())) == special
    for details in ({}, {**PARAMS.details, "primes": None}, {**PARAMS.details, "degree": "many"}):
        with pytest.raises(WireError, match="do not describe a ring"):
            lattice.ring_of(replace(PARAMS, details=details))
    with pytest.raises(PlanRefused, match="not secure"):
        lattice.ring_of(replace(PARAMS, details=ring(2048, 60).describe()))
