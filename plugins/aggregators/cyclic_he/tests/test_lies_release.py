"""Lies about who is in the sum, and about what is released: nobody decrypts or unmasks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pppml_core.errors import RoundAborted, RoundLost, WireError
from pppml_core.federation.identity import statement
from pppml_core.testing import SessionHarness, edited
from pppml_core.testing.parties import acting, identity_of
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.wire.codec import sha256_of
from pppml_core.wire.messages import Exchange
from pppml_cyclic_he import adverts
from pppml_cyclic_he.hops import LINK_BYTES
from pppml_cyclic_he.setting import read, read_names
from pppml_cyclic_he.site import Site

Change = Callable[[dict[str, Any]], dict[str, Any]]


def flipped(name: str, place: int = -1) -> Change:
    """One bit of a field changed."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        value = bytearray(body[name])
        value[place] ^= 1
        return {**body, name: bytes(value)}

    return change


def claimed(*sites: str) -> Change:
    return lambda body: {**body, "without": list(sites)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flipped("box"), "a box was changed"),
        (flipped("key"), "a sealed box was changed"),
        (flipped("chain"), "signature of b"),
        (flipped("chain", 0), "signature of c"),
        (lambda body: {**body, "chain": body["chain"][:-LINK_BYTES]}, "one link of each site"),
    ],
)
def test_an_initiator_checks_the_whole_chain(lie: Any, refused: Any, nobody_released: Any, change: Any, reason: str) -> None:
    result = lie("agree", change, "c")
    refused(result, "agree", reason, "c")
    nobody_released(result)


def asked_early(stage: str, when: str, bodies: dict[str, Any]) -> Any:
    def coordinate(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        asked = next(honest)
        while asked.stage != when:
            asked = honest.send((yield asked))
        yield Exchange(stage, bodies)
        raise RoundAborted("enough")

    return coordinate


def test_nobody_but_an_initiator_with_all_rings_behind_it_agrees(cyclic: Any, refused: Any) -> None:
    body = {"chain": b"", "without": [], "box": b"", "key": b""}
    for when, site in (("agree", "d"), ("ring-2", "c")):
        result = cyclic.run(5, coordinate=asked_early("agree", when, {site: body}))
        refused(result, "agree", "only an initiator", site)


def test_no_decryption_before_the_agreement(cyclic: Any, nobody_released: Any) -> None:
    body = {"signatures": dict.fromkeys("abcde", bytes(64))}
    for when in ("advertise", "ring-1", "ring-2", "agree", "confirm"):
        result = cyclic.run(5, coordinate=asked_early("release", when, dict.fromkeys("abcde", body)))
        assert not result.crashes
        assert {site for stage, site, _ in result.losses if stage == "release"} == set("abcde")
        nobody_released(result)


def told(cyclic: SimpleNamespace, stage: str, **options: Any) -> dict[str, Any]:
    """What an honest server tells everybody in this stage."""
    messages = (p.message for p in cyclic.run(5, **options).transcript.passages)
    return dict(next(m.body for m in messages if m.stage == stage and m.kind == "session"))


def first(name: str, change: Callable[[bytes], Any]) -> Change:
    """The first ring's entry of a list changed."""
    return lambda body: {**body, name: [change(body[name][0]), *body[name][1:]]}


LISTS = {
    "a signature of nobody": (first("signatures", lambda old: bytes(64)), "signature of c"),
    "no signature": (first("signatures", lambda old: None), "signature of c"),
    "one signature": (lambda body: {**body, "signatures": body["signatures"][:1]}, "signatures"),
    "the other initiator's": (lambda body: {**body, "signatures": body["signatures"][::-1]}, "signature of c"),
    "one chain": (lambda body: {**body, "chains": body["chains"][:1]}, "chains"),
    "no chain": (first("chains", lambda old: None), "chain"),
    "a forged chain": (first("chains", lambda old: bytes([old[0] ^ 1]) + old[1:]), "signature of c"),
    "a shorter chain": (first("chains", lambda old: old[:-LINK_BYTES]), "one link of each"),
    "another ring's chain": (lambda body: {**body, "chains": body["chains"][::-1]}, "signature of"),
    "a site left out": (claimed("e"), "left out|one link of each"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_is_not_the_one_agreed_on(lie: Any, refused: Any, nobody_released: Any, case: str) -> None:
    change, reason = LISTS[case]
    result = lie("confirm", change)
    refused(result, "confirm", reason, *"abcde")
    nobody_released(result)
    assert not isinstance(result.aborted, RoundLost)


def test_another_list_for_one_site(lie: Any, refused: Any, nobody_released: Any) -> None:
    """It refuses, so nobody releases."""
    result = lie("confirm", claimed("e"), "d")
    refused(result, "confirm", "one link of each", "d")
    nobody_released(result)


def test_the_lists_of_another_attempt(cyclic: Any, lie: Any, refused: Any, nobody_released: Any) -> None:
    old = told(cyclic, "confirm", attempt=3)
    result = lie("confirm", lambda body: old)
    refused(result, "confirm", "signature of c", *"abcde")
    nobody_released(result)


def signed(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda body: {**body, "signatures": change(body["signatures"])}


CONFIRMED = {
    **{f"none of {site}": (signed(lambda given, s=site: {**given, s: None}), f"signature of {site}") for site in "abcde"},
    "one left out": (signed(lambda given: {site: one for site, one in given.items() if site != "e"}), "signature of e"),
    "one of nobody": (signed(lambda given: {**given, "b": bytes(64)}), "signature of b"),
    "one of another site": (signed(lambda given: {**given, "d": given["e"]}), "signature of d"),
    "no map": (signed(lambda given: list(given.values())), "signatures"),
}


@pytest.mark.parametrize("case", CONFIRMED)
def test_nobody_releases_what_one_member_has_not_confirmed(lie: Any, refused: Any, nobody_released: Any, case: str) -> None:
    change, reason = CONFIRMED[case]
    result = lie("release", change)
    refused(result, "release", reason, *"abcde")
    nobody_released(result)
    assert isinstance(result.aborted, RoundLost)


def test_the_confirmations_of_another_attempt(cyclic: Any, lie: Any, refused: Any, nobody_released: Any) -> None:
    old = told(cyclic, "release", attempt=3)
    result = lie("release", lambda body: old)
    refused(result, "release", "signature of a", *"abcde")
    nobody_released(result)


def test_the_server_releases_nothing_without_all_confirmations(cyclic: Any, nobody_released: Any) -> None:
    """A member that signs something else ends the attempt, not the round."""

    def replies(stage: str, site: str, body: Any) -> Any:
        return {**body, "signature": bytes(64)} if (stage, site) == ("confirm", "b") else body

    result = cyclic.run(5, coordinate=lambda session, ctx: edited(session, ctx, replies=replies))
    assert "signature of b" in str(result.aborted)
    assert not isinstance(result.aborted, RoundLost)
    nobody_released(result)


def test_a_list_signed_by_initiators_that_lie(lie: Any, refused: Any, nobody_released: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both initiators work with the server and sign a list without e; the chains that e signed do not fit it."""
    kept: list[tuple[bytes, bytes]] = []
    digest = adverts.digest

    def noted(binding: bytes, body: Any) -> bytes:
        kept.append((binding, digest(binding, body)))
        return kept[-1][1]

    monkeypatch.setattr(adverts, "digest", noted)

    def without_e(body: dict[str, Any]) -> dict[str, Any]:
        chains = [body["chains"][ring][: 4 * LINK_BYTES] for ring in (0, 1)]
        signatures = []
        for ring, starter in enumerate("ca"):
            listed = {"ring": ring, "sites": list("abcd"), "chain": sha256_of(chains[ring]), "adverts": kept[0][1]}
            signatures.append(identity_of(starter).sign(statement("cyclic-he list", kept[0][0], listed)))
        return {"chains": chains, "signatures": signatures, "without": ["e"]}

    result = lie("confirm", without_e)
    refused(result, "confirm", "signature of (a|c|d)|e has contributed", *"abcd")
    nobody_released(result)


def test_no_second_release(cyclic: Any) -> None:
    """After the round: the same request gets the same bytes, another one nothing; nobody decrypts again."""
    answers: list[Any] = []

    def again(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        operation = next(honest)
        while operation.stage != "release":
            operation = honest.send((yield operation))
        answers.append((yield operation))
        answers.append((yield operation))
        answers.append((yield replace(operation, common={**operation.common, "more": 1})))
        raise RoundAborted("enough")

    cyclic.run(5, coordinate=again)
    one, same, other = answers
    assert set(one.replies) == set("abcde")
    assert same.replies == one.replies
    assert set(other.lost) == set("abcde")


# -- what the server checks ------------------------------------------------------------------------------------------------------------


def test_released_material_that_is_not_what_it_should_be(cyclic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that lies, or a carrier that changes a box: the round is lost, never a wrong sum or a crash."""
    kept = Site._for_server
    cases = (("seed", b"short", "another length"), ("sum", b"short", "another length"), ("sum", None, "beyond the modulus"))
    for what, plain, reason in cases:

        def lying(site: Any, name: str, true: bytes, what: str = what, plain: bytes | None = plain) -> bytes:
            return kept(site, name, (b"\xff" * len(true) if plain is None else plain) if name == what else true)

        with monkeypatch.context() as patch:
            patch.setattr(Site, "_for_server", lying)
            result = cyclic.run(5)
        assert isinstance(result.aborted, RoundLost)
        assert reason in str(result.aborted)

    def outcomes(operation: Any, outcome: Any) -> Any:
        if operation.stage != "release":
            return outcome
        spoilt = {**outcome.replies, "b": flipped("seed")(outcome.replies["b"])}
        return replace(outcome, replies=spoilt)

    result = cyclic.run(5, coordinate=lambda session, ctx: edited(session, ctx, outcomes=outcomes))
    assert isinstance(result.aborted, RoundLost)
    assert "sealed box" in str(result.aborted)


def test_a_sum_that_might_not_decrypt(cyclic: Any, refused: Any, nobody_released: Any) -> None:
    class Noisy(TransparentBackend):
        def noise_budget(self, params: Any, secret: Any, ciphertext: bytes) -> float:
            return budget

    for budget in (3.9, 4.0):
        result = cyclic.run(5, backend=Noisy(cyclic.transparent))
        assert result.correct == (budget == 4.0)
        if budget < 4:
            refused(result, "agree", "noise budget", "a")
            nobody_released(result)


def test_a_session_of_another_cohort(cyclic: Any, refused: Any) -> None:
    """A site whose session was planned for other sites takes no part."""
    plan = cyclic.aggregator().plan

    def make(value: Any, cohort: Any) -> Any:
        return plan(value, (*cohort[:-1], "zz") if acting() == "b" else cohort)

    refused(SessionHarness(make, 5, 8).run(), "advertise", "not of this cohort", "b")


def test_reading_is_strict() -> None:
    assert read({"a": b"xy"}, "a", bytes, length=2) == b"xy"
    for body, name in (({}, "a"), ({"a": "xy"}, "a"), ({"a": b"xyz"}, "a"), (None, "a"), ({"a": None}, "a")):
        with pytest.raises(WireError):
            read(body, name, bytes, length=2)
    assert read_names({"a": ["b", "c"]}, "a") == ("b", "c")
    for names in (["c", "b"], ["b", "b"], [1], ["a", 1], "b", None):
        with pytest.raises(WireError):
            read_names({"a": names}, "a")
