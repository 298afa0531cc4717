"""Runs that a hospital's policy must refuse before anything is trained, and runs that it lets pass; also under a coordinator that lies."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pppml_core.api import Experiment
from pppml_core.config import to_plain
from pppml_core.discovery import from_objects
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.federation import resident as resident_module
from pppml_core.federation.admission import Case, _own_data, model_hash
from pppml_core.federation.assembly import Assembly
from pppml_core.federation.code import code_of_run
from pppml_core.federation.home import policy_template
from pppml_core.federation.identity import load_identity, load_roster, new_identity, statement
from pppml_core.federation.invitation import JOIN, Invitation, invitation_to
from pppml_core.federation.letter import written
from pppml_core.federation.policy import Policy, load_policy
from pppml_core.federation.resident import Resident
from pppml_core.federation.site_ledger import read_account
from pppml_core.federation.timetable import Rounds
from pppml_core.interfaces.engine import Job
from pppml_core.registry import Registry
from pppml_core.testing.policies import insist
from pppml_core.testing.residents import ENGINE, acquaint
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message

SITES = ("site_1", "site_2", "site_3")
RUN = b"a run of a test!"
#: a run that the policy of a hospital accepts.
MODEST: dict[str, Any] = {
    "task": "tiny",
    "aggregator": "secagg-plus",
    "training": {"steps": 1},
    "run": {"rounds": 1, "metrics": "sum", "seed": 5},
}
DP = {"use": "dp-sgd", "epsilon": 4.0}
#: two runs cost 8, three too much.
BUDGET = "total_epsilon: 8.0\ntotal_delta: 2.0e-5"


@cache
def registry() -> Registry:
    found = Registry.discover()
    return Registry((*found.offers, *from_objects([ENGINE])))


@cache
def _parts(text: str) -> tuple[Assembly, dict[str, int]]:
    sections = yaml.safe_load(text)
    plan = Experiment(sections, registry=registry())._plan()
    assert plan.assembly is not None
    return plan.assembly, plan.sizes


def parts_of(**changes: Any) -> tuple[Assembly, dict[str, int]]:
    """Parts and sizes of the modest run with sections laid over it; made once."""
    sections = {**MODEST, **changes, "run": {**MODEST["run"], **changes.get("run", {})}}
    return _parts(yaml.safe_dump(sections, sort_keys=False))


def invitation(*, named: bytes = RUN, **changes: Any) -> Invitation:
    """What an honest coordinator asks for."""
    parts, sizes = parts_of(**changes)
    return invitation_to(Job(named, to_plain(parts.config), Path("unused"), SITES, sizes, {}, parts=parts), parts)


@pytest.fixture(scope="session")
def acquainted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    homes = tmp_path_factory.mktemp("homes")
    acquaint(homes, (*SITES, SERVER))
    return homes


@dataclass
class Hospital:
    """One site at its desk, and the coordinator's key."""

    homes: Path
    site: str = "site_1"

    def __post_init__(self) -> None:
        self.home = self.homes / self.site
        self.resident = Resident(self.home)

    def insist(self, text: str) -> None:
        """The policy of a hospital, with further rules laid over it."""
        rules = {**yaml.safe_load(policy_template(careful=True)), **yaml.safe_load(text or "{}")}
        (self.home / "policy.yaml").write_text(yaml.safe_dump(rules))

    def frame(self, asked: Invitation, *, body: Mapping[str, Any] | None = None, recipient: str | None = None) -> bytes:
        told = asked.body(load_identity(self.homes / SERVER)) if body is None else body
        return encode_message(Message(asked.run, 0, 1, JOIN, JOIN, SERVER, recipient or self.site, told))

    def receive(self, frame: bytes, signer: str = SERVER) -> Message:
        return decode_message(self.resident.receive(written(load_identity(self.homes / signer), signer, frame)))

    def ask(self, asked: Invitation, **how: Any) -> Message:
        return self.receive(self.frame(asked, **how))

    def untouched(self, run: bytes = RUN) -> None:
        """Nothing was trained, and the run cannot go on here."""
        made = [path for pattern in ("contribution-*", "state-*", "invitation") for path in self.home.rglob(pattern)]
        assert made == []
        hello = self.receive(encode_message(Message(run, 0, 1, "hello", "hello", SERVER, self.site)))
        assert (hello.kind, "has not joined" in hello.body["reason"]) == ("failed", True)


@pytest.fixture
def hospital(acquainted: Path, tmp_path: Path) -> Hospital:
    shutil.copytree(acquainted, tmp_path / "homes")
    return Hospital(tmp_path / "homes")


def refused(reply: Message, rule: str, said: str = "") -> None:
    assert reply.kind == "refused", reply.body
    assert reply.body["reason"].startswith(f"{rule}: "), reply.body
    assert "; here: " not in reply.body["reason"], "numbers that a rule protects stay here"
    assert said in reply.body["reason"], reply.body


# -- what the configuration says ----------------------------------------------------------------------------------------------------------

OTHER = "0" * 64
#: code that is no component of a plugin.
OWN = {"use": "pppml_core.builtin.tiny:TinyNet", "args": {"width": 3, "norm": "group"}}
UNDER_DP = {"privacy": DP}
#: name -> rules beside those of a hospital, sections beside the modest ones, the rule that is named, a part of the reason.
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "fewer sites than demanded": ("min_cohort: 4", {}, "min_cohort", "3 sites announced, at least 4 required"),
    "two sites": ("", {"task": {"use": "tiny", "sites": 2}}, "sites", "none of the sites"),
    "sums in the clear": ("", {"aggregator": "plain"}, "plain_updates", "server would see this site's update"),
    "one key of all sites": ("", {"aggregator": "he-fedavg"}, "max_colluders", "withstands 0"),
    "more colluders than the sum withstands": ("max_colluders: 2", {}, "max_colluders", "withstands 1"),
    "a sum that is not listed": (
        "components: [tiny, tiny-net, fedavg, none, secagg-plus]\nmax_colluders: 0",
        {"aggregator": "he-fedavg"},
        "components",
        "aggregator he-fedavg",
    ),
    "a part of a listed sum that is not listed": (
        "components: [tiny, tiny-net, fedavg, none, cyclic-he]",
        {"aggregator": {"use": "cyclic-he", "rings": 1, "backend": {"use": "tenseal"}}},
        "components",
        "aggregator.backend tenseal",
    ),
    "a method that is not listed": (
        "components: [tiny, tiny-net, fedavg, none, secagg-plus]",
        {"personalization": "per-fedavg"},
        "components",
        "personalization per-fedavg",
    ),
    "unknown files of a plugin": (f"code: {{pppml-core: {{version: '0.1.0'}}, pppml-secagg-plus: '{OTHER}'}}", {}, "code", OTHER),
    "unknown version of the core": ("code: {pppml-core: {version: '9.9'}}", {}, "code", "9.9 is pinned"),
    "a plugin nobody looked at": ("code: {pppml-core: {version: '0.1.0'}}", {}, "code", "pppml-secagg-plus is not listed"),
    "another network": ("models: [@]", {"model": {"use": "tiny-net", "width": 3}}, "models", "the network has the hash"),
    "code of the researcher's own": ("", {"model": OWN}, "python", "pppml_core.builtin.tiny:TinyNet"),
    "code of the researcher's own that is not the listed one": (
        "python: ['study.net:Net']",
        {"model": OWN},
        "python",
        "TinyNet is no component",
    ),
    "own scores where sums may leave": ("", {"run": {"metrics": "per-site"}}, "metrics", "per-site announced, at most sum allowed"),
    "sums of scores where none may leave": ("metrics: none", {}, "metrics", "sum announced, at most none allowed"),
    "scores of three patients": (
        "metrics: per-site\nfewest_patients: 4",
        {"run": {"metrics": "per-site"}},
        "fewest_patients",
        "scores of fewer than 4 validation patients",
    ),
    "no mechanism": ("mechanisms: [dp-sgd, dp-update]", {}, "mechanisms", "one of dp-sgd, dp-update required"),
    "another mechanism": ("mechanisms: [dp-update]", UNDER_DP, "mechanisms", "dp-sgd announced"),
    "images where patients are to be protected": ("privacy_unit: patient", UNDER_DP, "privacy_unit", "example announced"),
    "noise by the coordinator": (
        "placements: [local, distributed]",
        {"privacy": {**DP, "placement": "server"}},
        "placements",
        "noise by server announced, by local or distributed required",
    ),
    "a large epsilon": ("max_epsilon: 3.9", UNDER_DP, "max_epsilon", "4 announced, at most 3.9 allowed"),
    "no epsilon": ("max_epsilon: 8.0", {}, "max_epsilon", "none announced"),
    "an infinite epsilon": ("max_epsilon: 8.0", {"privacy": "clip-only"}, "max_epsilon", "inf announced"),
    "no privacy on an account": (BUDGET, {}, "total_epsilon", "this run costs epsilon inf"),
    "an infinite epsilon on an account": (BUDGET, {"privacy": "clip-only"}, "total_epsilon", "this run costs epsilon inf"),
    "more than all runs may cost": (
        "total_epsilon: 3.0",
        UNDER_DP,
        "total_epsilon",
        "this run costs epsilon 4 and delta 1e-05, more than is left of epsilon 3 ",
    ),
    "sums of scores in the clear": ("plain_updates: true", {"aggregator": "plain"}, "metrics", "somebody sees this site's own"),
    "a larger delta than all runs may have": ("total_epsilon: 8.0\ntotal_delta: 1.0e-6", UNDER_DP, "total_epsilon", "delta 1e-06"),
    "secrets on disk": ("", {"run": {"transcript": "secrets"}}, "record_secrets", "run.transcript: secrets"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_breaks_a_rule_is_refused_before_training(hospital: Hospital, name: str) -> None:
    rules, sections, rule, said = REFUSED[name]
    parts, _ = parts_of()
    hospital.insist(rules.replace("@", f"'{model_hash(parts)}'"))
    asked = invitation(**sections)
    if name == "two sites":
        asked = replace(asked, sites=SITES[1:], sizes={site: asked.sizes.get(site, 24) for site in SITES[1:]})
    refused(hospital.ask(asked), rule, said)
    hospital.untouched()
    assert read_account(hospital.home, load_identity(hospital.home).public) == [], "what is refused costs nothing"


# -- what stands in the home, and the clock -----------------------------------------------------------------------------------------------


def test_two_runs_cost_more_than_one(hospital: Hospital) -> None:
    hospital.insist("total_epsilon: 7.0")
    assert hospital.ask(invitation(named=b"the first run...", **UNDER_DP)).kind == "reply"
    refused(
        hospital.ask(invitation(named=b"the second run..", **UNDER_DP)),
        "total_epsilon",
        "this run costs epsilon 4 and delta 1e-05, more than is left of epsilon",
    )
    assert [entry["run"] for entry in read_account(hospital.home, load_identity(hospital.home).public)] == [b"the first run...".hex()]


def test_claims_for_different_units_are_not_added(hospital: Hospital) -> None:
    hospital.insist("total_epsilon: 100.0")
    assert hospital.ask(invitation(named=b"the first run...", **UNDER_DP)).kind == "reply"
    by_patient = invitation(named=b"the second run..", privacy={**DP, "unit": "patient"})
    refused(hospital.ask(by_patient), "total_epsilon", "its unit of privacy is not that of every run before it")


def test_a_run_counts_once_however_often_it_is_asked_for_and_whoever_restarts(hospital: Hospital) -> None:
    hospital.insist("total_epsilon: 4.0")
    asked = invitation(**UNDER_DP)
    for _ in range(2):
        assert hospital.ask(asked).kind == "reply"
        hospital.resident = Resident(hospital.home)
    (entry,) = read_account(hospital.home, load_identity(hospital.home).public)
    assert (entry["epsilon"], entry["delta"], entry["unit"]) == (4.0, 1e-5, "example")
    refused(hospital.ask(replace(asked, run=b"a run once more!")), "total_epsilon", "this run costs epsilon 4")


def test_without_a_limit_runs_are_entered_all_the_same(hospital: Hospital) -> None:
    hospital.insist("")
    assert hospital.ask(invitation()).kind == "reply"
    (entry,) = read_account(hospital.home, load_identity(hospital.home).public)
    assert entry["epsilon"] == "inf"
    hospital.insist("total_epsilon: 1000.0")
    refused(hospital.ask(invitation(named=b"the second run..", **UNDER_DP)), "total_epsilon", "more than is left of epsilon 1000")


@pytest.mark.parametrize("what", ["changed", "gone"])
def test_an_account_that_cannot_be_relied_on_accepts_nothing(hospital: Hospital, what: str) -> None:
    hospital.insist(BUDGET)
    assert hospital.ask(invitation(**UNDER_DP)).kind == "reply"
    account = hospital.home / "account.jsonl"
    if what == "changed":
        account.write_bytes(account.read_bytes().replace(b'"epsilon":4.0', b'"epsilon":0.4'))
    else:
        account.unlink()
        (hospital.home / "account.jsonl.head").unlink()
    for fresh in (False, True):
        hospital.resident = Resident(hospital.home) if fresh else hospital.resident
        refused(hospital.ask(invitation(named=b"the second run..", **UNDER_DP)), "total_epsilon", "cannot be relied on: line 1")


@pytest.mark.parametrize(
    ("hours", "time", "works"),
    [
        ("07:00-19:00", "06:59", False),
        ("07:00-19:00", "07:00", True),
        ("07:00-19:00", "19:00", False),
        ("22:00-06:00", "23:30", True),
        ("22:00-06:00", "05:59", True),
        ("22:00-06:00", "12:00", False),
    ],
)
def test_a_site_works_in_its_hours(hospital: Hospital, clock: Callable[[str], None], hours: str, time: str, works: bool) -> None:
    hospital.insist(f"hours: '{hours}'")
    clock(f"2026-03-02T{time}")
    reply = hospital.ask(invitation())
    if works:
        assert reply.kind == "reply"
        return
    refused(reply, "hours", f"its clock says {time}")
    hospital.untouched()


def opened(hospital: Hospital, round: int, attempt: int = 1) -> Message:
    return hospital.receive(
        encode_message(Message(RUN, round, attempt, "open", "open", SERVER, hospital.site, {"terms": {}, "sha256": bytes(32)}))
    )


def test_only_so_many_rounds_begin_in_a_day(hospital: Hospital, clock: Callable[[str], None]) -> None:
    hospital.insist("max_rounds_per_day: 2")
    clock("2026-03-02T10:00")
    asked = invitation(run={"rounds": 9})
    assert hospital.ask(asked).kind == "reply"
    rounds = Rounds(hospital.home)
    for begun in ("a 1 x", "a 2 x", "a 2 x"):  # a retry is the same round
        rounds.begin(Policy(max_rounds_per_day=2), resident_module.local_time(), begun)
    refused(opened(hospital, 3), "max_rounds_per_day", "2 rounds were begun today")
    hospital.resident = Resident(hospital.home)
    refused(opened(hospital, 3), "max_rounds_per_day")
    refused(hospital.ask(replace(asked, run=b"the second run..")), "max_rounds_per_day")
    clock("2026-03-03T10:00")
    assert "max_rounds" not in opened(hospital, 3).body["reason"]


def test_a_policy_that_is_edited_holds_at_once(hospital: Hospital) -> None:
    hospital.insist("")
    assert hospital.ask(invitation()).kind == "reply"
    hospital.insist("min_cohort: 4")
    refused(opened(hospital, 1), "min_cohort")
    hello = encode_message(Message(RUN, 0, 1, "hello", "hello", SERVER, hospital.site))
    refused(hospital.receive(hello), "min_cohort")


# -- who asks, and what was signed --------------------------------------------------------------------------------------------------------


def test_a_stranger_among_the_sites(hospital: Hospital) -> None:
    hospital.insist("")
    asked = invitation()
    refused(
        hospital.ask(replace(asked, sites=(*SITES, "site_9"), sizes={**asked.sizes, "site_9": 24})),
        "roster",
        "no identity is pinned here for site_9",
    )
    hospital.untouched()


def test_a_site_whose_key_was_taken_out(hospital: Hospital) -> None:
    hospital.insist("")
    roster = yaml.safe_load((hospital.home / "roster.json").read_text())
    del roster["site_2"]
    (hospital.home / "roster.json").write_text(yaml.safe_dump(roster, default_flow_style=True, default_style='"', width=10**6))
    assert set(load_roster(hospital.home)) == {"site_1", "site_3", SERVER}
    refused(hospital.ask(invitation()), "roster", "no identity is pinned here for site_2")
    hospital.untouched()


def _unsigned(hospital: Hospital, asked: Invitation) -> bytes:
    body = dict(asked.body(load_identity(hospital.homes / SERVER)))
    return hospital.frame(asked, body={**body, "signature": b""})


def _signed_by_another_site(hospital: Hospital, asked: Invitation) -> bytes:
    return hospital.frame(asked, body=asked.body(load_identity(hospital.homes / "site_2")))


def _signed_by_nobody_known(hospital: Hospital, asked: Invitation) -> bytes:
    return hospital.frame(asked, body=asked.body(new_identity(hospital.homes / "somebody")))


def _replayed_on_another_config(hospital: Hospital, asked: Invitation) -> bytes:
    body = dict(asked.body(load_identity(hospital.homes / SERVER)))
    return hospital.frame(asked, body={**body, "config": {**body["config"], "aggregator": {"use": "plain"}}})


def _replayed_on_another_run(hospital: Hospital, asked: Invitation) -> bytes:
    body = asked.body(load_identity(hospital.homes / SERVER))
    return hospital.frame(replace(asked, run=b"the second run.."), body=body)


def _signed_for_another_purpose(hospital: Hospital, asked: Invitation) -> bytes:
    identity = load_identity(hospital.homes / SERVER)
    body = dict(asked.body(identity))
    plain = {name: value for name, value in body.items() if name != "signature"}
    return hospital.frame(asked, body={**plain, "signature": identity.sign(statement("something", asked.run, plain))})


def _for_another_site(hospital: Hospital, asked: Invitation) -> bytes:
    return hospital.frame(asked, recipient="site_2")


@pytest.mark.parametrize(
    "forge",
    [
        _unsigned,
        _signed_by_another_site,
        _signed_by_nobody_known,
        _replayed_on_another_config,
        _replayed_on_another_run,
        _signed_for_another_purpose,
        _for_another_site,
    ],
)
def test_an_invitation_that_the_coordinator_did_not_sign(hospital: Hospital, forge: Callable[[Hospital, Invitation], bytes]) -> None:
    hospital.insist("")
    reply = hospital.receive(forge(hospital, invitation()))
    assert reply.kind == "failed"
    assert re.search("signature of the coordinator|for another site", reply.body["reason"])
    hospital.untouched()


def test_a_coordinator_whose_key_was_taken_out(hospital: Hospital) -> None:
    hospital.insist("")
    (hospital.home / "roster.json").unlink()
    reply = hospital.ask(invitation())
    assert (reply.kind, "its pinned coordinator signed" in reply.body["reason"]) == ("refused", True)
    made = [path for pattern in ("contribution-*", "state-*", "invitation") for path in hospital.home.rglob(pattern)]
    assert made == []


# -- a coordinator who lies ---------------------------------------------------------------------------------------------------------------


def _terms(asked: Invitation, **changes: Any) -> Invitation:
    return replace(asked, terms={**asked.terms, **changes})


def _code(asked: Invitation, name: str, **changes: str) -> Invitation:
    return replace(asked, code={**asked.code, name: {**asked.code[name], **changes}})


def _config(asked: Invitation, **changes: Any) -> Invitation:
    return replace(asked, config={**asked.config, **changes})


def _small(asked: Invitation) -> dict[str, Any]:
    return {**asked.terms["privacy"], "epsilon": 0.1}


#: name -> what an honest invitation becomes, sections beside the modest ones, the rule that is named, a part of the reason.
LIES: dict[str, tuple[Callable[[Invitation], Invitation], dict[str, Any], str, str]] = {
    "a smaller epsilon": (lambda a: _terms(a, privacy=_small(a)), UNDER_DP, "announced", "privacy"),
    "an epsilon where there is none": (
        lambda a: _terms(a, privacy={**invitation(**UNDER_DP).terms["privacy"]}),
        {},
        "announced",
        "privacy",
    ),
    "larger guarantees": (
        lambda a: _terms(a, guarantees={**a.terms["guarantees"], "coalition_curious": 9}),
        {},
        "announced",
        "guarantees",
    ),
    "nobody sees an update": (
        lambda a: _terms(a, guarantees={**invitation().terms["guarantees"]}),
        {"aggregator": "plain", "run": {"metrics": "none"}},
        "announced",
        "guarantees",
    ),
    "no scores": (lambda a: _terms(a, metrics="none"), {"run": {"metrics": "per-site"}}, "announced", "metrics"),
    "another core": (
        lambda a: _code(a, "pppml-core", version="9.9"),
        {},
        "same_versions",
        "the coordinator has pppml-core 9.9, this site 0.1.0",
    ),
    "another plugin": (
        lambda a: _code(a, "pppml-secagg-plus", version="9.9"),
        {},
        "same_versions",
        "pppml-secagg-plus 9.9, this site 0.1.0",
    ),
    "other files": (lambda a: _code(a, "pppml-core", sha256=OTHER), {}, "same_versions", "files of pppml-core 0.1.0 (0000000000000000...)"),
    "a plugin kept quiet": (
        lambda a: replace(a, code={"pppml-core": a.code["pppml-core"]}),
        {},
        "same_versions",
        "pppml-secagg-plus is used here only",
    ),
    "other numbers of examples": (lambda a: replace(a, sizes={**a.sizes, "site_1": a.sizes["site_1"] + 1}), {}, "examples", "which has 24"),
    "a name in short, which would hide it": (
        lambda a: replace(a, config={**a.config, "model": "tiny-net"}),
        {},
        "configuration",
        "model would be another here",
    ),
    "a config on this machine": (lambda a: _config(a, extends="/etc/some.yaml"), {}, "configuration", "it builds on another file"),
    "a setting left to this machine": (
        lambda a: _config(a, run={name: value for name, value in a.config["run"].items() if name != "seed"}),
        {},
        "configuration",
        "run would be another here",
    ),
    "data on this machine": (
        lambda a: _config(a, task={"use": "image-set", "path": "/data/of/another/study"}),
        {},
        "own_data",
        "task.path is a path on this machine, or reads like one",
    ),
    "weights on this machine": (
        lambda a: _config(a, training={**a.config["training"], "init": "some.safetensors"}),
        {},
        "own_data",
        "training.init is a path on this machine, or reads like one",
    ),
    "own code in short": (
        lambda a: replace(a, config={**a.config, "model": "pppml_core.builtin.tiny:TinyNet"}),
        {},
        "python",
        "pppml_core.builtin.tiny:TinyNet",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_announced_is_compared_with_what_this_site_would_do(hospital: Hospital, lie: str) -> None:
    change, sections, rule, said = LIES[lie]
    hospital.insist("")
    refused(hospital.ask(change(invitation(**sections))), rule, said)
    hospital.untouched()
    assert read_account(hospital.home, load_identity(hospital.home).public) == []


def test_own_data_are_those_that_the_site_names(hospital: Hospital) -> None:
    """The announced path is the coordinator's; what is read is the site's own."""
    hospital.insist("")
    pointing = _config(invitation(), task={"use": "image-set", "path": "/data/of/another/study"})
    (hospital.home / "site.yaml").write_text("data: /data/of/this/site\n")
    reply = hospital.ask(pointing)
    assert reply.kind == "refused"
    assert not reply.body["reason"].startswith("own_data: ")
    hospital.insist("own_data: false")
    (hospital.home / "site.yaml").write_text("")
    assert not hospital.ask(pointing).body["reason"].startswith("own_data: ")


@pytest.mark.parametrize("text", ["a/b", "runs/abc/model", "weights\\model", "$HOME/x", "/srv/x", "~root", "../x", "https://example.org/x"])
def test_no_text_of_a_run_names_a_place_of_this_machine(hospital: Hospital, text: str) -> None:
    hospital.insist("")
    naming = _config(invitation(), model={"use": "tiny-net", "width": 8, "weights": text})
    assert _own_data(Case(hospital.resident.home, load_policy(hospital.home), naming, hospital.resident._account)) == (
        "model.weights is a path on this machine, or reads like one, and only site.yaml may name one"
    )


@pytest.mark.parametrize("text", ["tiny-net", "pppml_core.builtin.tiny:TinyNet", "0.5", "benign or malignant", ""])
def test_other_texts_are_no_places(hospital: Hospital, text: str) -> None:
    hospital.insist("")
    naming = _config(invitation(), model={"use": text})
    assert _own_data(Case(hospital.resident.home, load_policy(hospital.home), naming, hospital.resident._account)) is None


def test_another_version_may_be_let_in(hospital: Hospital) -> None:
    hospital.insist("same_versions: false")
    assert hospital.ask(_code(invitation(), "pppml-core", version="9.9")).kind == "reply"


def test_under_one_name_a_run_stays_what_it_was(hospital: Hospital) -> None:
    hospital.insist("")
    assert hospital.ask(invitation(**UNDER_DP)).kind == "reply"
    refused(hospital.ask(invitation(privacy={**DP, "epsilon": 40.0})), "joined", "with another config and terms")
    assert [entry["epsilon"] for entry in read_account(hospital.home, load_identity(hospital.home).public)] == [4.0]


def test_refused_after_it_was_built_a_run_is_not_served(hospital: Hospital) -> None:
    """Nothing of the parts that were built to look at them stays within reach of a coordinator who goes on as if it had been accepted."""
    hospital.insist("")
    asked = invitation()
    refused(hospital.ask(replace(asked, sizes={**asked.sizes, "site_1": 23})), "examples")
    hospital.untouched()
    assert not hospital.resident._lives


# -- sites that an engine starts ----------------------------------------------------------------------------------------------------------


def with_rules(tmp_path: Path, rules: str, **run: Any) -> Any:
    (home := tmp_path / "r" / "sites" / "site_2").mkdir(parents=True)
    insist(home, rules)
    config = {**MODEST, "reporters": ["jsonl"], "run": {**MODEST["run"], **run}}
    return Experiment(config, registry=registry()).run(tmp_path / "r", report=False)


@pytest.mark.parametrize("rule", ["components: [tiny]", "total_epsilon: 8", "hours: '07:00-19:00'", f"models: ['{OTHER}']"])
def test_a_rule_that_only_an_invited_site_holds_is_told_elsewhere(tmp_path: Path, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"{rule.partition(':')[0]}: only a site that lives by itself"):
        with_rules(tmp_path, rule)


def test_a_hospitals_policy_without_them_holds_on_one_machine(tmp_path: Path) -> None:
    assert with_rules(tmp_path, policy_template(careful=True)).result["survivors"] == {"1": list(SITES)}


def test_scores_of_few_patients_leave_no_site_of_any_engine(tmp_path: Path) -> None:
    with_rules(tmp_path, "fewest_patients: 4", metrics="per-site")
    lines = (tmp_path / "r" / "metrics.jsonl").read_text()
    assert '"site_1"' in lines
    assert '"site_2"' not in lines
    assert "it refused: fewest_patients: scores of fewer than" in (tmp_path / "r" / "events.jsonl").read_text()


# -- whatever comes -----------------------------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def desk(acquainted: Path, tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    shutil.copytree(acquainted, homes := tmp_path_factory.mktemp("desk") / "homes")
    made = Hospital(homes)
    made.insist("")
    return made


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_frame_makes_it_raise(desk: Hospital, data: st.DataObject) -> None:
    frame = bytearray(desk.frame(invitation()))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(frame) - 1))
        frame[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    reply = desk.receive(bytes(frame))
    assert reply.kind in ("failed", "refused") or bytes(frame) == desk.frame(invitation())


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_coordinator_makes_it_raise(desk: Hospital, data: st.DataObject) -> None:
    """Signed as it should be, but with anything in any place: what the coordinator's own key can do to a site."""
    asked = invitation(named=data.draw(st.binary(min_size=16, max_size=16)))
    fields = {name: getattr(asked, name) for name in ("config", "sizes", "code", "terms", "hand_on")} | {"sites": list(asked.sites)}
    changed = _changed(fields, data)
    identity = load_identity(desk.homes / SERVER)
    body = {**changed, "signature": identity.sign(statement("invitation", asked.run, changed))}
    reply = desk.receive(desk.frame(asked, body=body))
    # Another seed, another name, relays handed on: a coordinator may well ask for that.
    assert reply.kind in ("failed", "refused") or {**changed, "config": {}, "hand_on": False} == {**fields, "config": {}}
    said = reply.body.get("reason", "")
    assert str(desk.homes) not in said
    assert "an error of its own" not in said, "every form is refused as such, not stumbled over"


def _changed(fields: Mapping[str, Any], data: st.DataObject) -> dict[str, Any]:
    """The fields with another value somewhere, or with one more."""
    out = dict(fields)
    name = data.draw(st.sampled_from(sorted(out)))
    inner = out[name]
    deeper = isinstance(inner, Mapping) and inner and data.draw(st.booleans())
    out[name] = _changed(inner, data) if deeper else data.draw(PLAIN.filter(lambda value: value != inner))
    return out


MALFORMED: dict[str, Callable[[Invitation], Invitation]] = {
    "guarantees that are none": lambda a: _terms(a, guarantees=[]),
    "privacy that is none": lambda a: _terms(a, privacy=None),
    "an epsilon that is no number": lambda a: _terms(a, privacy={**a.terms["privacy"], "epsilon": []}),
    "names that are none": lambda a: _terms(a, guarantees={**a.terms["guarantees"], "sees_update": [1]}),
    "a bound that is no number": lambda a: _terms(a, guarantees={**a.terms["guarantees"], "coalition_curious": "9"}),
    "metrics that are no text": lambda a: _terms(a, metrics=3),
    "terms that nobody knows": lambda a: _terms(a, more=1),
    "a version that is no text": lambda a: replace(a, code={"pppml-core": {"version": 1, "sha256": OTHER}}),
    "code without a hash": lambda a: replace(a, code={"pppml-core": {"version": "0.1.0"}}),
    "a site twice": lambda a: replace(a, sites=(*SITES, "site_1")),
    "a size below nothing": lambda a: replace(a, sizes={**a.sizes, "site_1": -1}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_signed_invitation_of_another_form(desk: Hospital, name: str) -> None:
    reply = desk.ask(MALFORMED[name](invitation(named=b"not of this form")))
    assert reply.kind == "failed"
    assert re.match("(join|terms): .*must", reply.body["reason"]), reply.body


KINDS = ["hello", "open", "train", "session", "metrics", "evaluate", "join", "reply", "x"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(KINDS), body=st.dictionaries(st.text(max_size=8), PLAIN, min_size=1, max_size=3))
def test_no_message_of_a_run_makes_it_raise(desk: Hospital, kind: str, body: dict[str, Any]) -> None:
    run = b"a run it is in.."
    if run not in desk.resident._lives:
        assert desk.ask(invitation(named=run)).kind == "reply"
    reply = desk.receive(encode_message(Message(run, 1, 1, kind, "advertise", SERVER, desk.site, body)))
    assert reply.kind in ("failed", "refused")


# -- runs that pass -----------------------------------------------------------------------------------------------------------------------

ALLOWED: dict[str, tuple[str, dict[str, Any]]] = {
    "a secure sum, sums of scores": ("components: [tiny, tiny-net, fedavg, none, secagg-plus]\nmodels: [@]\ncode: #", {}),
    "in the clear where that is allowed": ("plain_updates: true", {"aggregator": "plain", "run": {"metrics": "none"}}),
    "own scores of enough patients": ("metrics: per-site\nfewest_patients: 3", {"run": {"metrics": "per-site"}}),
    "dp-sgd within the account": (BUDGET + "\nmechanisms: [dp-sgd]\nplacements: [local]\nmax_epsilon: 4.0", UNDER_DP),
    "a ring": ("", {"aggregator": {"use": "cyclic-he", "rings": 1, "backend": {"use": "tenseal"}}, "run": {"metrics": "none"}}),
    "own code that is listed": ("python: ['pppml_core.builtin.tiny:TinyNet']", {"model": OWN}),
}


def residents(hospital: Hospital, rules: str, sections: Mapping[str, Any], folder: str) -> Any:
    for site in SITES:
        Hospital(hospital.homes, site).insist(rules)
    config = {**MODEST, **sections, "run": {**MODEST["run"], **sections.get("run", {})}}
    config["engine"] = {"use": "residents", "homes": str(hospital.homes)}
    return Experiment(config, registry=registry()).run(hospital.homes.parent / folder, reporters=False, report=False)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_run_that_keeps_the_rules_passes_from_end_to_end(hospital: Hospital, name: str) -> None:
    rules, sections = ALLOWED[name]
    if "cyclic-he" in str(sections) and find_spec("tenseal") is None:
        pytest.skip("TenSEAL is not installed")
    parts, _ = parts_of(**sections)
    if "code: #" in rules:
        pins = {name: code.to_dict() for name, code in code_of_run(to_plain(parts.config), registry()).items()}
        rules = rules.replace("code: #", f"code: {pins}")
    run = residents(hospital, rules.replace("@", f"'{model_hash(parts)}'"), sections, "r")
    assert run.result["survivors"] == {"1": list(SITES)}
    entries = [read_account(hospital.homes / site, load_identity(hospital.homes / site).public) for site in SITES]
    assert [len(found) for found in entries] == [1, 1, 1]


def test_a_run_that_one_site_refuses_is_not_begun(hospital: Hospital) -> None:
    with pytest.raises(RunFailed, match=r"site_1: it refused: plain_updates: .*site_3: it refused"):
        residents(hospital, "", {"aggregator": "plain"}, "r")
    assert not list(hospital.homes.rglob("contribution-*"))
    assert not list(hospital.homes.rglob("state-*"))


def test_the_account_over_runs_from_end_to_end(hospital: Hospital) -> None:
    residents(hospital, BUDGET, UNDER_DP, "first")
    residents(hospital, BUDGET, UNDER_DP, "second")
    with pytest.raises(RunFailed, match="total_epsilon: this run costs epsilon 4 and delta 1e-05, more than is left of epsilon 8"):
        residents(hospital, BUDGET, UNDER_DP, "third")
