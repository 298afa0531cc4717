"""Known answers from published vectors, and an independent second way to compute where there is none."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pppml_core.errors import WireError
from pppml_core.federation.identity import derive, public_key
from pppml_secagg_plus import keys, masks, shamir


def given(*numbers: int) -> Callable[[int], bytes]:
    """Entropy that gives these numbers."""
    left = list(numbers)
    return lambda length: left.pop(0).to_bytes(length, "big")


def test_shamir_of_the_textbook() -> None:
    """The example of Wikipedia's *Shamir's secret sharing*: S = 1234, f(x) = 1234 + 166 x + 94 x^2, over the integers."""
    shares = shamir.split((1234).to_bytes(32, "big"), 3, range(1, 7), given(166, 94))
    assert [int.from_bytes(shares[x], "big") for x in range(1, 7)] == [1494, 1942, 2578, 3402, 4414, 5614]
    for three in itertools.combinations(shares, 3):
        assert shamir.combine({x: shares[x] for x in three}) == (1234).to_bytes(32, "big")


def lagrange(points: dict[int, int], at: int, prime: int) -> int:
    """Newton's divided differences: another way to the same polynomial."""
    xs = list(points)
    table = [points[x] for x in xs]
    for level in range(1, len(xs)):
        for i in range(len(xs) - 1, level - 1, -1):
            table[i] = (table[i] - table[i - 1]) * pow(xs[i] - xs[i - level], -1, prime) % prime
    value = 0
    for x, coefficient in zip(reversed(xs), reversed(table), strict=True):
        value = (value * (at - x) + coefficient) % prime
    return value


@pytest.mark.parametrize(("threshold", "count"), [(1, 3), (2, 3), (4, 5), (10, 20), (67, 100)])
def test_shamir_against_divided_differences(threshold: int, count: int) -> None:
    secret, points = os.urandom(32), [3 * i + 1 for i in range(count)]
    shares = shamir.split(secret, threshold, points, os.urandom)
    assert all(len(share) == shamir.SHARE_BYTES for share in shares.values())
    some = dict(list(shares.items())[-threshold:])
    assert shamir.combine(some) == secret
    values = {x: int.from_bytes(share, "big") for x, share in some.items()}
    assert lagrange(values, 0, shamir.PRIME) == int.from_bytes(secret, "big")
    for x in points:  # all shares lie on the one polynomial
        assert lagrange(values, x, shamir.PRIME) == int.from_bytes(shares[x], "big")


def test_fewer_shares_fit_every_secret() -> None:
    """t - 1 shares and any secret at all lie on one polynomial: they say nothing."""
    shares = shamir.split(bytes(32), 3, [1, 2, 3], os.urandom)
    values = {x: int.from_bytes(shares[x], "big") for x in (1, 2)}
    for secret in (0, 1, 2**256 - 1):
        third = lagrange({0: secret, **values}, 3, shamir.PRIME)
        assert shamir.combine({1: shares[1], 2: shares[2], 3: third.to_bytes(33, "big")}) == secret.to_bytes(32, "big")


def test_coefficients_are_uniform_below_the_prime() -> None:
    """A number at or above the prime is drawn again, not reduced."""
    shares = shamir.split(bytes(32), 2, [1], given(shamir.PRIME, 2**264 - 1, 5))
    assert int.from_bytes(shares[1], "big") == 5


def test_the_prime_is_prime() -> None:
    """Miller and Rabin, 40 random bases: wrong with a probability below 4^-40. And it is above every secret."""
    p = shamir.PRIME
    odd, twos = p - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):
        x = pow(2 + int.from_bytes(os.urandom(40), "big") % (p - 3), odd, p)
        assert x in (1, p - 1) or any(pow(x, 2**i, p) == p - 1 for i in range(1, twos))
    assert 2**256 < p < 2 ** (8 * shamir.SHARE_BYTES)


def test_shares_that_do_not_belong_together() -> None:
    """A number above 32 bytes is no secret."""
    largest = shamir.split(b"\xff" * 32, 1, [1], given())[1]
    assert shamir.combine({1: largest}) == b"\xff" * 32
    with pytest.raises(WireError, match="do not belong together"):
        shamir.combine({1: (int.from_bytes(largest, "big") + 1).to_bytes(33, "big")})


def test_hkdf_sha256() -> None:
    """RFC 5869, appendix A.3: SHA-256, no salt, no info."""
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert derive(b"\x0b" * 22, b"", 42).hex() == okm


def test_x25519() -> None:
    """RFC 7748, section 6.1. The agreed key is HKDF of the shared secret printed there."""
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert public_key(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    for own, peer in ((alice, bob), (bob, alice)):
        assert keys.Agreement(own).key(public_key(peer), b"info") == derive(secret, b"info")


def test_aes_256_ctr_of_the_library() -> None:
    """NIST SP 800-38A, F.5.5."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(range(0xF0, 0x100)))).encryptor()
    assert stream.update(bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")).hex() == "601ec313775789a5b7a7f504bbf3d228"


#: AES-256 of the zero key at the counters 0, 1, 2: McGrew and Viega, *The Galois/Counter Mode of Operation*, test cases 13 and 14
#: (H, E(K, Y0) and the ciphertext of a zero block).
ZERO_KEY_STREAM = "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738bcea7403d4d606b6e074ec5d3baf39d18"


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_mask_is_the_stream_of_its_key(dtype: type, sign: int) -> None:
    words = np.frombuffer(bytes.fromhex(ZERO_KEY_STREAM), dtype)
    total = np.full(len(words), 7, dtype)
    masks.add_mask(total, bytes(32), sign)
    modulus = 2 ** (8 * total.itemsize)
    assert [int(word) for word in total] == [(7 + sign * int(word)) % modulus for word in words]


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("extra", [-1, 0, 1, 5])
def test_a_mask_of_several_chunks(dtype: type, extra: int) -> None:
    """Block by block with the bare cipher (no counter mode of the library): the stream goes on from one chunk to the next."""
    itemsize = np.dtype(dtype).itemsize
    length = 2 * masks.CHUNK // itemsize + extra
    key = os.urandom(32)
    blocks = -(-length * itemsize // 16)
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = cipher.update(b"".join(i.to_bytes(16, "big") for i in range(blocks)))
    total = np.zeros(length, dtype)
    masks.add_mask(total, key, 1)
    assert total.tobytes() == stream[: length * itemsize]
    masks.add_mask(total, key, -1)
    assert not total.any()


def test_masks_of_no_coordinates() -> None:
    masks.add_masks(np.zeros(0, np.uint32), [(bytes(32), 1)])


def test_every_mask_goes_through_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(masks, "add_mask", lambda total, key, sign: seen.append((key, sign)))
    masks.add_masks(np.zeros(1, np.uint32), [(b"a", 1), (b"b", -1)])
    assert seen == [(b"a", 1), (b"b", -1)]


def test_words_are_uniform() -> None:
    """Top byte of every word: 256 cells, chi-square below its 1 - 1e-6 quantile (388 at 255 degrees of freedom); largest value reached."""
    total = np.zeros(2_000_000, np.uint32)
    masks.add_mask(total, bytes(range(32)), 1)
    counts = np.bincount(total >> 24, minlength=256)
    expected = len(total) / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 388
    assert counts.min() > 0
