"""Whom a site counts as a site: the identities it pinned itself, whatever a server says. And the rules it keeps in a file."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from pppml_core.builtin.configs import TinyTaskConfig
from pppml_core.builtin.tiny import TinyTask
from pppml_core.component import ComponentConfig
from pppml_core.engines.config import LocalConfig
from pppml_core.engines.local import LocalEngine
from pppml_core.engines.parties import acquaint
from pppml_core.errors import ConfigError, PolicyRefusal, RunFailed
from pppml_core.federation import identity
from pppml_core.federation.home import policy_template
from pppml_core.federation.identity import load_roster, new_identity, provision, roster_hash
from pppml_core.federation.policy import Policy, load_policy
from pppml_core.interfaces.aggregation import Aggregator, Guarantees, Session, Sum
from pppml_core.testing.policies import insist
from pppml_core.wire.codec import decode_message
from pppml_core.wire.manifest import WireField
from pppml_core.wire.messages import SERVER, Exchange

SITES = ["site_1", "site_2", "site_3"]


class Meddling(LocalEngine):
    """The local engine, with homes that somebody changes once they are made."""

    def __init__(self, meddle):
        super().__init__(LocalConfig())
        self.meddle = meddle

    def connect(self, job):
        transport = super().connect(job)
        self.meddle(job)
        return transport


def repin(home, party, public):
    """Put another identity into a roster, as its owner could."""
    roster = load_roster(home)
    if public is None:
        del roster[party]
    else:
        roster[party] = public
    (home / identity.ROSTER_FILE).write_bytes(identity._roster_text(roster))


def losses(run, stage="open"):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {e["site"]: e["reason"] for e in events if e["event"] == "site-lost" and e["stage"] == stage}


# -- rosters ------------------------------------------------------------------------------------------------------------------------------


def test_a_run_on_one_machine_pins_everybody(go):
    run = go(run={"transcript": "payloads", "cohort": 2})
    homes = {party: run.folder / "sites" / party for party in (*SITES, SERVER)}
    rosters = [load_roster(home) for home in homes.values()]
    assert all(roster == rosters[0] for roster in rosters)
    assert set(rosters[0]) == set(homes)
    assert len(set(rosters[0].values())) == 4
    assert all((home / "identity.key").stat().st_mode & 0o777 == 0o600 for home in homes.values())
    announced = [decode_message(payload.read_bytes()).body.get("terms") for payload in (run.folder / "transcripts" / "payloads").iterdir()]
    terms = [t for t in announced if t]
    assert terms
    assert all(t["roster"] == roster_hash(rosters[0], (*t["cohort"], SERVER)) for t in terms)


def test_identities_stay_the_same_when_a_run_is_resumed(experiment, tmp_path):
    fault = {"site": "site_2", "stage": "contribute", "round": 2, "attempt": 1, "do": "drop"}
    made = experiment(engine={"use": "local", "faults": [fault]}, run={"on_abort": "stop", "min_cohort": 3})
    with pytest.raises(RunFailed):
        made.run(tmp_path / "r", reporters=False, report=False)
    keys = {p: p.read_bytes() for p in (tmp_path / "r" / "sites").rglob("identity.key")}
    assert len(keys) == 4
    made.run(tmp_path / "r", reporters=False, report=False)
    assert {p: p.read_bytes() for p in (tmp_path / "r" / "sites").rglob("identity.key")} == keys


@pytest.mark.parametrize("party", ["site_2", SERVER])
def test_a_server_that_announces_other_identities_is_refused_by_everyone(experiment, tmp_path, party):
    def lie(job):
        repin(job.home(SERVER), party, new_identity(tmp_path / "stranger").public)

    made = experiment(engine=Meddling(lie), reporters=["jsonl"], run={"retries": 0})
    with pytest.raises(RunFailed, match="0 sites accepted"):
        made.run(tmp_path / "r", report=False)
    reasons = losses(tmp_path / "r")
    assert set(reasons) == set(SITES)
    assert all("not those pinned at this site" in text and "pppml site show" in text for text in reasons.values())
    assert not list((tmp_path / "r" / "sites").glob("*/contribution-*")), "nobody trained"


def test_a_site_whose_pins_differ_refuses_and_the_others_go_on(experiment, tmp_path):
    def differ(job):
        repin(job.home("site_2"), "site_3", new_identity(tmp_path / "stranger").public)

    run = experiment(engine=Meddling(differ), reporters=["jsonl"]).run(tmp_path / "r", report=False)
    assert run.result["survivors"] == {"1": ["site_1", "site_3"], "2": ["site_1", "site_3"]}
    assert "it refused: the identities that the server announced" in losses(tmp_path / "r")["site_2"]


def test_a_site_refuses_a_cohort_with_somebody_it_has_not_pinned(experiment, tmp_path):
    def forget(job):
        repin(job.home("site_2"), "site_3", None)

    run = experiment(engine=Meddling(forget), reporters=["jsonl"]).run(tmp_path / "r", report=False)
    assert run.result["survivors"]["1"] == ["site_1", "site_3"]
    assert losses(tmp_path / "r")["site_2"] == "it refused: no identity is pinned here for site_3 (pppml site trust)"


def test_a_server_that_has_not_pinned_a_site_does_not_begin(experiment, tmp_path):
    with pytest.raises(ConfigError, match="pinned no identity for site_3") as caught:
        experiment(engine=Meddling(lambda job: repin(job.home(SERVER), "site_3", None))).run(tmp_path / "r", reporters=False, report=False)
    assert caught.value.exit_code == 2


def test_a_home_that_pins_another_identity_for_itself_is_not_in_order(experiment, tmp_path):
    def replace(job):
        (job.home("site_2") / "identity.key").unlink()
        new_identity(job.home("site_2"))

    with pytest.raises(ConfigError, match="another identity for itself"):
        experiment(engine=Meddling(replace)).run(tmp_path / "r", reporters=False, report=False)


class Named(TinyTask):
    """A tiny task one of whose sites has the coordinator's name."""

    def sites(self):
        first, *others = super().sites()
        return [replace(first, slug=SERVER), *others]

    def load(self, site):
        return super().load("site_1" if site == SERVER else site)


def test_no_site_is_named_as_the_server(experiment):
    misfits = experiment(task=Named(TinyTaskConfig())).plan().plan.misfits
    assert any("a site is named 'server'" in text for text in misfits)


def test_a_key_file_that_a_killed_process_left_empty_is_made_anew(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "identity.key").touch(0o600)
    roster = provision(tmp_path, ("a", "b"))
    assert provision(tmp_path, ("a", "b")) == roster


# -- policies -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "# nothing said\n", "{}"])
def test_without_a_rule_nothing_is_permitted(tmp_path, text):
    if text is not None:
        (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"so it answers nothing") as caught:
        load_policy(tmp_path)
    assert caught.value.hint == "restore policy.yaml"


def test_a_site_that_an_engine_starts_on_one_machine_needs_no_file(tmp_path):
    assert load_policy(tmp_path, Policy(min_cohort=7)).min_cohort == 7
    (tmp_path / "policy.yaml").write_text("")
    with pytest.raises(ConfigError, match="no rule stands"):
        load_policy(tmp_path, Policy())


#: every rule as strict as no hospital begins.
STRICT = {
    "min_cohort": "50",
    "plain_updates": "false",
    "max_colluders": "20",
    "min_honest": "20",
    "min_degree": "20",
    "hand_on": "false",
    "components": "[unet, secagg-plus]",
    "python": '["study.nets:Net"]',
    "own_data": "true",
    "code": '{pppml-core: {version: "0.1.0"}}',
    "same_versions": "true",
    "models": f'["{"0" * 64}"]',
    "mechanisms": "[dp-sgd]",
    "placements": "[local]",
    "privacy_unit": "patient",
    "max_epsilon": "0.25",
    "total_epsilon": "0.25",
    "total_delta": "1.0e-7",
    "metrics": "none",
    "fewest_patients": "50",
    "hours": '"07:00-19:00"',
    "max_rounds_per_day": "10",
    "vet_weights": "true",
    "record_secrets": "false",
}


def written_out():
    """As `pppml site init` orders the rules, each with its strict value."""
    names = re.findall(r"^(\w+): ", policy_template(careful=True), re.MULTILINE)
    return [f"{name}: {STRICT[name]}\n" for name in names]


def test_no_loss_of_text_makes_a_policy_looser(tmp_path):
    """Wherever the file was cut off: refused, or the same."""
    text = "".join(written_out())
    (tmp_path / "policy.yaml").write_text(text)
    whole, read = load_policy(tmp_path), []
    assert whole.model_fields_set == set(Policy.model_fields)
    assert {name for name, value in whole if value == getattr(Policy(), name)} == {"same_versions", "vet_weights", "record_secrets"}
    for end in range(len(text)):
        (tmp_path / "policy.yaml").write_text(text[:end])
        try:
            held = load_policy(tmp_path)
        except ConfigError:
            continue
        read.append(end)
        assert held == whole
    assert read == [len(text) - 1], "without the end of its last line"


@pytest.mark.parametrize("name", Policy.model_fields)
def test_a_rule_that_is_lost_is_named(tmp_path, name):
    kept = [line for line in written_out() if not line.startswith(f"{name}:")]
    (tmp_path / "policy.yaml").write_text("".join(kept))
    with pytest.raises(ConfigError, match=rf"yaml: rule {name} does not stand in policy\.yaml, so this site answers nothing") as caught:
        load_policy(tmp_path)
    assert "pppml site init" in caught.value.hint


def test_all_rules_that_are_lost_are_named_at_once(tmp_path):
    (tmp_path / "policy.yaml").write_text("".join(written_out()[:-3]))
    with pytest.raises(ConfigError, match="rules max_rounds_per_day, vet_weights, record_secrets do not stand in"):
        load_policy(tmp_path)


def test_homes_of_one_person_have_the_rules_of_a_simulation_written_out(tmp_path):
    acquaint(tmp_path, ("site_1", "server"))
    held = load_policy(tmp_path / "site_1")
    assert held.model_dump() == Policy().model_dump()
    held.check(terms(coalition_curious=0))  # null: as if it were not said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_cohrt: 5", "did you mean 'min_cohort'"),
        ("colour: red", "known here: min_cohort"),
        ("\nmin_cohort: 0", "policy.yaml:2: min_cohort: input should be greater than or equal to 1, not 0"),
        ("min_cohort: '5'", "valid integer"),
        ("plain_updates: 1", "valid boolean"),
        ("min_honest: 1", "min_honest: fewest sites"),
        ("max_epsilon: .inf", "finite"),
        ("max_epsilon: 0", "greater than 0"),
        ("- min_cohort", "must be a map"),
        ("min_cohort: 5\nmin_cohort: 2", "given twice"),
    ],
)
def test_a_slip_in_a_file_is_told_with_its_line(tmp_path, text, said):
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_policy(tmp_path)
    assert "policy.yaml:" in str(caught.value)


@pytest.mark.parametrize("what", ["folder", "dangling", "misspelt"])
def test_a_policy_that_cannot_be_read_is_no_permission(tmp_path, what):
    if what == "folder":
        (tmp_path / "policy.yaml").mkdir()
    elif what == "dangling":
        (tmp_path / "policy.yaml").symlink_to(tmp_path / "not-mounted")
    else:
        insist(tmp_path)
        (tmp_path / "policy.yaml").rename(tmp_path / "policy.yml")
    with pytest.raises(ConfigError, match="policy"):
        load_policy(tmp_path)


def test_others_must_not_write_the_policy(tmp_path):
    insist(tmp_path, "min_cohort: 3")
    (tmp_path / "policy.yaml").chmod(0o666)
    assert load_policy(tmp_path).min_cohort == 3, "nobody else gets into this folder"
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="others may change"):
        load_policy(tmp_path)


def test_a_policy_in_a_sites_folder_holds_in_a_run_on_one_machine(experiment, tmp_path):
    home = tmp_path / "r" / "sites" / "site_2"
    home.mkdir(parents=True)
    insist(home, "plain_updates: false")
    run = experiment(reporters=["jsonl"]).run(tmp_path / "r", report=False)
    assert run.result["survivors"]["1"] == ["site_1", "site_3"]
    assert losses(tmp_path / "r")["site_2"] == "it refused: plain_updates: server would see this site's update"


def test_a_slip_in_a_sites_policy_stops_the_run_before_it_begins(experiment, tmp_path):
    home = tmp_path / "r" / "sites" / "site_2"
    home.mkdir(parents=True)
    (home / "policy.yaml").write_text("plain_update: false\n")
    with pytest.raises(ConfigError, match="unknown rule 'plain_update'") as caught:
        experiment(reporters=["jsonl"]).run(tmp_path / "r", report=False)
    assert "did you mean 'plain_updates'" in str(caught.value)


def terms(sees=(), **promised):
    return {"cohort": SITES, "privacy": {}, "guarantees": {"sees_update": list(sees), **promised}}


@pytest.mark.parametrize(
    ("policy", "announced", "refused"),
    [
        (Policy(), terms((SERVER,), coalition_curious=0), False),
        (Policy(), terms(coalition_curious=0), False),
        (Policy(max_colluders=1), terms((SERVER,), coalition_curious=0), False),
        (Policy(max_colluders=1), terms(coalition_curious=0), True),
        (Policy(max_colluders=None), terms(coalition_curious=0), False),
        (Policy(max_colluders=None, plain_updates=False), terms(coalition_curious=0), True),
        (Policy(max_colluders=2), terms(coalition_curious=1), True),
        (Policy(max_colluders=2), terms(coalition_curious=2), False),
        (Policy(plain_updates=False), terms(coalition_curious=0), True),
        (Policy(plain_updates=False), terms(coalition_curious=1), False),
        (Policy(plain_updates=False, max_colluders=0), terms(coalition_curious=0), False),
        (Policy(plain_updates=False, max_colluders=5), terms(), False),  # nothing is summed
    ],
)
def test_a_sum_that_withstands_fewer_colluders_than_demanded_is_refused(policy, announced, refused):
    if not refused:
        policy.check(announced)
        return
    with pytest.raises(PolicyRefusal, match="max_colluders: the sum withstands"):
        policy.check(announced)


class Claiming(Session):
    """Says that it withstands two colluders; it is for policies only."""

    repeatable = True

    @property
    def guarantees(self):
        return Guarantees((SERVER,), (), (), 0, 2, 0, "claimed")

    @property
    def fields(self):
        return (WireField("give", "values", "int32", (self.value.length,), 8 * self.value.length, "in the clear", "the update"),)

    def coordinate(self, ctx):
        assert set(ctx.roster) == {*ctx.cohort, SERVER}
        identity.verify(ctx.roster[SERVER], ctx.sign(b"x"), b"x", SERVER)
        given = yield Exchange("give", {s: {} for s in ctx.cohort})
        return Sum(sum(body["values"].astype("int64") for body in given.replies.values()), given.answered)

    def handle(self, state, message, ctx):
        assert set(ctx.roster) == {*ctx.cohort, SERVER}
        identity.verify(ctx.roster[ctx.site], ctx.sign(b"x"), b"x", ctx.site)
        assert isinstance(ctx.policy, Policy)
        return state, {"values": ctx.contribution()}


class ClaimingSum(Aggregator):
    def __init__(self):
        super().__init__(ComponentConfig())

    def plan(self, value, cohort):
        return Claiming(value, cohort)


def test_sites_hold_a_sum_against_their_own_policies_and_sign_with_their_own_keys(experiment, tmp_path):
    for site, rule in (("site_1", 2), ("site_2", 3)):
        home = tmp_path / "r" / "sites" / site
        home.mkdir(parents=True)
        insist(home, f"plain_updates: false\nmax_colluders: {rule}")
    run = experiment(aggregator=ClaimingSum(), reporters=["jsonl"]).run(tmp_path / "r", report=False)
    assert run.result["survivors"]["1"] == ["site_1", "site_3"]
    assert "the sum withstands 2 sites that work with the server, 3 are demanded" in losses(tmp_path / "r")["site_2"]


@pytest.mark.parametrize("aggregator", [None, ClaimingSum], ids=["plain", "object"])
def test_one_sum_is_measured_with_identities_of_its_own(experiment, aggregator):
    plan = experiment(**({"aggregator": aggregator()} if aggregator else {})).plan(measure=True).plan
    assert plan.measured["one sum"] > 0
