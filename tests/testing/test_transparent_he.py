"""What only the transparent double does: it can be read, and says who read it."""

import numpy as np
import pytest

from pppml_core.errors import WireError
from pppml_core.registry import Registry
from pppml_core.testing import insecure_plugin, transparent_he
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.parties import acts
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER

BACKEND = TransparentBackend(TransparentConfig())
PARAMS = BACKEND.plan(ValueSpec(5, "integer", 100), 10)
VALUES = np.arange(5, dtype=np.uint64)


def test_it_says_that_it_is_insecure():
    assert PARAMS.security_bits == 0
    assert "INSECURE" in PARAMS.details
    (component,) = insecure_plugin.pppml_he_backends()
    assert component.summary.startswith("INSECURE")


def test_a_registry_of_tests_offers_it():
    assert Registry.only(insecure_plugin).get("he-backend", "insecure-transparent").load() is TransparentBackend


def test_a_ciphertext_can_be_read_without_a_key():
    public, secret = BACKEND.keygen(PARAMS)
    key, residues = TransparentBackend.read(PARAMS, BACKEND.encrypt(PARAMS, public, VALUES))
    assert key == TransparentBackend.key_id(secret)
    assert np.array_equal(residues, VALUES)
    with pytest.raises(WireError):
        TransparentBackend.read(PARAMS, b"something else")


def test_a_listener_is_told_who_handled_what(monkeypatch):
    told = []
    monkeypatch.setattr(
        transparent_he,
        "listener",
        lambda party, key, residues: told.append((party, key, None if residues is None else residues.tolist())),
    )
    with acts("a"):
        public, secret = BACKEND.keygen(PARAMS)
    with acts("b"):
        one = BACKEND.encrypt(PARAMS, public, VALUES)
    with acts("c"):
        both = BACKEND.add(PARAMS, one, one)
    BACKEND.decrypt(PARAMS, secret, both)
    key = TransparentBackend.key_id(secret)
    once, twice = VALUES.tolist(), (2 * VALUES).tolist()
    assert told == [
        ("a", key, None),
        ("b", key, once),
        ("c", key, once),
        ("c", key, once),
        ("c", key, twice),
        (SERVER, key, twice),
        (SERVER, key, None),
    ]
