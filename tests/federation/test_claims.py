"""What is claimed: said with everything it depends on, as strict JSON, within a site's policy, and refused where it would be false."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from pppml_core import cli
from pppml_core.builtin.plain import Plain
from pppml_core.config.run_config import TrainingSection
from pppml_core.errors import PolicyRefusal, RunFailed, TooFewSurvivors, WireError
from pppml_core.federation.assembly import fewest_survivors
from pppml_core.federation.policy import Policy
from pppml_core.federation.round import hold_session
from pppml_core.federation.terms import check_request
from pppml_core.interfaces.aggregation import ServerContext, Session, Sum
from pppml_core.interfaces.privacy import Encoding, PrivacyMechanism, PrivacyPlan, PrivacyStatement, claim_words, plain_epsilon
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import ExchangeOutcome
from pppml_core.wire.transcript import read_transcript

SITES = ("site_1", "site_2", "site_3")

STATEMENT = PrivacyStatement(
    mechanism="fake", epsilon=5.98765, delta=3e-6, unit="patient", adjacency="add-remove", placement="distributed", accountant="pld",
    adversary="the server and 2 sites", details={"noise_multiplier": 1.25},
)  # fmt: skip
PARTS = ["epsilon 5.988", "whole run", "unit patient", "adjacency add-remove", "delta 3e-06", "accountant pld", "placement distributed",
         "adversary: the server and 2 sites"]  # fmt: skip


class ClaimPlan(PrivacyPlan):
    """States what a test wants, and charges and spends it."""

    def __init__(self, **says):
        for name, value in says.items():
            setattr(self, f"_{name}" if name == "statement" else name, value)

    @property
    def statement(self):
        return dataclasses.replace(self._statement, placement=self.placement)

    def charge(self, round):
        return {"noise_multiplier": 0.0}

    def spent(self, charges):
        return self._statement.epsilon

    def cross_checks(self):
        return {"pld": self._statement.epsilon, "prv": None, "rdp": self._statement.epsilon}


class WithGrid(ClaimPlan):
    def encoding(self, round):
        return Encoding(0.5, 20)


class Claim(PrivacyMechanism):
    def __init__(self, statement=STATEMENT, kind=ClaimPlan, **says):
        self.says, self.kind = {"statement": statement, "placement": "local", **says}, kind

    def plan(self, setting):
        return self.kind(**self.says)


INFINITE = dataclasses.replace(STATEMENT, mechanism="clip-only", epsilon=math.inf, delta=None)


def strict(text):
    """Parsed, and refused where it holds a number that JSON has not."""

    def constant(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=constant)


# -- words --------------------------------------------------------------------------------------------------------------------


def test_a_claim_names_every_part():
    words = STATEMENT.words()
    assert words == claim_words(STATEMENT.to_dict()) == claim_words(json.loads(json.dumps(STATEMENT.to_dict())))
    assert [part for part in PARTS if part not in words] == []
    assert "\n" not in words


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("epsilon", 2.5),
        ("delta", 1e-7),
        ("unit", "site"),
        ("adjacency", "zero-out"),
        ("placement", "server"),
        ("accountant", "rdp"),
        ("adversary", "anyone"),
    ],
)
def test_no_two_claims_are_said_alike(name, other):
    assert dataclasses.replace(STATEMENT, **{name: other}).words() != STATEMENT.words()


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [(0.1, "0.1"), (6, "6"), (2759.4, "2759"), (0.00012345, "0.0001234"), (123456.0, "1.235e+05")],
)
def test_epsilon_is_said_with_four_digits(epsilon, said):
    assert dataclasses.replace(STATEMENT, epsilon=epsilon).words().startswith(f"epsilon {said} for the whole run (")


def test_no_claim_and_none_that_holds_are_told_apart():
    assert PrivacyStatement("none").words() == "no differential privacy"
    assert INFINITE.words() == "no differential privacy (clip-only: epsilon is infinite)"
    assert INFINITE.to_dict()["epsilon"] == "inf"
    assert STATEMENT.to_dict()["epsilon"] == 5.98765
    assert PrivacyStatement("none").to_dict()["epsilon"] is None


@pytest.mark.parametrize(("epsilon", "plain"), [(None, None), (0.0, 0.0), (6.5, 6.5), (math.inf, "inf"), (np.float64(math.inf), "inf")])
def test_epsilon_as_json_has_it(epsilon, plain):
    assert plain_epsilon(epsilon) == plain
    strict(json.dumps(plain_epsilon(epsilon)))


# -- where it is said ---------------------------------------------------------------------------------------------------------


def shown(plan):
    return " ".join(str(plan).split())


def test_the_plan_says_the_claim_whole_in_headline_warning_and_json(experiment):
    plan = experiment(privacy=Claim(placement="distributed")).plan()
    document = strict(json.dumps(plan.to_dict()))
    assert document["headline"] == f"The server sees every update; {STATEMENT.words()}."
    (warning,) = (text for text in document["warnings"] if text.startswith("privacy: "))
    assert warning.startswith(f"privacy: {STATEMENT.words()} is claimed for the shared weights, ")
    assert "; outside the claim: evaluation metrics" in warning
    assert document["privacy"] == {**STATEMENT.to_dict(), "cross_checks": {"pld": 5.98765, "prv": None, "rdp": 5.98765}}
    assert [part for part in PARTS if part not in shown(plan)] == []


def test_a_plan_without_a_bound_warns(experiment):
    plan = experiment(privacy=Claim(INFINITE, placement="none")).plan()
    document = strict(json.dumps(plan.to_dict()))
    assert document["headline"].endswith("; no differential privacy (clip-only: epsilon is infinite).")
    assert f"privacy: {INFINITE.words()}; the model may reveal its training images" in document["warnings"]
    assert not [text for text in document["warnings"] if "outside the claim" in text], "there is no claim to be outside of"
    assert document["privacy"]["epsilon"] == "inf"
    assert document["privacy"]["cross_checks"] == {"pld": "inf", "prv": None, "rdp": "inf"}


@pytest.mark.parametrize("statement", [STATEMENT, INFINITE, PrivacyStatement("silent")], ids=["claim", "infinite", "none"])
def test_all_files_of_a_run_are_strict_json_and_so_is_the_wire(experiment, wire, statement, tmp_path):
    made = experiment(privacy=Claim(statement), reporters=["jsonl"], run={"rounds": 2, "transcript": "payloads"})
    run = made.run(tmp_path / "r", report=False)
    for name in ("plan.json", "result.json", "manifest.json"):
        strict((run.folder / name).read_text())
    ledgers = list(run.folder.rglob("ledger.jsonl"))
    assert len(ledgers) == 4
    for path in (*run.folder.rglob("*.jsonl"), *ledgers):
        assert [strict(line) for line in path.read_text().splitlines()], path.name
    epsilon = {"fake": STATEMENT.epsilon, "clip-only": "inf"}.get(statement.mechanism)
    result = strict((run.folder / "result.json").read_text())["privacy"]
    assert result == {**statement.to_dict(), "placement": "local", "spent": epsilon}
    assert result["epsilon"] == epsilon
    opened = wire(run, "open", up=False)
    assert len(opened) == 6
    assert all(m.body["terms"]["privacy"]["epsilon"] == epsilon for m in opened)
    strict(json.dumps(opened[0].body["terms"]["privacy"]))


def test_the_report_says_a_claim_whole_and_no_claim_where_none_holds(go):
    for statement, claimed in ((STATEMENT, True), (INFINITE, False)):
        run = go(privacy=Claim(statement), run={"rounds": 1})
        text = " ".join(re.sub(r"<[^>]*>", " ", html.unescape(run.report(run.folder / "report.html").read_text())).split())
        assert ("no differential privacy is claimed" in text.lower()) != claimed
        if claimed:
            for part in ("5.988", "patient", "add-remove", "3e-06", "pld", "local", "the server and 2 sites"):
                assert part in text, part


@pytest.mark.parametrize(("statement", "claimed"), [(STATEMENT, True), (INFINITE, False)], ids=["claim", "infinite"])
def test_a_bundle_says_a_claim_whole(go, statement, claimed, tmp_path):
    run = go(privacy=Claim(statement), run={"rounds": 1})
    bundle = run.export_bundle(tmp_path / "bundle")
    said = (bundle / "docs/README.md").read_text()
    assert (claim_words(run.result["privacy"]) in said) == claimed
    assert ("without a differential privacy guarantee" in said) != claimed
    strict((bundle / "configs/metadata.json").read_text())


def test_pppml_plan_json_is_strict(tmp_path):
    (tmp_path / "c.yaml").write_text("task: tiny\n")
    out = CliRunner().invoke(cli.main, ["plan", str(tmp_path / "c.yaml"), "--json"])
    assert out.exit_code == 0, out.output
    assert strict(out.output)["privacy"]["epsilon"] is None


# -- a site's policy ------------------------------------------------------------------------------------------------------------


def announced(epsilon):
    return {"cohort": list(SITES), "privacy": {"mechanism": "fake", "epsilon": epsilon}, "guarantees": {"sees_update": ["server"]}}


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [(None, "none"), ("inf", "inf"), (math.inf, "inf"), (math.nan, "nan"), (3.0001, "3.0001"), (4, "4"), ("2", "2"), ([1.0], r"\[1.0\]")],
    ids=str,
)
def test_max_epsilon_refuses_what_is_more_or_no_bound_at_all(epsilon, said):
    with pytest.raises(PolicyRefusal, match=f"max_epsilon: {said} announced, at most 3 allowed"):
        Policy(max_epsilon=3.0).check(announced(epsilon))
    Policy().check(announced(epsilon))


@pytest.mark.parametrize("epsilon", [3.0, 3, 2.9999, 0.0])
def test_max_epsilon_admits_what_is_within_it(epsilon):
    Policy(max_epsilon=3.0).check(announced(epsilon))


def test_a_policy_has_no_infinite_limit():
    for limit in (math.inf, math.nan, 0.0, -1.0):
        with pytest.raises(ValueError, match="max_epsilon"):
            Policy(max_epsilon=limit)


TERMS = {"round": 1, "cohort": ["a"], "ranges": [], "max_weight": 1, "guarantees": {"sees_update": []}, "metrics": "none", "keep": [],
         "roster": bytes(32)}  # fmt: skip


@pytest.mark.parametrize("epsilon", [None, 6.0, 6, "inf", "Inf", "6", ""])
def test_terms_carry_numbers_inf_and_nothing_else(epsilon):
    body = {"terms": {**TERMS, "privacy": {"epsilon": epsilon}}, "sha256": bytes(32)}
    if epsilon in (None, 6, "inf"):
        check_request("open", body)
        return
    with pytest.raises(WireError, match="a number, inf or none"):
        check_request("open", body)


# -- what would make a claim false ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("configured", "fits"), [("auto", True), (1, True), (2, False), (26, False)])
def test_a_weight_bound_of_ones_own_is_refused_under_a_constant_weight(experiment, configured, fits):
    plan = experiment(privacy=Claim(constant_weight=1), encoding={"max_weight": configured}).plan()
    found = [text for text in plan.misfits if text.startswith("encoding.max_weight: ")]
    if fits:
        assert plan.misfits == []
        assert plan.plan.max_weight == 1
        return
    assert found == ["encoding.max_weight: fake gives every site the weight 1, and its noise is sized for that; leave it out"]


def test_a_weight_bound_of_ones_own_is_as_before_without_a_constant_weight(experiment):
    assert experiment(privacy=Claim(), encoding={"max_weight": 100}).plan().misfits == []
    (found,) = experiment(privacy=Claim(constant_weight=5), encoding={"max_weight": 4}).plan().misfits[:1]
    assert "gives every site the weight 5" in found


@pytest.mark.parametrize(
    ("says", "kind", "fits"),
    [
        ({"placement": "distributed"}, ClaimPlan, False),
        ({"placement": "server"}, ClaimPlan, False),
        ({"placement": "local", "noise_bound": 9}, ClaimPlan, False),
        ({"placement": "local"}, WithGrid, False),
        ({"placement": "none"}, WithGrid, False),
        ({"placement": "local"}, ClaimPlan, True),
        ({"placement": "none"}, ClaimPlan, True),
    ],
    ids=str,
)
def test_noise_of_integers_needs_integers(experiment, says, kind, fits):
    """With real numbers nobody would ask for noise; a mechanism whose gradients have had theirs, or that has none, may do without."""
    misfits = experiment(privacy=Claim(kind=kind, **says), encoding="float").plan().misfits
    assert misfits == ([] if fits else ["encoding: float, but the noise is added to integers; use encoding: fixed"])
    assert experiment(privacy=Claim(kind=kind, **says)).plan().misfits == []


# -- fewest survivors -------------------------------------------------------------------------------------------------------------


class OneMayFail(Plain):
    """A sum in the clear that goes on without one of its sites."""

    def __init__(self):
        pass

    def plan(self, value, cohort):
        session = super().plan(value, cohort)
        kind = type(session)
        promised = dataclasses.replace(session.guarantees, dropouts=1)
        return type("Session", (kind,), {"guarantees": promised})(value, cohort)


def test_the_fewest_sites_of_a_sum():
    guarantees = dataclasses.replace(Plain.plan(OneMayFail(), ValueSpec(1, "integer", 1), SITES).guarantees)
    assert [fewest_survivors(dataclasses.replace(guarantees, dropouts=n), 5) for n in (0, 1, 3, 4, 5, 9)] == [5, 4, 2, 1, 1, 1]
    assert fewest_survivors(None, 5) == 5, "where nothing is summed no sum is opened over fewer"


def test_the_server_asks_nobody_where_a_sum_may_be_over_too_few(experiment, tmp_path):
    claim = Claim(placement="distributed", min_survivors=3)
    made = experiment(privacy=claim, aggregator=OneMayFail(), run={"rounds": 1, "on_abort": "stop", "transcript": "payloads"})
    with pytest.raises(RunFailed, match="may be over 2 of 3 sites, and its noise is sized for at least 3"):
        made.run(tmp_path / "r", reporters=False, report=False)
    assert {h.stage for h in read_transcript(tmp_path / "r")} <= {"hello"}
    assert not list((tmp_path / "r" / "sites").rglob("ledger.jsonl")), "nothing was made, nothing is charged"


def test_as_many_survivors_as_are_needed_are_enough(go):
    sections = {"aggregator": OneMayFail(), "run": {"rounds": 1}}
    lost = {"use": "local", "faults": [{"site": "site_2", "stage": "contribute", "do": "drop-reply", "times": 99}]}
    run = go(privacy=Claim(placement="distributed", min_survivors=2), engine=lost, **sections)
    assert run.result["survivors"]["1"] == ["site_1", "site_3"]


class Says(Session):
    """A session that gives a sum over whom it likes."""

    guarantees, fields, handle, exposed = None, (), None, None

    def __init__(self, survivors):
        super().__init__(ValueSpec(4, "integer", 10), SITES)
        self.survivors = survivors

    def coordinate(self, ctx):
        yield []
        return Sum(np.zeros(4, np.int64), self.survivors)


Says.__abstractmethods__ = frozenset()


@pytest.mark.parametrize("needed", [1, 2, 3])
@pytest.mark.parametrize("survived", [1, 2, 3])
def test_a_sum_over_fewer_than_the_noise_is_sized_for_is_no_sum(survived, needed):
    config = SimpleNamespace(run=SimpleNamespace(min_cohort=1))
    server = SimpleNamespace(
        parts=SimpleNamespace(config=config),
        privacy=SimpleNamespace(min_survivors=needed),
        perform=lambda *_: ExchangeOutcome({}, (), {}),
    )
    ctx = ServerContext(b"r" * 16, 1, 1, SITES, b"")
    if survived < len(SITES):
        with pytest.raises(TooFewSurvivors, match=f"{SITES[survived]} is missing"):
            hold_session(server, Says(SITES[:survived]), "metrics", ctx)  # scores are summed over all, whatever the noise
    else:
        assert hold_session(server, Says(SITES), "metrics", ctx).survivors == SITES
    if survived >= needed:
        assert hold_session(server, Says(SITES[:survived]), "session", ctx).survivors == SITES[:survived]
        return
    with pytest.raises(TooFewSurvivors, match=f"over {survived} sites, too few"):
        hold_session(server, Says(SITES[:survived]), "session", ctx)


def test_the_section_of_training_reaches_the_mechanism_as_plain_data(experiment):
    seen = []

    class Asked(Claim):
        def misfits(self, setting, personalization, model, training):
            seen.append((training, setting.batch_size))
            return ["the optimizer is too bold; take sgd", "delta is above 1/N; lower it"]

    misfits = experiment(privacy=Asked(), training={"batch_size": 7}).plan().misfits
    assert misfits == ["privacy: the optimizer is too bold; take sgd", "privacy: delta is above 1/N; lower it"]
    assert set(seen[0][0]) == set(TrainingSection.model_fields)
    assert (seen[0][0]["batch_size"], seen[0][1]) == (7, 7)
    assert type(seen[0][0]["optimizer"]) is dict
