"""Restarts, releases and lying servers in the harness."""

from dataclasses import replace

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.errors import PolicyRefusal, RoundAborted, RoundLost, TooFewSurvivors
from pppml_core.federation.policy import Policy
from pppml_core.interfaces.aggregation import Sum
from pppml_core.testing import SessionHarness, edited
from pppml_core.testing.insecure import InsecureMaskedSession, InsecureMaskedSum
from pppml_core.testing.parties import ReleaseRecord, acting
from pppml_core.wire.messages import SERVER, Exchange

MASKED = InsecureMaskedSum(ComponentConfig())


class Releases(InsecureMaskedSession):
    """Releases before it hands out its masked values, and aborts where the test says so."""

    error: type[RoundAborted] | None = None

    def coordinate(self, ctx):
        summed = yield from super().coordinate(ctx)
        if self.error is not None and ctx.attempt == 1:
            raise self.error("by the test")
        return summed

    def handle(self, state, message, ctx):
        if message.stage == "masked":
            ctx.release(message.body["peers"])
        return super().handle(state, message, ctx)


class Aborts(Releases):
    error = RoundAborted


class Loses(Releases):
    error = RoundLost


class AbortsEarly(InsecureMaskedSession):
    """Aborts the first attempt before anything is released."""

    def coordinate(self, ctx):
        if ctx.attempt == 1:
            yield Exchange("advertise", {site: {} for site in ctx.cohort})
            raise RoundAborted("by the test")
        return (yield from super().coordinate(ctx))


def test_a_restart_is_fresh_but_for_the_contributions():
    result = SessionHarness(AbortsEarly, 4, attempts=3, remember=True).run()
    assert result.correct
    first, second = result.attempts
    assert (first.number, second.number) == (1, 2)
    assert isinstance(first.aborted, RoundAborted)
    assert second.aborted is None
    assert first.binding != second.binding
    assert first.states["a"]["drawn"] != second.states["a"]["drawn"]
    assert first.drawn["a"]
    assert set(first.drawn["a"]).isdisjoint(second.drawn["a"])
    assert {p.message.attempt for p in result.transcript.passages} == {1, 2}
    assert [len(first.history["a"]), len(second.history["a"])] == [1, 2]


def test_a_view_joins_attempts_or_takes_one():
    result = SessionHarness(AbortsEarly, 4, attempts=2).run()
    whole, one = result.view(["a", SERVER]), result.view(["a", SERVER], attempt=1)
    assert {m.attempt for m in whole["messages"]} == {1, 2}
    assert {m.attempt for m in one["messages"]} == {1}
    assert set(whole["states"]) == {"a"}
    assert one["states"]["a"]["drawn"] == result.attempts[0].states["a"]["drawn"]
    assert [a["number"] for a in whole["attempts"]] == [1, 2]
    assert whole["states"] == whole["attempts"][1]["states"]


def test_one_attempt_is_all_there_is_by_default():
    result = SessionHarness(AbortsEarly, 4).run()
    assert isinstance(result.aborted, RoundAborted)
    assert len(result.attempts) == 1


def test_a_lost_round_is_never_restarted():
    result = SessionHarness(Loses, 4, attempts=5).run()
    assert isinstance(result.aborted, RoundLost)
    assert len(result.attempts) == 1


def test_the_release_outlives_the_attempt():
    for amnesia in (False, True):
        result = SessionHarness(Aborts, 4, attempts=2, amnesia=amnesia).run()
        assert result.sum is None
        assert len(result.attempts) == 2
        refused = {(stage, site) for stage, site, reason in result.losses if "released before" in reason}
        assert refused == {("masked", s) for s in "abcd"}
        assert result.released == dict.fromkeys("abcd", (("a", "b", "c", "d"),))


def test_a_release_before_the_run_counts():
    result = SessionHarness(Releases, 4, released={"b": [("a", "b")]}).run()
    assert "b" not in result.survivors
    assert result.correct
    assert result.released["b"] == (("a", "b"),)


def test_the_record_of_a_site():
    record = ReleaseRecord("a")
    record.add(1, ["a", "b"], 2)
    record.add(1, ["b", "a"], 2)
    for attempt, sites in ((2, "ab"), (1, "abc"), (1, "a")):
        with pytest.raises(PolicyRefusal):
            record.add(attempt, list(sites), 1)
    assert record.entries == [(1, ("a", "b"))]
    with pytest.raises(PolicyRefusal, match="min_cohort"):
        ReleaseRecord("a").add(1, ["a", "b", "b"], 3)


@pytest.mark.parametrize("over", ["aab", "abx"])
def test_a_release_is_over_sites_of_the_attempt_each_once(over):
    class Odd(InsecureMaskedSession):
        def handle(self, state, message, ctx):
            if message.stage == "masked":
                ctx.release(tuple(over))
            return super().handle(state, message, ctx)

    result = SessionHarness(Odd, 4).run()
    assert isinstance(result.aborted, TooFewSurvivors)
    assert not any(result.released.values())
    assert all("not of this attempt" in reason for _, _, reason in result.losses)


def test_who_does_not_accept_is_left_out_of_that_attempt():
    faults = [{"site": "b", "stage": "open", "attempt": 2, "do": "drop"}]
    result = SessionHarness(AbortsEarly, 4, attempts=2, faults=faults).run()
    assert result.correct
    assert result.survivors == ("a", "c", "d")
    assert [a.cohort for a in result.attempts] == [("a", "b", "c", "d"), ("a", "c", "d")]
    assert result.losses == (("open", "b", "it did not take part"),)
    assert not result.unused


def test_a_site_lost_in_one_attempt_is_asked_again_in_the_next():
    faults = [{"site": s, "stage": "masked", "do": "drop", "attempt": 1} for s in "abc"]
    result = SessionHarness(MASKED, 4, attempts=2, faults=faults).run()
    assert result.survivors == ("a", "b", "c", "d")
    assert result.correct


def test_too_few_that_accept():
    gone = [{"site": s, "stage": "open", "do": "drop", "times": 9} for s in "abc"]
    result = SessionHarness(AbortsEarly, 4, attempts=3, min_cohort=2, faults=gone).run()
    assert isinstance(result.aborted, TooFewSurvivors)
    assert result.attempts == ()
    assert result.states == {}


def test_the_policy_of_a_site_sees_the_release():
    result = SessionHarness(Releases, 4, policies={"a": Policy(min_cohort=5)}).run()
    assert result.survivors == ("b", "c", "d")


def test_the_coordinator_can_be_replaced():
    def nothing(session, ctx):
        outcome = yield Exchange("advertise", {"a": {}})
        return Sum(np.zeros(session.value.length, np.int64), outcome.answered)

    result = SessionHarness(MASKED, 3, coordinate=nothing).run()
    assert result.survivors == ("a",)
    assert not result.correct
    assert result.transcript.stages() == ("advertise",)


def test_an_edited_server_is_the_honest_one_without_edits():
    result = SessionHarness(MASKED, 4, coordinate=edited, seed=3).run()
    assert result.correct
    assert np.array_equal(result.sum, SessionHarness(MASKED, 4, seed=3).run().sum)


def test_operations_replies_and_outcomes_can_be_edited():
    def skip_b(session, ctx):
        def edit(operation):
            return replace(operation, bodies={s: b for s, b in operation.bodies.items() if s != "b"})

        return edited(session, ctx, edit)

    def one_more(session, ctx):
        def replies(stage, site, body):
            return {"values": body["values"] + np.uint64(1)} if stage == "masked" and site == "a" else body

        return edited(session, ctx, replies=replies)

    def lose_c(session, ctx):
        def outcomes(operation, outcome):
            return replace(outcome, answered=tuple(s for s in outcome.answered if s != "c")) if operation.stage == "advertise" else outcome

        return edited(session, ctx, outcomes=outcomes)

    honest = SessionHarness(MASKED, 4).run()
    assert SessionHarness(MASKED, 4, coordinate=skip_b).run().survivors == ("a", "c", "d")
    assert np.array_equal(SessionHarness(MASKED, 4, coordinate=one_more).run().sum, honest.sum + 1)
    without = SessionHarness(MASKED, 4, coordinate=lose_c).run()
    assert without.survivors == ("a", "b", "d")
    assert without.correct


def test_several_operations_at_once_are_edited_one_by_one():
    class Both(InsecureMaskedSession):
        def coordinate(self, ctx):
            one, two = yield [Exchange("advertise", {"a": {}}), Exchange("advertise", {"b": {}})]
            return Sum(np.zeros(self.value.length), (*one.answered, *two.answered))

    seen = []

    def watch(session, ctx):
        return edited(session, ctx, lambda op: seen.append(op.stage) or op, replies=lambda stage, site, body: seen.append(site) or body)

    assert SessionHarness(Both, 2, coordinate=watch).run().survivors == ("a", "b")
    assert seen == ["advertise", "advertise", "a", "b"]


def test_models_identities_and_rosters_of_their_own():
    seen = {}

    class Looks(InsecureMaskedSession):
        def handle(self, state, message, ctx):
            seen[ctx.site] = (ctx.binding, dict(ctx.roster), ctx.sign(b"x"))
            return super().handle(state, message, ctx)

    plain = SessionHarness(Looks, 3)
    plain.run()
    honest = dict(seen)
    assert honest["a"][0] == honest["b"][0]
    SessionHarness(Looks, 3, models={"a": b"another"}, impostors=["b"], rosters={"c": {**plain.roster(), "d": bytes(32)}}).run()
    assert seen["a"][0] != seen["b"][0] == honest["b"][0]
    assert seen["b"][2] != honest["b"][2]
    assert seen["b"][1] == honest["b"][1]
    assert set(seen["c"][1]) == {"a", "b", "c", "d", SERVER}
    assert seen["c"][0] != seen["b"][0]


def test_whose_code_runs():
    parties = []

    class Notes(InsecureMaskedSession):
        def coordinate(self, ctx):
            parties.append(acting())
            return (yield from super().coordinate(ctx))

        def handle(self, state, message, ctx):
            parties.append(acting())
            return super().handle(state, message, ctx)

    SessionHarness(Notes, 2).run()
    assert parties == [SERVER, "a", "b", "a", "b"]
    assert acting() == SERVER


def test_a_transport_of_the_tests_own():
    class Loses:
        def __init__(self, inner):
            self.inner = inner

        def deliver(self, frames):
            return ((site, reply) for site, reply in self.inner.deliver(frames) if site != "b")

    result = SessionHarness(MASKED, 4, transport=Loses).run()
    assert result.survivors == ("a", "c", "d")
    assert result.correct
