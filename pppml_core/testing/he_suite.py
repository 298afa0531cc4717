"""``HEBackendSuite``: what every HE back end must do. The right numbers or an error, under the right key and parameters only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from pppml_core.errors import PlanRefused, PppmlError, WireError
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.randomness import Secret
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.suite import Suite
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.values import ValueSpec

Integers = npt.NDArray[np.int64]
Keys = tuple[bytes, Secret]

BOUNDS = (1, 2, 127, 32_767, 2**20, 2**31, 2**40)
ADDITIONS = (2, 3, 10, 100, 1000)


class HEBackendSuite(Suite):
    """Subclass it with ``component`` and, where needed, ``config``.

    ``bound``, ``additions``: of the sums that are tried; ``largest_bound``, ``most_additions``: up to which every sum must be planned
    (beyond them it may be refused); ``length``: of the vectors that are damaged; ``slots``: numbers in one ciphertext of the library,
    around which lengths are tried (default: ``details["slots"]``, else 64); ``header_bytes``: how long the header is (default: what all
    ciphertexts of one key begin with); ``flips``: how many bits of a ciphertext's body are flipped. ``toy = True`` waives the claim of
    128-bit security, and nothing else, for a back end that says of itself that it is none.
    """

    bound: ClassVar[int] = 32_767
    additions: ClassVar[int] = 20
    largest_bound: ClassVar[int] = 2**40
    most_additions: ClassVar[int] = 1000
    length: ClassVar[int] = 50
    slots: ClassVar[int | None] = None
    header_bytes: ClassVar[int | None] = None
    flips: ClassVar[int] = 40
    toy: ClassVar[bool] = False

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def planned(self, length: int | None = None, bound: int | None = None, additions: int | None = None) -> tuple[HEBackend, HEParams]:
        """The back end and parameters."""
        backend: HEBackend = self.make()
        value = ValueSpec(self.length if length is None else length, "integer", self.bound if bound is None else bound)
        return backend, backend.plan(value, self.additions if additions is None else additions)

    def keyed(self, *sizes: int) -> tuple[HEBackend, HEParams, bytes, Secret]:
        """The back end, parameters and a key pair."""
        backend, params = self.planned(*sizes)
        return backend, params, *backend.keygen(params)

    def plain(self, params: HEParams, integers: Integers) -> npt.NDArray[Any]:
        """Integers as ``encrypt`` takes them."""
        return params.residues(integers) if params.arithmetic == "exact" else integers.astype(np.float64)

    def integers(self, params: HEParams, decrypted: npt.NDArray[Any]) -> Integers:
        """The integers that a decrypted sum stands for: nearest ones of an approximate scheme."""
        self.assert_shape(params, decrypted)
        return params.integers(decrypted) if params.arithmetic == "exact" else np.rint(decrypted).astype(np.int64)

    def assert_shape(self, params: HEParams, decrypted: Any) -> None:
        """Numbers as the interface says."""
        assert isinstance(decrypted, np.ndarray)
        assert decrypted.shape == (params.length,)
        assert decrypted.dtype == (np.uint64 if params.arithmetic == "exact" else np.float64)
        if params.plaintext_modulus is not None:
            assert int(decrypted.max()) < params.plaintext_modulus, "a residue is not reduced"

    def draw(self, length: int, bound: int, seed: int = 0) -> Integers:
        """Uniform integers in ``[-bound, bound]``."""
        return np.random.Generator(np.random.PCG64(seed)).integers(-bound, bound, length, np.int64, endpoint=True)

    def value_length(self, params: HEParams) -> int:
        """Coordinates of the value that these parameters are for."""
        return params.length // params.limbs

    def assert_sum(self, length: int, bound: int, additions: int, terms: Sequence[Integers]) -> None:
        """``additions`` ciphertexts, which repeat ``terms``, decrypt to the sum in Python integers."""
        backend, params, public, secret = self.keyed(length, bound, additions)
        fresh = [backend.encrypt(params, public, self.plain(params, term)) for term in terms]
        total, expected = fresh[0], terms[0].astype(object)
        for i in range(1, additions):
            total = backend.add(params, total, fresh[i % len(terms)])
            expected = expected + terms[i % len(terms)].astype(object)
        found = self.integers(params, backend.decrypt(params, secret, total))
        assert (found.astype(object) == expected).all(), f"length {length}, bound {bound}, {additions} additions"
        budget = backend.noise_budget(params, secret, total)
        assert budget is None or budget >= 4, f"{budget} bits of noise budget are left after {additions} additions; at least 4 are needed"

    def assert_refused(self, backend: HEBackend, params: HEParams, secret: Secret, ciphertext: bytes, case: object) -> None:
        """Neither added nor decrypted."""
        refused(f"decrypt: {case}", backend.decrypt, params, secret, ciphertext)
        refused(f"add, left: {case}", backend.add, params, ciphertext, self._sound)
        refused(f"add, right: {case}", backend.add, params, self._sound, ciphertext)

    _sound: bytes = b""

    def sound(self) -> tuple[HEBackend, HEParams, bytes, Secret, bytes]:
        """A key pair and a ciphertext to be damaged."""
        backend, params, public, secret = self.keyed()
        self._sound = backend.encrypt(params, public, self.plain(params, self.draw(self.length, self.bound)))
        return backend, params, public, secret, self._sound

    # -- the plan ---------------------------------------------------------------------------------------------------------------------

    def test_plan(self) -> None:
        """If this fails: ``plan`` must give parameters for every integer value up to ``largest_bound``: limbs for what is too large."""
        for bound, additions in product(BOUNDS, ADDITIONS):
            if bound <= self.largest_bound and additions <= self.most_additions:
                backend, params = self.planned(7, bound, additions)
                assert isinstance(backend, HEBackend)
                self.assert_params(params, bound, additions)

    def assert_params(self, params: HEParams, bound: int, additions: int) -> None:
        """What plans rely on."""
        case = f"bound {bound}, {additions} additions: {params}"
        assert params.backend == self.component.name
        assert params.scheme, case
        assert params.additions == additions, case
        assert params.length == 7 * params.limbs, case
        assert params.ciphertext_bytes > 0, case
        assert self.toy or params.security_bits >= 128, f"{params.security_bits} bits of security"
        assert params.details, "say what was chosen"
        if params.arithmetic == "exact":
            assert params.plaintext_modulus is not None, case
            assert params.error_std is None, case
            assert params.log2_failure is not None and params.log2_failure <= -64, case  # noqa: PT018
            digit = 1 << (params.limb_bits - 1)
            assert additions * digit < params.plaintext_modulus / 2, f"{case}: the sum of the largest digits wraps around"
            extremes = np.array([bound, -bound, 0, 1, -1, bound // 2, -(bound // 3)], np.int64)
            assert (params.integers(params.residues(extremes)) == extremes).all(), case
        else:
            assert params.plaintext_modulus is None, case
            assert params.log2_failure is None, case
            assert params.limbs == 1, case
            assert params.error_std is not None and params.error_std > 0, case  # noqa: PT018

    def test_plan_is_repeatable_and_plain(self) -> None:
        """If this fails: parties plan for themselves and compare hashes; parameters must be a function of the value, and JSON-able."""
        (_, one), (_, other), (_, longer) = self.planned(), self.planned(), self.planned(self.length + 1)
        assert one == other
        assert one.sha256 == other.sha256
        assert one.sha256 != longer.sha256
        json.dumps({**asdict(one), "details": dict(one.details)})

    def test_plan_refuses_what_it_cannot_do(self) -> None:
        """If this fails: raise PlanRefused, with every reason, instead of parameters that would overflow."""
        backend: HEBackend = self.make()
        _, params = self.planned()
        cases = [(ValueSpec(5, "integer", 2**62), 1000), (ValueSpec(5, "integer", None), 10), (ValueSpec(5, "integer", 10), 0)]
        if params.arithmetic == "exact":
            cases.append((ValueSpec(5, "real", None), 10))
        for value, additions in cases:
            with pytest.raises(PlanRefused) as refusal:
                backend.plan(value, additions)
            assert refusal.value.misfits, f"{value}, {additions} additions"
            assert all(len(reason.split()) > 3 for reason in refusal.value.misfits), f"say it in words: {refusal.value.misfits}"

    # -- keys -------------------------------------------------------------------------------------------------------------------------

    def test_keys_are_fresh_and_secret(self) -> None:
        """If this fails: draw keys anew each time; hold the secret one in ``Secret``; the public one must not decrypt."""
        backend, params = self.planned()
        (public, secret), (other_public, other_secret) = backend.keygen(params), backend.keygen(params)
        assert isinstance(public, bytes)
        assert isinstance(secret, Secret)
        assert public != other_public
        held = secret.reveal()
        assert held != other_secret.reveal()
        assert repr(secret) == f"Secret({len(held)} bytes)"
        only_secret = _windows(held) - _windows(public)
        assert only_secret, "all of the secret key is in the public key"
        ciphertext = backend.encrypt(params, public, self.plain(params, self.draw(self.length, self.bound)))
        for wrong in (public, b"", held[:-1], held + b"\0"):
            text = refused("without the secret key", backend.decrypt, params, Secret(wrong), ciphertext)
            assert held.hex()[-32:] not in text

    def test_no_key_in_a_ciphertext(self) -> None:
        """If this fails: a ciphertext names keys by hash; serialize it without keys and without the library's context."""
        backend, params, public, secret = self.keyed()
        ciphertext = backend.encrypt(params, public, self.plain(params, self.draw(self.length, self.bound)))
        total = backend.add(params, ciphertext, ciphertext)
        for name, key in (("public", public), ("secret", secret.reveal())):
            shared = [w for w in _chunks(key[_common([public, ciphertext, secret.reveal()]) :]) if w in ciphertext or w in total]
            assert not shared, f"64 bytes of the {name} key are in a ciphertext"

    # -- the numbers ------------------------------------------------------------------------------------------------------------------

    def lengths(self) -> list[int]:
        """1, and around the number of slots."""
        _, params = self.planned()
        slots = self.slots or int(params.details.get("slots", 64))
        return sorted({1, 2, max(1, slots - 1), slots, slots + 1, slots + slots // 3})

    def test_sums_are_exact(self) -> None:
        """If this fails: the oracle adds Python integers; look at padding, sign, and the number of slots."""
        for length in self.lengths():
            self.assert_sum(length, self.bound, 3, [self.draw(length, self.bound, seed) for seed in range(3)])

    def test_extremes_are_exact(self) -> None:
        """If this fails: the plaintext modulus, the limbs or the scale do not hold ``additions`` times the largest number."""
        for bound in sorted({1, self.bound, self.largest_bound}):
            largest = np.full(9, bound, np.int64)
            mixed = np.where(np.arange(9) % 2, bound, -bound).astype(np.int64)
            for terms in ([largest], [-largest], [mixed, -mixed], [0 * largest]):
                self.assert_sum(9, bound, self.additions, terms)

    def test_the_full_number_of_additions(self) -> None:
        """If this fails: noise or overflow grow with the number of additions; ``plan`` must choose parameters for all of them."""
        self.assert_sum(9, self.bound, self.most_additions, [self.draw(9, self.bound, seed) for seed in range(4)])
        self.assert_sum(9, self.bound, self.most_additions, [np.full(9, -self.bound, np.int64)])

    def test_order_of_additions_is_irrelevant(self) -> None:
        """If this fails: ``add`` must not depend on which side is which; a sum in a ring and one at a server are the same."""
        backend, params, public, secret = self.keyed()
        a, b, c = (backend.encrypt(params, public, self.plain(params, self.draw(self.length, self.bound, s))) for s in range(3))
        orders = [backend.add(params, backend.add(params, a, b), c), backend.add(params, c, backend.add(params, b, a))]
        one, other = (self.integers(params, backend.decrypt(params, secret, total)) for total in orders)
        assert (one == other).all()

    def test_encryption_is_fresh(self) -> None:
        """If this fails: equal plaintexts must give other ciphertexts each time, far beyond the header."""
        backend, params, public, _ = self.keyed()
        plain = self.plain(params, np.zeros(self.length, np.int64))
        one, other = backend.encrypt(params, public, plain), backend.encrypt(params, public, plain)
        assert one != other
        assert plain.sum() == 0, "encrypt changed its argument"

    def test_size_is_as_planned(self) -> None:
        """If this fails: ``ciphertext_bytes`` must be what travels, within 2 %, for fresh ciphertexts and for sums."""
        for length in self.lengths():
            backend, params, public, _ = self.keyed(length)
            fresh = backend.encrypt(params, public, self.plain(params, self.draw(length, self.bound)))
            for name, ciphertext in (("fresh", fresh), ("summed", backend.add(params, fresh, fresh))):
                off = abs(len(ciphertext) - params.ciphertext_bytes)
                assert off <= 0.02 * params.ciphertext_bytes, f"{name}, length {length}: {len(ciphertext):,} bytes: {params}"

    def test_approximate_error(self) -> None:
        """If this fails: ``error_std`` must bound the measured error; up to 1/24 the nearest integers must be the exact ones."""
        backend, params, public, secret = self.keyed(4 * self.length)
        if params.arithmetic == "exact":
            pytest.skip("an exact scheme")
        terms = [self.draw(4 * self.length, self.bound, seed) for seed in range(self.additions)]
        total = backend.encrypt(params, public, self.plain(params, terms[0]))
        for term in terms[1:]:
            total = backend.add(params, total, backend.encrypt(params, public, self.plain(params, term)))
        decrypted, expected = backend.decrypt(params, secret, total), sum(terms[1:], terms[0])
        assert params.error_std is not None
        assert float(np.std(decrypted - expected)) <= params.error_std
        if params.error_std <= 1 / 24:
            assert (self.integers(params, decrypted) == expected).all()

    # -- what is refused --------------------------------------------------------------------------------------------------------------

    def test_another_key_is_refused(self) -> None:
        """If this fails: compare the key's hash in the header before decrypting or adding."""
        backend, params, _, secret, _ = self.sound()
        foreign = backend.encrypt(params, backend.keygen(params)[0], self.plain(params, self.draw(self.length, self.bound)))
        self.assert_refused(backend, params, secret, foreign, "another key")

    def test_other_parameters_are_refused(self) -> None:
        """If this fails: compare the parameters' hash in the header of ciphertexts and of both keys."""
        backend, params, public, secret, ciphertext = self.sound()
        for sizes in ((self.length + 1,), (self.length, self.bound, 2 * self.additions), (self.length, 64 * self.bound)):
            try:
                _, other = self.planned(*sizes)
            except PlanRefused:
                continue
            if other.sha256 == params.sha256:
                continue
            plain = self.plain(other, self.draw(self.value_length(other), self.bound))
            other_public, other_secret = backend.keygen(other)
            self.assert_refused(backend, params, secret, backend.encrypt(other, other_public, plain), f"a ciphertext of {other}")
            refused(f"a public key for {other}", backend.encrypt, other, public, plain)
            refused(f"a secret key of {other}", backend.decrypt, params, other_secret, ciphertext)

    def damaged(self, ciphertext: bytes) -> Iterator[tuple[str, bytes]]:
        """Bytes that are no ciphertext of this key."""
        yield "empty", b""
        for cut in sorted({1, 8, 40, len(ciphertext) // 2, len(ciphertext) - 8, len(ciphertext) - 1} & set(range(len(ciphertext)))):
            yield f"the first {cut} bytes", ciphertext[:cut]
        for more in (b"\0", b"\0" * 8, ciphertext):
            yield f"{len(more)} bytes more", ciphertext + more
        yield "its end alone", ciphertext[len(ciphertext) // 2 :]
        yield "zeros", bytes(len(ciphertext))
        yield "noise", np.random.Generator(np.random.PCG64(0)).bytes(len(ciphertext))
        double = TransparentBackend(TransparentConfig())
        if self.component.name != "insecure-transparent":
            params = double.plan(ValueSpec(self.length, "integer", self.bound), self.additions)
            yield "another back end", double.encrypt(params, double.keygen(params)[0], params.residues(self.draw(self.length, 1)))

    def test_damaged_ciphertexts_are_refused(self) -> None:
        """If this fails: check header and length first, and turn the library's exceptions into WireError."""
        backend, params, _, secret, ciphertext = self.sound()
        for case, wrong in self.damaged(ciphertext):
            self.assert_refused(backend, params, secret, wrong, case)

    def test_every_byte_of_the_header_counts(self) -> None:
        """If this fails: a byte of the header may be changed unnoticed; or set ``header_bytes`` to the header's true length."""
        backend, params, public, secret, ciphertext = self.sound()
        others = [backend.encrypt(params, public, self.plain(params, self.draw(self.length, self.bound, s))) for s in (1, 2, 3)]
        length = self.header_bytes or _common([ciphertext, *others])
        assert length >= 8, "the header names back end, parameters and key by hash"
        assert _common([ciphertext, *others]) >= length, "the header is the same for all ciphertexts of a key"
        for i in range(length):
            wrong = ciphertext[:i] + bytes([ciphertext[i] ^ 0x41]) + ciphertext[i + 1 :]
            self.assert_refused(backend, params, secret, wrong, f"byte {i} of the header flipped")

    def test_a_damaged_body_crashes_nobody(self) -> None:
        """If this fails: turn what the library raises into WireError. (HE is malleable: other numbers may come out, nothing else.)"""
        backend, params, _, secret, ciphertext = self.sound()
        generator = np.random.Generator(np.random.PCG64(7))
        for place in generator.integers(self.header_bytes or 0, len(ciphertext), self.flips):
            wrong = bytearray(ciphertext)
            wrong[place] ^= 1 << int(generator.integers(8))
            for read in (lambda w=bytes(wrong): w, lambda w=bytes(wrong): backend.add(params, ciphertext, w)):
                try:
                    self.assert_shape(params, backend.decrypt(params, secret, read()))
                except PppmlError:
                    continue

    def test_damaged_keys_are_refused(self) -> None:
        """If this fails: check header and length of a public key first, and turn the library's exceptions into WireError."""
        backend, params, public, _, ciphertext = self.sound()
        plain = self.plain(params, self.draw(self.length, self.bound))
        for wrong in (b"", public[:8], public[:-1], public + b"\0", ciphertext, bytes(len(public))):
            refused(f"a public key of {len(wrong)} bytes", backend.encrypt, params, wrong, plain)

    def test_wrong_plaintexts_are_refused(self) -> None:
        """If this fails: check shape, dtype and range of the numbers before encrypting them."""
        backend, params, public, _ = self.keyed()
        plain = self.plain(params, self.draw(self.length, self.bound))
        wrong: list[Any] = [plain[:-1], np.append(plain, plain[:1]), plain.reshape(1, -1), plain[:0]]
        wrong += [plain.astype(dtype) for dtype in (np.float32, np.int64)]
        if params.plaintext_modulus is not None:
            for beyond in (params.plaintext_modulus, 2**64 - 1):
                wrong.append(plain.copy())
                wrong[-1][-1] = beyond
        else:
            for number in (np.nan, np.inf):
                wrong.append(plain.copy())
                wrong[-1][-1] = number
        for numbers in [*wrong, plain.tolist(), None]:
            refused(f"plaintext {type(numbers).__name__}", backend.encrypt, params, public, numbers)


def refused(case: str, function: Callable[..., object], *arguments: object) -> str:
    """The text of the WireError that the call must raise."""
    try:
        function(*arguments)
    except WireError as error:
        return str(error)
    pytest.fail(f"taken, not refused: {case}")


def _common(texts: Sequence[bytes]) -> int:
    """How many bytes all of them begin with."""
    shortest = min(map(len, texts))
    return next((i for i in range(shortest) if len({text[i] for text in texts}) > 1), shortest)


def _windows(data: bytes, width: int = 16) -> set[bytes]:
    return {data[i : i + width] for i in range(len(data) - width + 1)}


def _chunks(data: bytes, width: int = 64) -> list[bytes]:
    return [data[i : i + width] for i in range(0, len(data) - width + 1, width)]
