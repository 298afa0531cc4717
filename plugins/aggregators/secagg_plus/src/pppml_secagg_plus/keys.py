"""Keys of an attempt: what two sites derive from their X25519 keys, and the boxes in which shares travel through the server.

Every key is HKDF-SHA256 of an X25519 secret, with everything it depends on as ``info``: purpose, binding (run, round, attempt, model,
terms, roster), both names and both public keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pppml_core.errors import WireError
from pppml_core.federation.identity import derive
from pppml_secagg_plus.shamir import SHARE_BYTES

#: two shares and AES-GCM's tag.
BOX_BYTES = 2 * SHARE_BYTES + 16


@dataclass(frozen=True)
class Pair:
    """Two sites of an attempt, in the order of the cohort, with their public keys of one purpose."""

    binding: bytes
    low: str
    high: str
    low_key: bytes
    high_key: bytes

    @classmethod
    def of(cls, binding: bytes, places: Mapping[str, int], one: tuple[str, bytes], other: tuple[str, bytes]) -> Pair:
        """The pair of two ``(name, public key)``, whichever comes first. ``places``: name -> place in the cohort."""
        (low, low_key), (high, high_key) = (one, other) if places[one[0]] < places[other[0]] else (other, one)
        return cls(binding, low, high, low_key, high_key)

    def info(self, purpose: str) -> bytes:
        """What a key of this pair depends on; every part has a fixed length or its length before it."""
        names = b"".join(len(name.encode()).to_bytes(4, "big") + name.encode() for name in (purpose, self.low, self.high))
        return b"pppml-secagg-plus-v1:" + self.binding + names + self.low_key + self.high_key

    def peer_key(self, site: str) -> bytes:
        """The other one's public key."""
        return self.high_key if site == self.low else self.low_key


class Agreement:
    """A site's X25519 private key, ready to be agreed with many peers (reading it costs as much as an agreement). Nothing prints it."""

    __slots__ = ("_key",)

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)

    def key(self, peer: bytes, info: bytes, length: int = 32) -> bytes:
        """HKDF of the secret shared with ``peer``. Raises WireError for a peer key of low order: the secret would be public."""
        try:
            secret = self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise WireError("an agreement key is not valid", place="X25519") from error
        return derive(secret, info, length)


def mask_key(pair: Pair, site: str, own: Agreement) -> bytes:
    """The key of the pair's mask, 32 bytes: the same at both ends."""
    return own.key(pair.peer_key(site), pair.info("mask"))


def mask_sign(pair: Pair, site: str) -> int:
    """The first of a pair adds the mask, the second takes it away: they cancel in the sum."""
    return 1 if site == pair.low else -1


def self_mask_key(seed: bytes, binding: bytes) -> bytes:
    """The key of a site's own mask."""
    return derive(seed, b"pppml-secagg-plus-v1:" + binding + b"self-mask")


def box_keys(pair: Pair, site: str, own: Agreement) -> tuple[bytes, bytes]:
    """The keys of the two boxes between a pair: ``(for sending, for receiving)``, each used for one box only."""
    both = own.key(pair.peer_key(site), pair.info("shares"), 64)
    return (both[:32], both[32:]) if site == pair.low else (both[32:], both[:32])


def close_box(key: bytes, sender: str, recipient: str, binding: bytes, shares: bytes) -> bytes:
    """A box with a share of the sender's mask key and one of its self-mask seed. The key is used once, so the nonce is zero."""
    return AESGCM(key).encrypt(bytes(12), shares, _label(sender, recipient, binding))


def open_box(key: bytes, sender: str, recipient: str, binding: bytes, box: object) -> bytes:
    """The two shares in a box. Raises WireError for a box that was changed, cut, or meant for another site or attempt."""
    try:
        if not isinstance(box, bytes) or len(box) != BOX_BYTES:
            raise InvalidTag
        return AESGCM(key).decrypt(bytes(12), box, _label(sender, recipient, binding))
    except InvalidTag as error:
        raise WireError(f"the box of shares from {sender} was changed, or is not for {recipient} in this attempt", place="mask") from error


def _label(sender: str, recipient: str, binding: bytes) -> bytes:
    return b"pppml-secagg-plus-box-v1:" + binding + sender.encode() + b"\0" + recipient.encode()
