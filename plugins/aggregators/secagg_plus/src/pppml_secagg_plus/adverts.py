"""Adverts: what a site says of itself in public, signed, at the start of an attempt."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pppml_core.errors import InconsistentModel, WireError
from pppml_core.federation.identity import roster_hash, statement, verify
from pppml_core.wire.codec import sha256_of
from pppml_secagg_plus.terms import Terms

_LAYOUT = struct.Struct("<III32s32s32s32s32s32s32s")
ADVERT_BYTES = _LAYOUT.size
NONCE_BYTES = 32
#: stands for the nonce, and for the commitments to nonces, where the graph is complete and nothing is drawn.
NOTHING = bytes(32)


@dataclass(frozen=True)
class Advert:
    """One site's advert, :data:`ADVERT_BYTES` long when packed.

    Args:
        terms: number of sites, neighbours and threshold as this site has them.
        roster: SHA-256 over the names and identities of the cohort, as this site has pinned them.
        binding: of the attempt: run, round, attempt, model and terms of the round, as this site has them.
        box_key, mask_key: fresh X25519 public keys, for share boxes and for pairwise masks.
        commitment: to the seed of the self-mask, see :func:`commit_seed`.
        nonce: what decides the ring, committed to before (sparse graph), else zeros.
        commitments: SHA-256 of all commitments to nonces this site was shown before it showed its own (sparse graph), else zeros.
    """

    terms: Terms
    roster: bytes
    binding: bytes
    box_key: bytes
    mask_key: bytes
    commitment: bytes
    nonce: bytes = NOTHING
    commitments: bytes = NOTHING

    def pack(self) -> bytes:
        """The advert as bytes."""
        t = self.terms
        keys = (self.box_key, self.mask_key, self.commitment, self.nonce, self.commitments)
        return _LAYOUT.pack(t.sites, t.degree, t.threshold, self.roster, self.binding, *keys)

    @classmethod
    def unpack(cls, data: bytes) -> Advert:
        """The inverse of :meth:`pack`, for bytes of the right length."""
        sites, degree, threshold, *rest = _LAYOUT.unpack(data)
        return cls(Terms(sites, degree, threshold), *rest)


def to_sign(site: str, binding: bytes, packed: bytes) -> bytes:
    """The statement a site signs: bound to the attempt as the site itself sees it."""
    return statement("secagg-plus advertise", binding, {"site": site, "advert": packed})


def digest(packed: bytes) -> bytes:
    """SHA-256 of an advert."""
    return hashlib.sha256(packed).digest()


def digest_all(purpose: bytes, members: Iterable[str], rows: Iterable[bytes]) -> bytes:
    """SHA-256 over 32 bytes of each member: its commitment, or the digest of its advert.

    That of all adverts decides the ring, and every signature of the later stages contains it.
    """
    parts = [b"pppml-secagg-plus-v1:", purpose]
    for name, row in zip(members, rows, strict=True):
        text = name.encode()
        parts += (len(text).to_bytes(4, "big"), text, row)
    return hashlib.sha256(b"".join(parts)).digest()


def commit_seed(seed: bytes, binding: bytes, site: str) -> bytes:
    """The commitment to a self-mask's seed: a hash of 32 uniform bytes hides them and fits no others."""
    return sha256_of({"purpose": "secagg-plus seed", "binding": binding, "site": site, "seed": seed})


def commit_nonce(nonce: bytes, binding: bytes, site: str) -> bytes:
    """The commitment to a nonce."""
    return sha256_of({"purpose": "secagg-plus nonce", "binding": binding, "site": site, "nonce": nonce})


def pinned(roster: Mapping[str, bytes], cohort: Sequence[str]) -> bytes:
    """The hash of the cohort's identities. Raises WireError where one is not pinned, or where two names share one: that is one party."""
    found = roster_hash(roster, cohort)
    if len({roster[name] for name in cohort}) < len(cohort):
        raise WireError("two sites of the cohort have one identity", place="roster", hint="pin each site's own identity")
    return found


def read(site: str, packed: object, signature: object, identity: bytes, own: Advert) -> Advert:
    """The advert of ``site``, if it is authentic and agrees with ``own`` (whose keys do not matter here).

    Raises WireError for a wrong length, a signature that is not that of the pinned ``identity``, other terms or another roster, and
    InconsistentModel for another binding: that site holds another model, other terms of the round, or this advert is of another attempt.
    """
    if not isinstance(packed, bytes) or len(packed) != ADVERT_BYTES:
        raise WireError(f"the advert of {site} does not have {ADVERT_BYTES} bytes", place="advertise")
    advert = Advert.unpack(packed)
    verify(identity, signature, to_sign(site, advert.binding, packed), site)
    if advert.binding != own.binding:
        raise InconsistentModel(f"{site} holds another model or other terms, or its advert is of another attempt", place="advertise")
    if advert.terms != own.terms:
        raise WireError(f"{site} signed other terms: {advert.terms} instead of {own.terms}", place="advertise")
    if advert.roster != own.roster:
        raise WireError(f"{site} has pinned other identities for this cohort", place="advertise", hint="compare: pppml site show")
    return advert
