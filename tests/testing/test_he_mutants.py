"""The HE suite can fail: each broken back end is caught by the test that is named beside it."""

from dataclasses import replace

import numpy as np
import pytest

from pppml_core.errors import WireError
from pppml_core.randomness import Secret
from pppml_core.testing import HEBackendSuite
from pppml_core.testing.insecure_plugin import TransparentConfig, pppml_he_backends
from pppml_core.testing.transparent_he import HEADER_BYTES, MAGIC, TransparentBackend


class Claims(TransparentBackend):
    """Plans other things than it does."""

    changes = {}

    def plan(self, value, additions):
        return replace(super().plan(value, additions), **self.changes)


class Longer(TransparentBackend):
    """Sends more than it says."""

    def encrypt(self, params, public, values):
        return super().encrypt(params, public, values) + bytes(100)

    def add(self, params, left, right):
        return left


class FailsTooOften(Claims):
    changes = {"log2_failure": -40.0}


class NotPlain(Claims):
    changes = {"details": {"slots": 64, "primes": b"\1\2"}}


class DigitsTooLarge(Claims):
    def plan(self, value, additions):
        params = super().plan(value, additions)
        return replace(params, limb_bits=20, limbs=3, length=3 * value.length)


class NeverRefuses(TransparentBackend):
    def plan(self, value, additions):
        return super().plan(replace(value, bound=min(value.bound or 1, 2**30), kind="integer"), max(1, additions))


class OneKeyForAll(TransparentBackend):
    def keygen(self, params):
        public, secret = super().keygen(params)
        return public[:-16] + bytes(16), Secret(secret.reveal()[:HEADER_BYTES] + bytes(32))


class SecretInPublic(TransparentBackend):
    def keygen(self, params):
        _, secret = super().keygen(params)
        return secret.reveal(), secret

    def encrypt(self, params, public, values):
        return super().encrypt(params, public[:HEADER_BYTES], values)


class Deterministic(TransparentBackend):
    def encrypt(self, params, public, values):
        ciphertext = super().encrypt(params, public, values)
        return ciphertext[:HEADER_BYTES] + bytes(8) + ciphertext[HEADER_BYTES + 8 :]


class Saturates(TransparentBackend):
    def add(self, params, left, right):
        (_, one), (_, other) = self.read(params, left), self.read(params, right)
        return left[: HEADER_BYTES + 8] + np.minimum(one + other, params.plaintext_modulus - 1).tobytes()


class ForgetsTheLast(TransparentBackend):
    def encrypt(self, params, public, values):
        return super().encrypt(params, public, np.where(np.arange(params.length) == 64, 0, values).astype(np.uint64))


class LeftOnly(TransparentBackend):
    def add(self, params, left, right):
        super().add(params, left, right)
        return left


class AnyKey(TransparentBackend):
    def decrypt(self, params, secret, ciphertext):
        return self.read(params, ciphertext)[1]


class AnyParameters(TransparentBackend):
    """Takes whatever header there is for its own."""

    def add(self, params, left, right):
        return super().add(params, self._mine(params, left), self._mine(params, right))

    def decrypt(self, params, secret, ciphertext):
        return super().decrypt(params, secret, self._mine(params, ciphertext))

    def _mine(self, params, ciphertext):
        return MAGIC + params.sha256 + ciphertext[40:]


class KeysOfAnyParameters(TransparentBackend):
    def encrypt(self, params, public, values):
        return super().encrypt(params, MAGIC + params.sha256 + public[40:], values)


class Pads(TransparentBackend):
    """Fills up what was cut off."""

    def decrypt(self, params, secret, ciphertext):
        return super().decrypt(params, secret, (ciphertext + bytes(params.ciphertext_bytes))[: params.ciphertext_bytes])


class Crashes(TransparentBackend):
    """What the library raises comes through."""

    def decrypt(self, params, secret, ciphertext):
        try:
            return super().decrypt(params, secret, ciphertext)
        except WireError as error:
            raise ValueError from error


class Wraps(TransparentBackend):
    """Reduces what it should refuse."""

    def encrypt(self, params, public, values):
        return super().encrypt(params, public, np.asarray(values).astype(np.uint64) % np.uint64(params.plaintext_modulus))


class Exhausted(TransparentBackend):
    def noise_budget(self, params, secret, ciphertext):
        return 3.5


class Unreduced(TransparentBackend):
    def decrypt(self, params, secret, ciphertext):
        return super().decrypt(params, secret, ciphertext) + np.uint64(params.plaintext_modulus)


class AnyPublicKey(TransparentBackend):
    def encrypt(self, params, public, values):
        return super().encrypt(params, (public + bytes(HEADER_BYTES))[:HEADER_BYTES], values)


MUTANTS = [
    (Longer, "test_size_is_as_planned"),
    (FailsTooOften, "test_plan"),
    (DigitsTooLarge, "test_plan"),
    (NotPlain, "test_plan_is_repeatable_and_plain"),
    (NeverRefuses, "test_plan_refuses_what_it_cannot_do"),
    (OneKeyForAll, "test_keys_are_fresh_and_secret"),
    (SecretInPublic, "test_keys_are_fresh_and_secret"),
    (Deterministic, "test_encryption_is_fresh"),
    (Saturates, "test_the_full_number_of_additions"),
    (ForgetsTheLast, "test_sums_are_exact"),
    (LeftOnly, "test_order_of_additions_is_irrelevant"),
    (AnyKey, "test_another_key_is_refused"),
    (KeysOfAnyParameters, "test_other_parameters_are_refused"),
    (AnyParameters, "test_every_byte_of_the_header_counts"),
    (Pads, "test_damaged_ciphertexts_are_refused"),
    (Crashes, "test_damaged_ciphertexts_are_refused"),
    (Crashes, "test_a_damaged_body_crashes_nobody"),
    (Wraps, "test_wrong_plaintexts_are_refused"),
    (Exhausted, "test_extremes_are_exact"),
    (Unreduced, "test_extremes_are_exact"),
    (AnyPublicKey, "test_damaged_keys_are_refused"),
]


@pytest.mark.parametrize(("backend", "test"), MUTANTS, ids=[f"{b.__name__}-{t}" for b, t in MUTANTS])
def test_a_broken_back_end_is_caught(backend, test):
    members = {"component": pppml_he_backends()[0], "toy": True, "build": lambda self, config: backend(TransparentConfig())}
    broken = type("Broken", (HEBackendSuite,), members)()
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError, TypeError)):
        getattr(broken, test)()


def test_a_key_in_a_ciphertext_is_caught():
    class Leaks(TransparentBackend):
        """Carries the secret key behind every ciphertext."""

        secret = b""

        def keygen(self, params):
            public, secret = super().keygen(params)
            self.secret = secret.reveal() + bytes(range(200))
            return public, Secret(self.secret)

        def encrypt(self, params, public, values):
            return super().encrypt(params, public, values) + self.secret

        def add(self, params, left, right):
            return left

    members = {"component": pppml_he_backends()[0], "build": lambda self, config: Leaks(TransparentConfig())}
    with pytest.raises(AssertionError, match="secret key are in a ciphertext"):
        type("Broken", (HEBackendSuite,), members)().test_no_key_in_a_ciphertext()
