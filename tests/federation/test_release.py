"""What a site gives out to open a sum, it gives out once: on its disk, across restarts, attempts and a server that is killed."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.config import resolve
from pppml_core.errors import CheckpointError, PolicyRefusal, RoundLost, RunFailed, TooFewSurvivors
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.checkpoint import drop_sums, load_sum, save_sum
from pppml_core.federation.evaluation import announced_share
from pppml_core.federation.policy import Policy
from pppml_core.federation.site import Site
from pppml_core.federation.site_host import SiteHost
from pppml_core.federation.store import SiteStore, sites_digest
from pppml_core.federation.terms import RELEASED, binding_of_sum
from pppml_core.federation.trainer import Trainer
from pppml_core.interfaces.aggregation import Aggregator, Guarantees, Session, Sum
from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacyStatement
from pppml_core.interfaces.reporter import Reporter
from pppml_core.wire.codec import decode, decode_message, encode_message, sha256_of
from pppml_core.wire.manifest import WireField
from pppml_core.wire.messages import SERVER, Exchange, Message

SITES = ("site_1", "site_2", "site_3")


class Opening(Session):
    """The shape of every sum that is opened at its end: values, then what opens them. (These values are in the clear.)"""

    @property
    def guarantees(self):
        return Guarantees((SERVER,), (SERVER,), (SERVER,), 0, 0, 0, "none")

    @property
    def fields(self):
        size = 8 * self.value.length
        return (
            WireField("give", "values", "int32", (self.value.length,), size, "in the clear", "the update"),
            WireField("unlock", "key", "bytes", (), 32, "in the clear", "what opens the sum"),
        )

    def coordinate(self, ctx):
        total = np.zeros(self.value.length, np.int64)

        def fold(site, body):
            total[:] += body["values"]

        given = yield Exchange("give", {s: {} for s in ctx.cohort}, fold)
        if len(given.answered) < 2:
            raise TooFewSurvivors("too few gave", place=f"round {ctx.round}")
        alive = list(given.answered)
        opened = yield Exchange("unlock", {s: {} for s in alive}, common={"sites": alive})
        if opened.lost:
            raise RoundLost(f"{', '.join(opened.lost)} kept the key", place=f"round {ctx.round}")
        return Sum(total, given.answered)

    def handle(self, state, message, ctx):
        if message.stage == "give":
            return state, {"values": ctx.contribution()}
        ctx.release(message.body["sites"])
        return state, {"key": ctx.sign(b"opened")[:32]}


class OpeningSum(Aggregator):
    def __init__(self, config=None, **choices):
        super().__init__(config or ComponentConfig())

    def plan(self, value, cohort):
        return Opening(value, cohort)


# -- the record ---------------------------------------------------------------------------------------------------------------------------


def test_releases_are_remembered_by_round_and_kind_and_never_taken_back(tmp_path):
    store = SiteStore(tmp_path)
    assert store.released(1, "session") is None
    store.save_release(1, 2, "session", ("b", "a"))
    store.save_release(1, 3, "metrics test", ("a",))
    again = SiteStore(tmp_path)
    assert again.released(1, "session") == (2, sites_digest(("a", "b")))
    assert again.released(1, "metrics test") == (3, sites_digest(("a",)))
    assert again.released(1, "metrics validation") is None
    assert again.released(2, "session") is None
    again.go_back_to(0)
    assert again.released(1, "session") == (2, sites_digest(("a", "b")))


def test_a_release_is_synced_before_it_counts(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size) or fsync(descriptor))
    SiteStore(tmp_path).save_release(1, 1, "session", SITES)
    assert synced[0] == 64, "the record, and then the name of its file"
    assert len(synced) == 2


def test_sets_are_told_apart_whatever_their_order():
    assert sites_digest(("a", "b")) == sites_digest(("b", "a"))
    assert len({sites_digest(s) for s in (("a", "b"), ("a",), ("a", "b", "c"), ("ab",))}) == 4


@pytest.mark.parametrize("position", range(0, 64, 5))
def test_a_damaged_record_stops_the_site(tmp_path, position):
    store = SiteStore(tmp_path)
    store.save_release(3, 1, "session", SITES)
    path = tmp_path / "released"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    for ask in (lambda: store.released(3, "session"), store.check):
        with pytest.raises(CheckpointError, match="released is damaged") as caught:
            ask()
        assert str(path) in str(caught.value)


def test_a_torn_record_was_never_followed_by_anything(tmp_path):
    store = SiteStore(tmp_path)
    store.save_release(1, 1, "session", SITES)
    with open(tmp_path / "released", "ab") as file:
        file.write(b"\xff" * 50)
    assert store.released(1, "session") is not None
    store.save_release(2, 1, "session", SITES)
    assert store.released(2, "session") == (1, sites_digest(SITES))
    assert (tmp_path / "released").stat().st_size == 128


# -- the site -----------------------------------------------------------------------------------------------------------------------------


class Desk:
    """One site of a job, and messages to it."""

    def __init__(self, job, parts, policy=None):
        self.host, self.policy = SiteHost(job), policy
        self.weights = {n: t.numpy() for n, t in parts.initial_weights.items()}
        self.site = self.host.site("site_2", policy)

    def ask(self, kind, body, stage=None, round=1, attempt=1):
        frame = encode_message(Message(b"r" * 16, round, attempt, kind, stage or kind, SERVER, "site_2", body))
        return decode_message(self.site.receive(frame))

    def open(self, attempt=1, round=1, cohort=SITES, **changes):
        from pppml_core.federation.identity import load_roster, roster_hash
        from pppml_core.federation.terms import round_terms

        parts = self.host.assembly
        pipeline = parts.pipeline(1, (1.0,) * len(parts.shared), 26, self.host.privacy)
        told = {
            "round": round,
            "cohort": list(cohort),
            "ranges": [1.0] * len(parts.shared),
            "max_weight": 26,
            "guarantees": parts.aggregator.plan(pipeline.spec, cohort).guarantees,
            "privacy": self.host.privacy.statement,
            "metrics": announced_share(parts, self.host.job.sites),
            "keep": [],
            "roster": roster_hash(load_roster(self.host.job.home("site_2")), (*cohort, SERVER)),
        }
        body = {"terms": {**round_terms(**told), **changes}, "sha256": sha256_of(self.weights), "weights": self.weights}
        return self.ask("open", body, round=round, attempt=attempt)

    def unlock(self, sites=SITES, **where):
        return self.ask("session", {"sites": list(sites)}, stage="unlock", **where)

    def recreated(self):
        self.site = Site.thaw("site_2", self.host, self.site.freeze())

    def reborn(self):
        self.site = self.host.site("site_2", self.policy)


@pytest.fixture
def desk(registry, job):
    def make(policy=None, live=None, **sections):
        live = {"aggregator": OpeningSum(), **(live or {})}
        config = resolve({"task": "tiny", **{section: {"use": "object"} for section in live}, **sections}, registry=registry)
        parts = Assembly.build(config, registry, live)
        return Desk(job(parts), parts, policy)

    return make


def test_a_second_attempt_at_a_released_sum_is_refused_as_early_as_possible(desk):
    desk = desk()
    desk.open()
    assert desk.unlock().kind == "reply"
    assert desk.open(attempt=2).kind == "reply", "terms and model are no secret"
    for reply in (desk.ask("session", {}, stage="give", attempt=2), desk.unlock(attempt=2)):
        assert reply.kind == "refused"
        assert RELEASED in reply.body["reason"]
    desk.reborn()
    assert desk.open(attempt=3, cohort=("site_1", "site_2")).kind == "reply"
    assert RELEASED in desk.ask("session", {}, stage="give", attempt=3).body["reason"], "whatever the terms"
    assert desk.open(round=2).kind == "reply"
    assert desk.unlock(round=2).kind == "reply", "each round has a sum of its own"
    assert desk.open(round=1, attempt=4).kind == "reply"
    assert RELEASED in desk.unlock(round=1, attempt=4).body["reason"], "a server that goes back does not take releases back"


def test_the_record_is_on_the_disk_before_the_reply_leaves(desk, monkeypatch):
    desk = desk()
    desk.open()
    monkeypatch.setattr(SiteStore, "save_release", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        desk.unlock()


def test_within_its_attempt_a_release_is_answered_again_with_the_same_bytes(desk):
    desk = desk()
    desk.open()
    frame = encode_message(Message(b"r" * 16, 1, 1, "session", "unlock", SERVER, "site_2", {"sites": list(SITES)}))
    first = desk.site.receive(frame)
    desk.recreated()
    assert desk.site.receive(frame) == first
    assert desk.unlock(sites=SITES[:2]).kind == "refused"
    size = (desk.host.job.folder / "site_2" / "released").stat().st_size
    assert size == 64, "one record"


@pytest.mark.parametrize(
    ("sites", "text"),
    [(SITES[:2], "min_cohort"), (("site_1", "site_1", "site_2"), "not of this attempt"), ((*SITES, "site_9"), "not of this attempt")],
    ids=["too-few", "twice", "strangers"],
)
def test_the_set_is_checked_against_policy_and_cohort(desk, sites, text):
    desk = desk(Policy(min_cohort=3))
    desk.open()
    reply = desk.unlock(sites)
    assert reply.kind == "refused"
    assert text in reply.body["reason"]
    assert desk.site._store.released(1, "session") is None, "and nothing was given out"


class ShareOfThree(PrivacyMechanism):
    """Each site's noise is a share, enough in a sum over three sites."""

    def __init__(self):
        pass

    def plan(self, setting):
        class Plan(PrivacyPlan):
            placement, min_survivors = "distributed", 3
            statement = PrivacyStatement("shares", placement="distributed")

        return Plan()


def test_a_sum_over_fewer_than_the_noise_is_sized_for_is_not_released(desk):
    """Whatever the policy allows and whatever the session promised."""
    desk = desk(live={"privacy": ShareOfThree()})
    desk.open()
    for again in (False, True):
        reply = desk.unlock(SITES[:2])
        assert reply.kind == "refused"
        assert "a sum over 2 sites, at least 3 required" in reply.body["reason"]
        assert desk.site._store.released(1, "session") is None, "and nothing was given out"
        if not again:
            desk.recreated()
    assert desk.unlock().kind == "reply"


@pytest.mark.parametrize("change", ["nothing", "an earlier sum", "another model", "a restart"])
def test_scores_leave_in_a_sum_over_all_sites_of_the_run_or_not_at_all(desk, change):
    """Whatever the policy allows, whatever was summed before: the difference of two sums over other sites would be a site's own."""
    desk = desk(Policy(min_cohort=1), run={"metrics": "sum"})
    body = {"state": 1, "final": False, "sha256": sha256_of(desk.weights), "splits": ["validation"]}
    if change == "an earlier sum":
        desk.open()
        desk.ask("evaluate", body)
        assert desk.ask("metrics", {"sites": list(SITES)}, stage="unlock").kind == "reply"
    if change in ("an earlier sum", "another model"):  # a model is scored in one sum
        desk.weights = {name: array + np.float32(1e-3) for name, array in desk.weights.items()}
        body["sha256"] = sha256_of(desk.weights)
    desk.open(round=2)
    if change == "a restart":
        desk.reborn()
        desk.open(round=2, attempt=2)
    place = {"round": 2, "attempt": desk.site.attempt[1]}
    assert desk.ask("evaluate", body, **place).kind == "reply"
    refused = desk.ask("metrics", {"sites": list(SITES[:2])}, stage="unlock", **place)
    assert (refused.kind, "over all 3 sites of the run, and this one is without site_3" in refused.body["reason"]) == ("refused", True)
    desk.open(round=3, cohort=SITES[:2])
    desk.ask("evaluate", body, round=3)
    refused = desk.ask("metrics", {}, stage="give", round=3)
    assert (refused.kind, "this one is without site_3" in refused.body["reason"]) == ("refused", True), "nor is anything made for it"
    assert desk.ask("session", {"sites": list(SITES[:2])}, stage="unlock", round=3).kind == "reply", "updates are another matter"
    assert len((desk.host.job.folder / "site_2" / "released").read_bytes()) == 64 * (3 if change == "an earlier sum" else 1)


def test_another_set_within_the_attempt_is_refused(desk):
    desk = desk()
    desk.open()
    assert desk.unlock(SITES[:2]).kind == "reply"
    context = next(iter(desk.site._sides.values()))._ctx
    context.release(SITES[:2])
    with pytest.raises(PolicyRefusal, match="over other sites"):
        context.release(SITES)


def test_sums_of_scores_are_released_once_for_each_choice_of_splits(desk):
    desk = desk(run={"metrics": "sum"})
    scored = {"state": 1, "final": False, "sha256": sha256_of(desk.weights)}

    def unlock(attempt, splits):
        desk.open(attempt=attempt)
        desk.ask("evaluate", {**scored, "splits": splits}, attempt=attempt)
        return desk.ask("metrics", {"sites": list(SITES)}, stage="unlock", attempt=attempt)

    assert unlock(1, ["validation"]).kind == "reply"
    assert RELEASED in unlock(2, ["validation"]).body["reason"]
    assert unlock(3, ["test"]).kind == "reply"
    assert desk.ask("session", {"sites": list(SITES)}, stage="unlock", attempt=3).kind == "reply", "and of updates, once"


def test_a_split_is_released_once_in_whatever_company(desk):
    desk = desk(run={"metrics": "sum"})
    scored = {"state": 1, "final": False, "sha256": sha256_of(desk.weights)}

    def unlock(attempt, splits):
        desk.open(attempt=attempt)
        desk.ask("evaluate", {**scored, "splits": splits}, attempt=attempt)
        return desk.ask("metrics", {"sites": list(SITES)}, stage="unlock", attempt=attempt)

    assert unlock(1, ["validation"]).kind == "reply"
    assert RELEASED in unlock(2, ["validation", "test"]).body["reason"]
    assert unlock(3, ["test"]).kind == "reply"


def test_scores_in_a_sum_are_not_exchanged_for_others(desk):
    desk = desk(run={"metrics": "sum"})
    scored = {"state": 1, "final": False, "sha256": sha256_of(desk.weights)}
    desk.open()
    assert desk.ask("evaluate", {**scored, "splits": ["validation"]}).kind == "reply"
    assert desk.ask("metrics", {}, stage="give").kind == "reply"
    assert desk.ask("evaluate", {**scored, "splits": ["test"]}).kind == "refused", "the release would be noted for another split"
    assert desk.ask("metrics", {"sites": list(SITES)}, stage="unlock").kind == "reply"
    model = sha256_of(desk.weights).hex()
    assert [desk.site._store.released_ever(f"metrics {split} {model}") is not None for split in ("validation", "test")] == [True, False]


@pytest.mark.parametrize("spoil", ["weights", "state-ahead", "state-before", "train", "twice", "none", "order"])
def test_only_held_out_scores_of_the_opened_model_enter_a_sum(desk, spoil):
    desk = desk(run={"metrics": "sum"})
    desk.open()
    other = {name: np.full_like(array, np.nan) for name, array in desk.weights.items()}
    body = {"state": 1, "final": False, "sha256": sha256_of(desk.weights), "splits": ["validation"]}
    changes = {
        "weights": {"sha256": sha256_of(other), "weights": other},
        "state-ahead": {"state": 2},
        "state-before": {"state": -1},
        "train": {"splits": ["train"]},
        "twice": {"splits": ["validation", "validation"]},
        "none": {"splits": []},
        "order": {"splits": ["test", "validation"]},
    }
    assert desk.ask("evaluate", {**body, **changes[spoil]}).kind in ("refused", "failed")
    assert desk.ask("metrics", {}, stage="give").kind == "failed", "nothing was evaluated"
    assert desk.ask("evaluate", body).kind == "reply"


def test_a_model_is_scored_in_one_sum_whatever_the_round(desk):
    desk = desk(run={"metrics": "sum"})
    body = {"state": 1, "final": False, "sha256": sha256_of(desk.weights), "splits": ["validation"]}
    for round in (1, 2):
        desk.open(round=round)
        desk.ask("evaluate", body, round=round)
        reply = desk.ask("metrics", {"sites": list(SITES)}, stage="unlock", round=round)
        assert reply.kind == ("reply" if round == 1 else "refused"), reply.body


def test_sites_asked_for_other_scores_do_not_share_a_binding(desk):
    desk = desk(run={"metrics": "sum"})
    bindings = []
    for attempt, changes in enumerate(({}, {"splits": ["test"]}, {"state": 0}, {"final": True}), 1):
        desk.open(attempt=1, round=attempt)
        body = {"state": 1, "final": False, "sha256": sha256_of(desk.weights), "splits": ["validation"], **changes}
        assert desk.ask("evaluate", body, round=attempt).kind == "reply"
        asked = {name: body[name] for name in ("sha256", "state", "splits", "final")}
        bindings.append(binding_of_sum(b"attempt", "metrics", asked))
        desk.ask("metrics", {}, stage="give", round=attempt)
        assert desk.site._sides["metrics"]._ctx.binding == binding_of_sum(desk.site._open["binding"], "metrics", asked)
    assert len(set(bindings)) == 4


@pytest.mark.parametrize(("round", "attempt"), [(0, 1), (11, 1), (2**30, 1), (1, 2**30)])
def test_numbers_that_no_run_has_do_not_spoil_the_record(desk, round, attempt):
    desk = desk()
    assert desk.open(round=round, attempt=attempt).kind in ("refused", "failed")
    desk.reborn()
    assert desk.open().kind == "reply"


def test_a_hello_ends_the_attempt(desk):
    desk = desk()
    desk.open()
    assert desk.ask("session", {}, stage="give").kind == "reply"
    assert desk.ask("hello", {"start": bytes(16)}, round=0).kind == "reply"
    assert desk.ask("session", {}, stage="give").kind == "failed", "its secrets are gone, and new ones under old names are not made"
    assert desk.open(attempt=1).kind == "refused"
    assert desk.open(attempt=2).kind == "reply"


def test_what_a_site_keeps_is_its_own_business(desk):
    desk = desk()
    desk.open()
    desk.ask("session", {}, stage="give")
    assert (desk.host.job.folder / "site_2").stat().st_mode & 0o077 == 0


def test_updates_and_scores_of_one_attempt_have_bindings_of_their_own(desk):
    desk = desk(run={"metrics": "sum"})
    desk.open()
    desk.ask("evaluate", {"state": 1, "final": False, "sha256": sha256_of(desk.weights), "splits": ["validation"]})
    for kind in ("session", "metrics"):
        assert desk.ask(kind, {}, stage="give").kind == "reply"
    bindings = {kind: side._ctx.binding for kind, side in desk.site._sides.items()}
    assert len({*bindings.values(), desk.site._open["binding"]}) == 3


def test_an_attempt_with_fewer_sites_sends_the_same_contribution(desk, monkeypatch):
    made = []
    make = Trainer._make
    monkeypatch.setattr(Trainer, "_make", lambda self, *args: made.append(args[0]) or make(self, *args))
    desk = desk()
    desk.open()
    first = desk.ask("session", {}, stage="give").body["values"].tobytes()
    desk.open(attempt=2, cohort=SITES[:2])
    assert desk.ask("session", {}, stage="give", attempt=2).body["values"].tobytes() == first
    assert made == [1]


def test_what_a_context_shows_of_itself_holds_no_key(desk):
    desk = desk()
    desk.open()
    desk.unlock()
    key = (desk.host.job.home("site_2") / "identity.key").read_bytes()
    context = next(iter(desk.site._sides.values()))._ctx
    assert set(context.roster) == {*SITES, SERVER}
    assert context.policy == Policy(record_secrets=True)
    for shown in (repr(context), repr(vars(desk.site)), repr(desk.site.freeze())):
        assert key.hex() not in shown
        assert repr(key)[2:-1] not in shown


# -- the server's copy --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("large", "dtype"), [(7, np.int32), (2**31 - 1, np.int32), (2**31, np.int64), (-(2**31), np.int64)])
def test_a_sum_is_kept_as_it_is_and_as_small_as_it_can_be(tmp_path, large, dtype):
    total = np.array([1, -2, large], np.int64)
    save_sum(tmp_path, 3, "metrics-test", b"k" * 32, Sum(total, SITES[:2]))
    held = decode((tmp_path / "sum-000003-metrics-test").read_bytes())
    assert held["total"].dtype == dtype
    found = load_sum(tmp_path, 3, "metrics-test", b"k" * 32)
    np.testing.assert_array_equal(found.total, total)
    assert (found.total.dtype, found.survivors) == (np.int64, SITES[:2])


def test_real_sums_are_kept_too_and_empty_ones(tmp_path):
    for total in (np.array([0.5, -1e300]), np.empty(0, np.int64)):
        save_sum(tmp_path, 1, "session", b"k", Sum(total, SITES))
        found = load_sum(tmp_path, 1, "session", b"k").total
        assert (found.dtype, found.tolist()) == (total.dtype, total.tolist())


def test_a_sum_under_another_key_is_not_this_one(tmp_path):
    save_sum(tmp_path, 1, "session", b"k" * 32, Sum(np.arange(3), SITES))
    assert load_sum(tmp_path, 1, "session", b"j" * 32) is None
    assert load_sum(tmp_path, 2, "session", b"k" * 32) is None
    assert load_sum(tmp_path, 1, "metrics-test", b"k" * 32) is None


def test_sums_are_dropped_by_round(tmp_path):
    for round in (1, 2, 3):
        save_sum(tmp_path, round, "session", b"k", Sum(np.arange(3), SITES))
    drop_sums(tmp_path, before=3)
    assert [p.name for p in tmp_path.iterdir()] == ["sum-000003-session"]
    drop_sums(tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- runs ---------------------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """What a test stops a server with."""


class StopAt(Reporter):
    """Stops the server at one event, once."""

    def __init__(self, **wanted):
        self.wanted = wanted

    def handle(self, event):
        if self.wanted and all(event.get(k) == v for k, v in self.wanted.items()):
            self.wanted = {}
            raise Killed


@pytest.fixture(scope="module")
def opening(experiment):
    """An experiment whose sums are opened at their end, over three rounds."""

    def make(*reporters, run=None, **sections):
        return experiment(aggregator=OpeningSum(), run={"rounds": 3, **(run or {})}, reporters=["jsonl", *reporters], **sections)

    return make


@pytest.fixture(scope="module")
def plain(go):
    return go(run={"rounds": 3})


@pytest.fixture(scope="module")
def summed(opening, tmp_path_factory):
    return opening(run={"metrics": "sum"}).run(tmp_path_factory.mktemp("whole") / "r", report=False)


def told(run, kind):
    return [e for line in (run.folder / "events.jsonl").read_text().splitlines() if (e := json.loads(line))["event"] == kind]


def stopped(made, folder):
    with pytest.raises(Killed):
        made.run(folder, report=False)


def test_a_run_of_opened_sums_gives_the_model_of_plain(summed, plain):
    assert summed.result["model_sha256"] == plain.result["model_sha256"]
    assert not list(summed.folder.glob("checkpoints/sum-*")), "sums are not kept longer than they are needed"


MOMENTS = [
    {"event": "stage", "stage": "open", "round": 2},
    {"event": "stage", "stage": "give", "round": 2},
    {"event": "stage", "stage": "evaluate", "round": 2},
    {"event": "metrics", "round": 2},
    {"event": "round-finished", "round": 2},
    {"event": "run-finished"},
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: f"{m['event']}-{m.get('stage', '')}")
@pytest.mark.parametrize("metrics", ["per-site", "sum"])
def test_a_server_killed_outside_of_the_release_goes_on_to_the_same_model(opening, summed, tmp_path, moment, metrics):
    made = opening(StopAt(**moment), run={"metrics": metrics})
    if moment["event"] == "run-finished":
        with pytest.raises(Killed):
            made.run(tmp_path / "r", report=False)
        assert made.run(tmp_path / "r", report=False).result["model_sha256"] == summed.result["model_sha256"]
        return
    stopped(made, tmp_path / "r")
    run = made.run(tmp_path / "r", report=False)
    assert run.result["model_sha256"] == summed.result["model_sha256"]
    assert run.result["survivors"] == summed.result["survivors"]
    assert told(run, "round-aborted") == []
    if metrics == "sum":
        assert list(run.metrics) == list(summed.metrics)
    kept = [e["kind"] for e in told(run, "sum-kept")]
    before = moment.get("stage") in ("open", "give")
    scored = metrics == "sum" and moment["event"] in ("metrics", "round-finished")
    assert kept == ([] if before else ["session", "metrics-validation"] if scored else ["session"])


def test_a_checkpoint_that_turns_out_damaged_costs_no_sum(opening, summed, tmp_path):
    made = opening(StopAt(event="stage", stage="give", round=3), run={"metrics": "sum"})
    stopped(made, tmp_path / "r")
    newest = tmp_path / "r" / "checkpoints" / "round-000002.checkpoint"
    newest.write_bytes(newest.read_bytes()[:-1])
    run = made.run(tmp_path / "r", report=False)
    assert run.result["model_sha256"] == summed.result["model_sha256"]
    assert told(run, "round-aborted") == []


@pytest.mark.parametrize(
    "spoil", [lambda d: d[:-1], lambda d: b"", lambda d: d[:-9] + bytes([d[-9] ^ 1]) + d[-8:]], ids=["cut", "empty", "bit"]
)
def test_a_kept_sum_that_is_damaged_is_no_sum(opening, tmp_path, spoil):
    made = opening(StopAt(event="stage", stage="evaluate", round=2))
    stopped(made, tmp_path / "r")
    (kept,) = (tmp_path / "r" / "checkpoints").glob("sum-000002-*")
    kept.write_bytes(spoil(kept.read_bytes()))
    run = made.run(tmp_path / "r", report=False)
    assert run.result["survivors"]["2"] == [], "the sites gave it out once; the round is lost"
    assert len(run.result["survivors"]["3"]) == 3


@pytest.mark.parametrize("on_abort", ["retry", "skip"])
def test_a_server_killed_within_the_release_loses_the_round_and_no_more(opening, plain, tmp_path, on_abort):
    made = opening(StopAt(event="stage", stage="unlock", round=2), run={"on_abort": on_abort})
    stopped(made, tmp_path / "r")
    run = made.run(tmp_path / "r", report=False)
    assert run.result["survivors"] == {"1": list(SITES), "2": [], "3": list(SITES)}
    (aborted,) = told(run, "round-aborted")
    assert (aborted["round"], aborted["next"], aborted["lost"]) == (2, "skip", True)
    assert "gave out what opens this sum" in aborted["reason"]
    assert run.result["model_sha256"] != plain.result["model_sha256"]


def test_stop_stops_and_a_resumed_run_goes_on_after_the_lost_round(opening, tmp_path):
    made = opening(StopAt(event="stage", stage="unlock", round=2), run={"on_abort": "stop"})
    stopped(made, tmp_path / "r")
    with pytest.raises(RunFailed, match="without a sum") as caught:
        made.run(tmp_path / "r", report=False)
    assert "the next round follows" in caught.value.hint
    run = made.run(tmp_path / "r", report=False)
    assert run.result["survivors"] == {"1": list(SITES), "2": [], "3": list(SITES)}


@pytest.mark.parametrize("on_abort", ["retry", "stop"])
def test_lost_final_scores_do_not_keep_a_run_from_its_end(opening, summed, tmp_path, on_abort):
    made = opening(StopAt(event="stage", stage="unlock", round=3), run={"metrics": "sum", "on_abort": on_abort, "evaluate_every": 9})
    reporter = made.objects["reporters.1"]
    reporter.wanted = {}
    seen = []

    def handle(event):
        if event["event"] == "stage" and event["stage"] == "unlock":
            seen.append(event)
            if len(seen) == 5:  # three rounds, the last validation, then the test scores
                raise Killed

    reporter.handle = handle
    stopped(made, tmp_path / "r")
    run = made.run(tmp_path / "r", report=False)
    assert run.result["model_sha256"] == summed.result["model_sha256"]
    assert run.result["not_evaluated"] == list(SITES)
    (warning,) = [e["text"] for e in told(run, "warning") if "no scores" in e["text"]]
    assert warning.endswith("the result has no final scores")
    assert "gave out what opens this sum in an earlier attempt" in warning


def test_a_lost_round_is_never_tried_again(opening, tmp_path):
    fault = {"site": "site_2", "stage": "unlock", "round": 2, "do": "drop-reply"}
    run = opening(engine={"use": "local", "faults": [fault]}, run={"retries": 5}).run(tmp_path / "r", report=False)
    assert [e["attempt"] for e in told(run, "round-started")] == [1, 1, 1]
    (aborted,) = told(run, "round-aborted")
    assert (aborted["lost"], aborted["next"]) == (True, "skip")
    assert run.result["survivors"]["2"] == []


def test_an_abort_before_the_release_is_tried_again(opening, plain, tmp_path):
    faults = [{"site": s, "stage": "give", "round": 2, "attempt": 1, "do": "drop"} for s in SITES[:2]]
    run = opening(engine={"use": "local", "faults": faults}).run(tmp_path / "r", report=False)
    (aborted,) = told(run, "round-aborted")
    assert (aborted["lost"], aborted["next"]) == (False, "retry")
    assert run.result["model_sha256"] == plain.result["model_sha256"]


def killed_child(work, kill_at):
    """Run ``work`` in a child process that is killed by SIGKILL right before its n-th call that changes a file. True: it was killed."""
    pid = os.fork()
    if pid == 0:
        left = [kill_at]

        def counted(call):
            def wrapped(*args, **kwargs):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapped

        for name in ("replace", "fsync", "unlink", "ftruncate"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("moment", range(40, 80, 4))
def test_killed_at_any_moment_a_round_is_whole_or_lost_and_never_wrong(opening, summed, tmp_path, moment):
    made = opening(run={"metrics": "sum"})
    assert killed_child(lambda: made.run(tmp_path / "r", report=False), moment)
    run = made.run(tmp_path / "r", report=False)
    lost = {e["round"] for e in told(run, "round-aborted") if e["lost"]}
    assert len(lost) <= 1
    skipped = [int(r) for r, sites in run.result["survivors"].items() if not sites]
    assert set(skipped) <= lost
    if not skipped:
        assert run.result["model_sha256"] == summed.result["model_sha256"]
    assert all(sites in ([], list(SITES)) for sites in run.result["survivors"].values())
