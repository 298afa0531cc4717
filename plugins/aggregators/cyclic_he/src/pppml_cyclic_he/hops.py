"""A hop: the running ciphertext in a box that only the next site can open, and the chain of signed hops that led to it.

The box is AES-256-GCM under a fresh key; the key travels in a box of its own, sealed to the next site. To bridge a site that was never
handed its box, the key alone is sealed anew, to the site after it: the ciphertext stays the very same bytes.

A link of the chain is signed by the site that sent the hop: who, to whom, the hash of the ciphertext it received and of the one it sent.
So whoever holds the chain of a ring sees that each site of the path added to what the one before had sent, and nobody came between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pppml_core.errors import WireError
from pppml_core.federation.identity import SIGNATURE_BYTES, Entropy, seal, statement, unseal, verify
from pppml_core.wire.codec import encoded_size, sha256_of
from pppml_core.wire.messages import Body
from pppml_cyclic_he.setting import read

Link = Mapping[str, Any]
HASH_BYTES = 32
#: what the first site of a ring received: nothing.
NOTHING = hashlib.sha256(b"").digest()
#: bytes a box adds to a ciphertext.
BOX_OVERHEAD = 16


def link(site: str, following: str, before: bytes, after: bytes, signature: bytes = bytes(SIGNATURE_BYTES)) -> dict[str, Any]:
    """One link of a chain; ``before`` and ``after`` are SHA-256 of the ciphertext received and sent."""
    return {"site": site, "next": following, "before": before, "after": after, "signature": signature}


def link_statement(binding: bytes, digest: bytes, ring: int, unsigned: Link) -> bytes:
    """What the sender of a hop signs."""
    body = {name: unsigned[name] for name in ("site", "next", "before", "after")}
    return statement("cyclic-he hop", binding, {**body, "ring": ring, "adverts": digest})


def check_chain(roster: Mapping[str, bytes], binding: bytes, digest: bytes, ring: int, chain: Sequence[Link], path: Sequence[str]) -> bytes:
    """The hash of the last ciphertext sent, if ``chain`` leads along ``path``, from a ring's initiator to whoever checks.

    There is one link of each site but the last, to which the last link leads. Raises WireError for a skipped or doubled site, another
    order, a ciphertext that was not passed on, or a signature that is not of the pinned identity over this attempt, these adverts and
    this ring.
    """
    place = f"chain of ring {ring + 1}"
    if len(chain) != len(path) - 1:
        raise WireError("it does not have one link of each site", place=place)
    carried = NOTHING
    for one, site, following in zip(chain, path, path[1:], strict=False):
        names = (read(one, "site", str), read(one, "next", str))
        hashes = (read(one, "before", bytes, length=HASH_BYTES), read(one, "after", bytes, length=HASH_BYTES))
        if names != (site, following):
            raise WireError(f"a hop from {names[0]} to {names[1]} where {site} to {following} was due", place=place)
        if hashes[0] != carried:
            raise WireError(f"{site} did not receive what the site before it sent", place=place)
        verify(roster[site], one.get("signature"), link_statement(binding, digest, ring, one), site)
        carried = hashes[1]
    return carried


def chain_bytes(names: Sequence[str]) -> int:
    """Largest size of the chain of a ring over these names."""
    longest = max(names, key=lambda name: len(name.encode()))
    return encoded_size([link(longest, longest, NOTHING, NOTHING)] * len(names))


def close(ciphertext: bytes, digest: bytes, ring: int, sender: str, draw: Entropy) -> tuple[bytes, bytes]:
    """(box, its key): the ciphertext under a fresh key, bound to its place."""
    key = draw(32)
    return AESGCM(key).encrypt(bytes(12), ciphertext, _place("box", digest, ring, sender)), key


def hand(key: bytes, recipient: bytes, digest: bytes, ring: int, sent: Link, draw: Entropy) -> bytes:
    """The key of a box, sealed to the X25519 key of the site that ``sent``, the sender's link, leads to."""
    return seal(recipient, key, _hop_place(digest, ring, sent), draw)


def unlock(private: bytes, handed: bytes, digest: bytes, ring: int, sent: Link) -> bytes:
    """The key of a box, with the recipient's X25519 private key. Raises WireError for another recipient, hop or attempt."""
    return unseal(private, handed, _hop_place(digest, ring, sent))


def uncover(key: bytes, box: bytes, digest: bytes, ring: int, sender: str) -> bytes:
    """The ciphertext in a box. Raises WireError where box or place are not those it was closed for."""
    try:
        return AESGCM(key).decrypt(bytes(12), box, _place("box", digest, ring, sender))
    except (InvalidTag, ValueError) as error:
        raise WireError("a box was changed, or is of another ring, site or attempt", place=f"ring {ring + 1}") from error


def receive(private: bytes, body: Body, digest: bytes, ring: int, sent: Link) -> bytes:
    """The ciphertext a hop carries. Raises WireError unless it is the one whose hash its sender signed."""
    key = unlock(private, read(body, "key", bytes), digest, ring, sent)
    ciphertext = uncover(key, read(body, "box", bytes), digest, ring, sent["site"])
    if hashlib.sha256(ciphertext).digest() != sent["after"]:
        raise WireError("the box does not hold the ciphertext that was signed", place=f"ring {ring + 1}")
    return ciphertext


def _hop_place(digest: bytes, ring: int, sent: Link) -> bytes:
    return _place("key", digest, ring, sent["site"], sent["next"], sent["after"])


def _place(purpose: str, digest: bytes, ring: int, *more: Any) -> bytes:
    return sha256_of(["cyclic-he", purpose, digest, ring, *more])
