"""A coordinator whose key is pinned and who lies, message by message: what the policy of a hospital still holds against it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pppml_core.api import Experiment
from pppml_core.discovery import from_objects
from pppml_core.errors import PolicyRefusal
from pppml_core.federation import resident as resident_module
from pppml_core.federation.audit import Audit
from pppml_core.federation.evaluation import SUM_IN_CLEAR, announced_share
from pppml_core.federation.letter import frame_in
from pppml_core.federation.policy import Policy
from pppml_core.federation.releases import Opening, Releases
from pppml_core.federation.site_check import check_home
from pppml_core.federation.site_ledger import read_account
from pppml_core.federation.store import SiteStore
from pppml_core.federation.timetable import Rounds
from pppml_core.interfaces.engine import Loss
from pppml_core.registry import Registry
from pppml_core.testing import residents
from pppml_core.testing.desk import RUN, Desk
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import Message

PLAIN: dict[str, Any] = {
    "task": "tiny",
    "aggregator": "plain",
    "training": {"steps": 1},
    "run": {"rounds": 2, "metrics": "none", "seed": 5},
}
SECURE = {**PLAIN, "aggregator": "secagg-plus"}
DP = {**PLAIN, "privacy": {"use": "dp-sgd", "epsilon": 4.0}}


def scored(sections: dict[str, Any], share: str, **changes: Any) -> dict[str, Any]:
    return {**sections, **changes, "run": {**sections["run"], "metrics": share}}


def refused(reply: Message, *said: str) -> bool:
    assert reply.kind == "refused", reply.body
    assert all(text in reply.body["reason"] for text in said), reply.body
    return True


# -- scores -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "rules"),
    [
        (scored(PLAIN, "sum", personalization="local-only"), ""),
        (scored(PLAIN, "sum"), "plain_updates: true"),
    ],
)
def test_a_sum_of_scores_in_the_clear_is_no_sum(tmp_path: Path, sections: dict[str, Any], rules: str) -> None:
    desk = Desk(tmp_path, sections, rules)
    assert announced_share(desk.parts, desk.sites) == SUM_IN_CLEAR
    assert refused(desk.invite("site_1"), "metrics: sums of scores announced in which somebody sees this site's own")
    desk.insist("site_1", f"{rules}\nmetrics: per-site")
    assert refused(desk.invite("site_1"), "fewest_patients: ")
    desk.insist("site_1", f"{rules}\nmetrics: per-site\nfewest_patients: 1")
    assert desk.invite("site_1").body == {"joined": True}


def test_a_secure_sum_of_scores_is_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path, scored(SECURE, "sum"))
    assert announced_share(desk.parts, desk.sites) == "sum"
    assert desk.invite("site_1").body == {"joined": True}


#: sets over ten sites: of every site those it is in leave groups of three, all four together tell the scores of site 1 (A - B - C + 2 D).
FOUR = [{1, 2, 3, 4, 5, 6, 7}, {2, 3, 4, 8, 9, 10}, {5, 6, 7, 8, 9, 10}, {8, 9, 10}]


def test_no_sums_of_a_run_tell_together_what_none_tells_alone(tmp_path: Path) -> None:
    """Each site judges alone the sums it is in: over all sites of the run, and no others."""
    everyone = tuple(f"site_{number}" for number in range(1, 11))
    for site in everyone:
        rules = Releases(site, SiteStore(tmp_path / site), Policy(min_cohort=3), everyone, 1)
        for round, one in enumerate([*FOUR, set(range(1, 11))], start=1):
            cohort = tuple(f"site_{number}" for number in sorted(one))
            if site in cohort:
                with nullcontext() if cohort == everyone else pytest.raises(PolicyRefusal, match="over all 10 sites of the run"):
                    rules.note(Opening("metrics", round, 1, cohort, bytes([round]) * 32, ("validation",)), cohort)
        assert rules._store.released(5, "metrics validation") is not None


def test_two_sums_of_scores_over_other_sites_are_not_released(tmp_path: Path) -> None:
    """The difference of two sums over nearly one model would be one site's own scores."""
    desk = Desk(tmp_path, {**scored(SECURE, "sum"), "task": {"use": "tiny", "sites": 4}}, sites=4)
    assert desk.invite("site_1").body == {"joined": True}
    for attempt, cohort in enumerate((desk.sites[:3], desk.sites), start=1):
        site = _evaluated(desk, 1, attempt, cohort=cohort)
        with pytest.raises(PolicyRefusal, match="over all 4 sites of the run, and this one is without site_4"):
            site.release("metrics", desk.sites[:3])
    site.release("metrics", desk.sites)
    site = _evaluated(desk, 1, 3, weights=desk.moved(1))
    with pytest.raises(PolicyRefusal, match="this sum was released before in attempt 2 of round 1"):
        site.release("metrics", desk.sites)
    for attempt in (1, 2):
        site = _evaluated(desk, 2, attempt, weights=desk.moved(1))
        with pytest.raises(PolicyRefusal, match="this one is without site_4"):
            site.release("metrics", desk.sites[:3])
        desk.restart("site_1")
    site = _evaluated(desk, 2, 3, weights=desk.moved(1))
    site.release("metrics", desk.sites)


def _evaluated(desk: Desk, round: int, attempt: int, **how: Any) -> Any:
    weights = how.pop("weights", desk.weights)
    assert desk.open("site_1", round, attempt, weights=weights, **how).body == {"needs_weights": False}
    assert desk.evaluate("site_1", round, attempt, weights=weights).body == {"needs_weights": False}
    return desk.residents["site_1"]._living(RUN)


ALLOWED = "plain_updates: true\nmetrics: per-site\nfewest_patients: 1"


def test_a_run_scores_so_many_models_and_no_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path, scored(PLAIN, "per-site"), ALLOWED)
    desk.invite("site_1")
    kinds = [desk.evaluate("site_1", weights=desk.moved(number)).kind for number in range(10)]
    assert kinds == ["reply"] * 6 + ["refused"] * 4, "two rounds need three, and may be held twice"
    desk.restart("site_1")
    assert refused(desk.evaluate("site_1", weights=desk.moved(99)), "6 models were scored in this run")
    assert desk.evaluate("site_1", weights=desk.moved(3)).kind == "reply", "the same one again"
    assert desk.evaluate("site_1", 3).kind == "failed", "the run has two rounds"


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ("metrics: none", "metrics"),
        ("min_cohort: 9", "min_cohort"),
        ("fewest_patients: 50", "fewest_patients"),
        ("hours: '07:00-19:00'", "hours"),
        ("components: []", "components"),
    ],
)
def test_an_edited_policy_holds_for_scores_too(tmp_path: Path, clock: Callable[[str], None], rules: str, rule: str) -> None:
    desk = Desk(tmp_path, scored(PLAIN, "per-site"), ALLOWED)
    clock("2026-03-02T23:00")
    desk.invite("site_1")
    desk.open("site_1")
    assert desk.evaluate("site_1").kind == "reply"
    desk.insist("site_1", f"{ALLOWED}\n{rules}")
    assert refused(desk.evaluate("site_1"), f"{rule}: ")
    if rule != "hours":
        assert refused(desk.ask("site_1", "session", "contribute", {}), f"{rule}: ")


@pytest.mark.parametrize("text", [None, "", "# "])
def test_while_the_policy_is_away_nothing_is_answered(tmp_path: Path, text: str | None) -> None:
    """As an editor that moves the old file away first does it, or a full disk: else whoever asks once a second is answered then."""
    desk = Desk(tmp_path, PLAIN, "plain_updates: true")
    desk.invite("site_1")
    desk.open("site_1")
    path = desk.homes / "site_1" / "policy.yaml"
    held = path.read_text()
    path.unlink() if text is None else path.write_text(text)
    replies = [desk.ask("site_1", "session", "contribute", {}), desk.invite("site_1"), desk.invite("site_1", b"another run.....")]
    for reply in (*replies, desk.open("site_1"), desk.evaluate("site_1")):
        assert (reply.kind, reply.body["reason"].endswith("(restore policy.yaml)")) == ("failed", True), reply.body
    path.write_text(held)
    assert desk.open("site_1", 1, 2).kind == "reply"


# -- rounds of a day ----------------------------------------------------------------------------------------------------------------------


def test_other_models_in_one_round_are_other_rounds_of_the_day(tmp_path: Path, clock: Callable[[str], None]) -> None:
    desk = Desk(tmp_path, PLAIN, "plain_updates: true\nmax_rounds_per_day: 2")
    clock("2026-03-02T10:00")
    desk.invite("site_1")

    def update(round: int, attempt: int, number: int) -> Message:
        opened = desk.open("site_1", round, attempt, weights=desk.moved(number))
        return desk.ask("site_1", "session", "contribute", {}, round, attempt) if opened.kind == "reply" else opened

    assert [update(1, attempt, number).kind for attempt, number in ((1, 0), (2, 0), (3, 1))] == ["reply"] * 3, "a retry is the same round"
    for attempt in range(4, 8):
        assert refused(update(1, attempt, attempt), "max_rounds_per_day: 2 rounds were begun today")
    desk.restart("site_1")
    assert refused(update(2, 1, 0), "max_rounds_per_day")
    clock("2026-03-03T10:00")
    assert update(2, 2, 0).kind == "reply"


def test_what_was_not_trained_is_no_round_of_the_day(tmp_path: Path, clock: Callable[[str], None]) -> None:
    desk = Desk(tmp_path, PLAIN, "plain_updates: true\nmax_rounds_per_day: 1")
    clock("2026-03-02T10:00")
    desk.invite("site_1")
    for round in (1, 2, 1000, 1001):
        desk.ask("site_1", "open", "open", {"terms": {}, "sha256": bytes(32)}, round)
    assert desk.open("site_1", 1000).kind == "refused"
    assert Rounds(desk.homes / "site_1").full(Policy(max_rounds_per_day=1), resident_module.local_time()) is None
    assert desk.open("site_1").kind == "reply"
    assert desk.ask("site_1", "session", "contribute", {}).kind == "reply"


def test_two_runs_at_one_home_do_not_end_each_others_attempts(tmp_path: Path) -> None:
    desk = Desk(tmp_path, PLAIN, "plain_updates: true")
    other = b"the second run.."
    desk.invite("site_1")
    desk.open("site_1")
    assert desk.invite("site_1", other).body == {"joined": True}
    assert desk.open("site_1", run=other).kind == "reply"
    assert desk.ask("site_1", "session", "contribute", {}).kind == "reply"
    assert desk.ask("site_1", "session", "contribute", {}, run=other).kind == "reply"


# -- the account --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["the run", "what the site held of it", "all runs"])
def test_a_run_of_which_something_is_gone_is_over_for_this_site(tmp_path: Path, gone: str) -> None:
    """Else the same epsilon is spent again and again, with other noise each time, and the account says once."""
    desk = Desk(tmp_path, DP, "plain_updates: true\ntotal_epsilon: 4.0")
    desk.invite("site_1")
    desk.open("site_1")
    assert desk.ask("site_1", "session", "contribute", {}).kind == "reply"
    runs = desk.homes / "site_1" / "runs"
    shutil.rmtree({"the run": runs / RUN.hex(), "what the site held of it": runs / RUN.hex() / "site_1", "all runs": runs}[gone])
    for _ in range(2):
        assert refused(desk.invite("site_1"), "joined: what this site held of this run is gone")
        desk.restart("site_1")
        assert refused(desk.open("site_1", 1, 2), "joined: what this site held of this run is gone")
    assert refused(desk.invite("site_1", b"another run....."), "total_epsilon")


RECORDS = ["older runs", "files of the run", "ledger and contribution", "attempts", "starts"]


@pytest.mark.parametrize("restarted", [True, False])
@pytest.mark.parametrize("how", RECORDS)
def test_older_records_of_a_run_are_found(tmp_path: Path, how: str, restarted: bool) -> None:
    """By the audit log, or by the process that saw the newer ones. Else letters that were recorded are answered again with other noise, by
    whoever hands them in, and the account says once.
    """
    desk = Desk(tmp_path, DP, "plain_updates: true\ntotal_epsilon: 8.0")
    home, other = desk.homes / "site_1", b"another run....."
    runs = home / "runs"
    desk.invite("site_1")
    shutil.copytree(runs, tmp_path / "old")
    assert desk.ask("site_1", "hello", "hello", {"start": b"1" * 16}, 0).kind == "reply"
    desk.open("site_1")
    assert desk.ask("site_1", "session", "contribute", {}).kind == "reply"
    own = runs / RUN.hex() / "site_1"
    files = {"ledger and contribution": ("ledger.jsonl", "contribution-update"), "attempts": ("attempts",), "starts": ("starts",)}
    gone = files.get(how)
    if how == "older runs":
        shutil.rmtree(runs)
        shutil.copytree(tmp_path / "old", runs)
    for path in list(own.iterdir()):
        if gone is None or path.name in gone:
            path.unlink()
    for _ in range(2):
        if restarted:
            desk.restart("site_1")
        asked = [desk.ask("site_1", "hello", "hello", {"start": b"1" * 16}, 0), desk.ask("site_1", "session", "contribute", {})]
        for reply in (*asked, desk.open("site_1"), desk.open("site_1", 1, 2), desk.invite("site_1")):
            assert refused(reply, f"joined: what this site holds of run {RUN.hex()[:8]} is an older copy", "begin a new run")
    (row,) = [row for row in check_home(home) if row.what == "witnesses"]
    assert (row.ok, f"runs/{RUN.hex()}" in row.says, "begin new runs only" in row.says) == (False, True, True)
    assert desk.invite("site_1", other).body == {"joined": True}, "a new one is another matter"
    shutil.rmtree(runs / RUN.hex())
    assert refused(desk.invite("site_1"), "is gone")
    assert [row.ok for row in check_home(home) if row.what == "witnesses"] == [True]


def test_an_older_record_of_releases_is_found_as_well(tmp_path: Path) -> None:
    """Else a second sum of the round could be had, over other sites: the difference is one site's update."""
    desk = Desk(tmp_path, SECURE)
    own = desk.homes / "site_1" / "runs" / RUN.hex() / "site_1"
    desk.invite("site_1")
    desk.open("site_1")
    desk.residents["site_1"]._living(RUN).release("session", desk.sites)
    assert desk.open("site_1").kind == "reply", "the next answer is written down, and with it how many there were"
    (own / "released").write_bytes(b"")
    desk.restart("site_1")
    assert refused(desk.open("site_1", 1, 2), "released has 0 of 1 entries")


def test_what_a_crash_left_of_a_record_is_no_older_copy(tmp_path: Path) -> None:
    desk = Desk(tmp_path, DP, "plain_updates: true")
    own = desk.homes / "site_1" / "runs" / RUN.hex() / "site_1"
    desk.invite("site_1")
    desk.open("site_1")
    with open(own / "attempts", "ab") as file:
        file.write(b"part")
    desk.restart("site_1")
    assert desk.open("site_1", 1, 2).kind == "reply"
    desk.restart("site_1")
    assert desk.open("site_1", 1, 3).kind == "reply"
    assert [line["about"]["records"]["attempts"] for line in desk.logged("site_1") if line["stage"] == "open"] == [1, 2, 3]


def test_a_run_that_was_written_down_and_not_yet_entered_is_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies between the invitation and the account."""
    desk = Desk(tmp_path, DP, "plain_updates: true\ntotal_epsilon: 4.0")
    home, account = desk.homes / "site_1", desk.residents["site_1"]._account

    def dies(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(account, "reserve", dies)
        with pytest.raises(KeyboardInterrupt):
            desk.invite("site_1")
    desk.restart("site_1")
    assert desk.open("site_1").kind == "reply"
    assert [entry["epsilon"] for entry in read_account(home, desk.key("site_1").public)] == [4.0]


@pytest.mark.parametrize("restarted", ["at once", "after a round was opened", "never"])
def test_a_join_that_the_log_could_not_take_is_written_down_before_anything_else_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: str
) -> None:
    """Else the log would not tell of a run that was begun, as if an older one had been put back, and nothing would be joined ever after."""

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    desk = Desk(tmp_path, DP, "plain_updates: true\ntotal_epsilon: 100.0")
    with monkeypatch.context() as patched:
        patched.setattr(Audit, "note", full)
        assert desk.invite("site_1").kind == "failed"
    if restarted == "at once":
        desk.restart("site_1")
    assert desk.open("site_1").kind == "reply"
    if restarted == "after a round was opened":
        desk.restart("site_1")
    assert desk.invite("site_1", b"another run.....").body == {"joined": True}
    assert desk.invite("site_1").body == {"joined": True}
    told = [(line["run"] == RUN.hex(), line["stage"]) for line in desk.logged("site_1")]
    assert told == [(True, "join"), (True, "open"), (False, "join"), (True, "join")]
    assert desk.logged("site_1")[0]["about"]["epsilon"] == pytest.approx(4.0, rel=0.01)


def test_a_run_that_was_begun_and_of_which_the_log_does_not_tell_is_not_gone_on_with(tmp_path: Path) -> None:
    desk = Desk(tmp_path, DP, "plain_updates: true")
    names = [desk.homes / "site_1" / name for name in ("audit.jsonl", "audit.jsonl.head")]
    kept = [path.read_bytes() for path in names]
    desk.invite("site_1")
    desk.open("site_1")
    for path, text in zip(names, kept, strict=True):
        path.write_bytes(text)
    desk.restart("site_1")
    assert refused(desk.open("site_1", 1, 2), "the audit log does not tell of run", "put the newest copy back")


@pytest.mark.parametrize(
    "how", ["older account", "older account without runs", "older log", "no log and no account", "nothing but the key"]
)
def test_logs_that_were_put_back_are_found_by_what_else_remembers(tmp_path: Path, how: str) -> None:
    desk = Desk(tmp_path, DP, "plain_updates: true\ntotal_epsilon: 100.0")
    home = desk.homes / "site_1"
    kept: dict[Path, bytes] = {}
    for number in range(3):
        assert desk.invite("site_1", bytes([number]) * 16).body == {"joined": True}
        if number == 1:
            names = {"older log": ("audit.jsonl",)}.get(how, ("account.jsonl",))
            kept = {home / f"{name}{end}": (home / f"{name}{end}").read_bytes() for name in names for end in ("", ".head")}
    assert desk.open("site_1", run=bytes([2]) * 16).kind == "reply"
    for path, text in kept.items():
        path.write_bytes(text)
    if how == "older account without runs":
        shutil.rmtree(home / "runs")
    if how.startswith("no"):
        for name in ("account.jsonl", "audit.jsonl"):
            for end in ("", ".head"):
                (home / f"{name}{end}").unlink()
    if how == "nothing but the key":
        shutil.rmtree(home / "runs")
    for _ in range(2):
        reply = desk.invite("site_1", b"another run.....")
        assert "cannot be relied on" in reply.body["reason"] or "cannot write its audit log" in reply.body["reason"], reply.body
        desk.restart("site_1")


# -- an honest one ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_an_honest_run_that_loses_a_site_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """The price of sums over all sites: a round without one of them has no scores. The others have."""
    sections = {"task": {"use": "tiny", "sites": 4}, "aggregator": "secagg-plus", "training": {"steps": 1}}
    desk = Desk(tmp_path, {**sections, "run": {"rounds": 1, "metrics": "sum", "seed": 5}}, sites=4)
    deliver = residents.ResidentsTransport.deliver

    def away(self: Any, frames: Any) -> Any:
        asked = list(frames)
        gone = {site for site, data in asked if site == "site_4" and decode_message(frame_in(data)).round == lost}
        yield from ((site, Loss("away", handed=False)) for site in gone)
        yield from deliver(self, [(site, data) for site, data in asked if site not in gone])

    monkeypatch.setattr(residents.ResidentsTransport, "deliver", away)
    registry = Registry((*Registry.discover().offers, *from_objects([residents.ENGINE])))
    about = {
        **sections,
        "reporters": ["jsonl"],
        "run": {"rounds": 3, "metrics": "sum", "seed": 5},
        "engine": {"use": "residents", "homes": str(desk.homes)},
    }
    run = Experiment(about, registry=registry).run(tmp_path / "r", report=False)
    assert [len(sites) for sites in run.result["survivors"].values()] == [3 if round == lost else 4 for round in (1, 2, 3)]
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    final = [(3, "test")] if lost != 3 else []
    assert [(row["round"], row["split"]) for row in rows] == [*((round, "validation") for round in (1, 2, 3) if round != lost), *final]
    told = f"round {lost}: no scores: they leave in a sum over all sites, and site_4 is missing: away"
    assert (tmp_path / "r" / "events.jsonl").read_text().count(told) == (1 if final else 2)
    for site in desk.sites if final else desk.sites[:3]:
        (own,) = (desk.homes / site).glob(f"runs/*/{site}/personalized.safetensors")
        assert own.stat().st_size > 0, "with the last evaluation a site writes down its model, whatever becomes of the sum"
