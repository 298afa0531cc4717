"""Who is who: a lasting Ed25519 identity per party, the identities a party has pinned, and boxes only one party can open.

A party's *home* is a folder that never leaves it: ``identity.key`` (32 secret bytes, readable by its owner only), ``identity.pub`` (a line
to hand out: name and public identity) and ``roster.json`` (the public identities of the parties it trusts, checked by a person on first
contact and pinned ever after). Keys of an attempt are fresh X25519 keys; identities only sign. Signing is Ed25519 (RFC 8032), agreement
X25519 (RFC 7748), derivation HKDF-SHA256 (RFC 5869), boxes AES-256-GCM, all of them from ``cryptography``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pppml_core.errors import ConfigError, WireError
from pppml_core.federation.files import sync_folder, write_atomic
from pppml_core.randomness import Secret, entropy
from pppml_core.wire.codec import sha256_of

KEY_FILE, CARD_FILE, ROSTER_FILE = "identity.key", "identity.pub", "roster.json"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
#: what a sealed box adds to its contents: an ephemeral public key and an authentication tag.
SEAL_OVERHEAD = 32 + 16

Entropy = Callable[[int], bytes]

#: y-coordinates of the points of small order on edwards25519, and their encodings that are not reduced (p, p + 1). Anybody can sign for
#: such a "public key": a fixed signature verifies for one statement in eight or more.
_SMALL_ORDER = frozenset(
    bytes.fromhex(y)
    for y in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


class Identity:
    """A party's signing key. Nothing prints it."""

    __slots__ = ("_key", "public")

    def __init__(self, secret: Secret) -> None:
        if len(secret) != KEY_BYTES:
            raise ConfigError(f"an identity key has {KEY_BYTES} bytes, not {len(secret)}", place=KEY_FILE)
        self._key = Ed25519PrivateKey.from_private_bytes(secret.reveal())
        #: the public identity, 32 bytes.
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, statement: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes. Sign only what :func:`statement` made, so that no signature serves two purposes."""
        return self._key.sign(statement)

    def __repr__(self) -> str:
        return f"Identity({fingerprint(self.public)})"

    def __reduce__(self) -> str:
        raise TypeError("an Identity is never pickled")


def statement(purpose: str, binding: bytes, body: Mapping[str, Any]) -> bytes:
    """The bytes to sign: SHA-256 over purpose, binding (run, round, attempt, roster, model, terms) and body, under a label of its own."""
    items = {name: body[name] for name in sorted(body)}
    return b"pppml-statement-v1:" + sha256_of({"purpose": purpose, "binding": binding, "body": items})


@lru_cache(maxsize=1024)
def _verifier(public: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public)


def verify(public: bytes, signature: object, signed: bytes, who: str) -> None:
    """Raise WireError naming ``who`` unless ``signature`` is that of the party with this public identity over ``signed``."""
    try:
        if not isinstance(signature, bytes):
            raise InvalidSignature
        _verifier(public).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        raise WireError(f"the signature of {who} does not fit its pinned identity", place="signature") from error


def roster_hash(roster: Mapping[str, bytes], parties: Iterable[str]) -> bytes:
    """SHA-256 over names and public identities of ``parties``, in order of name. Raises WireError for a party that is not pinned."""
    named = sorted(parties)
    if missing := [name for name in named if name not in roster]:
        raise WireError(f"no identity is pinned for {', '.join(missing)}", place="roster", hint="pppml site trust")
    return _hash_of_pins(tuple((name, roster[name]) for name in named))


@lru_cache(maxsize=16)
def _hash_of_pins(pins: tuple[tuple[str, bytes], ...]) -> bytes:
    # Sites of one process mostly ask for the same one.
    return sha256_of([list(pin) for pin in pins])


def fingerprint(public: bytes) -> str:
    """What people compare over the telephone: the first 16 bytes of SHA-256 of a public identity, in groups of four digits."""
    digits = hashlib.sha256(public).hexdigest()[:32]
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


# -- keys of an attempt -------------------------------------------------------------------------------------------------------------------


def agreement_key(draw: Entropy = entropy) -> tuple[bytes, bytes]:
    """A fresh X25519 key pair, 32 bytes each: (private, public)."""
    private = draw(KEY_BYTES)
    return private, public_key(private)


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def loaded(private: bytes) -> X25519PrivateKey:
    """A private key to agree with many peers: loading it costs as much as agreeing once. Drop it when done; it is never kept here."""
    return X25519PrivateKey.from_private_bytes(private)


def shared_key(private: bytes | X25519PrivateKey, peer: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 of the X25519 secret with ``peer``. ``info`` holds the whole context: both public keys, purpose, binding.

    ``private``: 32 bytes, or :func:`loaded` where there are several peers. Raises WireError for a peer key that is malformed or of low
    order.
    """
    try:
        own = private if isinstance(private, X25519PrivateKey) else loaded(private)
        secret = own.exchange(X25519PublicKey.from_public_bytes(peer))
    except (ValueError, TypeError) as error:
        raise WireError("an agreement key is not valid", place="X25519") from error
    return derive(secret, info, length)


def derive(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt; ``info`` separates purposes."""
    return HKDF(SHA256(), length, None, info).derive(secret)


def seal(recipient: bytes, plain: bytes | memoryview, context: bytes, draw: Entropy = entropy) -> bytes:
    """A box that only the holder of ``recipient``'s X25519 private key can open, and only in this context.

    Ephemeral X25519, HKDF, AES-256-GCM with ``context`` as associated data; the key is used once, so the nonce is zero. It hides, it does
    not say who sealed it: sign what must be attributed. 48 bytes longer than ``plain``.
    """
    private, ephemeral = agreement_key(draw)
    key = shared_key(private, recipient, b"pppml-seal-v1" + ephemeral + recipient)
    return ephemeral + AESGCM(key).encrypt(bytes(12), plain, context)


def unseal(private: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
    """The contents of a box. Raises WireError for another recipient, another context, a changed box, or something that is none."""
    if not isinstance(sealed, bytes | memoryview) or len(sealed) < SEAL_OVERHEAD:
        raise WireError("no sealed box, or one that is too short", place="sealed box")
    ephemeral = bytes(sealed[:KEY_BYTES])
    key = shared_key(private, ephemeral, b"pppml-seal-v1" + ephemeral + public_key(private))
    try:
        return AESGCM(key).decrypt(bytes(12), memoryview(sealed)[KEY_BYTES:], context)
    except InvalidTag as error:
        raise WireError("a sealed box was changed, or is not for this party or place", place="sealed box") from error


# -- homes --------------------------------------------------------------------------------------------------------------------------------


def new_identity(home: Path) -> Identity:
    """Make the identity of a home that has none. Raises ConfigError where there is one: a lasting key is never overwritten."""
    path = home / KEY_FILE
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError("there is an identity already", place=str(path), hint="use it, or move it away by hand") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(home)
    return Identity(Secret(key))


def load_identity(home: Path) -> Identity:
    """The identity of a home. Raises ConfigError where it is missing, damaged, or readable by others."""
    path = home / KEY_FILE
    if not path.is_file():
        raise ConfigError("there is no identity", place=str(path), hint="pppml site init")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError("the identity key can be read by others", place=str(path), hint=f"chmod 600 {path}")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        hint = "restore it from a backup, or move it away, make a new one and have it pinned again"
        raise ConfigError(f"the identity key is damaged: {len(key)} bytes instead of {KEY_BYTES}", place=str(path), hint=hint)
    return Identity(Secret(key))


def refuse_writable(path: Path) -> None:
    """Raise ConfigError where others than its owner may change or exchange a file that says whom to trust."""
    home = path.parent.stat().st_mode
    if os.name != "posix" or not home & 0o011:
        return  # nobody else gets in
    if home & 0o022:
        raise ConfigError("others may exchange the files in this folder", place=str(path.parent), hint=f"chmod go-w {path.parent}")
    if path.stat().st_mode & 0o022:
        raise ConfigError("others may change whom and what this party trusts", place=str(path), hint=f"chmod go-w {path}")


def load_roster(home: Path) -> dict[str, bytes]:
    """The pinned public identities of a home, by party; empty where nobody is trusted yet.

    Raises ConfigError on a damaged file, on a file that everybody may write to, and where one identity stands under two names.
    """
    path = home / ROSTER_FILE
    if not path.is_file():
        return {}
    refuse_writable(path)
    try:
        return dict(_read_roster(path.read_bytes()))
    except (ValueError, TypeError, ConfigError) as error:
        raise ConfigError(f"the roster is damaged: {error}", place=str(path), hint="pin the parties again: pppml site trust") from error


@lru_cache(maxsize=8)
def _read_roster(text: bytes) -> Mapping[str, bytes]:
    # Sites of one process mostly hold the same roster: it is read once for all of them.
    roster: dict[str, bytes] = {}
    for name, key in json.loads(text, object_pairs_hook=list):
        _pin(roster, str(name), base64.b64decode(key, validate=True))
    return roster


def pin(home: Path, party: str, public: bytes) -> None:
    """Trust this public identity as ``party`` (a slug, or ``server``) from now on.

    Raises ConfigError for a name that is no slug, a key that is none, and where another identity is pinned under that name, or this one
    under another.
    """
    roster = load_roster(home)
    try:
        _pin(roster, party, public)
    except ConfigError as error:
        raise ConfigError(error.message, place=str(home / ROSTER_FILE), hint=error.hint) from error
    write_atomic(home / ROSTER_FILE, _roster_text(roster))


def _pin(roster: dict[str, bytes], party: str, public: bytes) -> None:
    check_slug(party)
    if len(public) != KEY_BYTES or bytes([*public[:-1], public[-1] & 0x7F]) in _SMALL_ORDER:
        raise ConfigError(f"this is no public identity: {KEY_BYTES} bytes, and no key that anybody can sign for", hint="ask for it again")
    if roster.get(party, public) != public:
        hint = "if that party really has a new key, remove the old entry by hand first"
        raise ConfigError(f"another identity is pinned for {party}: {fingerprint(roster[party])}", hint=hint)
    if taken := [name for name, key in roster.items() if key == public and name != party]:
        raise ConfigError(f"this identity is pinned as {taken[0]} already", hint="one identity is one party")
    roster[party] = public


def check_slug(party: str) -> None:
    """Raise ConfigError unless ``party`` is a slug: small letters, digits and ``_``, at most 64 of them."""
    if not re.fullmatch(r"[a-z0-9_]{1,64}", party):
        raise ConfigError(f"{party!r} is no name of a party", place="name", hint="small letters, digits and _, such as clinic_a, or server")


def card(party: str, public: bytes) -> str:
    """The line a party hands out: its name and its public identity in base64."""
    return f"{party} {base64.b64encode(public).decode()}"


def read_card(text: str) -> tuple[str | None, bytes]:
    """Name (None where only a key is given) and public identity of a card. Raises ConfigError for anything else."""
    *names, key = text.split() or [""]
    try:
        public = base64.b64decode(key, validate=True)
    except ValueError:
        public = b""
    if len(public) != KEY_BYTES or len(names) > 1:
        hint = "44 characters of base64, alone or after a name, as `pppml site show` prints them"
        raise ConfigError("no public identity is here", place="public key", hint=hint)
    return (names[0] if names else None), public


def provision(folder: Path, parties: Iterable[str]) -> dict[str, bytes]:
    """Homes ``folder/<party>`` on one machine: identities where missing, and everybody pinned by everybody. The roster.

    What an engine does whose parties all belong to whoever starts the run. Real sites are pinned by people: ``pppml site trust``.
    Raises ConfigError where a home pins another identity for one of them: a key that was pinned once is never replaced silently.
    """
    homes = {party: folder / party for party in parties}
    for home in homes.values():
        if (key := home / KEY_FILE).exists() and not key.stat().st_size:
            key.unlink()  # made by a process that was killed before it wrote: nobody has ever seen this identity
    found = {p: load_identity(h) if (h / KEY_FILE).exists() else new_identity(h) for p, h in homes.items()}
    roster = {party: identity.public for party, identity in found.items()}
    for home in homes.values():
        held = load_roster(home)
        if other := [party for party, key in roster.items() if held.get(party, key) != key]:
            hint = "a home was replaced; start a new run, or restore it"
            raise ConfigError(f"another identity is pinned for {', '.join(other)}", place=str(home / ROSTER_FILE), hint=hint)
        if held != roster:
            write_atomic(home / ROSTER_FILE, _roster_text(roster))
    return roster


def _roster_text(roster: Mapping[str, bytes]) -> bytes:
    return json.dumps({name: base64.b64encode(roster[name]).decode() for name in sorted(roster)}, indent=1).encode()
