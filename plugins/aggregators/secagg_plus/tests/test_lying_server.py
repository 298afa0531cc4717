"""A server that lies, with and without a site that helps it: whatever it tries, honest sites refuse before anything useful leaves them.

Each test names the one check it is about: take the check out, and the test is red.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pppml_core.errors import InconsistentModel, PolicyRefusal, RoundLost, TooFewSurvivors, WireError
from pppml_core.federation.policy import Policy
from pppml_core.testing.harness import HarnessResult, SessionHarness
from pppml_core.testing.lying import edited
from pppml_core.testing.parties import identity_of
from pppml_core.wire.messages import Exchange, Message
from pppml_secagg_plus import adverts, keys
from pppml_secagg_plus.adverts import Advert
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.session import SecAggPlus
from pppml_secagg_plus.site_side import SiteSide
from pppml_secagg_plus.terms import Terms

SITES = ("a", "b", "c", "d", "e")
STAGES = ("advertise", "share", "mask", "agree", "unmask")
Edit = Callable[[Any], Any]


def harness(coordinate: Any = None, config: Mapping[str, Any] = {}, sites: Any = 5, **options: Any) -> SessionHarness:
    return SessionHarness(SecAggPlus(SecAggPlusConfig(**config)), sites, 8, coordinate=coordinate, **options)


def lie(stage: str, edit: Edit, **options: Any) -> HarnessResult:
    """A session whose server changes one operation."""

    def coordinate(session: Any, ctx: Any) -> Any:
        return edited(session, ctx, lambda operation: edit(operation) if operation.stage == stage else operation)

    return harness(coordinate, **options).run()


def common(**changes: Any) -> Edit:
    return lambda op: replace(op, common={**op.common, **changes})


def only(site: str, **changes: Any) -> Edit:
    return lambda op: replace(op, bodies={**op.bodies, site: {**op.bodies[site], **changes}})


def assert_refused(result: HarnessResult, stage: str, sites: Sequence[str], reason: str) -> None:
    """Exactly these sites refused, at this stage, for this reason; nobody crashed."""
    assert not result.crashes, result.crashes
    found = {site: why for where, site, why in result.losses if where == stage}
    assert set(found) == set(sites), result.losses
    for why in found.values():
        assert "refused" in why, why
        assert reason in why, why


def sent(result: HarnessResult, stage: str) -> dict[str, Mapping[str, Any]]:
    return {p.message.sender: p.message.body for p in result.transcript.sent_by_sites() if p.message.stage == stage}


def resigned(site: str, packed: bytes, signer: str | None = None, **changes: Any) -> tuple[bytes, bytes]:
    """An advert of a site that helps the server: changed, and signed by that site (or another party)."""
    advert = replace(Advert.unpack(packed), **changes)
    return advert.pack(), identity_of(signer or site).sign(adverts.to_sign(site, advert.binding, advert.pack()))


def with_advert(site: str, forge: Callable[[bytes], tuple[bytes, bytes]]) -> Edit:
    """The share exchange with another advert of ``site``."""

    def edit(op: Exchange) -> Exchange:
        packed, signature = forge(op.common["adverts"][site])
        return common(adverts={**op.common["adverts"], site: packed}, signatures={**op.common["signatures"], site: signature})(op)

    return edit


def test_the_honest_server_gets_the_sum() -> None:
    result = lie("share", lambda op: op)
    assert result.correct
    assert result.survivors == SITES
    assert result.transcript.stages() == STAGES


# -- adverts ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["box_key", "mask_key", "commitment"])
def test_a_substituted_key(field: str) -> None:
    """In ``adverts.read``: the signature. The server puts a key of its own in the place of b's."""

    def forge(packed: bytes) -> tuple[bytes, bytes]:
        return resigned("b", packed, signer="server", **{field: b"\7" * 32})

    assert_refused(lie("share", with_advert("b", forge)), "share", "acde", "the signature of b does not fit its pinned identity")


def test_an_advert_of_another_length() -> None:
    for wrong in (b"", b"x" * 300, 7, None):
        result = lie("share", with_advert("b", lambda packed, wrong=wrong: (wrong, b"")))
        assert not result.crashes
        assert {site for stage, site, _ in result.losses if stage == "share"} >= set("acde")


def test_an_advert_under_another_name() -> None:
    """In ``adverts.read``: whose it is. The server gives b's advert as c's."""
    got: dict[str, tuple[bytes, bytes]] = {}

    def edit(op: Exchange) -> Exchange:
        got["b"] = op.common["adverts"]["b"], op.common["signatures"]["b"]
        return with_advert("c", lambda packed: got["b"])(op)

    result = lie("share", edit)
    assert_refused(result, "share", "abde", "the signature of c does not fit its pinned identity")
    assert adverts.to_sign("b", bytes(32), got["b"][0]) != adverts.to_sign("c", bytes(32), got["b"][0])


@pytest.mark.parametrize("other", [{"attempt": 2}, {"run": b"another-run-1234"}, {"round": 2}])
def test_an_advert_of_another_attempt_or_run(other: dict[str, Any]) -> None:
    """In ``adverts.read``: the binding."""
    earlier = sent(harness(**other).run(), "advertise")["b"]
    result = lie("share", with_advert("b", lambda packed: (earlier["advert"], earlier["signature"])))
    assert_refused(result, "share", "acde", "b holds another model or other terms, or its advert is of another attempt")


def test_a_site_with_another_model() -> None:
    """In ``adverts.read``: the binding holds the model's hash. The sites refuse, and an honest server ends the attempt before."""

    def forge(packed: bytes) -> tuple[bytes, bytes]:
        return resigned("b", packed, binding=b"\1" * 32)

    assert_refused(lie("share", with_advert("b", forge)), "share", "acde", "b holds another model")
    result = harness(models={"b": b"another model"}).run()
    assert isinstance(result.aborted, InconsistentModel)
    assert "b" in str(result.aborted)
    assert result.transcript.stages() == ("advertise",)


@pytest.mark.parametrize("terms", [Terms(5, 4, 3), Terms(5, 2, 4), Terms(6, 4, 4)])
def test_a_lowered_threshold_or_degree_in_an_advert(terms: Terms) -> None:
    """In ``adverts.read``: the terms. Signed by a site that helps the server."""
    result = lie("share", with_advert("b", lambda packed: resigned("b", packed, terms=terms)))
    assert_refused(result, "share", "acde", "b signed other terms")


def test_another_roster_in_an_advert() -> None:
    """In ``adverts.read``: the roster."""
    result = lie("share", with_advert("b", lambda packed: resigned("b", packed, roster=bytes(32))))
    assert_refused(result, "share", "acde", "b has pinned other identities")


def test_a_key_used_twice() -> None:
    """In ``_read_adverts``: each key once. Were b's mask key also c's, rebuilding one would open the other."""
    keys: dict[str, bytes] = {}

    def edit(op: Exchange) -> Exchange:
        keys["c"] = Advert.unpack(op.common["adverts"]["c"]).mask_key
        return with_advert("b", lambda packed: resigned("b", packed, mask_key=keys["c"]))(op)

    result = lie("share", edit)
    assert not result.crashes
    for site in "acde":
        why = {s: w for stage, s, w in result.losses if stage == "share"}[site]
        assert "two keys of this attempt are the same" in why


@pytest.mark.parametrize(("field", "stage"), [("box_key", "share"), ("mask_key", "mask")])
def test_a_key_of_low_order(field: str, stage: str) -> None:
    """In ``keys.Agreement``: a key of low order would make the secret public."""
    low = bytes(32) if field == "box_key" else b"\1" + bytes(31)
    result = lie("share", with_advert("b", lambda packed: resigned("b", packed, **{field: low})))
    assert not result.crashes
    found = {site: why for where, site, why in result.losses if where == stage}
    assert set("acde") <= set(found)
    assert all("an agreement key is not valid" in found[site] for site in "acde")


@pytest.mark.parametrize("field", ["box_key", "mask_key"])
def test_an_honest_server_leaves_out_a_site_with_a_key_of_low_order(field: str) -> None:
    """In ``ServerSide._advertise``: one site with such a key is one lost site."""

    def replies(stage: str, site: str, body: Any) -> Any:
        if stage != "advertise" or site != "b":
            return body
        packed, signature = resigned("b", body["advert"], **{field: bytes(32)})
        return {"advert": packed, "signature": signature}

    result = harness(lambda session, ctx: edited(session, ctx, replies=replies)).run()
    assert result.correct
    assert result.survivors == ("a", "c", "d", "e")


def test_a_site_that_is_not_in_the_cohort() -> None:
    """In ``_members``: names of the cohort only. The server invents a site."""

    def edit(op: Exchange) -> Exchange:
        extra = {"zz": op.common["adverts"]["b"]}
        return common(adverts={**op.common["adverts"], **extra}, signatures={**op.common["signatures"], "zz": b"x" * 64})(op)

    assert_refused(lie("share", edit), "share", SITES, "zz cannot be in this list")


def test_a_site_under_two_names() -> None:
    """In ``adverts.pinned``: identities are distinct. Two names with one identity would be one party with two votes."""
    roster = {party: identity_of(party).public for party in (*SITES, "server")}
    doubled = {**roster, "e": roster["d"]}
    result = harness(rosters=dict.fromkeys("abc", doubled)).run()
    assert_refused(result, "advertise", "abc", "two sites of the cohort have one identity")


def test_a_site_nobody_has_pinned() -> None:
    """In ``adverts.pinned``: every site of the cohort is pinned."""
    roster = {party: identity_of(party).public for party in ("a", "b", "c", "d", "server")}
    result = harness(rosters=dict.fromkeys("abc", roster)).run()
    assert_refused(result, "advertise", "abc", "no identity is pinned for e")


def test_an_impostor_is_left_out() -> None:
    """The server drops an advert that is not signed by the pinned identity, so the others can go on; they would refuse it too."""
    result = harness(impostors=("b",)).run()
    assert result.correct
    assert result.survivors == ("a", "c", "d", "e")


@pytest.mark.parametrize("field", ["adverts", "signatures"])
@pytest.mark.parametrize("wrong", [None, 3, ["a"], b"x", {}])
def test_adverts_of_another_form(field: str, wrong: Any) -> None:
    result = lie("share", common(**{field: wrong}))
    assert not result.crashes
    assert {site for stage, site, _ in result.losses if stage == "share"} == set(SITES)


# -- policy -------------------------------------------------------------------------------------------------------------------------------


def test_a_threshold_too_low_for_the_sites_policy() -> None:
    """In ``_check_policy``: 2t > n + c. Three of five passes the plan, but a lying server with one site could tell two lists."""
    result = harness(config={"threshold": 3}).run()
    assert_refused(result, "share", SITES, "max_colluders: 3 of 5 shares are too few")
    assert harness(config={"threshold": 3}, policies=dict.fromkeys(SITES, Policy(max_colluders=0))).run().correct


def test_a_site_counts_the_share_holders_itself() -> None:
    """With e gone before it advertised, n is 4 and three shares are enough: 6 > 4 + 1."""
    result = harness(config={"threshold": 3}, faults=[{"site": "e", "stage": "advertise", "do": "drop"}]).run()
    assert result.correct


def test_too_few_honest_share_holders() -> None:
    """In ``_check_policy``: t - c >= min_honest."""
    assert_refused(harness(policies={"b": Policy(min_honest=4)}).run(), "share", "b", "min_honest: 4 shares")
    three = dict.fromkeys("abc", Policy(max_colluders=2))
    assert_refused(harness(config={"threshold": 3}, sites=3, policies=three).run(), "share", "abc", "min_honest: 3 shares")


# -- lists --------------------------------------------------------------------------------------------------------------------------------

LISTS = [("mask", "shared"), ("agree", "alive")]


@pytest.mark.parametrize(("stage", "name"), LISTS)
def test_a_site_that_is_not_in_the_list_it_is_shown(stage: str, name: str) -> None:
    """In ``_check_enough``: this site is in the list."""
    assert_refused(lie(stage, only("e", **{name: ["a", "b", "c", "d"]})), stage, "e", "this site is not in the list")


@pytest.mark.parametrize(("stage", "name"), LISTS)
def test_a_list_below_the_threshold(stage: str, name: str) -> None:
    """In ``_check_enough``: at least t share holders."""
    result = lie(stage, only("a", **{name: ["a", "b", "c"]}))
    assert_refused(result, stage, "a", "3 share holders, at least 4 required")


def test_a_list_of_members_below_the_threshold() -> None:
    """In ``_check_enough``, for U1."""

    def edit(op: Exchange) -> Exchange:
        few = {n: op.common["adverts"][n] for n in "abc"}
        return only("a", adverts=few)(op)

    assert_refused(lie("share", edit), "share", "a", "members: 3 share holders, at least 4 required")


@pytest.mark.parametrize(("stage", "lost_at"), [("mask", "share"), ("agree", "mask"), ("share", "advertise")])
def test_a_list_below_the_cohort_a_site_insists_on(stage: str, lost_at: str) -> None:
    """In ``_check_enough``: min_cohort, at each stage that has a list."""
    result = harness(policies={"a": Policy(min_cohort=5)}, faults=[{"site": "e", "stage": lost_at, "do": "drop"}]).run()
    assert_refused(result, stage, "a", "4 sites, min_cohort is 5")


@pytest.mark.parametrize(("stage", "name", "lost_at"), [("mask", "shared", "advertise"), ("agree", "alive", "share")])
def test_a_list_larger_than_the_one_before(stage: str, name: str, lost_at: str) -> None:
    """In ``read_names``: U3 in U2 in U1. e vanished before, and is in the list again."""
    result = lie(stage, common(**{name: list(SITES)}), faults=[{"site": "e", "stage": lost_at, "do": "drop"}])
    assert_refused(result, stage, "abcd", "e cannot be in this list")


@pytest.mark.parametrize(("stage", "name"), [*LISTS, ("unmask", "alive"), ("unmask", "dead")])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (None, "not a list of names"),
        ({"a": 1}, "not a list of names"),
        ("abcd", "not a list of names"),
        ([1, 2, 3, 4], "not a list of names"),
        (["a", "b", "c", "d", "e", "a"], "a site is named twice"),
        (["a", "b", "c", "d", "e", "zz"], "zz cannot be in this list"),
    ],
)
def test_a_malformed_list(stage: str, name: str, wrong: Any, reason: str) -> None:
    assert_refused(lie(stage, common(**{name: wrong})), stage, SITES, reason)


# -- boxes --------------------------------------------------------------------------------------------------------------------------------


def spoil_box(change: Callable[[Mapping[str, bytes], Mapping[str, Any]], Mapping[str, Any]]) -> HarnessResult:
    """a's boxes, changed; ``change`` gets them and the boxes of all."""

    def edit(op: Exchange) -> Exchange:
        everybody = {site: body["boxes"] for site, body in op.bodies.items()}
        return only("a", boxes=change(everybody["a"], everybody))(op)

    return lie("mask", edit)


@pytest.mark.parametrize(
    "change",
    [
        lambda own, all: {**own, "b": own["b"][:40] + bytes([own["b"][40] ^ 1]) + own["b"][41:]},
        lambda own, all: {**own, "b": own["b"][:-1]},
        lambda own, all: {**own, "b": b""},
        lambda own, all: {**own, "b": own["c"], "c": own["b"]},
        lambda own, all: {**own, "b": all["c"]["b"]},
        lambda own, all: {**own, "b": all["b"]["a"]},
        lambda own, all: {**own, "b": 5},
    ],
    ids=["tampered", "truncated", "empty", "swapped", "meant for c", "sent by a itself", "no bytes"],
)
def test_a_box_that_is_not_the_one_that_was_sent(change: Any) -> None:
    """In ``keys.open_box``: the authentication of boxes."""
    result = spoil_box(change)
    assert_refused(result, "mask", "a", "was changed, or is not for a in this attempt")
    assert result.correct  # the others go on without it


@pytest.mark.parametrize("length", [0, 65, 67])
def test_a_box_with_something_else_in_it(length: int) -> None:
    """In ``keys.open_box``: two shares, no more and no less. Its sender helps the server and has sealed it well."""
    box = keys.close_box(bytes(32), "b", "a", bytes(32), bytes(length))
    with pytest.raises(WireError, match="the box of shares from b was changed"):
        keys.open_box(bytes(32), "b", "a", bytes(32), box)


@pytest.mark.parametrize(
    "change", [lambda own, all: {n: own[n] for n in "bcd"}, lambda own, all: {**own, "zz": own["b"]}, lambda own, all: None]
)
def test_boxes_missing_or_invented(change: Any) -> None:
    """In ``read_map``: one box from each neighbour in U2. Without a box of e the site would mask towards e all the same."""
    assert_refused(spoil_box(change), "mask", "a", "boxes: not one entry for each of")


def test_a_box_of_another_attempt() -> None:
    """Boxes are bound to the attempt."""
    earlier: dict[str, Any] = {}

    def keep(op: Exchange) -> Exchange:
        earlier.update(op.bodies["a"]["boxes"])
        return op

    lie("mask", keep, attempt=1)
    result = lie("mask", lambda op: only("a", boxes={**op.bodies["a"]["boxes"], "b": earlier["b"]})(op), attempt=2)
    assert_refused(result, "mask", "a", "was changed, or is not for a")


# -- agreement and unmasking --------------------------------------------------------------------------------------------------------------


def test_one_site_alive_and_dead() -> None:
    """In ``_unmask``: the lists are disjoint. Both shares of a in one request would give away its update."""
    result = lie("unmask", common(dead=["a"]))
    assert_refused(result, "unmask", SITES, "both of its secrets would be known")
    assert sent(result, "unmask") == {}
    assert all(over == () for over in result.released.values())


def test_another_list_than_the_one_agreed_on() -> None:
    """In ``_unmask``: the list that was signed."""
    result = lie("unmask", common(alive=["a", "b", "c", "d"], dead=["e"]))
    assert_refused(result, "unmask", SITES, "not the lists that were agreed on")


def test_dead_sites_left_out_or_invented() -> None:
    """In ``_unmask``: alive and dead are U2 together."""
    result = lie("unmask", common(dead=[]), faults=[{"site": "e", "stage": "mask", "do": "drop"}])
    assert_refused(result, "unmask", "abcd", "not the lists that were agreed on")


def test_two_lists_for_two_halves() -> None:
    """In ``_check_signatures``: signatures under the very same list. Half of the sites are told that e is in the sum, half that it is not.

    Were both lists accepted, the first half would give shares of e's seed and the second half of its key.
    """
    four = ["a", "b", "c", "d"]
    for names, reason in (
        (SITES, "the signature of c does not fit"),
        (("a", "b", "e"), "3 signatures under the list, at least 4 required"),
    ):

        def coordinate(session: Any, ctx: Any, names: Sequence[str] = names) -> Any:
            signatures: dict[str, bytes] = {}
            honest = edited(session, ctx)
            operation = next(honest)
            while operation.stage != "agree":
                operation = honest.send((yield operation))
            bodies = {site: {"alive": four if site in ("c", "d") else list(SITES)} for site in SITES}
            yield Exchange("agree", bodies, lambda site, body: signatures.update({site: body["signature"]}))
            shown = {site: signatures[site] for site in names}
            bodies = {"a": {"alive": list(SITES), "dead": [], "signatures": shown}}
            yield Exchange("unmask", bodies)
            raise TooFewSurvivors("the lie has been told")

        result = harness(coordinate).run()
        assert_refused(result, "unmask", "a", reason)
        assert result.released["a"] == ()


def signatures_of(change: Callable[[dict[str, bytes]], Any]) -> HarnessResult:
    return lie("unmask", lambda op: only("a", signatures=change(dict(op.common["signatures"])))(op))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: {n: s[n] for n in "abc"}, "3 signatures under the list, at least 4 required"),
        (lambda s: {}, "0 signatures under the list"),
        (lambda s: {**s, "b": bytes(64)}, "the signature of b does not fit"),
        (lambda s: {**s, "b": s["c"]}, "the signature of b does not fit"),
        (lambda s: {**{n: s[n] for n in "abc"}, "zz": s["d"]}, "zz cannot be in this list"),
        (lambda s: {**{n: s[n] for n in "abc"}, "server": s["d"]}, "server cannot be in this list"),
        (lambda s: list(s.values()), "signatures are a map"),
        (lambda s: {**s, "b": 7}, "the signature of b does not fit"),
    ],
    ids=["too few", "none", "forged", "doubled", "of nobody", "of the server", "no map", "no bytes"],
)
def test_signatures_missing_forged_or_doubled(change: Any, reason: str) -> None:
    """In ``_check_signatures``."""
    result = signatures_of(change)
    assert_refused(result, "unmask", "a", reason)
    assert result.released["a"] == ()


def test_a_signature_of_a_site_that_is_not_in_the_sum() -> None:
    """In ``_check_signatures``: only sites of U3 sign; a vanished site that helps the server does not count."""

    def edit(op: Exchange) -> Exchange:
        return only("a", signatures={**{n: op.common["signatures"][n] for n in "abc"}, "e": op.common["signatures"]["d"]})(op)

    result = lie("unmask", edit, faults=[{"site": "e", "stage": "mask", "do": "drop"}])
    assert_refused(result, "unmask", "a", "e cannot be in this list")


def twice(stage: str, change: Callable[[Any], Any]) -> HarnessResult:
    """One stage asked for a second time, in another way, once the honest session has gone on to its end."""

    def coordinate(session: Any, ctx: Any) -> Any:
        seen: dict[str, Any] = {}

        def edit(operation: Any) -> Any:
            seen[operation.stage] = operation
            return operation

        yield from edited(session, ctx, edit)
        again = change(seen[stage])
        yield replace(again, fold=None)
        raise TooFewSurvivors("the lie has been told")

    return harness(coordinate, faults=[{"site": "e", "stage": "mask", "do": "drop"}]).run()


def test_the_other_share_in_a_second_request() -> None:
    """In ``SessionSide``: each stage once. The second time e is said to be alive and a dead."""
    lists = {"alive": ["b", "c", "d", "e"], "dead": ["a"]}
    result = twice("unmask", common(**lists))
    assert_refused(result, "unmask", "abcd", "already answered for another request")


def test_another_list_in_a_second_agreement() -> None:
    result = twice("agree", common(alive=["a", "b", "c"]))
    assert_refused(result, "agree", "abcd", "already answered for another request")


@pytest.mark.parametrize("asked", STAGES)
@pytest.mark.parametrize("after", range(5))
def test_stages_in_another_order(asked: str, after: int) -> None:
    """In ``SiteSide.answer``: one order, each stage once, whoever carries the messages."""
    requests: dict[str, Any] = {}

    def record(op: Any) -> Any:
        requests[op.stage] = {**op.common, **op.bodies["a"]}
        return op

    found = harness(lambda session, ctx: edited(session, ctx, record), remember=True)
    result = found.run()
    assert result.correct
    states = [found.session().open(_Asked(found, result)), *result.attempts[0].history["a"]]
    if asked == STAGES[after]:
        return
    message = Message(b"r" * 16, 1, 1, "session", asked, "server", "a", requests[asked])
    with pytest.raises(PolicyRefusal, match="the next exchange is"):
        found.session().handle(states[after], message, _Asked(found, result))
    with pytest.raises(PolicyRefusal, match="the next exchange is"):
        found.session().handle(states[5], message, _Asked(found, result))


class _Asked:
    """A site's context for a state that is looked at from outside."""

    def __init__(self, harness: SessionHarness, result: HarnessResult) -> None:
        self.site, self.binding, self.cohort = "a", result.attempts[0].binding, SITES
        self.run, self.round, self.attempt, self.policy = b"session-harness!", 1, 1, Policy()
        self.roster = harness.roster()

    def entropy(self, length: int) -> bytes:
        return bytes(range(length))

    def sign(self, statement: bytes) -> bytes:
        return identity_of("a").sign(statement)

    def release(self, sites: Sequence[str]) -> None:
        raise AssertionError("nothing may be released here")


def test_a_stage_nobody_knows() -> None:
    """In ``SiteSide.answer``: no name of a stage reaches anything but the five exchanges."""
    found = harness()
    ctx = _Asked(found, found.run())
    for stage in ("commit", "words", "_share", "check_policy", "none", ""):
        side = SiteSide(found.session().terms, found.value, np.dtype(np.uint32), ctx)
        with pytest.raises(PolicyRefusal, match="the next exchange is"):
            side.answer(stage, {"next": stage}, {})


def test_nothing_is_unmasked_after_another_attempt_was() -> None:
    """``ctx.release`` before shares leave: a site that has released this sum before gives no share for another set."""
    result = harness(released={"a": [("a", "b", "c", "d")]}).run()
    assert_refused(result, "unmask", "a", "released before")
    assert "a" not in sent(result, "unmask")
    clean = harness().run()
    assert set(clean.released.values()) == {(SITES,)}


# -- lying sites, an honest server --------------------------------------------------------------------------------------------------------


def with_replies(stage: str, changes: Mapping[str, Callable[[Any], Any]], **options: Any) -> HarnessResult:
    def replies(where: str, site: str, body: Any) -> Any:
        return changes[site](body) if where == stage and site in changes else body

    return harness(lambda session, ctx: edited(session, ctx, replies=replies), **options).run()


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def wrong_seeds(body: Any) -> Any:
    return {**body, "seed_shares": {owner: flip(share) for owner, share in body["seed_shares"].items()}}


def wrong_keys(body: Any) -> Any:
    return {**body, "key_shares": {owner: flip(share) for owner, share in body["key_shares"].items()}}


@pytest.mark.parametrize("liar", SITES)
def test_a_wrong_share_is_outvoted(liar: str) -> None:
    """In ``Collected.rebuild``: the commitment, and another set of holders where it does not fit."""
    result = with_replies("unmask", {liar: wrong_seeds})
    assert result.correct
    assert result.survivors == SITES


def test_too_many_wrong_shares_lose_the_round() -> None:
    """In ``Collected.rebuild``: the commitment to the seed. Never a wrong sum instead."""
    result = with_replies("unmask", {"b": wrong_seeds, "d": wrong_seeds})
    assert isinstance(result.aborted, RoundLost)


def test_a_wrong_share_of_a_key() -> None:
    """In ``Collected.rebuild``: the advertised public key. With six sites one share more than needed comes in."""
    lost = [{"site": "f", "stage": "mask", "do": "drop"}]
    assert with_replies("unmask", {"c": wrong_keys}, sites=7, faults=lost).correct
    result = with_replies("unmask", {"c": wrong_keys, "d": wrong_keys}, sites=6, faults=lost)
    assert isinstance(result.aborted, RoundLost)


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("advertise", lambda body: {**body, "signature": bytes(64)}),
        ("advertise", lambda body: {"signature": body["signature"]}),
        ("advertise", lambda body: dict(zip(("advert", "signature"), resigned("b", body["advert"], terms=Terms(5, 4, 3)), strict=True))),
        ("share", lambda body: {}),
        ("share", lambda body: {"boxes": {n: b for n, b in body["boxes"].items() if n != "c"}}),
        ("share", lambda body: {"boxes": {**body["boxes"], "c": b"short"}}),
        ("mask", lambda body: {}),
        ("agree", lambda body: {"signature": bytes(64)}),
        ("agree", lambda body: {}),
        ("unmask", lambda body: {}),
        ("unmask", lambda body: {**body, "seed_shares": {"a": b"short"}}),
        ("unmask", lambda body: {**body, "seed_shares": {**body["seed_shares"], "c": b"short"}}),
        ("unmask", lambda body: {**body, "key_shares": {"a": bytes(33)}}),
    ],
)
def test_a_damaged_reply_is_one_lost_site(stage: str, change: Any) -> None:
    """In ``ServerSide``: each reply is checked when it comes, so the others still get their sum."""
    result = with_replies(stage, {"b": change})
    assert result.correct, result.aborted
    assert set("acde") <= set(result.survivors)
    if stage in ("advertise", "share", "mask"):
        assert "b" not in result.survivors


def test_a_masked_input_that_is_none() -> None:
    """In ``ServerSide.run``: what is left without the masks must be within the bound of a sum; without it this were a wrong sum."""
    result = with_replies("mask", {"b": lambda body: {"values": body["values"] + np.uint32(2**30)}})
    assert isinstance(result.aborted, RoundLost)


def test_a_contribution_out_of_bounds_stays_at_home() -> None:
    """In ``SiteSide._words``."""
    given = {site: np.ones(8, np.int32) for site in SITES}
    given["b"][3] = -40_000
    given["c"][3] = 40_000
    given["d"] = np.ones(9, np.int32)
    result = harness(contributions=given).run()
    assert "beyond its bound" in {s: w for _, s, w in result.losses}["b"]
    assert "beyond its bound" in {s: w for _, s, w in result.losses}["c"]
    assert "not the planned one" in {s: w for _, s, w in result.losses}["d"]
    assert isinstance(result.aborted, TooFewSurvivors)
    given = {site: np.ones(8, np.float32) for site in SITES}
    assert isinstance(harness(contributions=given).run().aborted, TooFewSurvivors)
