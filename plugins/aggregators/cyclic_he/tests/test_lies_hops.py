"""Lies about hops and about who was reached: other boxes, other chains, sites skipped or bridged by claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pppml_core.errors import RoundAborted, RoundLost
from pppml_core.federation.policy import Policy
from pppml_core.testing import edited
from pppml_core.testing.parties import acting
from pppml_core.wire.messages import Exchange, Relay
from pppml_cyclic_he import hops
from pppml_cyclic_he.hops import LINK_BYTES

Change = Callable[[dict[str, Any]], dict[str, Any]]

#: the rings of five sites: ring-1 begins at c, ring-2 at a.
RING_1, RING_2 = ("c", "a", "d", "e", "b"), ("a", "b", "d", "c", "e")


@pytest.fixture(scope="module", autouse=True)
def _the_rings_are_these(cyclic: SimpleNamespace) -> None:
    rings = cyclic.harness(5).session().setting.rings
    assert (rings.path(0), rings.path(1)) == (RING_1, RING_2)


def flipped(name: str, place: int = -1) -> Change:
    """One bit of a field changed."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        value = bytearray(body[name])
        value[place] ^= 1
        return {**body, name: bytes(value)}

    return change


def claimed(*sites: str) -> Change:
    return lambda body: {**body, "without": list(sites)}


def hop_before(cyclic: SimpleNamespace, site: str, stage: str = "ring-1", **options: Any) -> dict[str, Any]:
    """What that site was handed in an honest session."""
    passages = cyclic.run(5, **options).transcript.passages
    return dict(next(p.message.body for p in passages if p.message.stage == stage and p.message.recipient == site))


TAMPERED = {
    "box": (flipped("box"), "a box was changed"),
    "key": (flipped("key"), "a sealed box was changed"),
    "the last link's signature": (flipped("chain"), "signature of a"),
    "the last link's hash": (flipped("chain", LINK_BYTES), "signature of a"),
    "the first link": (flipped("chain", 0), "signature of c"),
    "a site skipped": (lambda b: {**b, "chain": b["chain"][LINK_BYTES:]}, "one link of each site"),
    "a link doubled": (lambda b: {**b, "chain": b["chain"] + b["chain"][-LINK_BYTES:]}, "one link of each site"),
    "links exchanged": (lambda b: {**b, "chain": b["chain"][LINK_BYTES:] + b["chain"][:LINK_BYTES]}, "signature of c"),
    "no chain": (lambda b: {**b, "chain": b""}, "one link of each site"),
    "a box that is too short": (lambda b: {**b, "box": b"short"}, "a box was changed"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_hop_that_was_tampered_with(cyclic: Any, refused: Any, nobody_released: Any, on_the_way: Any, case: str) -> None:
    """The third site of the first ring, d, gets it."""
    change, reason = TAMPERED[case]
    result = cyclic.run(5, coordinate=on_the_way("ring-1", "d", change))
    refused(result, "ring-1", reason, "d")
    nobody_released(result)


@pytest.mark.parametrize("when", [{"attempt": 2}, {"round": 2}, {"run": b"another session!"}])
def test_a_hop_of_another_time(cyclic: Any, refused: Any, on_the_way: Any, when: dict[str, Any]) -> None:
    """Whole, with its chain and its box, as it was in another attempt, round or run of the same sites."""
    old = hop_before(cyclic, "d", **when)
    refused(cyclic.run(5, coordinate=on_the_way("ring-1", "d", lambda body: old)), "ring-1", "signature of c", "d")


def test_a_hop_of_another_ring(cyclic: Any, refused: Any, on_the_way: Any) -> None:
    """What d got in the first ring, in the second, where it is third too."""
    kept: dict[str, Any] = {}

    def coordinate(session: Any, ctx: Any) -> Any:
        first = on_the_way("ring-1", "d", lambda body: kept.setdefault("body", body))
        second = on_the_way("ring-2", "d", lambda body: kept["body"])

        class Both:
            def coordinate(self, ctx: Any) -> Any:
                return first(session, ctx)

        return second(Both(), ctx)

    refused(cyclic.run(5, coordinate=coordinate), "ring-2", "signature of a", "d")


def test_the_box_of_another_ring_or_sender(cyclic: Any, refused: Any, on_the_way: Any) -> None:
    """Key and box that fit each other, under a chain they are not of."""
    kept: list[dict[str, Any]] = []

    def swapped(body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "box": kept[0]["box"]}

    def keeping(session: Any, ctx: Any) -> Any:
        def outcomes(operation: Any, outcome: Any) -> Any:
            if operation.stage == "ring-1":
                kept.append(dict(outcome.body))
            return outcome

        return edited(session, ctx, outcomes=outcomes)

    class Keeping:
        def __init__(self, session: Any) -> None:
            self.session = session

        def coordinate(self, ctx: Any) -> Any:
            return keeping(self.session, ctx)

    result = cyclic.run(5, coordinate=lambda session, ctx: on_the_way("ring-2", "d", swapped)(Keeping(session), ctx))
    refused(result, "ring-2", "a box was changed", "d")


def test_a_site_that_boxes_another_ciphertext_than_it_signs(cyclic: Any, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    close, held = hops.Hop.close, {}

    def closing(hop: Any, ciphertext: bytes, draw: Any) -> Any:
        held.setdefault(hop.sender, ciphertext)
        return close(hop, held["c"] if acting() == "a" else ciphertext, draw)

    monkeypatch.setattr(hops.Hop, "close", closing)
    refused(cyclic.run(5), "ring-1", "does not hold the ciphertext that was signed", "d")


def test_a_ring_before_its_turn_or_again(cyclic: Any, refused: Any) -> None:
    def first_the_second(session: Any, ctx: Any) -> Any:
        def edit(operation: Any) -> Any:
            return replace(operation, stage="ring-2", path=RING_2) if operation.stage == "ring-1" else operation

        return edited(session, ctx, edit)

    refused(cyclic.run(5, coordinate=first_the_second), "ring-2", "one after another", "a")


def test_no_second_ciphertext_for_a_ring(cyclic: Any) -> None:
    """The same request gets the stored bytes; another one nothing."""

    def twice(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        asked = next(honest)
        while asked.stage != "ring-1":
            asked = honest.send((yield asked))
        whole = yield asked
        other = yield replace(asked, path=RING_1[:1], body={**asked.body, "more": 1})
        answers.extend([whole, other, (yield replace(asked, path=RING_1[:1]))])
        raise RoundAborted("enough")

    answers: list[Any] = []
    cyclic.run(5, coordinate=twice)
    whole, other, again = answers
    assert "already answered" in other.lost["c"]
    assert again.body["chain"] == whole.body["chain"][:LINK_BYTES], "the same ciphertext, under the same signature"


# -- bridging -------------------------------------------------------------------------------------------------------------------------


UNREACHED = {"site": "d", "stage": "ring-1", "do": "drop"}


@pytest.mark.parametrize(
    ("stage", "site", "without", "reason"),
    [
        ("ring-1", "d", ["d"], "this site is left out"),
        ("ring-1", "d", ["a"], "start no ring"),
        ("ring-1", "d", ["nobody"], "start no ring"),
        ("ring-1", "d", ["b", "b"], "sorted list of different names"),
        ("ring-1", "d", ["e", "b"], "sorted list of different names"),
        ("ring-1", "d", ["b", "e"], None),  # as if both had been bridged: d cannot know better
        ("ring-2", "b", ["d"], "d has contributed"),  # b was after d in the first ring, and saw its hop
        ("ring-2", "d", ["e"], None),  # d was before e and cannot know; the list of the first ring will not fit
        ("agree", "c", ["e"], "one link of each site"),
    ],
)
def test_sites_are_not_left_out_by_claim(
    cyclic: Any,
    lie: Any,
    refused: Any,
    nobody_released: Any,
    on_the_way: Any,
    stage: str,
    site: str,
    without: list[str],
    reason: str | None,
) -> None:
    if stage == "agree":
        result = lie("agree", claimed(*without), site)
    else:
        result = cyclic.run(5, coordinate=on_the_way(stage, site, claimed(*without)))
    if reason is not None:
        refused(result, stage, reason, site)
    assert result.sum is None
    nobody_released(result)


def test_a_site_that_was_left_out_is_not_taken_in_again(cyclic: Any, refused: Any, on_the_way: Any) -> None:
    result = cyclic.run(5, UNREACHED, coordinate=on_the_way("ring-2", "e", claimed()))
    refused(result, "ring-2", "left out is in it again", "e")


def test_a_site_is_not_skipped_without_the_one_before_it(cyclic: Any, refused: Any) -> None:
    """The hop that a sealed to d, handed to e as if d had been bridged."""

    def skipping(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        asked = next(honest)
        while asked.stage != "ring-1":
            asked = honest.send((yield asked))
        begun = yield replace(asked, path=RING_1[:2])
        yield replace(asked, path=("e",), body={**begun.body, "without": ["d"]})
        raise RoundAborted("enough")

    refused(cyclic.run(5, coordinate=skipping), "ring-1", "signature of a", "e")


def asks_reseal(after: str, site: str, without: list[str], path: int = 5) -> Any:
    """A server that asks ``site`` to bridge after the stage ``after``, of which it walks the first ``path`` sites."""

    def coordinate(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        asked = next(honest)
        while asked.stage != after:
            asked = honest.send((yield asked))
        yield replace(asked, path=asked.path[:path]) if isinstance(asked, Relay) else asked
        yield Exchange("reseal", {site: {"without": without}})
        raise RoundAborted("enough")

    return coordinate


@pytest.mark.parametrize(
    ("after", "path", "site", "without", "reason"),
    [
        ("keys", 0, "a", ["d"], "only while the first ring is walked"),
        ("ring-2", 1, "a", ["d"], "only while the first ring is walked"),
        ("ring-1", 2, "a", ["e"], "only the site after this one"),
        ("ring-1", 2, "a", ["d", "e"], "only the site after this one"),
        ("ring-1", 2, "a", [], "only the site after this one"),
        ("ring-1", 1, "c", ["a"], "start no ring"),
        ("ring-1", 2, "a", "d", "malformed"),
        ("ring-1", 3, "e", ["b"], "not the stage that comes next|only while"),
    ],
)
def test_who_may_be_asked_to_bridge_whom(cyclic: Any, refused: Any, after: str, path: int, site: str, without: Any, reason: str) -> None:
    refused(cyclic.run(5, coordinate=asks_reseal(after, site, without, path)), "reseal", reason, site)


def test_one_site_bridges_once(cyclic: Any, refused: Any, nobody_released: Any) -> None:
    """d and e, one after the other, cannot be reached: a hands its box on once."""
    result = cyclic.run(5, UNREACHED, {"site": "e", "stage": "ring-1", "do": "drop"})
    refused(result, "reseal", "already answered", "a")
    nobody_released(result)


def test_two_that_are_no_neighbours_are_bridged(cyclic: Any) -> None:
    result = cyclic.run(5, UNREACHED, {"site": "b", "stage": "ring-1", "do": "drop"})
    assert result.correct
    assert result.survivors == ("a", "c", "e")


def test_a_bridged_hop_is_the_same_ciphertext(cyclic: Any) -> None:
    passages = [p.message for p in cyclic.run(5, UNREACHED).transcript.passages if p.message.stage == "ring-1"]
    to_d, to_e = (next(m.body for m in passages if m.recipient == site) for site in "de")
    assert to_d["box"] == to_e["box"]
    assert to_d["key"] != to_e["key"]
    assert to_d["chain"][-LINK_BYTES:][:32] == to_e["chain"][-LINK_BYTES:][:32], "the hash of what was sent"
    assert to_d["chain"] != to_e["chain"], "signed anew, to another site"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [(Policy(min_cohort=5), "min_cohort"), (Policy(max_colluders=3), "min_honest"), (Policy(max_colluders=1, min_honest=4), "min_honest")],
)
@pytest.mark.parametrize(("site", "stage"), [("a", "reseal"), ("e", "ring-1")])
def test_bridging_that_breaks_a_sites_policy(
    cyclic: Any, refused: Any, nobody_released: Any, policy: Policy, reason: str, site: str, stage: str
) -> None:
    """The site before the bridged one, and one after it; without bridging the same policy is content."""
    assert cyclic.run(5, policies={site: policy}).correct
    result = cyclic.run(5, UNREACHED, policies={site: policy})
    refused(result, stage, reason, site)
    nobody_released(result)


def test_bridging_that_lowers_the_bound(cyclic: Any, refused: Any) -> None:
    """Contracted cycles are weaker: with d bridged, eight sites on two rings would withstand fewer than four. Every site refuses that."""
    path = ("e", "g", "b", "c", "a", "h", "d", "f")
    assert cyclic.harness(8, rings=2).session().setting.rings.path(0) == path
    weaker = "withstand fewer sites than the plan says"
    result = cyclic.run(8, rings=2, coordinate=asks_reseal("ring-1", "h", ["d"], 6))
    refused(result, "reseal", f"without d .* {weaker}", "h")

    def skipping(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        asked = next(honest)
        while asked.stage != "ring-1":
            asked = honest.send((yield asked))
        yield replace(asked, path=path[:1], body={**asked.body, "without": ["d"]})
        raise RoundAborted("enough")

    refused(cyclic.run(8, rings=2, coordinate=skipping), "ring-1", weaker, "e")


def test_a_server_does_not_try_to_bridge_where_that_lowers_the_bound(cyclic: Any, nobody_released: Any) -> None:
    """The round starts again, without that site."""
    lost = {"site": "d", "stage": "ring-1", "do": "drop"}
    once = cyclic.run(8, lost, rings=2)
    assert "withstand fewer sites than the plan says" in str(once.aborted)
    assert not isinstance(once.aborted, RoundLost)
    assert not any(p.message.stage == "reseal" for p in once.transcript.passages)
    nobody_released(once)
    again = cyclic.run(8, lost, {"site": "d", "stage": "open", "do": "drop", "attempt": 2}, rings=2, attempts=2)
    assert again.correct
    assert again.survivors == tuple("abcefgh")


@pytest.mark.parametrize(
    ("policy", "reason"),
    [(Policy(min_cohort=6), "min_cohort"), (Policy(max_colluders=4), "min_honest"), (Policy(max_colluders=2), "max_colluders")],
)
def test_a_policy_that_the_cohort_does_not_meet(cyclic: Any, refused: Any, policy: Policy, reason: str) -> None:
    """One ring of five sites withstands one colluder."""
    refused(cyclic.run(5, rings=1, policies={"b": policy}), "advertise", reason, "b")


def test_colluders_may_lie(cyclic: Any, refused: Any) -> None:
    """Two rings of eight sites withstand four curious sites, but three that lie: the second is what a policy asks for."""
    promised = cyclic.harness(8, rings=2).session().guarantees
    assert (promised.coalition_curious, promised.coalition_active) == (4, 3)
    assert cyclic.run(8, rings=2, policies={"b": Policy(max_colluders=3)}).correct
    refused(cyclic.run(8, rings=2, policies={"b": Policy(max_colluders=4)}), "advertise", "max_colluders.* withstand 3 that lie", "b")
