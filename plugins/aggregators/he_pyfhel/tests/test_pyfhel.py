"""Pyfhel against the plan: sizes, measured noise, refusals, packed bytes."""

from __future__ import annotations

import hashlib
import math
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("Pyfhel", reason="Pyfhel is not installed: python plugins/aggregators/he_pyfhel/scripts/build_pyfhel.py .cache/wheels")

from Pyfhel import Pyfhel

from pppml_core import lattice
from pppml_core.errors import PlanRefused, PppmlError, WireError
from pppml_core.lattice import Ring
from pppml_core.values import ValueSpec
from pppml_he_pyfhel import context
from pppml_he_pyfhel.backend import BLOCK, PyfhelBackend
from pppml_he_pyfhel.config import PyfhelConfig
from pppml_he_pyfhel.context import Setting
from pppml_he_pyfhel.packing import pack, row_bytes, unpack

BUILD = Path(__file__).resolve().parents[1] / "scripts" / "build_pyfhel.py"


def backend(scheme: str) -> PyfhelBackend:
    return PyfhelBackend(PyfhelConfig(scheme=scheme))


def integers(length: int, bound: int = 32767, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-bound, bound, length, np.int64, endpoint=True)


def plain(params: Any, values: np.ndarray) -> np.ndarray:
    return params.residues(values) if params.arithmetic == "exact" else values.astype(np.float64)


def prime(degree: int, bits: int) -> int:
    found = lattice.batching_prime(degree, bits)
    assert found is not None
    return found


# -- what travels -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "most"), [("bfv", 10.1), ("bgv", 10.1), ("ckks", 21.0)])
def test_bytes_and_blocks(scheme: str, most: float) -> None:
    """100,000 numbers: less than one block; and across the border of a block."""
    he = backend(scheme)
    params = he.plan(ValueSpec(100_000, "integer", 32767), 5)
    public, _ = he.keygen(params)
    ciphertext = he.encrypt(params, public, plain(params, integers(100_000)))
    assert len(ciphertext) == params.ciphertext_bytes
    assert len(ciphertext) / 100_000 <= most
    length = (BLOCK + 1) * params.details["slots"] + 5
    params = he.plan(ValueSpec(length, "integer", 32767), 5)
    public, secret = he.keygen(params)
    values = integers(length)
    ciphertext = he.encrypt(params, public, plain(params, values))
    total = he.decrypt(params, secret, he.add(params, ciphertext, ciphertext))
    found = params.integers(total) if scheme != "ckks" else np.rint(total).astype(np.int64)
    assert (found == 2 * values).all()


@given(rows=st.integers(1, 5), n=st.sampled_from([64, 128, 4096]), bits=st.integers(20, 60), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_against_python_integers(rows: int, n: int, bits: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**bits, (rows, n), np.uint64)
    packed = pack(words, bits)
    assert len(packed) == rows * row_bytes(n, bits)
    assert (unpack(packed.data, bits, n) == words).all()
    sections = 64 // math.gcd(bits, 64)
    mine = words.reshape(rows, sections, -1)
    theirs = packed.view("<u8").reshape(rows, -1, n // sections)
    for row, place in ((0, 0), (rows - 1, n // sections - 1)):
        as_one = sum(int(w) << (bits * k) for k, w in enumerate(mine[row, :, place]))
        assert as_one == sum(int(w) << (64 * k) for k, w in enumerate(theirs[row, :, place]))


def test_addition_is_modulo_the_prime() -> None:
    """Coefficient by coefficient, at the ends of the range too."""
    he = backend("bfv")
    params = he.plan(ValueSpec(10, "integer", 100), 3)
    setting = Setting.of(params)
    q = setting.prime
    one = np.random.default_rng(0).integers(0, q, (1, setting.words), np.uint64)
    one[0, :4] = [0, 1, q - 1, q - 1]
    other = np.random.default_rng(1).integers(0, q, (1, setting.words), np.uint64)
    other[0, :4] = [0, q - 1, 1, q - 1]
    left, right = (lattice.with_header("ciphertext", params, bytes(32), [pack(w, setting.bits).tobytes()]) for w in (one, other))
    _, body = lattice.without_header("ciphertext", params, he.add(params, left, right))
    expected = [(int(a) + int(b)) % q for a, b in zip(one[0], other[0], strict=True)]
    assert unpack(body, setting.bits, setting.words)[0].tolist() == expected
    assert expected[:4] == [0, 0, 0, q - 2]


@pytest.mark.parametrize("scheme", ["bfv", "bgv", "ckks"])
def test_seal_writes_what_the_plan_says(scheme: str) -> None:
    """Our preamble, parms_id included, is byte for byte what SEAL writes, for keys and ciphertexts; other bytes are not taken for it."""
    he = backend(scheme)
    setting = Setting.of(he.plan(ValueSpec(10, "integer", 100), 3))
    library = context.create(setting)
    library.keyGen()
    raw = library.to_bytes_public_key("none")
    assert raw.startswith(setting.preamble(key=True))
    assert len(raw) == len(setting.preamble(key=True)) + 8 * setting.words
    for wrong in (raw[:-8], b"\0" + raw[1:], raw[:40] + b"\0" + raw[41:]):
        with pytest.raises(PlanRefused, match="other bytes"):
            context.strip(setting, wrong, setting.preamble(key=True))


# -- noise --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [100, 2**23])
def test_measured_error_of_ckks(bound: int) -> None:
    """Of sums of 4 encryptions of zero: within 5 % of what the variance of a coefficient says, and within the planned bound."""
    he = backend("ckks")
    params = he.plan(ValueSpec(40_000, "integer", bound), 4)
    public, secret = he.keygen(params)
    zeros = np.zeros(params.length)
    total = he.encrypt(params, public, zeros)
    for _ in range(3):
        total = he.add(params, total, he.encrypt(params, public, zeros))
    measured = float(np.std(he.decrypt(params, secret, total)))
    ring = lattice.ring_of(params)
    computed = math.sqrt(ring.degree / 2 * 4 * (ring.variance + 1 / 12)) / params.details["scale"]
    assert measured == pytest.approx(computed, rel=0.05)
    assert params.error_std is not None
    assert measured < params.error_std <= 1 / 24


@pytest.mark.parametrize(("bound", "additions"), [(127, 2), (32767, 5), (2**23, 50)])
def test_measured_noise_budget_of_bfv(bound: int, additions: int) -> None:
    """Within 1.5 bits of the expected largest of d normal coefficients; never below what the plan left."""
    he = backend("bfv")
    params = he.plan(ValueSpec(20_000, "integer", bound), additions)
    assert params.plaintext_modulus is not None
    public, secret = he.keygen(params)
    fresh = [he.encrypt(params, public, plain(params, integers(20_000, bound, seed))) for seed in range(2)]
    total = fresh[0]
    for i in range(additions - 1):
        total = he.add(params, total, he.encrypt(params, public, plain(params, integers(20_000, bound, i))))
    measured, ring = he.noise_budget(params, secret, total), lattice.ring_of(params)
    largest = math.sqrt(additions * ring.variance * 2 * math.log(2 * 20_480))
    assert measured == pytest.approx(math.log2(ring.modulus / (2 * params.plaintext_modulus * largest)), abs=1.5)
    assert measured >= params.details["noise_budget_bits"] - 1 >= 4
    repeated = fresh[0]
    for _ in range(additions - 1):
        repeated = he.add(params, repeated, fresh[0])
    worst = he.noise_budget(params, secret, repeated)
    assert worst is not None
    assert worst >= 4
    assert worst <= measured


@pytest.mark.parametrize("scheme", ["bfv", "bgv"])
def test_sums_break_where_the_formula_says(scheme: str) -> None:
    """With a plaintext modulus half a bit smaller than the expected noise allows a fresh sum is right; 3 bits larger it is wrong."""
    he, degree, q = backend(scheme), 2048, prime(2048, 54)
    ring, additions = Ring(degree, (q,)), 6
    limit = math.log2(q / (2 * math.sqrt(additions * ring.variance * 2 * math.log(2 * degree))))
    for bits, right in ((math.floor(limit - 0.5), True), (math.ceil(limit + 2.5), False)):
        modulus = prime(degree, bits)
        base = he.plan(ValueSpec(degree, "integer", 100), additions)
        params = type(base)(
            **{**{f: getattr(base, f) for f in base.__dataclass_fields__}, "plaintext_modulus": modulus, "details": ring.describe()}
        )
        public, secret = he.keygen(params)
        values = np.random.default_rng(0).integers(0, modulus, (additions, degree), np.uint64)
        total = he.encrypt(params, public, values[0])
        for row in values[1:]:
            total = he.add(params, total, he.encrypt(params, public, row))
        expected = np.array([sum(map(int, column)) % modulus for column in values.T], np.uint64)
        assert (he.decrypt(params, secret, total) == expected).all() == right, f"{bits} bits of {limit:.1f}"


def test_budget_is_told_for_bfv_only() -> None:
    for scheme in ("bgv", "ckks"):
        he = backend(scheme)
        params = he.plan(ValueSpec(10, "integer", 100), 3)
        public, secret = he.keygen(params)
        assert he.noise_budget(params, secret, he.encrypt(params, public, plain(params, integers(10, 100)))) is None


# -- what is refused ----------------------------------------------------------------------------------------------------------------------


INSECURE = [Setting("bfv", Ring(2048, (prime(2048, 60),)), prime(2048, 20)), Setting("ckks", Ring(2048, (prime(2048, 60),)), scale=2.0**30)]


@pytest.mark.parametrize("setting", INSECURE, ids=["bfv", "ckks"])
def test_insecure_parameters_are_refused_twice(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the table, and by SEAL's status, which Pyfhel only returns."""
    with pytest.raises(PlanRefused, match="60 bits at ring degree 2048 is not secure"):
        context.create(setting)
    monkeypatch.setattr(context, "check_security", lambda ring: None)
    with pytest.raises(PlanRefused, match="invalid_parameters_insecure"):
        context.create(setting)


@pytest.mark.parametrize(
    "setting",
    [
        Setting("bfv", Ring(2048, (prime(2048, 40),)), 65539),  # no batching
        Setting("bfv", Ring(2048, (prime(2048, 40),)), prime(2048, 45)),  # larger than the prime
        Setting("bfv", Ring(2048, (2**39 + 1,)), prime(2048, 20)),  # no prime
    ],
)
def test_parameters_that_do_not_work_are_refused(setting: Setting) -> None:
    with pytest.raises(PlanRefused, match="pyfhel does not accept"):
        context.create(setting)


def test_silently_changed_parameters_are_refused() -> None:
    """Pyfhel calls them valid: it ignores sizes of primes for BFV, and rounds nothing else."""
    modulus = prime(4096, 20)
    planned = Setting("bfv", Ring(4096, (prime(4096, 40),)), modulus)
    library = Pyfhel()
    status = library.contextGen(scheme="bfv", n=4096, t=modulus, sec=128, qi_sizes=[40])
    assert "success" in str(status)
    assert len(library.get_qi()) == 3, "it made its own primes"
    with pytest.raises(PlanRefused, match="changed the parameters"):
        context.check(planned, library, status)
    right = context.create(planned)
    context.check(planned, right, context.VALID)
    for other in (
        Setting("bfv", planned.ring, prime(4096, 21)),
        Setting("bgv", planned.ring, modulus),
        Setting("bfv", Ring(2048, planned.ring.primes), modulus),
    ):
        with pytest.raises(PlanRefused, match="changed the parameters"):
            context.check(other, right, context.VALID)


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_sound_headers_over_unsound_bodies(scheme: str) -> None:
    """Wrong lengths and coefficients beyond the modulus, checksum and hashes in order."""
    he = backend(scheme)
    params = he.plan(ValueSpec(3000, "integer", 32767), 5)
    public, secret = he.keygen(params)
    ciphertext = he.encrypt(params, public, plain(params, integers(3000)))
    key, body = lattice.without_header("ciphertext", params, ciphertext)
    setting = Setting.of(params)
    words = unpack(body, setting.bits, setting.words).copy()
    words[1, 7] = setting.prime
    beyond = pack(words, setting.bits).tobytes()
    for wrong in (b"", bytes(body[:-1]), bytes(body) + bytes(setting.part_bytes), beyond):
        forged = lattice.with_header("ciphertext", params, key, [wrong])
        for act in (lambda f=forged: he.decrypt(params, secret, f), lambda f=forged: he.add(params, f, ciphertext)):
            with pytest.raises(WireError):
                act()
    for wrong in (b"", pack(words[1:2], setting.bits).tobytes()):
        forged = lattice.with_header("public key", params, hashlib.sha256(wrong).digest(), [wrong])
        with pytest.raises(WireError):
            he.encrypt(params, forged, plain(params, integers(3000)))
    held = lattice.with_header("secret key", params, key, [b"\0" * 200])
    with pytest.raises(WireError, match="SEAL does not accept"):
        he.decrypt(params, type(secret)(held), ciphertext)


def test_parameters_of_others_are_refused() -> None:
    he = backend("bfv")
    params = he.plan(ValueSpec(10, "integer", 100), 3)
    for change in ({"backend": "tenseal"}, {"scheme": "paillier"}, {"details": {**params.details, "special_prime": prime(2048, 14)}}):
        with pytest.raises(PppmlError):
            he.keygen(replace(params, **change))


def test_numbers_beyond_the_scale_are_refused() -> None:
    he = backend("ckks")
    params = he.plan(ValueSpec(10, "integer", 100), 3)
    public, _ = he.keygen(params)
    for number in (1e9, -1e9, math.nan, math.inf):
        with pytest.raises(WireError, match="not finite, or too large"):
            he.encrypt(params, public, np.full(10, number))


def test_contexts_are_kept_for_few_keys() -> None:
    he = backend("bfv")
    params = he.plan(ValueSpec(10, "integer", 100), 3)
    values = plain(params, integers(10, 100))
    for _ in range(12):
        public, _ = he.keygen(params)
        before = context.encryptor.cache_info().misses
        he.encrypt(params, public, values)
        he.encrypt(params, public, values)
        assert context.encryptor.cache_info().misses == before + 1
    assert context.encryptor.cache_info().currsize <= 8


# -- the build ----------------------------------------------------------------------------------------------------------------------------


def run_build(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BUILD), str(folder), *options], capture_output=True, text=True, env=env, check=False)


def test_build_says_what_is_missing(tmp_path: Path) -> None:
    done = run_build(tmp_path, "--no-install", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "no C++ compiler was found (g++, clang++ or c++)" in done.stderr
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    done = run_build(tmp_path, "--no-install", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "g++ does not compile C++17" in done.stderr


def test_build_does_nothing_twice(tmp_path: Path) -> None:
    """A Pyfhel that works, or a wheel for this interpreter, is enough."""
    assert run_build(tmp_path, PATH=str(tmp_path)).returncode == 0
    assert list(tmp_path.iterdir()) == []
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    with zipfile.ZipFile(tmp_path / f"pyfhel-3.5.0-{tag}-{tag}-linux_x86_64.whl", "w") as whole:
        whole.writestr("a", b"")
    assert run_build(tmp_path, "--no-install", PATH=str(tmp_path)).returncode == 0


def test_seal_headers_are_little_endian_structs() -> None:
    """The first 16 bytes, field by field (SEAL's serialization.h)."""
    setting = Setting("bfv", Ring(2048, (prime(2048, 40),)), prime(2048, 20))
    magic, size, major, minor, compression, zero, whole = struct.unpack_from("<HBBBBHQ", setting.preamble())
    assert (magic, size, major, minor, compression, zero) == (0xA15E, 16, 4, 1, 0, 0)
    assert whole == len(setting.preamble()) + 8 * setting.words


def test_a_damaged_wheel_is_not_taken_for_one(tmp_path: Path) -> None:
    """An interrupted copy must not keep Pyfhel out for good."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("build_pyfhel", BUILD)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    whole, part = tmp_path / "whole.whl", tmp_path / "part.whl"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("a", bytes(1000))
    part.write_bytes(whole.read_bytes()[:600])
    assert script.sound(whole)
    assert not script.sound(part)
