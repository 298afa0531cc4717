"""What a site that lives by itself is in: who may disturb it, how many runs it holds, how fast it is asked, with which data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pppml_core.api import Experiment
from pppml_core.discovery import from_objects
from pppml_core.federation import resident as resident_module
from pppml_core.federation.invitation import JOIN, invitation_to
from pppml_core.federation.letter import written
from pppml_core.federation.lives import FORGOTTEN, RUNS_AT_ONCE, SILENT
from pppml_core.federation.pace import ATTEMPTS, BURST, MESSAGES, Pace, Steps
from pppml_core.registry import Registry
from pppml_core.testing.desk import RUN, Desk
from pppml_core.testing.insecure_plugin import pppml_aggregators
from pppml_core.testing.residents import ENGINE
from pppml_core.wire.codec import decode_message, encode_message, sha256_of
from pppml_core.wire.messages import SERVER, Message

SITE, PEER = "site_1", "site_3"
REGISTRY = Registry.only(*from_objects([ENGINE, *(("aggregator", one) for one in pppml_aggregators())]))
RUNS = [bytes([65 + i]) * 16 for i in range(RUNS_AT_ONCE + 2)]
FIRST, SECOND = b"1" * 16, b"2" * 16


class At(Desk):
    """A site that notes how often all its data are looked at, and every letter it is given."""

    looked = 0

    def __init__(self, folder: Path, rounds: int = 1) -> None:
        run = {"rounds": rounds, "metrics": "none", "seed": 5}
        sections = {"task": "tiny", "aggregator": "insecure-ring", "training": {"steps": 1}, "run": run}
        super().__init__(folder, sections, careful=False, registry=REGISTRY)

    def letter(self, kind: str, stage: str, body: dict[str, Any], place: tuple[int, int] = (0, 1), run: bytes = RUN) -> bytes:
        return written(self.key(SERVER), SERVER, encode_message(Message(run, *place, kind, stage, SERVER, SITE, body)))

    def invitation(self) -> bytes:
        return self.letter(JOIN, JOIN, invitation_to(self.job(), self.parts).body(self.key(SERVER)))

    def hand(self, data: bytes) -> Message:
        return decode_message(self.residents[SITE].receive(data))

    def peer(self, run: bytes = RUN) -> Message:
        return self.ask(SITE, "session", "ring", {}, run=run, sender=PEER, signer=PEER)

    def first_stage(self, run: bytes = RUN) -> Message:
        return self.ask(SITE, "session", "ring", {}, run=run)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., At]:
    monkeypatch.setattr(resident_module.Registry, "discover", classmethod(lambda cls: REGISTRY))

    def counted(*given: Any) -> list[str]:
        At.looked += 1
        return []

    monkeypatch.setattr(resident_module, "own_misfits", counted)
    monkeypatch.setattr(At, "looked", 0)
    return lambda **settings: At(tmp_path, **settings)


# -- other sites --------------------------------------------------------------------------------------------------------------------------


def test_another_site_has_no_run_looked_at_and_no_line_written(made: Callable[..., At]) -> None:
    """Ids of earlier runs are known to whoever took part in them."""
    at = made()
    for run in RUNS[:4]:
        assert at.invite(SITE, run).body == {"joined": True}
    assert at.open(SITE, run=RUNS[3]).kind == "reply"
    at.restart(SITE)
    at.open(SITE, attempt=2, run=RUNS[3])
    looked, lines = At.looked, len(at.logged(SITE))
    for run in (*RUNS[:3], b"nobody's..........")[:4] * 5:
        reply = at.peer(run[:16])
        assert (reply.kind, reply.body["reason"]) == ("refused", "no attempt with you is open at this site")
    assert At.looked == looked
    assert len(at.logged(SITE)) == lines + 1, "counted"
    assert at.ask(SITE, "session", "ring", {}, attempt=2, run=RUNS[3]).kind == "reply", "the attempt stayed open"


def test_another_site_is_heard_where_it_takes_part(made: Callable[..., At]) -> None:
    at = made()
    at.invite(SITE)
    assert at.peer().kind == "refused", "no attempt is open"
    at.open(SITE, cohort=("site_1", "site_2"))
    assert at.peer().kind == "refused", "it is not in the cohort"
    at.open(SITE, attempt=2)
    assert at.ask(SITE, "session", "ring", {}, attempt=2, sender=PEER, signer=PEER).kind in ("reply", "failed")


# -- how many runs ------------------------------------------------------------------------------------------------------------------------


def test_no_open_attempt_gives_way_to_another_run(made: Callable[..., At]) -> None:
    at = made()
    *busy, one_more, last = RUNS
    for run in busy:
        at.invite(SITE, run)
        assert at.open(SITE, run=run).kind == "reply"
    looked = At.looked
    refusal = at.invite(SITE, one_more)
    assert (refusal.kind, refusal.body["reason"]) == (
        "refused",
        "busy: this site is busy with 4 runs; ask again when one of them is over",
    )
    assert At.looked == looked, "before its data are looked at"
    assert at.first_stage(busy[0]).kind == "reply"
    # The first is asked its last thing: it is over, and has room for one more.
    at.ask(SITE, "evaluate", "evaluate", _last(at), run=busy[0])
    assert at.invite(SITE, one_more).body == {"joined": True}
    assert at.open(SITE, run=one_more).kind == "reply"
    assert at.invite(SITE, last).kind == "refused"
    for run in busy[1:]:
        assert at.first_stage(run).kind == "reply", "none of them was thrown away"


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Seconds go by."""
    real, passed = resident_module.time.monotonic, [0.0]
    monkeypatch.setattr(resident_module.time, "monotonic", lambda: real() + sum(passed))
    return passed.append


def _busy(at: At) -> None:
    for run in RUNS[:RUNS_AT_ONCE]:
        at.invite(SITE, run)
        assert at.open(SITE, run=run).kind == "reply"


def test_runs_that_were_given_up_give_way_to_a_new_one_within_the_hour(made: Callable[..., At], pass_time: Callable[[float], None]) -> None:
    """The one that was silent longest; what another site says keeps none of them."""
    at = made()
    _busy(at)
    new, newer = RUNS[RUNS_AT_ONCE:]
    pass_time(SILENT / 2)
    assert at.first_stage(RUNS[0]).kind == "reply"
    assert at.peer(RUNS[1]).kind in ("reply", "failed")
    pass_time(SILENT / 2 - 10)
    assert "busy" in at.invite(SITE, new).body["reason"]
    pass_time(20)
    assert at.invite(SITE, new).body == {"joined": True}
    assert at.open(SITE, run=new).kind == "reply"
    for run in (RUNS[0], *RUNS[2:4]):
        assert at.first_stage(run).kind == "reply", "one gave way, the least recent"
    assert "busy" in at.invite(SITE, newer).body["reason"]


def test_a_recorded_letter_ends_no_attempt_that_was_silent_for_an_hour(made: Callable[..., At], pass_time: Callable[[float], None]) -> None:
    at = made()
    old = RUNS[RUNS_AT_ONCE]
    join, hello = (
        at.letter(JOIN, JOIN, invitation_to(at.job(old), at.parts).body(at.key(SERVER)), run=old),
        at.letter("hello", "hello", {"start": FIRST}, run=old),
    )
    assert at.hand(join).body == {"joined": True}
    assert at.hand(hello).kind == "reply"
    _busy(at)
    pass_time(SILENT + 1)
    for letter in (join, hello):
        assert "busy" in at.hand(letter).body["reason"]
    pass_time(FORGOTTEN - SILENT)
    assert at.hand(hello).kind == "reply", "their coordinator is gone"


def _last(at: At) -> dict[str, Any]:
    return {"state": 1, "splits": ["test"], "final": True, "sha256": sha256_of(at.weights), "weights": at.weights}


def test_a_run_that_nothing_is_open_in_gives_way(made: Callable[..., At]) -> None:
    at = made()
    for run in RUNS:
        assert at.invite(SITE, run).body == {"joined": True}
    assert at.open(SITE, run=RUNS[0]).kind == "reply"


# -- how fast -----------------------------------------------------------------------------------------------------------------------------


def test_a_fast_run_is_not_turned_away(made: Callable[..., At], monkeypatch: pytest.MonkeyPatch) -> None:
    """More messages than a party may send of its own accord, in seconds."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    rounds = (BURST + 200) // 2
    at = made(rounds=rounds)
    assert at.invite(SITE).kind == "reply"
    monkeypatch.setattr(at.residents[SITE], "_pace", Pace(burst=0, a_second=0.0))
    body = {"terms": at.terms(), "sha256": sha256_of(at.weights), "weights": at.weights}
    for round in range(1, rounds + 1):
        letter = at.letter("open", "open", {**body, "terms": {**body["terms"], "round": round}}, (round, 1))
        for _ in range(2):
            reply = at.hand(letter)
            assert reply.kind == "reply", (round, reply.body)
    assert "too often" in at.ask(SITE, "hello", "hello", {"start": FIRST}, 0).body["reason"]


def test_what_an_attempt_does_not_need_is_paid_for(made: Callable[..., At], monkeypatch: pytest.MonkeyPatch) -> None:
    at = made()
    at.invite(SITE)
    monkeypatch.setattr(at.residents[SITE], "_pace", Pace(burst=0, a_second=0.0))
    at.open(SITE)
    replies = [at.first_stage() for _ in range(MESSAGES + 10)]
    assert [reply.kind for reply in replies] == ["reply"] * (MESSAGES - 1) + ["refused"] * 11
    assert "too often" in replies[-1].body["reason"]


def test_steps_of_a_run() -> None:
    steps = Steps(rounds=3)
    assert not any(steps.allows(SERVER, *place) for place in ((0, 1), (4, 1), (1, 0), (1, ATTEMPTS + 1)))
    assert [steps.allows(SERVER, 3, ATTEMPTS) for _ in range(MESSAGES + 1)] == [True] * MESSAGES + [False]
    assert steps.allows("site_2", 3, ATTEMPTS), "each has its own"
    assert steps.allows(SERVER, 3, 1)


def test_a_whole_run_pays_for_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The invitation, the first message after a start, and nothing of the rounds."""
    taken: list[str] = []
    real = Pace.allows
    monkeypatch.setattr(Pace, "allows", lambda self, party, now: taken.append(party) or real(self, party, now))
    about = {"task": "tiny", "training": {"steps": 1}, "run": {"rounds": 5}}
    engine = {"use": "residents", "homes": str(tmp_path / "homes")}
    run = Experiment({**about, "engine": engine}, registry=REGISTRY).run(tmp_path / "r", reporters=False, report=False)
    assert len(run.result["survivors"]) == 5
    assert taken == [SERVER] * 2 * 3


# -- letters that were recorded -----------------------------------------------------------------------------------------------------------


def test_a_recorded_hello_or_invitation_ends_no_attempt(made: Callable[..., At]) -> None:
    at = made()
    join, hello = at.invitation(), at.letter("hello", "hello", {"start": FIRST})
    assert at.hand(join).body == {"joined": True}
    assert at.hand(hello).body == {"rounds": [], "attempts": {}}
    at.open(SITE)
    looked = At.looked
    assert at.hand(join).body == {"joined": True}
    assert at.hand(hello).kind == "reply"
    assert at.invite(SITE).body == {"joined": True}
    assert At.looked == looked
    assert at.first_stage().kind == "reply"


def test_a_recorded_question_for_scores_takes_no_model_away(made: Callable[..., At]) -> None:
    """A process holds two models; those of earlier rounds, handed in again, would leave no room for that of the open attempt."""
    at = made(rounds=4)
    at.invite(SITE)
    told = {"state": 0, "splits": ["validation"], "final": False}
    recorded = []
    for round in (1, 2):
        weights = at.moved(round)
        recorded.append(at.letter("evaluate", "evaluate", {**told, "sha256": sha256_of(weights), "weights": weights}, (round, 1)))
        assert at.hand(recorded[-1]).kind == "reply"
    assert at.open(SITE, 3).kind == "reply"
    for letter in recorded:
        assert "is over" in at.hand(letter).body["reason"]
    assert at.ask(SITE, "session", "ring", {}, 3).kind == "reply"


def test_a_run_that_is_begun_anew_gives_up_its_attempt_once(made: Callable[..., At]) -> None:
    at = made()
    first, second = (at.letter("hello", "hello", {"start": start}) for start in (FIRST, SECOND))
    at.invite(SITE)
    at.hand(first)
    at.open(SITE)
    assert at.hand(second).body["attempts"] == {"1": 1}
    assert "not open" in at.first_stage().body["reason"]
    at.open(SITE, attempt=2)
    for fresh in (False, True):
        if fresh:
            at.restart(SITE)
            at.open(SITE, attempt=3)
        old = at.hand(first)
        assert (old.kind, "begun anew" in old.body["reason"]) == ("refused", True)
        assert at.hand(second).kind == "reply"
        assert at.ask(SITE, "session", "ring", {}, attempt=3 if fresh else 2).kind == "reply"


def test_an_invitation_with_other_code_is_looked_at_and_ends_nothing(made: Callable[..., At]) -> None:
    at = made()
    at.insist(SITE, "same_versions: false", careful=False)
    at.hand(at.invitation())
    at.open(SITE)
    looked = At.looked
    asked = invitation_to(at.job(), at.parts)
    other = {name: {**code, "version": "9"} for name, code in asked.code.items()}
    body = type(asked)(**{**vars(asked), "code": other}).body(at.key(SERVER))
    assert at.hand(at.letter(JOIN, JOIN, body)).body == {"joined": True}
    assert At.looked == looked + 1
    assert at.first_stage().kind == "reply"


# -- its own data -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["while it lives", "after a start", "in a new invitation"])
def test_other_data_are_another_run(made: Callable[..., At], how: str) -> None:
    at = made()
    file = at.homes / SITE / "site.yaml"
    file.write_text("task: {examples: 24}\n")
    assert at.invite(SITE).body == {"joined": True}
    assert at.open(SITE).kind == "reply"
    file.write_text("task: {examples: 23}\n")
    if how == "after a start":
        at.restart(SITE)
    reply = at.invite(SITE) if how == "in a new invitation" else at.first_stage()
    assert (reply.kind, reply.body["reason"].startswith("joined: data or task in this site's site.yaml")) == ("refused", True)
    file.write_text("engine: flower\ntask: {examples: 24}\n")
    assert at.open(SITE, attempt=2).kind == "reply", "how the site is reached is no part of it"
