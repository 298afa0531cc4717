"""Identities, statements, keys of an attempt, sealed boxes, pinned parties: published vectors, then one spoiled thing at a time."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import itertools
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from pppml_core.errors import ConfigError, WireError
from pppml_core.federation import identity as ids
from pppml_core.randomness import Secret

unhex = bytes.fromhex

# RFC 8032, section 7.1, tests 1 to 3: secret key, public key, message, signature.
ED25519 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]

# RFC 7748, section 6.1.
ALICE = unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
ALICE_BOB = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

P = 2**255 - 19
# Points of small order on Curve25519 and their unreduced encodings (RFC 7748, section 6.1: the result is all zeros).
X25519_SMALL = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


def other_bit(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with hmac alone, no salt."""
    key = hmac.digest(bytes(32), secret, "sha256")
    out, block = b"", b""
    for counter in itertools.count(1):
        if len(out) >= length:
            return out[:length]
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
    raise AssertionError


# -- signatures ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "public", "message", "signature"), ED25519)
def test_ed25519_vectors(secret: str, public: str, message: str, signature: str) -> None:
    identity = ids.Identity(Secret(unhex(secret)))
    assert identity.public == unhex(public)
    assert identity.sign(unhex(message)) == unhex(signature)
    ids.verify(identity.public, unhex(signature), unhex(message), "a")


def test_a_changed_signature_message_or_signer_is_refused() -> None:
    _, public, message, signature = (unhex(part) for part in ED25519[2])
    cases: list[tuple[bytes, object, bytes]] = [(public, other_bit(signature, at), message) for at in range(len(signature))]
    cases += [(public, signature, other_bit(message, 0)), (public, signature, message + b"\0"), (unhex(ED25519[0][1]), signature, message)]
    cases += [
        (public, wrong, message) for wrong in (None, "", 7, b"", signature[:-1], signature + b"\0", [signature], bytearray(signature))
    ]
    for key, signed, of in cases:
        with pytest.raises(WireError, match="the signature of clinic_a does not fit"):
            ids.verify(key, signed, of, "clinic_a")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
STATEMENTS = st.tuples(st.text(max_size=4), st.binary(max_size=4), st.dictionaries(st.text(max_size=2), VALUES, max_size=3))


def typed(value: Any) -> Any:
    """The value with its types, as equality: 1 and True differ, the order of keys does not matter."""
    if isinstance(value, dict):
        return frozenset((key, typed(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(typed(item) for item in value)
    return (type(value).__name__, value)


@given(STATEMENTS, STATEMENTS)
def test_statements_are_equal_only_where_purpose_binding_and_body_are(one: Any, other: Any) -> None:
    assert (ids.statement(*one) == ids.statement(*other)) == (typed(one) == typed(other))


def test_statements_that_only_look_alike_differ() -> None:
    looks = [
        ("ab", b"c", {}),
        ("a", b"bc", {}),
        ("a", b"b", {"c": b""}),
        ("a", b"b", {"": b"c"}),
        ("a", b"b", {"c": ""}),
        ("a", b"b", {"c": None}),
        ("a", b"b", {"c": 1}),
        ("a", b"b", {"c": True}),
        ("a", b"b", {"c": 1.0}),
        ("a", b"b", {"c": "1"}),
        ("a", b"b", {"c": b"1"}),
        ("a", b"b", {"c": [1]}),
        ("a", b"b", {"c": [[1]]}),
        ("a", b"b", {"c": [1, 1]}),
        ("a", b"b", {"c": {"d": 1}}),
        ("a", b"b", {"c": {"binding": b"b"}}),
        ("a", b"b", {"binding": b"b", "purpose": "a"}),
        ("a", b"b", {"c": [["d", b"e"]]}),
        ("a", b"b", {"c": [["d"], b"e"]}),
    ]
    assert len({ids.statement(*look) for look in looks}) == len(looks)
    assert ids.statement("a", b"b", {"c": 1, "d": 2}) == ids.statement("a", b"b", {"d": 2, "c": 1})
    # Not the bytes of anything else that is hashed here.
    assert all(ids.statement(*look).startswith(b"pppml-statement-v1:") for look in looks)


def test_the_roster_hash_holds_names_and_keys_of_exactly_those_parties() -> None:
    roster = {"a": b"A" * 32, "b": b"B" * 32, "server": b"S" * 32}
    first = ids.roster_hash(roster, ["b", "a"])
    assert first == ids.roster_hash(dict(reversed(roster.items())), ["a", "b"])
    others = [
        ids.roster_hash(roster, ["a"]),
        ids.roster_hash(roster, ["a", "b", "server"]),
        ids.roster_hash({**roster, "a": b"B" * 32, "b": b"A" * 32}, ["a", "b"]),
        ids.roster_hash({**roster, "b": b"C" * 32}, ["a", "b"]),
    ]
    assert len({first, *others}) == 5
    with pytest.raises(WireError, match="no identity is pinned for c, d"):
        ids.roster_hash(roster, ["a", "d", "c"])


def test_fingerprints_are_the_first_half_of_sha256_in_groups_of_four() -> None:
    public = unhex(ED25519[0][1])
    shown = ids.fingerprint(public)
    assert shown.replace(" ", "") == hashlib.sha256(public).hexdigest()[:32]
    assert [len(group) for group in shown.split(" ")] == [4] * 8
    assert shown != ids.fingerprint(other_bit(public, 31, 7))


# -- keys of an attempt -------------------------------------------------------------------------------------------------------------------


def test_x25519_vectors() -> None:
    assert ids.public_key(ALICE) == ALICE_PUBLIC
    assert ids.public_key(BOB) == BOB_PUBLIC
    for length in (16, 32, 100):
        expected = hkdf(ALICE_BOB, b"context", length)
        assert ids.shared_key(ALICE, BOB_PUBLIC, b"context", length) == expected
        assert ids.shared_key(BOB, ALICE_PUBLIC, b"context", length) == expected
        assert ids.shared_key(ids.loaded(BOB), ALICE_PUBLIC, b"context", length) == expected
    assert ids.shared_key(ALICE, BOB_PUBLIC, b"context") != ids.shared_key(ALICE, BOB_PUBLIC, b"contexT")


@pytest.mark.parametrize("top_bit", [0, 1], ids=["plain", "top-bit-set"])
@pytest.mark.parametrize("point", X25519_SMALL, ids=range(len(X25519_SMALL)))
def test_points_of_small_order_are_refused(point: int, top_bit: int) -> None:
    peer = (point | top_bit << 255).to_bytes(32, "little")
    with pytest.raises(WireError, match="an agreement key is not valid"):
        ids.shared_key(ALICE, peer, b"context")
    with pytest.raises(WireError, match="an agreement key is not valid"):
        ids.shared_key(ids.loaded(ALICE), peer, b"context")
    with pytest.raises(WireError, match="an agreement key is not valid"):
        ids.seal(peer, b"secret", b"context")
    with pytest.raises(WireError):
        ids.unseal(ALICE, peer + bytes(40), b"context")


@pytest.mark.parametrize("peer", [b"", bytes(31), bytes(33), None, 7, "a" * 32, [0] * 32], ids=repr)
def test_what_is_no_agreement_key_is_refused(peer: Any) -> None:
    with pytest.raises(WireError, match="an agreement key is not valid"):
        ids.shared_key(ALICE, peer, b"context")


def test_agreement_keys_come_from_the_given_source_and_are_fresh() -> None:
    assert ids.agreement_key(lambda length: BOB[:length]) == (BOB, BOB_PUBLIC)
    pairs = [ids.agreement_key() for _ in range(8)]
    assert len({private for private, _ in pairs}) == 8
    assert all(ids.public_key(private) == public for private, public in pairs)


def test_hkdf_vector() -> None:
    # RFC 5869, A.3: SHA-256, neither salt nor info.
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert ids.derive(b"\x0b" * 22, b"", 42) == unhex(okm)
    assert hkdf(b"\x0b" * 22, b"", 42) == unhex(okm), "the oracle of the other tests"
    info = unhex("f0f1f2f3f4f5f6f7f8f9")
    assert ids.derive(b"\x0b" * 22, info, 82) == hkdf(b"\x0b" * 22, info, 82)
    assert len(ids.derive(b"secret", b"info")) == 32


# -- sealed boxes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [b"", b"x", b"share of a secret", bytes(100_000)], ids=len)
def test_a_box_opens_for_its_recipient_in_its_context(plain: bytes) -> None:
    sealed = ids.seal(ALICE_PUBLIC, plain, b"context")
    assert len(sealed) == len(plain) + ids.SEAL_OVERHEAD
    assert ids.unseal(ALICE, sealed, b"context") == plain
    assert ids.unseal(ALICE, memoryview(sealed), b"context") == plain
    assert ids.unseal(ALICE, ids.seal(ALICE_PUBLIC, memoryview(plain), b"context"), b"context") == plain
    assert plain not in sealed or len(plain) < 2


def test_a_box_opens_for_nobody_else_and_nowhere_else() -> None:
    sealed = ids.seal(ALICE_PUBLIC, b"share of a secret", b"context")
    for private, context in ((BOB, b"context"), (ALICE, b"contexT"), (ALICE, b""), (ALICE, b"context\0")):
        with pytest.raises(WireError, match="sealed box"):
            ids.unseal(private, sealed, context)


def test_every_changed_bit_and_every_shorter_box_is_refused() -> None:
    sealed = ids.seal(ALICE_PUBLIC, b"share", b"context")
    # The top bit of an X25519 key is ignored by X25519; here it must not be.
    changed = [other_bit(sealed, at, bit) for at in range(len(sealed)) for bit in (0, 7)]
    for box in [*changed, *(sealed[:length] for length in range(len(sealed))), sealed + b"\0", b"\0" + sealed]:
        with pytest.raises(WireError):
            ids.unseal(ALICE, box, b"context")


@pytest.mark.parametrize("box", [None, 7, "text" * 20, [1] * 60, {"a": 1}], ids=lambda box: type(box).__name__)
def test_what_is_no_box_is_refused(box: Any) -> None:
    with pytest.raises(WireError, match="sealed box"):
        ids.unseal(ALICE, box, b"context")


def test_no_two_boxes_share_a_key() -> None:
    boxes = [ids.seal(ALICE_PUBLIC, b"the same", b"context") for _ in range(16)]
    assert len({box[:32] for box in boxes}) == 16
    assert len({box[32:] for box in boxes}) == 16
    drawn = ids.seal(ALICE_PUBLIC, b"the same", b"context", lambda length: BOB[:length])
    assert drawn[:32] == BOB_PUBLIC, "the ephemeral key comes from the given source"


# -- nothing shows a key ------------------------------------------------------------------------------------------------------------------


def test_no_text_and_no_pickle_of_an_identity_holds_its_key() -> None:
    secret = unhex(ED25519[0][0])
    identity = ids.Identity(Secret(secret))
    for text in (repr(identity), str(identity), f"{identity}", repr({"a": identity}), repr(identity._key), repr(Secret(secret))):
        assert secret.hex() not in text
        assert repr(secret) not in text
        assert base64.b64encode(secret).decode() not in text
    assert ids.fingerprint(identity.public) in repr(identity)
    for thing in (identity, Secret(secret)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="never pickled"):
                pickle.dumps(thing, protocol)
        with pytest.raises(TypeError, match="never pickled"):
            copy.deepcopy(thing)
    assert not hasattr(identity, "__dict__")


def test_errors_about_a_key_do_not_show_it(tmp_path: Path) -> None:
    (tmp_path / ids.KEY_FILE).touch(0o600)
    (tmp_path / ids.KEY_FILE).write_bytes(b"very secret but too short")
    with pytest.raises(ConfigError, match="25 bytes instead of 32") as refused:
        ids.load_identity(tmp_path)
    assert "secret but" not in str(refused.value)
    with pytest.raises(ConfigError, match="32 bytes, not 3"):
        ids.Identity(Secret(b"abc"))


# -- homes --------------------------------------------------------------------------------------------------------------------------------


def test_an_identity_is_made_once_and_found_again(tmp_path: Path) -> None:
    home = tmp_path / "clinic" / "home"
    made = ids.new_identity(home)
    assert ids.load_identity(home).public == made.public
    assert (home / ids.KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert len((home / ids.KEY_FILE).read_bytes()) == 32
    before = (home / ids.KEY_FILE).read_bytes()
    with pytest.raises(ConfigError, match="there is an identity already"):
        ids.new_identity(home)
    assert (home / ids.KEY_FILE).read_bytes() == before
    assert ids.new_identity(tmp_path / "other").public != made.public


def test_the_key_file_is_never_wider_than_its_owner_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ids.new_identity(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / ids.KEY_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777], ids=oct)
def test_a_key_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    ids.new_identity(tmp_path)
    (tmp_path / ids.KEY_FILE).chmod(mode)
    with pytest.raises(ConfigError, match="can be read by others") as refused:
        ids.load_identity(tmp_path)
    assert "chmod 600" in (refused.value.hint or "")


def test_a_missing_or_damaged_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no identity") as refused:
        ids.load_identity(tmp_path)
    assert refused.value.hint == "pppml site init"
    ids.new_identity(tmp_path)
    key = (tmp_path / ids.KEY_FILE).read_bytes()
    for damaged in (b"", key[:-1], key + b"\0", key.hex().encode()):
        (tmp_path / ids.KEY_FILE).write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged") as refused:
            ids.load_identity(tmp_path)
        assert refused.value.place == str(tmp_path / ids.KEY_FILE)


A, B, C = (unhex(vector[1]) for vector in ED25519)


def test_pinned_parties_are_found_again_and_nothing_is_replaced(tmp_path: Path) -> None:
    assert ids.load_roster(tmp_path) == {}
    ids.pin(tmp_path, "clinic_a", A)
    ids.pin(tmp_path, "server", B)
    ids.pin(tmp_path, "clinic_a", A)
    assert ids.load_roster(tmp_path) == {"clinic_a": A, "server": B}
    before = (tmp_path / ids.ROSTER_FILE).read_bytes()
    with pytest.raises(ConfigError, match="another identity is pinned for clinic_a") as changed:
        ids.pin(tmp_path, "clinic_a", C)
    assert ids.fingerprint(A) in changed.value.message
    with pytest.raises(ConfigError, match="this identity is pinned as server already"):
        ids.pin(tmp_path, "clinic_b", B)
    assert (tmp_path / ids.ROSTER_FILE).read_bytes() == before


@pytest.mark.parametrize("name", ["", "Clinic", "clinic-a", "../a", "a b", "a\n", "ä", "a" * 65])
def test_names_that_are_no_slugs_are_not_pinned(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a party"):
        ids.pin(tmp_path, name, A)
    assert not (tmp_path / ids.ROSTER_FILE).exists()


def edwards_order_divides_8(encoded: bytes) -> bool:
    """Whether [8]P is the neutral element: affine arithmetic on edwards25519 in Python integers (RFC 8032, section 5.1)."""
    d = -121665 * pow(121666, -1, P) % P
    y = int.from_bytes(encoded, "little") % 2**255 % P
    square = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - square) % P == 0, "not on the curve"
    for _ in range(3):
        product = d * x * x * y * y % P
        x, y = 2 * x * y * pow(1 + product, -1, P) % P, (y * y + x * x) * pow(1 - product, -1, P) % P
    return (x, y) == (0, 1)


def test_keys_that_anybody_can_sign_for_are_not_pinned(tmp_path: Path) -> None:
    small = [y for y in ids._SMALL_ORDER if edwards_order_divides_8(y)]
    assert len(small) == 7
    assert not edwards_order_divides_8(A)
    assert len({int.from_bytes(y, "little") % P for y in small}) == 5, "orders 1, 2, 4 and both of 8"
    forged = (1).to_bytes(32, "little") + bytes(32)
    for y in small:
        for public in (y, other_bit(y, 31, 7)):
            # They really can: one constant signature fits some of a few dozen statements.
            fits = 0
            for i in range(100):
                try:
                    Ed25519PublicKey.from_public_bytes(public).verify(forged, bytes([i]))
                    fits += 1
                except InvalidSignature:
                    continue
            assert fits > 0, public.hex()
            with pytest.raises(ConfigError, match="no public identity"):
                ids.pin(tmp_path, "clinic_a", public)
    for wrong in (b"", A[:-1], A + b"\0"):
        with pytest.raises(ConfigError, match="no public identity"):
            ids.pin(tmp_path, "clinic_a", wrong)


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]garbage",
        "7",
        "null",
        '["clinic_a"]',
        '{"clinic_a": 7}',
        '{"clinic_a": null}',
        '{"clinic_a": "not base64!"}',
        json.dumps({"clinic_a": b64(A[:-1])}),
        json.dumps({"clinic_a": b64(bytes(32))}),
        json.dumps({"clinic_a": {"key": b64(A)}}),
        json.dumps({"Clinic": b64(A)}),
        json.dumps({"clinic_a": b64(A), "clinic_b": b64(A)}),
        f'{{"clinic_a": "{b64(A)}", "clinic_a": "{b64(B)}"}}',
    ],
)
def test_a_damaged_roster_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / ids.ROSTER_FILE).write_text(text)
    for use in (lambda: ids.load_roster(tmp_path), lambda: ids.pin(tmp_path, "clinic_c", C)):
        with pytest.raises(ConfigError, match="the roster is damaged") as refused:
            use()
        assert refused.value.place == str(tmp_path / ids.ROSTER_FILE)
    assert (tmp_path / ids.ROSTER_FILE).read_text() == text


def test_a_roster_of_bytes_that_are_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ids.ROSTER_FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="the roster is damaged"):
        ids.load_roster(tmp_path)


def test_a_roster_everybody_may_write_is_refused(tmp_path: Path) -> None:
    ids.pin(tmp_path, "clinic_a", A)
    tmp_path.chmod(0o755)
    for mode in (0o646, 0o664):
        (tmp_path / ids.ROSTER_FILE).chmod(mode)
        with pytest.raises(ConfigError, match="others may change") as refused:
            ids.load_roster(tmp_path)
        assert "chmod go-w" in (refused.value.hint or "")
    (tmp_path / ids.ROSTER_FILE).chmod(0o644)
    assert ids.load_roster(tmp_path) == {"clinic_a": A}
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="others may exchange"):
        ids.load_roster(tmp_path)
    tmp_path.chmod(0o700)
    (tmp_path / ids.ROSTER_FILE).chmod(0o664)
    assert ids.load_roster(tmp_path) == {"clinic_a": A}, "nobody else gets into this folder"


def test_cards_are_read_as_they_are_written() -> None:
    assert ids.read_card(ids.card("clinic_a", A)) == ("clinic_a", A)
    assert ids.read_card(f"\n {b64(A)}\n") == (None, A)
    for wrong in ("", "clinic_a", f"clinic_a {b64(A)} more", b64(A)[:-4], f"{b64(A)} clinic_a", f"clinic_a {A.hex()}", "ä"):
        with pytest.raises(ConfigError, match="no public identity is here"):
            ids.read_card(wrong)


# -- provisioned homes --------------------------------------------------------------------------------------------------------------------

PARTIES = ("a", "b", "server")


def test_provisioned_parties_all_pin_each_other(tmp_path: Path) -> None:
    roster = ids.provision(tmp_path, PARTIES)
    assert set(roster) == set(PARTIES)
    assert len(set(roster.values())) == 3
    for party in PARTIES:
        assert ids.load_roster(tmp_path / party) == roster
        assert ids.load_identity(tmp_path / party).public == roster[party]
        assert (tmp_path / party / ids.KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert ids.provision(tmp_path, PARTIES) == roster, "and again: nothing changes"


def test_provisioning_adds_parties_and_keeps_the_keys(tmp_path: Path) -> None:
    first = ids.provision(tmp_path, PARTIES)
    more = ids.provision(tmp_path, (*PARTIES, "c"))
    assert {party: more[party] for party in PARTIES} == first
    assert ids.load_roster(tmp_path / "a") == more


def forget_key(home: Path) -> None:
    (home / ids.KEY_FILE).unlink()


def widen(home: Path) -> None:
    (home / ids.KEY_FILE).chmod(0o644)


def cut(home: Path) -> None:
    (home / ids.KEY_FILE).write_bytes(b"short")


@pytest.mark.parametrize(
    ("spoil", "says"), [(forget_key, "another identity is pinned"), (widen, "can be read by others"), (cut, "damaged")]
)
def test_provisioning_replaces_no_key_silently(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    ids.provision(tmp_path, PARTIES)
    rosters = [(tmp_path / party / ids.ROSTER_FILE).read_bytes() for party in PARTIES]
    spoil(tmp_path / "b")
    with pytest.raises(ConfigError, match=says):
        ids.provision(tmp_path, PARTIES)
    assert [(tmp_path / party / ids.ROSTER_FILE).read_bytes() for party in PARTIES] == rosters
