"""``AggregatorSuite``: what every secure sum must do. Right sum or abort, under every single fault, and nothing undeclared on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pytest

from pppml_core.engines.faults import Deed
from pppml_core.errors import RoundLost
from pppml_core.interfaces.aggregation import Aggregator, Guarantees, Session, State
from pppml_core.interfaces.engine import Topology
from pppml_core.testing.harness import HarnessResult, SessionHarness, coalitions, site_names
from pppml_core.testing.hostile_peers import HostilePeers
from pppml_core.testing.sum_suite import both_topologies, released_parts
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER, Body, Message

#: words a guarantee may use besides the names of the cohort.
PARTIES = frozenset({SERVER, "sites", "initiator", "initiators", "neighbours"})


class AggregatorSuite(HostilePeers):
    """Subclass it with ``component`` and, where needed, ``config``, ``choices`` and smaller sizes for a slow protocol.

    ``min_sites`` to ``max_sites``: cohorts summed without faults; ``sites``: the cohort the faults are tried on; ``length`` and ``bound``
    of a contribution; ``kind``: ``integer``, or ``real`` for aggregators that also sum floats; ``largest_bound``: the largest one the
    aggregator takes, at which nothing may overflow; ``too_many_lost``, ``dropouts_exact``, ``schedules``, ``variants``, ``lies``: see
    :class:`~pppml_core.testing.sum_suite.SumSuite`.
    """

    # -- what it is -------------------------------------------------------------------------------------------------------------------

    def test_is_an_aggregator(self) -> None:
        """If this fails: ``target`` must name a subclass of ``Aggregator`` whose ``plan`` gives a ``Session`` for value and cohort."""
        aggregator = self.make()
        assert isinstance(aggregator, Aggregator)
        session = self.harness().session()
        assert isinstance(session, Session)
        assert session.cohort == site_names(self.sites)

    def test_misfits(self) -> None:
        """If this fails: ``misfits`` must be empty for cohorts it can sum, and must not be for others or for reals it cannot sum."""
        aggregator = self.make()
        integers, reals = ValueSpec(self.length, "integer", self.bound), ValueSpec(self.length, "real", None)
        for count in range(self.min_sites, self.max_sites + 1):
            assert aggregator.misfits(integers, site_names(count)) == [], f"{count} sites"
        assert bool(aggregator.misfits(reals, site_names(self.max_sites))) != aggregator.accepts_real
        if self.min_sites > 1:
            assert aggregator.misfits(integers, site_names(self.min_sites - 1)), f"{self.min_sites - 1} sites must be refused in words"

    # -- the sum ----------------------------------------------------------------------------------------------------------------------

    @both_topologies
    def test_sum_is_exact(self, topology: Topology) -> None:
        """If this fails: compare ``coordinate`` and ``handle`` for the smallest failing cohort; the oracle adds Python integers."""
        for count in range(self.min_sites, self.max_sites + 1):
            self.assert_undisturbed(self.run(count, topology=topology, seed=count), f"{count} sites, {topology}")

    def test_extremes_do_not_overflow(self) -> None:
        """If this fails: the dtype or modulus does not hold the largest sum; choose it from ``value.sum_bound(len(cohort))``."""
        if self.kind == "real":
            pytest.skip("reals have no bound")
        for bound in sorted({1, self.bound, self.largest_bound}):
            for name, signs in {"all largest": (1, 1), "all smallest": (-1, -1), "both": (1, -1)}.items():
                names = site_names(self.max_sites)
                given = {site: np.full(self.length, signs[i % 2] * bound, np.int32) for i, site in enumerate(names)}
                self.assert_undisturbed(self.run(names, bound=bound, contributions=given), f"{name}, bound {bound}")

    def test_overflow_is_refused_by_the_plan(self) -> None:
        """If this fails: ``misfits`` must refuse bounds whose sum does not fit a signed 64-bit integer, before any site trains."""
        if self.kind == "real":
            pytest.skip("reals have no bound")
        names = site_names(self.max_sites)
        for bound in (2**63 // self.max_sites + 1, 2**62, 2**63 - 1):
            assert self.make().misfits(ValueSpec(self.length, "integer", bound), names), f"bound {bound:,} for {len(names)} sites"

    def test_order_of_sites_is_irrelevant(self) -> None:
        """If this fails: the sum depends on the order of the cohort or on which reply comes first; fold must be order-free."""
        names = site_names(self.sites)
        first = self.run(names)
        self.assert_undisturbed(first, names)
        for order in (names[::-1], (*names[1:], names[0])):
            given = {site: first.contributions[site].copy() for site in order}
            self.assert_same(first, self.run(order, contributions=given), f"cohort {order}")
        for late in names:
            self.assert_same(first, self.run(names, {"site": late, "do": "delay", "times": 100}), f"{late} always last")

    def assert_same(self, one: HarnessResult, other: HarnessResult, case: object) -> None:
        """Equal sums over equal survivors (reals: both right)."""
        self.assert_undisturbed(other, case)
        assert set(one.survivors) == set(other.survivors)
        if self.kind == "integer":
            assert np.array_equal(np.asarray(one.sum), np.asarray(other.sum)), f"{case}: another sum"

    # -- faults -----------------------------------------------------------------------------------------------------------------------

    @both_topologies
    @pytest.mark.parametrize("do", ["drop", "drop-reply"])
    def test_every_single_dropout(self, do: Deed, topology: Topology) -> None:
        """If this fails: return the sum of exactly the sites whose contribution is in it, or raise RoundAborted; and tolerate a site
        that was never reached if ``guarantees.dropouts`` says so.
        """
        tolerated = self.harness().session().guarantees.dropouts
        for fault in self.single_faults(do):
            result = self.run(None, fault, topology=topology)
            self.assert_sum_or_abort(result, fault)
            if tolerated >= 1 and do == "drop":
                self.assert_sum(result, f"{fault}, with guarantees.dropouts = {tolerated}")

    def test_a_site_that_vanishes_for_good(self) -> None:
        """If this fails: a site lost in one stage must not be counted on in a later one."""
        stages = self.stages()
        for first in range(len(stages)):
            for site in site_names(self.sites):
                gone = [{"site": site, "stage": stage, "do": "drop", "times": 100} for stage in stages[first:]]
                self.assert_sum_or_abort(self.run(None, *gone), f"{site} gone from {stages[first]} on")

    def test_dropout_while_recovering(self) -> None:
        """If this fails: a site lost in a recovery stage must end the round in an abort where its answer was needed."""
        for first, second in self.vanished_twice():
            self.assert_sum_or_abort(self.run(None, first, second), (first, second))

    def test_as_many_dropouts_as_promised_and_one_more(self) -> None:
        """If this fails: up to ``guarantees.dropouts`` sites may vanish in any stage, and one more ends in ``too_many_lost``, never in a
        wrong sum; ``dropouts_exact = False`` if more than promised may survive.
        """
        promised, names = self.guarantees.dropouts, site_names(self.sites)
        fatal = False
        for stage in self.stages():
            for gone in (names[:promised], names[len(names) - promised :]):
                result = self.run(None, *({"site": s, "stage": stage, "do": "drop", "times": 100} for s in gone))
                self.assert_sum(result, f"{gone} vanish in {stage}, {promised} may")
            for gone in (names[: promised + 1], names[len(names) - promised - 1 :]):
                result = self.run(None, *({"site": s, "stage": stage, "do": "drop", "times": 100} for s in gone))
                self.assert_sum_or_abort(result, f"{gone} vanish in {stage}")
                if result.aborted is not None:
                    fatal = True
                    assert isinstance(result.aborted, (self.too_many_lost, RoundLost)), f"{gone} vanish in {stage}: {result.aborted!r}"
        assert fatal or not self.dropouts_exact, f"{promised + 1} sites may vanish in any stage, and the promise says {promised}"

    def test_random_schedules(self) -> None:
        """If this fails: the message names the schedule; run it by hand with ``SessionHarness(..., faults=[...])``."""
        stages, names, promised = self.stages(), site_names(self.sites), self.guarantees.dropouts
        draw = np.random.Generator(np.random.PCG64(1))
        deeds = ("drop", "drop-reply", "delay", "duplicate", "tamper", "truncate", "replay")
        for number in range(self.schedules):
            count = int(draw.integers(1, 4))
            faults = [
                {"site": str(draw.choice(names)), "stage": str(draw.choice(stages)), "do": str(draw.choice(deeds))} for _ in range(count)
            ]
            topology: Topology = "star" if number % 2 else "p2p"
            result = self.run(None, *faults, topology=topology, seed=number, attempts=int(draw.integers(1, 3)))
            self.assert_sum_or_abort(result, (faults, topology))
            harmless = all(f["do"] in ("drop", "delay", "duplicate") for f in faults)
            if harmless and len({f["site"] for f in faults if f["do"] == "drop"}) <= promised:
                self.assert_sum(result, (faults, topology))

    def test_restarts_end_in_a_sum(self) -> None:
        """If this fails: whatever ends an attempt before anything was released raises RoundAborted, so that fresh attempts follow and
        succeed; after a release it is RoundLost, and no further attempt may follow.
        """
        for fault in self.single_faults("drop", "drop-reply"):
            result = self.run(None, {**fault, "attempt": 1}, attempts=2)
            self.assert_sum_or_abort(result, fault)
            assert result.correct or isinstance(result.aborted, RoundLost), f"{fault}: {result.aborted!r}"

    def test_all_but_one_vanish(self) -> None:
        """If this fails: too few survivors must raise TooFewSurvivors; a sum over one site is that site's update."""
        names = site_names(self.sites)
        for stage in self.stages():
            gone = [{"site": site, "stage": stage, "do": "drop"} for site in names[1:]]
            self.assert_sum_or_abort(self.run(None, *gone), f"only {names[0]} is left in {stage}")

    @both_topologies
    @pytest.mark.parametrize("do", ["delay", "duplicate"])
    def test_harmless_faults_change_nothing(self, do: Deed, topology: Topology) -> None:
        """If this fails: a late reply or a repeated request must not matter; draw randomness in ``open`` or keep it in the state."""
        for fault in self.single_faults(do):
            self.assert_undisturbed(self.run(None, fault, topology=topology), fault)

    @both_topologies
    @pytest.mark.parametrize("do", ["tamper", "truncate", "replay"])
    def test_damaged_replies_never_give_a_wrong_sum(self, do: Deed, topology: Topology) -> None:
        """If this fails: a reply that cannot be used is a lost site; treat ``outcome.lost`` like a dropout."""
        for fault in self.single_faults(do):
            self.assert_sum_or_abort(self.run(None, fault, topology=topology), fault)

    def test_a_lying_site_crashes_nobody(self) -> None:
        """If this fails: raise RoundAborted (server) or a PppmlError (site) for a well-formed reply with a wrong number in it. No
        integrity is claimed, so the sum may be wrong here.
        """
        for fault in self.single_faults("tamper-body"):
            result = self.run(None, fault)
            assert not result.crashes, f"{fault}: crashed instead of refusing: {result.crashes}"

    @both_topologies
    def test_amnesia(self, topology: Topology) -> None:
        """If this fails: something a site needs later is kept in an attribute; return it in the state, as data the codec can encode."""
        self.assert_undisturbed(self.run(amnesia=True, topology=topology), f"amnesia, {topology}")
        for fault in self.single_faults("drop", "duplicate"):
            result = self.run(None, fault, amnesia=True, topology=topology)
            self.assert_sum_or_abort(result, f"amnesia, {fault}")
            if fault["do"] == "duplicate" or self.harness().session().guarantees.dropouts >= 1:
                self.assert_sum(result, f"amnesia, {fault}")

    # -- what is said -----------------------------------------------------------------------------------------------------------------

    def test_guarantees_are_sensible(self) -> None:
        """If this fails: name only the server, sites of the cohort or the words in ``PARTIES``; bounds lie between 0 and n - 1."""
        for count in range(self.min_sites, self.max_sites + 1):
            session = self.harness(count).session()
            g: Guarantees = session.guarantees
            names = {*g.sees_sum, *g.sees_update, *g.sees_weight}
            assert names <= PARTIES | set(session.cohort), f"unknown parties: {sorted(names - PARTIES - set(session.cohort))}"
            assert g.sees_sum, "somebody sees the sum"
            assert 0 <= g.coalition_active <= g.coalition_curious <= count - 1, f"{count} sites: {g}"
            assert 0 <= g.dropouts <= count - 1, f"{count} sites: {g}"
            assert g.coalition_curious == 0 or not g.sees_update, "who sees an update is a coalition of its own"
            assert g.arithmetic in ("exact", "approximate")
            assert g.arithmetic == "exact" or self.kind == "real", "integers are summed exactly"
            assert g.adversary.strip(), "say which adversary is meant"
            json.dumps(g.to_dict())

    def test_declared_is_what_is_sent(self) -> None:
        """If this fails: ``fields`` lists something that no stage sends, or says nothing about it; the opposite is a lost site."""
        fields = self.harness().session().fields
        assert len({(f.stage, f.name) for f in fields}) == len(fields), "a field is declared twice"
        assert all(f.mechanism.strip() and f.says.strip() for f in fields), "say what each field is and how it is protected"
        clean = self.run()
        self.assert_undisturbed(clean, "no fault")
        results = [clean, *(self.run(None, fault) for fault in self.single_faults("drop"))]
        sent = [p.message for r in results for p in r.transcript.sent_by_sites()]
        for field in fields:
            found = any(m.stage == field.stage and _holds(m.body, field.name) for m in sent)
            assert found, f"{field.stage}.{field.name} is declared but never sent"

    def test_predicted_bytes(self) -> None:
        """If this fails: override ``predicted_bytes`` or tighten ``max_bytes``; the prediction is within 10 % for long vectors."""
        harness = self.harness(length=20_000)
        predicted = harness.session().predicted_bytes()
        result = harness.run()
        self.assert_undisturbed(result, "20,000 coordinates")
        sent: dict[str, int] = {}
        for p in result.transcript.sent_by_sites():
            sent[p.message.stage] = sent.get(p.message.stage, 0) + p.size
        assert sum(sent.values()) > 0, "no site sent anything"
        for stage, total in sent.items():
            # Sites that send nothing in a stage do not count: the prediction is for one that does.
            senders = {p.message.sender for p in result.transcript.sent_by_sites() if p.message.stage == stage}
            each = total / len(senders)
            assert stage in predicted, f"no prediction for stage {stage}"
            slack = 0.1 * each + 512  # small messages are mostly frame
            assert abs(predicted[stage] - each) <= slack, f"stage {stage}: predicted {predicted[stage]:,} bytes, sent {each:,.0f}"

    def test_an_undeclared_field_is_refused(self) -> None:
        """If this fails: a declared field is so wide (``*``) that an array nobody declared passes; name what is sent."""
        inner = self.harness()

        def leaky(value: ValueSpec, cohort: Sequence[str]) -> Session:
            return _Leaky(inner.session())

        result = SessionHarness(leaky, self.sites, self.length, self.bound, kind=self.kind).run()
        assert result.losses, "a site sent a field that nobody declared"
        assert not any("undeclared" in p.message.body for p in result.transcript.sent_by_sites())

    # -- what is exposed --------------------------------------------------------------------------------------------------------------

    def test_a_coalition_learns_only_the_sum(self) -> None:
        """If this fails: ``coalition_curious`` is too large, or ``exposed`` claims too much. A coalition is the server and that many
        sites; what it may decode is the sum over all honest survivors.
        """
        guarantees = self.harness().session().guarantees
        if guarantees.sees_update:
            pytest.skip(f"no promise: {', '.join(guarantees.sees_update)} sees updates")
        faults = [(), *((fault,) for fault in self.single_faults("drop"))]
        for topology in get_args(Topology):
            for fault in faults:
                result = self.run(None, *fault, topology=topology)
                for coalition in coalitions(site_names(self.sites), guarantees.coalition_curious):
                    parts = self.honest_parts(result, (SERVER, *coalition))
                    honest = frozenset(result.survivors) - set(coalition)
                    allowed = {honest} if result.aborted is None else released_parts(result, coalition)
                    assert parts <= allowed, f"server and {coalition}, {fault}, {topology}: decode {parts}"

    def test_a_larger_coalition_learns_more(self) -> None:
        """If this fails: ``coalition_curious`` is smaller than it need be, or ``exposed`` does not model the worst case."""
        guarantees = self.harness().session().guarantees
        names = site_names(self.sites)
        if guarantees.sees_update:
            size, always = 0, tuple(p for p in guarantees.sees_update if p == SERVER or p in names)
        else:
            size, always = guarantees.coalition_curious + 1, (SERVER,)
            if size > self.sites - 2:
                pytest.skip(f"the promise covers every coalition that leaves two of {self.sites} sites honest")
        for topology in get_args(Topology):
            result = self.run(topology=topology)
            for coalition in coalitions(names, size):
                honest = frozenset(names) - set(coalition)
                if self.honest_parts(result, (*always, *coalition)) - {honest}:
                    return
        pytest.fail(f"no coalition of {always} and {size} sites decodes more than the sum")


class _Leaky(Session):
    """A session whose sites add a field that nobody declared."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner.value, inner.cohort)
        self._inner = inner

    @property
    def guarantees(self) -> Guarantees:
        return self._inner.guarantees

    @property
    def fields(self) -> Any:
        return self._inner.fields

    def coordinate(self, ctx: Any) -> Any:
        return self._inner.coordinate(ctx)

    def open(self, ctx: Any) -> State:
        return self._inner.open(ctx)

    def handle(self, state: State, message: Message, ctx: Any) -> tuple[State, Body]:
        state, body = self._inner.handle(state, message, ctx)
        return state, {**body, "undeclared": np.arange(3.0)}


def _holds(body: Mapping[str, Any], name: str) -> bool:
    """Whether a body has something at a dotted path in which ``*`` is any key."""
    head, _, rest = name.partition(".")
    values = list(body.values()) if head == "*" else [body[head]] if head in body else []
    return bool(values) if not rest else any(isinstance(v, Mapping) and _holds(v, rest) for v in values)
