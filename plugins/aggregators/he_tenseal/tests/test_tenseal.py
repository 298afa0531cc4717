"""TenSEAL against the plan: sizes, measured noise, refusals."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tenseal
from pydantic import ValidationError

from pppml_core import lattice
from pppml_core.errors import PlanRefused, PppmlError, WireError
from pppml_core.lattice import Ring
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_he_tenseal import context
from pppml_he_tenseal.backend import PAPER_BITS, TenSEALBackend
from pppml_he_tenseal.config import TenSEALConfig
from pppml_he_tenseal.context import Setting


def backend(**settings: Any) -> TenSEALBackend:
    return TenSEALBackend(TenSEALConfig(**settings))


def integers(length: int, bound: int = 32767, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-bound, bound, length, np.int64, endpoint=True)


def plain(params: Any, values: np.ndarray) -> np.ndarray:
    return params.residues(values) if params.arithmetic == "exact" else values.astype(np.float64)


def ring(degree: int, *bits: int) -> Ring:
    primes = lattice.seal_primes(degree, bits)
    assert primes is not None
    return Ring(degree, primes[:-1], primes[-1])


def modulus(degree: int, bits: int) -> int:
    found = lattice.batching_prime(degree, bits)
    assert found is not None
    return found


SIZES = [("bfv", 127, 8.8), ("bfv", 32767, 12.4), ("bfv", 2**23, 14.1), ("bfv", 2**29, 15.6), ("ckks", 127, 17.5), ("ckks", 32767, 24.8)]


@pytest.mark.parametrize(("scheme", "bound", "most"), SIZES)
def test_bytes(scheme: str, bound: int, most: float) -> None:
    """100,000 numbers. Each size of prime; the plan is within 1 %."""
    he = backend(scheme=scheme)
    params = he.plan(ValueSpec(100_000, "integer", bound), 5)
    public, _ = he.keygen(params)
    ciphertext = he.encrypt(params, public, plain(params, integers(100_000, bound)))
    assert len(ciphertext) / 100_000 <= most
    assert len(ciphertext) == pytest.approx(params.ciphertext_bytes, rel=0.01)


@pytest.mark.parametrize(("bound", "additions"), [(127, 2), (32767, 5)])
def test_noise_of_bfv_by_hand(bound: int, additions: int, noise_by_hand: Any) -> None:
    """c0 + c1 s of summed encryptions of zero: its standard deviation within 5 % of the computed one, its maximum as SEAL's budget says."""
    he = backend()
    params = he.plan(ValueSpec(3 * 4096, "integer", bound), additions)
    assert params.plaintext_modulus is not None
    public, secret = he.keygen(params)
    total = he.encrypt(params, public, np.zeros(params.length, np.uint64))
    for _ in range(additions - 1):
        total = he.add(params, total, he.encrypt(params, public, np.zeros(params.length, np.uint64)))
    measured, own = noise_by_hand(params, secret, total), lattice.ring_of(params)
    assert float(measured.std()) == pytest.approx(math.sqrt(additions * own.variance), rel=0.05)
    budget = he.noise_budget(params, secret, total)
    assert budget is not None
    assert budget >= 4
    assert 0 <= math.log2(own.primes[0] / (2 * params.plaintext_modulus * np.abs(measured).max())) - budget < 2


def test_measured_error_of_ckks() -> None:
    he = backend(scheme="ckks")
    params = he.plan(ValueSpec(20_000, "integer", 32767), 4)
    public, secret = he.keygen(params)
    total = he.encrypt(params, public, np.zeros(params.length))
    for _ in range(3):
        total = he.add(params, total, he.encrypt(params, public, np.zeros(params.length)))
    measured, own = float(np.std(he.decrypt(params, secret, total))), lattice.ring_of(params)
    computed = math.sqrt(own.degree / 2 * 4 * (own.variance + 1 / 12)) / params.details["scale"]
    assert measured == pytest.approx(computed, rel=0.05)
    assert params.error_std is not None
    assert measured < params.error_std <= 1 / 24
    assert he.noise_budget(params, secret, total) is None


# -- the paper's parameters ---------------------------------------------------------------------------------------------------------------


def test_the_papers_parameters() -> None:
    """As the PPPML-HMI code sets them, and only where they are asked for; the error is what is measured."""
    he = backend(scheme="ckks", preset="paper")
    params = he.plan(ValueSpec(20_000, "real", None), 5)
    own = lattice.ring_of(params)
    assert (own.degree, own.total_bits, params.details["scale"]) == (8192, 218, 2.0**26)
    assert tuple(p.bit_length() for p in (*own.primes, own.special or 0)) == PAPER_BITS
    public, secret = he.keygen(params)
    values = np.random.default_rng(0).normal(size=(2, 20_000))
    one, other = (he.encrypt(params, public, row) for row in values)
    assert len(one) / 20_480 == pytest.approx(116.5, rel=0.03)
    error = float(np.std(he.decrypt(params, secret, he.add(params, one, other)) - values.sum(0)))
    assert params.error_std is not None
    assert params.error_std / 6 < error < params.error_std
    for settings in ({}, {"scheme": "ckks"}):
        assert backend(**settings).plan(ValueSpec(100, "integer", 100), 2).details["degree"] == 4096
        with pytest.raises(PlanRefused):
            backend(**settings).plan(ValueSpec(100, "real", None), 2)
    with pytest.raises(PlanRefused, match="nothing to encrypt"):
        he.plan(ValueSpec(0, "real", None), 2)


def test_rotation_keys_only_for_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in ({"preset": "paper"}, {"galois_keys": True}, {"scheme": "ckks", "galois_keys": True}):
        with pytest.raises(ValidationError):
            TenSEALConfig(**settings)
    made = []
    monkeypatch.setattr(tenseal.Context, "generate_galois_keys", lambda self: made.append(self))
    he = backend(scheme="ckks", preset="paper")
    params = he.plan(ValueSpec(10, "real", None), 2)
    he.keygen(params)
    assert made == []
    backend(scheme="ckks", preset="paper", galois_keys=True).keygen(params)
    assert len(made) == 1


# -- what is refused ----------------------------------------------------------------------------------------------------------------------


def test_insecure_parameters_are_refused_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table, and by SEAL through TenSEAL."""
    setting = Setting("bfv", ring(2048, 40, 40), modulus(2048, 20))
    with pytest.raises(PlanRefused, match="80 bits at ring degree 2048 is not secure"):
        context.create(setting)
    monkeypatch.setattr(context, "check_security", lambda ring: None)
    with pytest.raises(PlanRefused, match="tenseal does not accept"):
        context.create(setting)


@pytest.mark.parametrize(
    "setting",
    [
        Setting("bfv", Ring(4096, (modulus(4096, 40),), modulus(4096, 40)), modulus(4096, 20)),  # TenSEAL chooses two different primes
        Setting("bfv", Ring(4096, ring(4096, 40, 40).primes[::-1], modulus(4096, 41)), modulus(4096, 20)),
        Setting("ckks", Ring(4096, (modulus(4096, 40) - 2,), modulus(4096, 40)), scale=2.0**20),
    ],
)
def test_silently_changed_parameters_are_refused(setting: Setting) -> None:
    """TenSEAL is given sizes; that it takes the primes of the plan is checked by SEAL's name for them."""
    with pytest.raises(PlanRefused, match="other parameters than it was asked for"):
        context.create(setting)


def public_with(params: Any, body: bytes) -> bytes:
    return lattice.with_header("public key", params, hashlib.sha256(body).digest(), [body])


def test_contexts_of_others_are_refused() -> None:
    """A received context brings parameters, and may bring a secret key or none at all."""
    he = backend()
    params = he.plan(ValueSpec(100, "integer", 32767), 5)
    values = plain(params, integers(100))
    own = context.create(Setting.of(params))
    parts = {"save_relin_keys": False, "save_galois_keys": False}
    other = tenseal.context(tenseal.SCHEME_TYPE.BFV, 4096, modulus(4096, 17), coeff_mod_bit_sizes=[40, 40], n_threads=1)
    cases = {
        "other parameters": other.serialize(save_public_key=True, save_secret_key=False, **parts),
        "holds a secret key": own.serialize(save_public_key=True, save_secret_key=True, **parts),
        "no public key": own.serialize(save_public_key=False, save_secret_key=False, **parts),
        "does not accept": b"nonsense",
    }
    for reason, body in cases.items():
        with pytest.raises(WireError, match=reason):
            he.encrypt(params, public_with(params, body), values)
    public, _ = he.keygen(params)
    ciphertext = he.encrypt(params, public, values)
    key, _ = lattice.without_header("public key", params, public)
    for reason in ("other parameters", "does not accept"):
        held = Secret(lattice.with_header("secret key", params, key, [cases[reason]]))
        with pytest.raises(WireError, match=reason):
            he.decrypt(params, held, ciphertext)
    held = Secret(lattice.with_header("secret key", params, key, [cases["no public key"]]))
    with pytest.raises(WireError, match="no secret key"):
        he.decrypt(params, held, ciphertext)


def framed(*chunks: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(chunk)) + chunk for chunk in chunks)


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_sound_headers_over_unsound_bodies(scheme: str) -> None:
    """Numbers that TenSEAL would believe, and read beyond the end; lengths; another scale."""
    he = backend(scheme=scheme)
    params = he.plan(ValueSpec(100, "integer", 32767), 5)
    setting, slots = Setting.of(params), params.details["slots"]
    public, secret = he.keygen(params)
    ciphertext = he.encrypt(params, public, plain(params, integers(100)))
    key, body = lattice.without_header("ciphertext", params, ciphertext)
    good = bytes(body[4:])
    made = context.encryptor(setting, bytes(lattice.without_header("public key", params, public)[1])).data
    short = [1] * (slots - 1) if scheme == "bfv" else [1.0] * (slots - 1)
    vector = context.core.BFVVector(made, short) if scheme == "bfv" else context.core.CKKSVector(made, short, setting.scale)
    wrong = [framed(vector.serialize()), b"", framed(), framed(good, good), framed(good) + b"\0", framed(good)[:-1], framed(b"nonsense")]
    stated = good[good.index(b"\x12") :]  # field 1 states the sizes, field 2 begins here
    wrong += [framed(sizes + stated) for sizes in (b"", b"\x0a\x03\xff\xff\x01", b"\x0a\x00", b"\x0a\x02\x01\x01")]
    wrong.append(framed(good[: good.index(b"\x12")]))  # all the numbers, no ciphertext
    half = bytes([slots // 2 & 127 | 128, slots // 2 >> 7])
    wrong.append(framed(b"\x0a\x04" + half + half + stated + stated))  # two ciphertexts of half the size
    wrong.append(framed(good + b"\x7a\x80\x80\x10" + bytes(2**18)))  # a field that protobuf skips, longer than any ciphertext
    if scheme == "ckks":
        wrong.append(framed(context.core.CKKSVector(made, [1.0] * slots, 2.0**10).serialize()))
    for case in wrong:
        forged = lattice.with_header("ciphertext", params, key, [case])
        for act in (lambda f=forged: he.decrypt(params, secret, f), lambda f=forged: he.add(params, f, ciphertext)):
            with pytest.raises(WireError):
                act()
    assert he.decrypt(params, secret, lattice.with_header("ciphertext", params, key, [framed(good)])).shape == (100,)


def test_products_are_refused() -> None:
    """Three polynomials, and other levels: sound bytes of the right parameters and key, which no sum makes."""
    he = backend()
    params = he.plan(ValueSpec(100, "integer", 32767), 5)
    setting = Setting.of(params)
    made = context.create(setting)
    made.auto_relin = False
    one = context.core.BFVVector(made.data, [1] * setting.slots)
    assert context.read_vector(setting, made, one.serialize()).size() == setting.slots
    product = one.mul(one)
    assert product.ciphertext()[0].size() == 3
    with pytest.raises(WireError, match="another level, size or scale"):
        context.read_vector(setting, made, product.serialize())

    paper = Setting.of(backend(scheme="ckks", preset="paper").plan(ValueSpec(100, "real", None), 2))
    made = context.create(paper)
    lower = context.core.CKKSVector(made.data, [1.0] * paper.slots, 2.0**26).mul_plain([1.0] * paper.slots)
    found = lower.ciphertext()[0]
    assert (found.size(), found.coeff_modulus_size()) == (2, len(paper.ring.primes) - 1), "TenSEAL divided by the last prime"
    with pytest.raises(WireError, match="another level, size or scale"):
        context.read_vector(replace(paper, scale=found.scale), made, lower.serialize())


def test_parameters_of_others_are_refused() -> None:
    he = backend()
    params = he.plan(ValueSpec(10, "integer", 100), 3)
    for change in ({"backend": "pyfhel"}, {"scheme": "bgv"}, {"details": {**params.details, "special_prime": None}}):
        with pytest.raises(PppmlError):
            he.keygen(replace(params, **change))


def test_numbers_beyond_the_scale_are_refused() -> None:
    he = backend(scheme="ckks")
    params = he.plan(ValueSpec(10, "integer", 100), 3)
    public, _ = he.keygen(params)
    for number in (1e9, -1e9, math.nan, math.inf):
        with pytest.raises(WireError, match="not finite, or too large"):
            he.encrypt(params, public, np.full(10, number))


def test_no_secret_context_but_in_a_secret() -> None:
    """What is public holds no secret key; what is cached neither."""
    he = backend()
    params = he.plan(ValueSpec(10, "integer", 100), 3)
    setting = Setting.of(params)
    public, secret = he.keygen(params)
    body = bytes(lattice.without_header("public key", params, public)[1])
    ciphertext = he.encrypt(params, public, plain(params, integers(10, 100)))
    he.decrypt(params, secret, he.add(params, ciphertext, ciphertext))
    assert tenseal.context_from(body, n_threads=1).is_public()
    assert context.encryptor(setting, body).is_public()
    assert context.adder(setting).is_public()
    for _ in range(6):
        he.encrypt(params, he.keygen(params)[0], plain(params, integers(10, 100)))
    assert context.encryptor.cache_info().currsize <= 4
