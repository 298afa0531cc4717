"""A hop: the running ciphertext in a box that only the next site can open, and the chain of signed hops that led to it.

The box is AES-256-GCM under a fresh key; the key travels in a box of its own, sealed to the next site. To bridge a site that was never
handed its box, the key alone is sealed anew, to the site after it: the ciphertext stays the very same bytes.

A link of the chain is signed by the site that sent the hop: who, to whom, the hash of the ciphertext it received and of the one it sent.
So whoever holds the chain of a ring sees that each site of the path added to what the one before had sent, and nobody came between. All but
the hash of what was sent follows from the path, so a link is that hash and the signature: 96 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pppml_core.errors import WireError
from pppml_core.federation.identity import KEY_BYTES, SEAL_OVERHEAD, SIGNATURE_BYTES, Entropy, seal, statement, unseal, verify
from pppml_core.wire.codec import sha256_of
from pppml_core.wire.messages import Body
from pppml_cyclic_he.setting import read

HASH_BYTES = 32
LINK_BYTES = HASH_BYTES + SIGNATURE_BYTES
#: the key of a box, sealed.
HANDED_BYTES = KEY_BYTES + SEAL_OVERHEAD
#: bytes a box adds to a ciphertext.
BOX_OVERHEAD = 16
#: the hash of what the first site of a ring received: nothing.
NOTHING = hashlib.sha256(b"").digest()


@dataclass(frozen=True)
class Hop:
    """One hop of a ring, counted from 0, in the attempt that ``adverts`` (a hash) names.

    ``before`` and ``after``: SHA-256 of the ciphertext that the sender received and of the one it sends.
    """

    adverts: bytes
    ring: int
    sender: str
    recipient: str
    before: bytes
    after: bytes

    def sign(self, binding: bytes, sign: Callable[[bytes], bytes]) -> bytes:
        """The link of this hop, by its sender."""
        return self.after + sign(self._statement(binding))

    def verify(self, binding: bytes, roster: Mapping[str, bytes], link: bytes) -> None:
        """Raise WireError unless ``link`` is the sender's."""
        verify(roster[self.sender], link[HASH_BYTES:], self._statement(binding), self.sender)

    def to(self, recipient: str) -> Hop:
        """The same ciphertext, to another site."""
        return replace(self, recipient=recipient)

    def close(self, ciphertext: bytes, draw: Entropy) -> tuple[bytes, bytes]:
        """(box, its key): the ciphertext under a fresh key, bound to its place."""
        key = draw(KEY_BYTES)
        return AESGCM(key).encrypt(bytes(12), ciphertext, self._box_place), key

    def uncover(self, key: bytes, box: bytes) -> bytes:
        """The ciphertext in a box. Raises WireError where it is not the one that was signed, for this place."""
        try:
            ciphertext = AESGCM(key).decrypt(bytes(12), box, self._box_place)
        except (InvalidTag, ValueError) as error:
            raise WireError("a box was changed, or is of another ring, site or attempt", place=f"ring {self.ring + 1}") from error
        if hashlib.sha256(ciphertext).digest() != self.after:
            raise WireError("the box does not hold the ciphertext that was signed", place=f"ring {self.ring + 1}")
        return ciphertext

    def hand(self, key: bytes, recipient: bytes, draw: Entropy) -> bytes:
        """The key of the box, sealed to the recipient's X25519 public key."""
        return seal(recipient, key, self._key_place, draw)

    def unlock(self, private: bytes, handed: bytes) -> bytes:
        """The key of the box, with the recipient's X25519 private key. Raises WireError for another recipient, hop or attempt."""
        return unseal(private, handed, self._key_place)

    def receive(self, private: bytes, body: Body) -> bytes:
        """The ciphertext in a message, at the recipient."""
        return self.uncover(self.unlock(private, read(body, "key", bytes)), read(body, "box", bytes))

    def _statement(self, binding: bytes) -> bytes:
        return statement("cyclic-he hop", binding, vars(self))

    @property
    def _box_place(self) -> bytes:
        return sha256_of(["cyclic-he box", self.adverts, self.ring, self.sender])

    @property
    def _key_place(self) -> bytes:
        return sha256_of(["cyclic-he key", self.adverts, self.ring, self.sender, self.recipient, self.after])


def hops_of(adverts: bytes, ring: int, chain: bytes, path: Sequence[str]) -> list[Hop]:
    """What a chain says: the hops along ``path``, from a ring's initiator to the recipient of the last one. Nothing is verified.

    Raises WireError where there is not one link a hop.
    """
    if len(chain) != LINK_BYTES * (len(path) - 1):
        raise WireError("there is not one link of each site before", place=f"chain of ring {ring + 1}")
    hops, before = [], NOTHING
    for start, sender, recipient in zip(range(0, len(chain), LINK_BYTES), path, path[1:], strict=False):
        hops.append(Hop(adverts, ring, sender, recipient, before, after := chain[start : start + HASH_BYTES]))
        before = after
    return hops


def check_chain(roster: Mapping[str, bytes], binding: bytes, hops: Sequence[Hop], chain: bytes) -> None:
    """Raise WireError unless every hop is signed by its sender as pinned.

    So a skipped or doubled site, another order, another ring or attempt, and a ciphertext that was not passed on are told.
    """
    for index, hop in enumerate(hops):
        hop.verify(binding, roster, chain[LINK_BYTES * index : LINK_BYTES * (index + 1)])
