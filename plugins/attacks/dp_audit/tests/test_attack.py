"""What the attack says of a run: the right outcome for every kind of claim and vantage, in words that do not promise too much."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pppml_core.interfaces.attack import AttackContext, Vantage
from pppml_core.interfaces.privacy import PrivacyPlan, PrivacySetting, PrivacyStatement
from pppml_core.testing import PluginSuite
from pppml_dp_audit.attack import DpAudit, schedule_of
from pppml_dp_audit.config import DpAuditConfig

SITES = ("a", "b", "c", "d")
EVERYONE = {str(r): list(SITES) for r in (1, 2, 3)}


class TestPlugin(PluginSuite):
    plugin = "pppml_dp_audit.plugin"


@pytest.fixture
def context(gaussian):
    """``make(plan=..., survivors=..., vantage=..., shares=True)`` of a run of three rounds at four sites."""

    def make(plan=None, survivors=EVERYONE, vantage=None, shares=True, coordinates=50_000, round=3, **changes):
        setting = PrivacySetting(
            rounds=3, cohort=4, examples=dict.fromkeys(SITES, 50), batch_size=50, local_steps=dict.fromkeys(SITES, 1), gradient_calls=1,
            learning_rates=(0.3, 0.2, 0.1), coordinates=coordinates,
        )  # fmt: skip
        plan = plan if plan is not None else gaussian(**{"rates": setting.learning_rates, "honest": 4, **changes})
        config = SimpleNamespace(encoding=SimpleNamespace(range="auto", start=1.0, bits=16))
        parts = SimpleNamespace(personalization=SimpleNamespace(shares=shares))
        who = vantage or Vantage("server", server=True)
        return AttackContext(Path("run"), config, parts, setting, plan, {"rounds": 3, "survivors": survivors}, who, round)

    return make


def audit(context, **settings):
    return DpAudit(DpAuditConfig(**settings)).run((), 1e9, context)


def test_three_correct_rounds(context):
    """The variance of three rounds covers three. Of such audits 3e-4 are flagged by chance, and of these at most 1e-4 are violations."""
    verdict = audit(context(factor=3**0.5))
    assert verdict.outcome == "not_shown_to_leak"
    assert "no violation found: epsilon is at least " in verdict.reason


def test_what_is_said_of_a_run_with_noise_to_spare(context):
    # Of 200 guesses 119 are right; 159, from which on an audit is flagged, are with probability 2e-9.
    verdict = audit(context(factor=2 * 3**0.5))
    assert verdict.outcome == "not_shown_to_leak"
    assert verdict.reason.startswith("no violation found: epsilon is at least ")
    for said in ("replayed", "no images", "unit example", "add-remove", "delta 1e-05", "placement distributed", "adversary: the server"):
        assert said in verdict.reason
    assert "verified" not in verdict.reason
    assert (
        verdict.metrics.items()
        >= {"canaries": 20_000, "guesses": 200, "confidence": 0.95, "epsilon_claimed": 1.0, "violation": False}.items()
    )
    assert 0 <= verdict.metrics["epsilon_lower"] < 1 < verdict.metrics["epsilon_ceiling"]
    assert verdict.control == {"what": "no noise: every guess right", "epsilon_lower": verdict.metrics["epsilon_ceiling"], "passed": True}
    assert verdict.effort["replays"] == 1


def test_a_broken_mechanism_is_a_violation(context):
    verdict = audit(context(factor=0.3))
    assert verdict.outcome == "recovered"
    assert verdict.reason.startswith("violation: epsilon is at least ")
    assert verdict.metrics["violation"]
    assert verdict.metrics["p_value"] <= 1e-4
    assert verdict.effort["replays"] == 9


def test_noise_for_one_round_does_not_cover_thirty(context):
    thirty = {str(r): list(SITES) for r in range(1, 31)}
    base = context(factor=1.0, rates=(0.1,) * 30, survivors=thirty)
    setting = replace(base.setting, rounds=30, learning_rates=(0.1,) * 30)
    found = audit(replace(base, setting=setting, round=30))
    assert found.outcome == "recovered", "as if epsilon were per round"


def test_a_test_that_could_not_find_anything_is_inconclusive(context):
    verdict = audit(context(claim=6.0, coordinates=300, factor=3.0))
    assert verdict.outcome == "inconclusive"
    assert "none could have been" in verdict.reason
    assert verdict.metrics["canaries"] == 300, "no more canaries than weights"
    assert not verdict.control["passed"]


class Unclaimed(PrivacyPlan):
    @property
    def statement(self):
        return PrivacyStatement("none")


SITE_B = Vantage("site:b", sites=frozenset("b"))
COALITION = Vantage("server+site:a+site:b", True, frozenset("ab"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan": Unclaimed()}, "claims no differential privacy"),
        ({"claim": float("inf")}, "claims nothing (epsilon is infinite)"),
        ({"unit": "site"}, "protects a whole site"),
        ({"shares": False}, "nothing leaves a site"),
        ({"vantage": Vantage("public", public=True)}, "gets every sum"),
        ({"vantage": Vantage("link:a-b", links=frozenset({("a", "b")}))}, "gets every sum"),
        ({"vantage": Vantage("server+public", True, public=True)}, "gets every sum"),
        ({"placement": "server"}, "nothing is claimed against it; use vantage site:NAME"),
        ({"vantage": COALITION, "honest": 3}, "leave 3 sites' noise unknown, and server+site:a+site:b leaves 2"),
        ({"survivors": {"1": [], "2": [], "3": []}}, "no sum was opened"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_where_it_does_not_apply_it_says_why(context, changes, said):
    verdict = audit(context(**changes))
    assert verdict.outcome == "not_applicable"
    assert said in verdict.reason
    assert verdict.metrics == {}


def test_server_placement_is_audited_from_a_site(context):
    assert audit(context(placement="server", honest=1, factor=3**0.5, vantage=SITE_B)).outcome == "not_shown_to_leak"
    assert audit(context(placement="server", factor=0.0, vantage=SITE_B)).outcome == "recovered"


def test_a_coalition_knows_its_own_noise_and_lost_sites_add_none(context):
    survivors = {"1": ["a", "c", "d"], "2": [], "3": ["b", "c", "d"]}
    assert list(schedule_of(context(survivors=survivors)).shares) == [3, 0, 3]
    assert list(schedule_of(context(survivors=survivors, vantage=COALITION)).shares) == [2, 0, 2]
    # Noise for four honest shares, of which two are known to the adversary, would be too little; with honest=2 it is claimed for two.
    assert audit(context(vantage=COALITION, honest=2, factor=3**0.5)).outcome == "not_shown_to_leak"


def test_up_to_a_round(context):
    schedule = schedule_of(context(round=2))
    assert (list(schedule.shares), list(schedule.learning_rates)) == ([4, 4], [0.3, 0.2])
    assert "over 2 of the run's 3 rounds" in audit(context(round=2, factor=3)).reason


def test_settings(context):
    verdict = audit(context(factor=0.0), canaries=1000, guesses=100, confidence=0.9, confirmations=12, audits=5)
    assert verdict.metrics.items() >= {"canaries": 1000, "guesses": 100, "right": 100, "confidence": 0.9, "confirmations": 12}.items()
    with pytest.raises(ValueError, match="more than 50 canaries"):
        DpAuditConfig(canaries=50, guesses=51)
