"""One site, message by message: what it refuses, when it trains, and that bytes alone recreate it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pppml_core.builtin.configs import FedAvgConfig
from pppml_core.builtin.fedavg import FedAvg
from pppml_core.builtin.plain import Plain, PlainSession
from pppml_core.config import resolve
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.evaluation import announced_share
from pppml_core.federation.identity import load_roster, roster_hash
from pppml_core.federation.policy import Policy
from pppml_core.federation.site import Site
from pppml_core.federation.site_host import SiteHost
from pppml_core.federation.store import SiteStore
from pppml_core.federation.terms import round_terms
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacyStatement
from pppml_core.learning.arrays import to_numpy
from pppml_core.wire.codec import decode, decode_message, encode_message, sha256_of
from pppml_core.wire.messages import SERVER, Message

NAME = "site_2"
START = b"start of a run.."


class Counted(FedAvg):
    """FedAvg that counts its trainings."""

    trained = 0

    def local_update(self, model, data, gradients, state):
        type(self).trained += 1
        return super().local_update(model, data, gradients, state)


class Bench:
    """A site, and a server's half written by hand."""

    def __init__(self, host: SiteHost, policy: Policy | None = None) -> None:
        Counted.trained = 0
        self.host, self.parts = host, host.assembly
        self.site = host.site(NAME, policy)
        self.weights = to_numpy(self.parts.initial_weights)
        self.run = host.job.run

    def terms(self, round=1, **changes):
        cohort = changes.pop("cohort", ["site_1", "site_2", "site_3"])
        ranges = [1.0] * len(self.parts.shared)
        pipeline = self.parts.pipeline(1, tuple(ranges), 26, self.host.privacy)
        guarantees = self.parts.aggregator.plan(pipeline.spec, cohort).guarantees
        told = {"round": round, "cohort": cohort, "ranges": ranges, "max_weight": 26, "guarantees": guarantees, "keep": []}
        pinned = {**load_roster(self.host.job.home(NAME)), **dict.fromkeys(set(cohort) - set(self.host.job.sites), bytes(32))}
        told["roster"] = roster_hash(pinned, (*cohort, SERVER))
        told["metrics"] = announced_share(self.parts, self.host.job.sites)
        return {**round_terms(**told, privacy=self.host.privacy.statement), **changes}

    def message(self, kind, body, round=1, attempt=1, stage=None, recipient=NAME, run=None):
        return encode_message(Message(run or self.run, round, attempt, kind, stage or kind, SERVER, recipient, body))

    def ask(self, kind, body, **where):
        return decode_message(self.site.receive(self.message(kind, body, **where)))

    def open(self, round=1, attempt=1, terms=None, weights=True, sha256=None, **changes):
        body = {"terms": terms or self.terms(round, **changes), "sha256": sha256 or sha256_of(self.weights)}
        return self.ask("open", {**body, **({"weights": self.weights} if weights else {})}, round=round, attempt=attempt)

    def contribute(self, round=1, attempt=1):
        return self.ask("session", {}, stage="contribute", round=round, attempt=attempt)


@pytest.fixture
def host(registry, job):
    def make(live=None, **sections):
        live = {"personalization": Counted(FedAvgConfig()), **(live or {})}
        config = resolve({"task": "tiny", **{section: {"use": "object"} for section in live}, **sections}, registry=registry)
        parts = Assembly.build(config, registry, live)
        return SiteHost(job(parts))

    return make


@pytest.fixture
def bench(host):
    return Bench(host())


class FakePlan(PrivacyPlan):
    placement = "local"

    @property
    def statement(self):
        return PrivacyStatement("fake", epsilon=4.0, delta=1e-5, placement="local")


class Fake(PrivacyMechanism):
    def plan(self, setting):
        return FakePlan()


class InfinitePlan(FakePlan):
    @property
    def statement(self):
        return PrivacyStatement("clip-only", epsilon=math.inf, placement="local")


class Infinite(PrivacyMechanism):
    """Clips alone, and says so."""

    def plan(self, setting):
        return InfinitePlan()


class Shares(PrivacyMechanism):
    """Shares of noise that are enough in sums over ``fewest`` sites or more."""

    def __init__(self, fewest):
        self.fewest = fewest

    def plan(self, setting):
        plan = FakePlan()
        plan.placement, plan.min_survivors = "distributed", self.fewest
        return plan


class Tolerant(Plain):
    """A sum in the clear that goes on without ``dropouts`` of its sites, and no more."""

    def __init__(self, dropouts):
        self.dropouts = dropouts

    def plan(self, value, cohort):
        class Session(PlainSession):
            guarantees = dataclasses.replace(PlainSession(value, cohort).guarantees, dropouts=self.dropouts)

        return Session(value, cohort)


def refused(reply, text):
    assert reply.kind == "refused", reply
    assert text in reply.body["reason"]
    assert Counted.trained == 0
    return True


def failed(reply, text):
    assert reply.kind == "failed", reply
    assert text in reply.body["reason"]
    return True


def test_a_round_as_it_should_be(bench):
    assert bench.ask("hello", {"start": START}, round=0).body == {"rounds": [], "attempts": {}}
    assert bench.open().body == {"needs_weights": False}
    assert Counted.trained == 0, "training waits for the stage that needs it"
    first = bench.contribute()
    assert (first.kind, Counted.trained) == ("reply", 1)
    assert first.body["values"].dtype == np.int16
    assert bench.contribute().body["values"].tobytes() == first.body["values"].tobytes()
    assert Counted.trained == 1
    assert bench.ask("hello", {"start": bytes(16)}, round=0).body == {"rounds": [0, 1], "attempts": {"1": 1}}


# -- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [{"run": b"x" * 16}, {"recipient": "site_1"}, {"round": 2}, {"attempt": 2}],
    ids=lambda w: next(iter(w)),
)
def test_a_stage_for_another_run_recipient_round_or_attempt(bench, where):
    bench.open()
    reply = bench.ask("session", {}, stage="contribute", **where)
    assert reply.kind == "failed"
    assert reply.body.keys() == {"reason"}
    assert Counted.trained == 0


def test_a_stage_before_any_attempt_is_open(bench):
    failed(bench.contribute(), "not open")
    assert Counted.trained == 0


def test_another_request_for_an_answered_stage(bench):
    bench.open()
    bench.contribute()
    reply = bench.ask("session", {"more": 1}, stage="contribute")
    assert reply.kind == "refused"
    assert "already answered" in reply.body["reason"]


def test_an_open_that_comes_again_resets_nothing(bench):
    bench.open()
    values = bench.contribute().body["values"]
    assert bench.open().body == {"needs_weights": False}
    assert bench.contribute().body["values"].tobytes() == values.tobytes()
    assert Counted.trained == 1


@pytest.mark.parametrize("changes", [{"max_weight": 30}, {"cohort": ["site_1", "site_2"]}, {"keep": [1]}], ids=str)
def test_an_open_attempt_cannot_be_opened_with_other_terms(bench, changes):
    bench.open()
    refused(bench.open(**changes), "other terms")


def test_an_open_attempt_cannot_be_opened_with_another_model(bench):
    bench.open()
    bench.weights = {n: a + 1 for n, a in bench.weights.items()}
    refused(bench.open(), "another model")


def test_an_attempt_that_was_answered_is_never_opened_again(bench):
    bench.open(round=2, attempt=3)
    for round, attempt in ((2, 1), (2, 3)):
        again = Bench(bench.host)  # the site has forgotten everything but its folder
        refused(again.open(round=round, attempt=attempt), "may already have been answered")
    assert Bench(bench.host).open(round=2, attempt=4).kind == "reply"
    assert Bench(bench.host).open(round=1, attempt=1).kind == "reply", "a resumed run may go back"
    assert Bench(bench.host).open(round=1, attempt=1).kind == "refused", "but to an attempt of its own"


@pytest.mark.parametrize(
    ("policy", "changes", "text"),
    [
        (Policy(min_cohort=4), {}, "min_cohort"),
        (Policy(min_cohort=3), {"cohort": ["site_1", "site_2"]}, "min_cohort"),
        (Policy(plain_updates=False), {}, "plain_updates: server"),
        (Policy(max_epsilon=8.0), {}, "max_epsilon: none announced"),
    ],
    ids=["min-cohort", "announced-min-cohort", "plain-updates", "no-epsilon"],
)
def test_policy_refuses_before_training(host, policy, changes, text):
    bench = Bench(host(), policy)
    refused(bench.open(**changes), text)
    failed(bench.contribute(), "not open")
    assert Counted.trained == 0


def test_policy_on_epsilon(host):
    private = host({"privacy": Fake})
    refused(Bench(private, Policy(max_epsilon=3.9)).open(), "max_epsilon: 4 announced, at most 3.9 allowed")
    assert Bench(private, Policy(max_epsilon=4.0)).open().kind == "reply"


def test_policy_on_an_infinite_epsilon(host):
    unbounded = host({"privacy": Infinite})
    refused(Bench(unbounded, Policy(max_epsilon=1e9)).open(), "max_epsilon: inf announced, at most 1e+09 allowed")
    bench = Bench(unbounded)
    assert bench.terms()["privacy"]["epsilon"] == "inf", "there is no number for it on the wire"
    assert bench.open().kind == "reply", "a site without that rule takes part, and says that nothing is claimed"
    assert bench.contribute().kind == "reply"


def test_an_infinite_epsilon_is_not_taken_for_a_finite_one(host):
    """Nor the reverse: what is announced is compared with what the site's own configuration claims."""
    finite = PrivacyStatement("fake", epsilon=4.0, placement="local")
    infinite = PrivacyStatement("clip-only", epsilon=math.inf, placement="local")
    refused(Bench(host({"privacy": Infinite})).open(privacy=finite.to_dict()), "not those of this site's configuration")
    refused(Bench(host({"privacy": Fake})).open(privacy=infinite.to_dict()), "not those of this site's configuration")


@pytest.mark.parametrize(
    ("cohort", "dropouts", "fewest"),
    [(3, 0, 3), (3, 1, 2), (3, 2, 1), (2, 0, 2), (2, 1, 1), (3, 3, 1), (3, 9, 1)],
    ids=str,
)
def test_a_sum_that_could_be_over_too_few_shares_of_noise_is_not_taken_part_in(host, cohort, dropouts, fewest):
    """A site's noise is a share, enough together with those of ``min_survivors - 1`` others: fewer must not be opened."""
    told = {"cohort": [f"site_{i + 1}" for i in range(cohort)]}
    for needed in (fewest, fewest + 1):
        bench = Bench(host({"privacy": Shares(needed), "aggregator": Tolerant(dropouts)}))
        reply = bench.open(**told)
        if needed == fewest:
            assert reply.kind == "reply"
            assert bench.contribute().kind == "reply"
            continue
        refused(reply, f"a sum over {fewest} of the announced sites could be opened, and this site's noise is a share for {needed}")
        failed(bench.contribute(), "not open")
        assert Counted.trained == 0


def test_what_a_sum_tolerates_is_what_this_sites_own_aggregator_tolerates(host):
    """A server that announces fewer dropouts than the site's own configuration allows does not get its shares."""
    bench = Bench(host({"privacy": Shares(3), "aggregator": Tolerant(2)}))
    promised = bench.terms()["guarantees"]
    refused(bench.open(guarantees={**promised, "dropouts": 0}), "a sum over 1 of the announced sites could be opened")


@pytest.mark.parametrize(
    "lie",
    [
        {"guarantees": {"sees_update": []}},
        {"privacy": PrivacyStatement("none", epsilon=1.0).to_dict()},
        {"metrics": "none"},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_announcements_that_are_not_what_the_site_itself_would_do(host, lie):
    bench = Bench(host(), Policy(plain_updates="guarantees" not in lie, max_epsilon=2.0 if "privacy" in lie else None))
    refused(bench.open(**lie), "not those of this site's configuration")


@pytest.mark.parametrize(
    "changes",
    [{"cohort": ["site_1", "site_3"]}, {"cohort": ["site_2", "site_9"]}],
    ids=["without-this-site", "unknown-site"],
)
def test_terms_for_others(bench, changes):
    refused(bench.open(**changes), "not for this site")


def test_terms_of_another_round(bench):
    refused(bench.open(round=2, terms=bench.terms(3)), "not for this site and round")


def without(terms, name):
    return {k: v for k, v in terms.items() if k != name}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: without(t, "cohort"),
        lambda t: {**t, "more": 1},
        lambda t: {**t, "cohort": "site_2"},
        lambda t: {**t, "cohort": [2]},
        lambda t: {**t, "cohort": ["site_2", "site_2"]},
        lambda t: {**t, "ranges": ["x"]},
        lambda t: {**t, "ranges": t["ranges"][:-1]},
        lambda t: {**t, "ranges": [float("nan")] * len(t["ranges"])},
        lambda t: {**t, "round": True},
        lambda t: {**t, "max_weight": 2.5},
        lambda t: {**t, "privacy": {"epsilon": "small"}},
        lambda t: {**t, "privacy": {"epsilon": "infinity"}},
        lambda t: {**t, "privacy": {"epsilon": "INF"}},
        lambda t: {**t, "privacy": {"epsilon": "-inf"}},
        lambda t: {**t, "privacy": {"epsilon": "nan"}},
        lambda t: {**t, "privacy": {"epsilon": "6"}},
        lambda t: {**t, "privacy": {"epsilon": ["inf"]}},
        lambda t: {**t, "guarantees": {}},
        lambda t: {**t, "keep": [None]},
    ],
)
def test_malformed_terms_get_an_answer_and_not_a_crash(bench, spoil):
    assert bench.open(terms=spoil(bench.terms())).kind == "failed"
    assert bench.open().kind == "reply", "the site goes on"


def test_a_weight_beyond_the_announced_bound_is_not_sent(bench):
    bench.open(max_weight=3)
    failed(bench.contribute(), "weight 25 is not in 1..3")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("open", {}),
        ("open", {"terms": {}, "sha256": b"x"}),
        ("open", {"terms": 3, "sha256": b"x"}),
        ("evaluate", {}),
        ("evaluate", {"state": 1, "splits": ["train"], "final": False, "sha256": bytes(32), "extra": 1}),
        ("evaluate", {"state": 1, "splits": ["holdout"], "final": False, "sha256": bytes(32)}),
        ("evaluate", {"state": "one", "splits": ["test"], "final": False, "sha256": bytes(32)}),
        ("evaluate", {"state": 1, "splits": ["test"], "final": False, "sha256": bytes(32), "weights": {"a": 1}}),
        ("evaluate", {"state": 1, "splits": ["test"], "final": False, "sha256": bytes(32), "weights": 7}),
        ("hello", {}),
        ("hello", {"start": bytes(16), "why": 1}),
        ("hello", {"start": bytes(15)}),
        ("hello", {"start": "0" * 16}),
        ("dance", {}),
        ("reply", {}),
        ("metrics", {}),
        ("train", {}),
    ],
)
def test_malformed_requests_get_an_answer_and_not_a_crash(bench, kind, body):
    assert bench.ask(kind, body).kind == "failed"
    assert bench.open().kind == "reply"


@pytest.mark.parametrize("frame", [b"", b"hello", b"pppml" + bytes(100)])
def test_bytes_that_are_no_message(bench, frame):
    reply = decode_message(bench.site.receive(frame))
    assert reply.kind == "failed"
    good = bench.message("hello", {"start": START})
    for cut in (good[:-1], good[: len(good) // 2], good[:40] + bytes([good[40] ^ 1]) + good[41:]):
        assert decode_message(bench.site.receive(cut)).kind == "failed"
    assert bench.open().kind == "reply"


def test_a_request_for_scores_without_an_open_attempt_is_no_metrics_session(host):
    """``run.metrics: sum``: without an evaluation in this attempt there is nothing to add."""
    bench = Bench(host(run={"metrics": "sum"}))
    bench.open()
    failed(bench.ask("metrics", {}, stage="contribute"), "nothing was evaluated")
    bench.ask("evaluate", {"state": 1, "splits": ["validation"], "final": False, "sha256": sha256_of(bench.weights)})
    assert bench.ask("metrics", {}, stage="contribute").kind == "reply"
    bench.open(attempt=2)
    failed(bench.ask("metrics", {}, stage="contribute", attempt=2), "nothing was evaluated")


# -- the model ----------------------------------------------------------------------------------------------------------------


def test_the_model_must_have_the_announced_hash(bench):
    reply = bench.open(sha256=bytes(32))
    failed(reply, "announced hash")
    failed(bench.contribute(), "not open")


@pytest.mark.parametrize("spoil", ["missing", "more", "shape", "dtype"])
def test_the_model_must_have_this_configurations_tensors(bench, spoil):
    name, array = next(iter(bench.weights.items()))
    changed = {
        "missing": {n: a for n, a in bench.weights.items() if n != name},
        "more": {**bench.weights, "more": array},
        "shape": {**bench.weights, name: array[:-1]},
        "dtype": {**bench.weights, name: array.astype(np.float64)},
    }
    bench.weights = changed[spoil]
    failed(bench.open(), "other tensors")


def test_a_site_asks_for_a_model_it_does_not_hold(bench):
    assert bench.open(weights=False).body == {"needs_weights": True}
    failed(bench.contribute(), "not open")
    assert bench.open().body == {"needs_weights": False}
    ask = {"state": 1, "splits": ["test"], "final": False, "sha256": sha256_of(bench.weights)}
    assert bench.ask("evaluate", ask).body["needs_weights"] is False
    assert bench.ask("evaluate", {**ask, "sha256": bytes(32)}).body == {"needs_weights": True}
    assert bench.open(attempt=2, weights=False).body == {"needs_weights": False}


def test_a_model_that_is_gone_is_a_failure_and_not_a_crash(bench):
    bench.open()
    bench.host.models.clear()
    failed(bench.contribute(), "no longer held")


# -- nothing but bytes --------------------------------------------------------------------------------------------------------


def test_freeze_and_thaw(bench):
    bench.open()
    reply = bench.contribute()
    frozen = bench.site.freeze()
    bench.host.models.clear()
    bench.site = Site.thaw(NAME, bench.host, frozen)
    assert bench.site.freeze() == frozen
    assert bench.contribute().body["values"].tobytes() == reply.body["values"].tobytes()
    assert Counted.trained == 1
    assert decode(frozen)["open"]["terms"]["cohort"] == ["site_1", "site_2", "site_3"]


def test_a_thawed_site_trains_to_the_same_bytes(host):
    first, second = Bench(host()), None
    first.open()
    values = first.contribute().body["values"].tobytes()
    second = Bench(first.host)
    second.run = first.run
    for path in (first.host.job.folder / NAME).iterdir():
        path.unlink() if path.is_file() and path.name not in ("identity.key", "roster.json") else None
    second.open()
    frozen = second.site.freeze()
    second.host.models.clear()
    second.site = Site.thaw(NAME, second.host, frozen)
    assert second.contribute().body["values"].tobytes() == values


def test_large_replies_wait_on_disk_and_are_sent_again_as_they_were(host):
    bench = Bench(host(model={"use": "tiny-net", "width": 64}))
    bench.open()
    frame = bench.message("session", {}, stage="contribute")
    reply = bench.site.receive(frame)
    assert len(reply) > 65_536
    assert len(bench.site.freeze()) < len(reply) + 400_000, "the frozen site holds the model, not the reply as well"
    assert bench.site.receive(frame) == reply


def test_a_reason_is_short(bench):
    reply = bench.ask("session", {}, stage="s" * 64, round=7)
    assert len(reply.body["reason"].encode()) <= 512


# -- the folder ---------------------------------------------------------------------------------------------------------------


def states(store):
    return store.rounds()


def test_states_reach_back_two_rounds_and_to_rounds_that_are_kept(tmp_path):
    store = SiteStore(tmp_path)
    for round in range(8):
        store.save_state(round, {"r": round}, keep=[2] if round > 2 else [])
    assert store.rounds() == [2, 5, 6, 7]
    assert store.state(4) == {"r": 2}
    assert store.state(6) == {"r": 6}
    store.go_back_to(5)
    assert store.rounds() == [2, 5]


def test_a_site_that_is_drawn_seldom_keeps_what_it_held_two_rounds_ago(tmp_path):
    store = SiteStore(tmp_path)
    for round in (0, 2, 9, 10):
        store.save_state(round, {"r": round}, keep=[])
    assert store.rounds() == [2, 9, 10], "after round 8 it held the state of round 2"
    assert store.state(8) == {"r": 2}
    assert store.state(1) is None


def test_attempts_are_remembered_by_round(tmp_path):
    store = SiteStore(tmp_path)
    for round, attempt in ((1, 1), (2, 1), (3, 2), (4, 1), (5, 1)):
        assert not store.answered(round, attempt)
        store.save_attempt(round, attempt)
        assert store.answered(round, attempt)
    assert store.attempts() == {2: 1, 3: 2, 4: 1, 5: 1}
    assert store.answered(1, 9), "too far back to know"
    assert not store.answered(4, 2)
    assert SiteStore(tmp_path).attempts() == store.attempts()


def test_a_damaged_file_is_named(tmp_path, bench):
    bench.open()
    bench.contribute()
    path = bench.host.job.folder / NAME / "state-000001"
    path.write_bytes(path.read_bytes()[:-1])
    reply = bench.ask("evaluate", {"state": 1, "splits": ["test"], "final": False, "sha256": sha256_of(bench.weights)})
    failed(reply, "state-000001")


def test_terms_round_trip_through_the_codec(bench):
    from pppml_core.wire.codec import encode

    terms = bench.terms()
    assert decode(encode(terms)) == terms
    assert dataclasses.asdict(bench.host.privacy.statement) == terms["privacy"]
