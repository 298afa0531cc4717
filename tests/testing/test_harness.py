from dataclasses import replace

import numpy as np
import pytest

from pppml_core.builtin.configs import PlainConfig
from pppml_core.builtin.plain import Plain, PlainSession
from pppml_core.component import ComponentConfig
from pppml_core.errors import TooFewSurvivors, WireError
from pppml_core.interfaces.aggregation import Sum
from pppml_core.testing import SessionHarness
from pppml_core.testing.harness import exact_sum, site_names
from pppml_core.testing.insecure import InsecureMaskedSum, InsecureRing
from pppml_core.wire.messages import SERVER, Exchange

PLAIN, MASKED, RING = Plain(PlainConfig()), InsecureMaskedSum(ComponentConfig()), InsecureRing(ComponentConfig())


def test_the_oracle_does_not_overflow():
    largest = np.full(2, np.iinfo(np.int64).max)
    assert list(exact_sum([largest] * 3, 2)) == [3 * (2**63 - 1)] * 2


def test_the_result_tells_what_happened():
    result = SessionHarness(PLAIN, 3, length=7, bound=5, seed=1).run()
    assert result.correct
    assert result.survivors == ("a", "b", "c")
    assert result.sum.shape == (7,)
    assert (
        list(result.sum) == list(result.expected_sum_over_survivors) == [sum(v[i] for v in result.contributions.values()) for i in range(7)]
    )
    assert max(abs(v).max() for v in result.contributions.values()) <= 5
    assert (result.aborted, result.losses, result.crashes, result.unused) == (None, (), (), ())
    assert len(result.transcript.passages) == 6
    assert result.transcript.stages() == ("contribute",)


def test_contributions_are_seeded_and_can_be_given():
    one, same, other = (SessionHarness(PLAIN, 3, seed=seed).contributions for seed in (1, 1, 2))
    assert all(np.array_equal(one[s], same[s]) for s in one)
    assert not all(np.array_equal(one[s], other[s]) for s in one)
    given = {"x": np.array([1, 2], np.int32), "y": np.array([3, 4], np.int32)}
    assert list(SessionHarness(PLAIN, ("x", "y"), 2, contributions=given).run().sum) == [4, 6]


def test_a_wrong_sum_is_not_correct():
    result = SessionHarness(PLAIN, 3).run()
    assert not replace(result, sum=result.sum + 1).correct
    assert not replace(result, survivors=("a", "b")).correct
    assert not replace(result, survivors=("a", "b", "c", "c")).correct
    assert not replace(result, sum=result.sum[:-1]).correct
    assert not replace(result, sum=None, survivors=()).correct


def test_an_abort_is_a_result_and_a_bug_is_raised():
    everyone = [{"site": s, "do": "drop"} for s in site_names(3)]
    result = SessionHarness(PLAIN, 3, faults=everyone).run()
    assert isinstance(result.aborted, TooFewSurvivors)
    assert (result.sum, result.survivors) == (None, ())

    class Bug(PlainSession):
        def coordinate(self, ctx):
            yield Exchange("contribute", {})
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        SessionHarness(Bug, 3).run()


def test_the_coordinator_is_closed_when_the_courier_fails():
    closed = []

    class Cleans(PlainSession):
        def coordinate(self, ctx):
            try:
                outcome = yield Exchange("contribute", {site: {} for site in ctx.cohort})
                return Sum(np.zeros(self.value.length), outcome.answered)
            finally:
                closed.append(True)

    class Restless(Cleans):
        def handle(self, state, message, ctx):
            raise RuntimeError(ctx.entropy(8).hex())

    with pytest.raises(WireError, match="answered differently"):
        SessionHarness(Restless, 3, faults=[{"site": "a", "do": "duplicate"}]).run()
    assert closed == [True]


def test_a_crash_at_a_site_is_told_from_a_refusal():
    class Crashes(PlainSession):
        def handle(self, state, message, ctx):
            if ctx.site == "a":
                raise ZeroDivisionError
            if ctx.site == "b":
                raise WireError("not like this")
            return super().handle(state, message, ctx)

    result = SessionHarness(Crashes, 3).run()
    assert result.survivors == ("c",)
    assert [(stage, site, type(e)) for stage, site, e in result.crashes] == [("contribute", "a", ZeroDivisionError)]
    assert {site: reason.split(":")[0] for _, site, reason in result.losses} == {"a": "it failed", "b": "it refused"}


def test_sites_refuse_frames_of_another_attempt():
    """A frame of attempt 1 that comes again in attempt 2 gets no answer that fits."""
    first = SessionHarness(PLAIN, 2, attempt=1).run()
    second = SessionHarness(PLAIN, 2, attempt=2, faults=[{"site": "a", "attempt": 1, "do": "drop"}]).run()
    assert first.correct
    assert second.correct
    assert len(second.unused) == 1


def test_a_view_holds_what_passed_through_the_coalition():
    p2p, star = (SessionHarness(RING, 4, topology=t).run() for t in ("p2p", "star"))
    between = [(m.sender, m.recipient) for m in p2p.view(["b"])["messages"]]
    assert between == [("a", "b"), ("b", "c")]
    carried = [(m.sender, m.recipient) for m in star.view([SERVER])["messages"] if m.stage == "ring"]
    assert ("b", "c") in carried
    assert ("b", "c") not in [(m.sender, m.recipient) for m in p2p.view([SERVER])["messages"]]
    assert set(p2p.view(["a", SERVER])["states"]) == {"a"}
    assert p2p.view(["a"])["states"]["a"]["mask"].shape == (100,)


@pytest.mark.parametrize("topology", ["p2p", "star"])
@pytest.mark.parametrize("amnesia", [False, True])
def test_the_ring_bridges_sites_that_cannot_be_reached(topology, amnesia):
    for missing in ("a", "c", "e", "ac", "bc", "de"):
        faults = [{"site": s, "stage": "ring", "do": "drop"} for s in missing]
        result = SessionHarness(RING, 5, topology=topology, amnesia=amnesia, faults=faults).run()
        assert result.correct
        assert "".join(result.survivors) == "".join(s for s in "abcde" if s not in missing)
        assert not result.unused


def test_the_masked_sum_recovers_several_dropouts():
    faults = [{"site": "b", "stage": "advertise", "do": "drop"}, *({"site": s, "stage": "masked", "do": "drop-reply"} for s in "de")]
    result = SessionHarness(MASKED, 6, faults=faults, amnesia=True).run()
    assert result.correct
    assert result.survivors == ("a", "c", "f")


def test_masked_uploads_hide_values_from_who_has_no_seeds():
    """The one thing the insecure masks do: an upload alone is not the contribution."""
    result = SessionHarness(MASKED, 3).run()
    uploads = [p.message for p in result.transcript.sent_by_sites() if p.message.stage == "masked"]
    assert len(uploads) == 3
    for m in uploads:
        assert np.count_nonzero(m.body["values"].view(np.int64) == result.contributions[m.sender]) == 0


@pytest.mark.parametrize("aggregator", [MASKED, RING])
def test_the_insecure_sums_say_so(aggregator):
    guarantees = SessionHarness(aggregator, 4).session().guarantees
    assert any("INSECURE" in assumption for assumption in guarantees.assumes)
    assert guarantees.sees_update == (SERVER,)


def test_all_aggregators_give_the_same_integers():
    sums = [SessionHarness(aggregator, 6, seed=3).run().sum for aggregator in (PLAIN, MASKED, RING)]
    assert np.array_equal(sums[0], sums[1])
    assert np.array_equal(sums[0], sums[2])
