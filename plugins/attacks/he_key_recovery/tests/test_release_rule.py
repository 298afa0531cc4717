"""The attack step by step on TenSEAL ciphertexts, against the true key: whole numbers leave nothing to solve."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pppml_core import lattice
from pppml_core.randomness import Secret
from pppml_core.values import ValueSpec
from pppml_he_key_recovery.recovery import read, recover
from pppml_he_key_recovery.seal import Seal, expanded, field

tenseal = pytest.importorskip("pppml_he_tenseal.backend", reason="the ciphertexts are TenSEAL's: install pppml-he-tenseal")


def true_key(reader: Seal, secret: Secret) -> np.ndarray:
    """Of the serialized secret key, whose values are at the roots of unity modulo each prime."""
    _, body = lattice.without_header("secret key", reader.params, secret.reveal())
    raw = expanded(field(field(bytes(body), 3), 1))
    (count,) = struct.unpack_from("<Q", raw, 32 + 16 + 16)
    words = np.frombuffer(raw, "<u8", count, 32 + 16 + 24)[: reader.degree].astype(object)
    return reader.backward(reader.natural(words), reader.ring.primes[0])


@pytest.mark.parametrize("bound", [100, 32767])
def test_the_release_rule_leaves_nothing_to_solve(bound: int) -> None:
    """On planned parameters the attack succeeds on the numbers with their error (the control), not on the nearest integers.

    One of the 2,048 pairs of equations modulo a prime of 32 bits (40 bits for the larger bound) cannot be solved with probability 5e-7.
    """
    backend = tenseal.TenSEALBackend(tenseal.TenSEALConfig(scheme="ckks"))
    slots = backend.plan(ValueSpec(1, "integer", bound), 3).details["slots"]
    params = backend.plan(ValueSpec(2 * slots, "integer", bound), 3)
    public, secret = backend.keygen(params)
    draws = [np.random.default_rng(site) for site in range(3)]
    updates = [draw.integers(-bound, bound, params.length, endpoint=True).astype(np.float64) for draw in draws]
    encrypted = [backend.encrypt(params, public, update) for update in updates]
    total = backend.add(params, backend.add(params, encrypted[0], encrypted[1]), encrypted[2])
    decrypted = backend.decrypt(params, secret, total)
    reader = Seal(params)
    chunks, own = reader.ciphertexts(total), true_key(reader, secret)
    assert set(own) == {-1, 0, 1}
    control = recover(reader, chunks, list(decrypted.reshape(2, -1)))
    assert (control == own).all()
    found = read(reader, encrypted[0], control)
    assert np.corrcoef(found, updates[0][: len(found)])[0, 1] > 0.999999

    released = np.rint(decrypted)
    assert (released == sum(updates)).all()
    key = recover(reader, chunks, list(released.reshape(2, -1)))
    assert np.mean(key == own) < 0.01
    assert np.abs(key.astype(np.float64)).mean() > reader.ring.primes[0] / 8, "uniform below the prime"
    found = read(reader, encrypted[0], key)
    assert abs(np.corrcoef(found, updates[0][: len(found)])[0, 1]) < 6 / np.sqrt(len(found)), "by chance with probability 2e-9"
