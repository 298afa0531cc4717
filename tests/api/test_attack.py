"""Attacks on finished runs through the API: what an attack is handed, what is recorded, what is refused, and the audit of real DP-SGD."""

from __future__ import annotations

import copy
import json
from typing import ClassVar

import pytest

import pppml_core as pppml
from pppml_core import Component, ComponentConfig
from pppml_core.errors import CheckpointError, ConfigError, PluginError
from pppml_core.evidence.vantage import file_part, read_vantage
from pppml_core.interfaces.attack import Attack, Reconstruction, Vantage, Verdict
from pppml_core.interfaces.privacy import PrivacySetting
from pppml_core.registry import Registry

SITES = ("site_1", "site_2", "site_3")


class LookConfig(ComponentConfig):
    depth: int = 3


class Look(Attack):
    """Hands its context to the test."""

    reads_view = False
    seen: ClassVar[list] = []

    def run(self, view, budget, ctx):
        self.seen.append((view, ctx, self.config))
        return Verdict("inconclusive", "it only looked", {"depth": self.config.depth}, {"passed": False}, {"guess": 1}, {"looks": 1})


class Reader(Attack):
    def run(self, view, budget, ctx):
        return Reconstruction({}, {})


class Confused(Reader):
    reads_view = False


@pytest.fixture(scope="module")
def registry():
    offered = [Component(c.__name__.lower(), LookConfig, f"{__name__}:{c.__name__}", "for a test") for c in (Look, Reader, Confused)]
    return Registry.only({"attack": offered})


@pytest.fixture(scope="module")
def run(registry, tmp_path_factory):
    made = pppml.Experiment(task={"use": "tiny", "sites": 3, "examples": 6}, run={"rounds": 2}, registry=registry)
    return made.run(tmp_path_factory.mktemp("attacked") / "a", reporters=False, report=False)


def test_an_attack_gets_the_runs_public_side_and_its_record_is_kept(run):
    Look.seen.clear()
    record = run.attack("look", vantage="server+site:site_2", round=1, depth=7)
    ((view, ctx, config),) = Look.seen
    assert (view.rounds, view.vantage) == ((), ctx.vantage)
    assert (ctx.folder, ctx.round, config.depth) == (run.folder, 1, 7)
    assert ctx.vantage == Vantage("server+site:site_2", True, frozenset({"site_2"}))
    assert tuple(ctx.setting.examples) == SITES
    assert ctx.setting.examples == json.loads((run.folder / "fingerprint.json").read_text())["training examples"]
    assert (ctx.setting.rounds, ctx.privacy.statement.mechanism, ctx.result["rounds"]) == (2, "none", 2)
    assert ctx.config.model.use == "tiny-net"
    seconds = record["effort"].pop("seconds")
    assert 0 <= seconds < 60
    assert record == {
        "attack": "look", "vantage": "server+site:site_2", "round": 1, "outcome": "inconclusive", "reason": "it only looked",
        "metrics": {"depth": 7}, "control": {"passed": False}, "best_guess": {"guess": 1}, "effort": {"looks": 1}, "settings": {"depth": 7},
        "asked": {"settings": {"depth": 7}}, "why": None,
    }  # fmt: skip
    written = json.loads((run.folder / "attacks/look-server_site_site_2-r1.json").read_text())
    assert written == {**record, "effort": {"seconds": seconds, "looks": 1}}
    assert not list((run.folder / "attacks").glob(".*"))


def test_server_and_the_last_round_are_the_defaults(run):
    assert (run.attack("look")["vantage"], run.attack("look")["round"]) == ("server", 2)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"use": "lok"}, ConfigError, "did you mean 'look'"),
        ({"use": "idlg"}, PluginError, "pppml-idlg"),
        ({"use": "look", "deep": 1}, ConfigError, "deep"),
        ({"use": "look", "depth": "much"}, ConfigError, "depth"),
        ({"use": "look", "round": 3}, ConfigError, "rounds 1 to 2"),
        ({"use": "look", "round": 0}, ConfigError, "rounds 1 to 2"),
        ({"use": "look", "vantage": "site:site_4"}, ConfigError, "site_"),
        ({"use": "look", "vantage": "serve"}, ConfigError, "did you mean 'server'"),
        ({"use": "look", "vantage": "site_1"}, ConfigError, "did you mean 'site:site_1'"),
        ({"use": "look", "vantage": ""}, ConfigError, "one of server, site:SITE"),
        ({"use": "reader", "site": "site_4"}, ConfigError, "site_4"),
        ({"use": "reader", "vantage": "site:site_1+site:site_2+site:site_3"}, ConfigError, "none left to attack"),
        ({"use": "confused"}, ConfigError, "nothing can score"),
    ],
    ids=str,
)
def test_what_cannot_be_attacked_is_refused_with_a_hint(run, arguments, error, said):
    before = set((run.folder / "attacks").glob("*")) if (run.folder / "attacks").exists() else set()
    with pytest.raises(error) as refused:
        run.attack(**arguments)
    assert said in str(refused.value)
    assert refused.value.hint
    assert set((run.folder / "attacks").glob("*")) == before


def test_an_unfinished_run_is_refused(run, registry, tmp_path):
    import shutil

    shutil.copytree(run.folder, tmp_path / "b")
    (tmp_path / "b/result.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        pppml.open(tmp_path / "b", registry).attack("look")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server", Vantage("server", server=True)),
        ("site:site_1+public", Vantage("site:site_1+public", sites=frozenset({"site_1"}), public=True)),
        ("neighbours:site_2", Vantage("neighbours:site_2", neighbours=frozenset({"site_2"}))),
        ("link:site_1-server", Vantage("link:site_1-server", links=frozenset({("site_1", "server")}))),
        ("server + site:site_3", Vantage("server + site:site_3", server=True, sites=frozenset({"site_3"}))),
    ],
)
def test_vantages(text, expected):
    assert read_vantage(text, SITES) == expected


@pytest.mark.parametrize("text", ["server:x", "site", "public:", "link:site_1", "link:site_1-nobody", "neighbours:me", "server+", "anyone"])
def test_what_is_no_vantage(text):
    with pytest.raises(ConfigError) as refused:
        read_vantage(text, SITES)
    assert (refused.value.place, bool(refused.value.hint)) == ("vantage", True)


def test_file_names():
    assert file_part("server + site:a") == "server_site_a"
    assert file_part("link:a-b") == "link_a_b"


# -- the audit of real mechanisms ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private():
    """The registry of the mechanisms, a secure sum and the audit."""
    names = ("pppml_dp.plugin", "pppml_secagg_plus.plugin", "pppml_dp_audit.plugin")
    return Registry.only(*[pytest.importorskip(name) for name in names])


@pytest.mark.parametrize(
    ("changes", "vantage", "outcome"),
    [
        ({"privacy": {"use": "dp-sgd", "noise_multiplier": 2.0, "delta": 1e-3}}, "server", "not_shown_to_leak"),
        (
            {
                "privacy": {"use": "dp-sgd", "noise_multiplier": 2.0, "delta": 1e-3, "placement": "distributed"},
                "aggregator": {"use": "secagg-plus"},
                "training": {"steps": 1, "batch_size": 16},
            },
            "server+site:site_1",
            "not_shown_to_leak",
        ),
        ({"privacy": {"use": "clip-only"}}, "server", "not_applicable"),
        ({"privacy": {"use": "dp-update", "noise_multiplier": 5.0, "delta": 1e-3}}, "server", "not_applicable"),
        ({}, "server", "not_applicable"),
    ],
    ids=["local", "distributed", "clip-only", "dp-update", "none"],
)
def test_the_audit_of_a_run(private, tmp_path, changes, vantage, outcome):
    base = {"task": {"use": "tiny", "sites": 4, "examples": 80}, "run": {"rounds": 2}, "training": {"batch_size": 16, "steps": 2}}
    run = pppml.Experiment({**base, **changes}, registry=private).run(tmp_path / "a", reporters=False, report=False)
    record = run.attack("dp-audit", vantage=vantage)
    assert record["outcome"] == outcome, record["reason"]
    if outcome == "not_shown_to_leak":
        assert record["reason"].startswith("no violation found")
        assert "not of the network (whether that mixes images was not tested)" in record["reason"]
        assert record["metrics"]["epsilon_claimed"] == run.result["privacy"]["epsilon"]
        assert not record["metrics"]["violation"]
        assert (run.folder / "attacks" / f"dp-audit-{file_part(vantage)}-r2.json").exists()


@pytest.mark.parametrize("placement", ["local", "distributed", "server"])
def test_audits_find_dp_sgd_without_noise_always_and_with_half_of_it_mostly(private, placement):
    """The design of the protocols: claim 1, delta 1e-5, every example in the one batch, 20,000 canaries, 200 guesses."""
    from pppml_dp_audit.audit import audit_plan
    from pppml_dp_audit.replay import Schedule

    sites = {f"site_{i}": 100 for i in range(4)}
    setting = PrivacySetting(
        rounds=1, cohort=4, examples=sites, batch_size=100, local_steps=dict.fromkeys(sites, 1), gradient_calls=1, sample_rate=1.0,
        learning_rates=(0.1,), coordinates=20_000, min_survivors=3, sees_sum=("server",),
    )  # fmt: skip
    component = private.get("privacy", "dp-sgd")
    plan = component.load()(component.config(epsilon=1.0, delta=1e-5, placement=placement, colluders=0)).plan(setting)
    schedule = Schedule(shares=(3 if placement == "distributed" else 1,), learning_rates=(0.1,))

    class Fraction:
        def __init__(self, noise, factor):
            self.noise, self.factor, self.variance, self.bound = noise, factor, noise.variance, noise.bound

        def sample(self, count):
            return (self.noise.sample(count) * self.factor).round().astype("int64")

    def flagged(factor, runs):
        broken = copy.copy(plan)
        broken._noise = Fraction(plan._noise, factor)
        return sum(audit_plan(broken, schedule).violation for _ in range(runs))

    assert flagged(1.0, 10) == 0
    assert flagged(0.0, 3) == 3
    # 0.93 of such runs are; fewer than 11 of 20 with probability 2.7e-7.
    assert flagged(0.5, 20) >= 11
