"""Lies about keys: every one is refused before anything is encrypted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pppml_core.errors import InconsistentModel, PolicyRefusal
from pppml_core.federation.identity import agreement_key, public_key
from pppml_core.testing.parties import identity_of
from pppml_cyclic_he import adverts
from pppml_cyclic_he.setting import read

Change = Callable[[dict[str, Any]], dict[str, Any]]


def with_advert(site: str, **fields: Any) -> Change:
    """Everybody's adverts with some of one site's fields exchanged by the server, which cannot sign them."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        given = read(body["adverts"].value, site, dict)
        return {**body, "adverts": {**body["adverts"].value, site: {**given, **fields}}}

    return change


def signed_by(site: str, **fields: Any) -> Change:
    """The same, signed: a site that works with the server."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        advert = {**body["adverts"].value[site], **fields}
        advert["signature"] = identity_of(site).sign(adverts._statement(site, advert))
        return {**body, "adverts": {**body["adverts"].value, site: advert}}

    return change


@pytest.mark.parametrize("field", ["hop", "public", "params", "rings", "binding", "signature"])
def test_a_forged_advert(lie: Any, refused: Any, nobody_released: Any, field: str) -> None:
    """Substituted keys too: the server cannot put its own in the place of a site's."""
    result = lie("keys", with_advert("c", **{field: bytes(32)}))
    refused(result, "keys", "signature of c", *"abcde")
    nobody_released(result)


def test_an_advert_of_another_attempt(cyclic: Any, lie: Any, refused: Any) -> None:
    old = cyclic.run(5, attempt=7)
    earlier = next(p.message.body for p in old.transcript.passages if p.message.stage == "advertise" and p.message.sender == "c")
    refused(lie("keys", with_advert("c", **earlier)), "keys", "another model, other terms, or in another attempt", *"abcde")


def test_an_advert_that_is_left_out_or_of_nobody(lie: Any, refused: Any) -> None:
    def without(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "adverts": {site: advert for site, advert in body["adverts"].value.items() if site != "e"}}

    def with_one_more(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "adverts": {**body["adverts"].value, "f": body["adverts"].value["e"]}}

    for change in (without, with_one_more):
        refused(lie("keys", change), "keys", "not one advert of each", *"abcde")


@pytest.mark.parametrize(
    ("site", "fields", "reason"),
    [
        ("b", {"params": bytes(32)}, "other encryption parameters"),
        ("b", {"rings": bytes(32)}, "other rings"),
        ("c", {"public": b""}, "keys of its role"),
        ("b", {"public": b"a key"}, "keys of its role"),
        ("b", {"hop": b"short"}, "hop"),
        ("b", {"hop": None}, "hop"),
        ("b", {"public": None}, "public"),
    ],
)
def test_a_genuine_advert_of_another_session(lie: Any, refused: Any, site: str, fields: dict[str, Any], reason: str) -> None:
    change = with_advert(site, **fields) if None in fields.values() else signed_by(site, **fields)
    refused(lie("keys", change), "keys", reason, *"abcde")


def test_another_server_key(lie: Any, refused: Any) -> None:
    """Whoever carries messages cannot have the released sums and seeds sealed to a key of its own."""
    fake = public_key(agreement_key()[0])
    result = lie("keys", lambda body: {**body, "server": {**body["server"].value, "key": fake}})
    refused(result, "keys", "signature of server", *"abcde")


def test_other_adverts_for_one_site(lie: Any, refused: Any) -> None:
    """A site and the server show d another hop key than everybody else: the first hop it gets names other adverts."""
    other = signed_by("b", hop=public_key(agreement_key()[0]))
    refused(lie("keys", other, "d"), "ring-1", "signature of c", "d")


def test_another_model_is_told_from_a_forgery(cyclic: Any) -> None:
    assert isinstance(cyclic.run(5, models={"b": b"another"}).aborted, InconsistentModel)
    result = cyclic.run(5, impostors=["b"])
    assert not isinstance(result.aborted, InconsistentModel)
    assert "signature of b" in str(result.aborted)


def pinned(cyclic: SimpleNamespace, **parties: str) -> tuple[Any, dict[str, Any], dict[str, bytes]]:
    """A setting, everybody's adverts and a roster, where each name has the identity of that party."""
    setting, hop = cyclic.harness(3).session().setting, public_key(agreement_key()[0])
    own = {name: identity_of(party) for name, party in {"a": "a", "b": "b", "c": "c", "server": "server", **parties}.items()}
    given = {
        site: adverts.make(setting, site, b"binding", own[site].sign, hop, b"" if setting.rings.ring_of(site) is None else b"key")
        for site in setting.rings.order
    }
    body = {"adverts": given, "server": adverts.make_server_key(b"binding", own["server"].sign, hop)}
    return setting, body, {name: identity.public for name, identity in own.items()}


def test_one_party_under_two_names_counts_once(cyclic: Any) -> None:
    setting, body, roster = pinned(cyclic, b="a")
    with pytest.raises(PolicyRefusal, match="one identity"):
        adverts.check_all(setting, body, b"binding", roster)


@pytest.mark.parametrize("party", ["c", "server"])
def test_a_party_that_is_not_pinned(cyclic: Any, party: str) -> None:
    setting, body, roster = pinned(cyclic)
    assert set(adverts.check_all(setting, body, b"binding", roster)["hops"]) == {"a", "b", "c"}
    del roster[party]
    with pytest.raises(PolicyRefusal, match="no identity is pinned"):
        adverts.check_all(setting, body, b"binding", roster)
