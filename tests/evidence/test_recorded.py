"""Attacks on a round as it happened: who is asked about, what the control is, and what is refused."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import pppml_core as pppml
from pppml_core import Component, ComponentConfig
from pppml_core.evidence.attacks import Target, bound
from pppml_core.evidence.bounds import Release, gaussian_bound
from pppml_core.evidence.found import Cell, Effort
from pppml_core.evidence.recorded import Recorded
from pppml_core.evidence.vantage import read_vantage
from pppml_core.evidence.view import read_view
from pppml_core.interfaces.attack import Attack, Reconstruction
from pppml_core.registry import Registry

SITES = ("site_1", "site_2", "site_3")


class Empty(ComponentConfig):
    pass


class Asked(Attack):
    """Keeps what it is given."""

    given: ClassVar[list[Any]] = []

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        self.given.append((view, ctx))
        many = 0 if ctx.queries is None else len(ctx.queries)
        few = 0 if ctx.candidates is None else len(ctx.candidates)
        return Reconstruction({"members": np.zeros(many), "site": np.zeros((many, len(ctx.sites))), "candidate": np.zeros(few)})


class Members(Asked):
    answers = "members"


class Site(Asked):
    answers = "site"


class Pick(Asked):
    answers = "candidate"


class Labels(Asked):
    answers = "labels"


@pytest.fixture(scope="module")
def registry():
    torch.set_num_threads(1)
    offered = [Component(c.__name__.lower(), Empty, f"{__name__}:{c.__name__}", "for a test") for c in (Members, Site, Pick, Labels)]
    return Registry.only({"attack": offered}, "pppml_dp.plugin")


@pytest.fixture(scope="module")
def go(registry, tmp_path_factory):
    def made(**sections: Any) -> Any:
        run = {"rounds": 2, "seed": 3, "transcript": "secrets", **sections.pop("run", {})}
        given = {"task": {"use": "tiny", "sites": 3, "examples": 20}, "training": {"steps": 3}, **sections}
        return pppml.Experiment(run=run, registry=registry, **given).run(tmp_path_factory.mktemp("r") / "a", reporters=False, report=False)

    return made


@pytest.fixture(scope="module")
def run(go):
    return go()


def target(run: Any) -> Target:
    return Target(run.folder, run.result, run.assembly, live=True)


def tried(run: Any, use: str, vantage: str = "server") -> dict[str, Any]:
    one = target(run)
    Asked.given.clear()
    cell = Cell(bound(one.parts, {"use": use}), one.vantage(vantage))
    return one.recorded([cell], 2, Effort(cheap=2, optimized=2, gallery=5), "site_2")[0]


def images(run: Any, site: str, split: str) -> set[bytes]:
    part = run.assembly.load(site).part(split)
    return {np.asarray(part.example(i)[0], np.float32).tobytes() for i in range(len(part))}


@pytest.mark.parametrize("rule", ["fedavg", "batch norm", "adam"])
def test_the_control_is_what_the_site_gave(go, rule):
    more = {
        "fedavg": {},
        "batch norm": {"model": {"use": "tiny-net", "norm": "batch"}},
        "adam": {"training": {"optimizer": {"use": "adam"}}},
    }
    done = go(encoding={"use": "float"}, **more.get(rule, {}))
    view = read_view(done.folder, done.assembly, read_vantage("server", SITES), 2, first=2)
    recorded = Recorded(done.folder, done.assembly, target(done).sizes, 2, "site_2", Effort(), live=True)
    open_ = recorded.control(view)
    for site in SITES:
        saw, made = view.of(site), open_.of(site)
        assert saw.sites == made.sites == (site,)
        for name, update in saw.update.items():
            np.testing.assert_allclose(made.update[name], update, atol=1e-6 + 1e-5 * np.abs(update).max(), err_msg=name)
        assert max(np.abs(u).max() for u in saw.update.values()) > 1e-3


def test_members_are_the_sites_own_and_the_others_nobodys(run):
    record = tried(run, "members")
    assert (record["staged"], record["site"], record["round"], record["outcome"]) == (False, "site_2", 2, "inconclusive")
    queries = Asked.given[0][1].queries
    asked = [i.tobytes() for i in queries.images]
    inside, outside = images(run, "site_2", "train"), images(run, "site_2", "test") | images(run, "site_2", "validation")
    assert set(asked) <= inside | outside
    member = np.array([a in inside for a in asked])
    assert member.sum() * 2 == len(asked) == 36  # 18 held out
    assert len(set(asked)) == len(asked)
    assert 0.2 < np.flatnonzero(member).mean() / len(asked) < 0.8, "their order says nothing (seeded)"
    assert "Recorded: round 2" in record["about"]


def test_sites_are_asked_for_all_and_none_of_the_known_images(run):
    tried(run, "site", "public")
    view, ctx = Asked.given[0]
    assert view.vantage.text == "public"
    known = {i.tobytes() for known in ctx.sites_public.values() for i in known.images}
    assert set(ctx.sites_public) == set(SITES)
    assert not known & {i.tobytes() for i in ctx.queries.images}
    assert {i.tobytes() for i in ctx.queries.images} == set().union(*(images(run, s, "train") for s in SITES))


def test_candidates_are_the_victim_and_images_nobody_trained_on(run):
    record = tried(run, "pick")
    assert record["victims"] == 2
    for _, ctx in Asked.given:
        trained = [any(c.tobytes() in images(run, s, "train") for s in SITES) for c in ctx.candidates.images]
        assert sum(trained) == 1
        public = {i.tobytes() for i in ctx.public.images}
        assert not any(c.tobytes() in public for c in ctx.candidates.images)


def test_labels_of_a_whole_round_are_not_scored(run):
    record = tried(run, "labels")
    assert record["outcome"] == "not_applicable"
    assert "let one be staged" in record["reason"]
    own, ring = tried(run, "members", "site:site_2"), tried(run, "members", "neighbours:site_2")
    assert own["outcome"] == ring["outcome"] == "not_applicable"
    assert [r["why"] for r in (record, own, ring, tried(run, "pick", "link:site_1-site_3"))] == ["misfit", "own", "no_such_party", "hidden"]


def test_without_secrets_it_says_what_is_needed(go):
    done = go(run={"transcript": "payloads"})
    record = tried(done, "members", "server")
    assert record["outcome"] == "not_applicable"
    assert "run.transcript: secrets" in record["reason"]
    assert Asked.given == []


def test_the_bound_counts_the_rounds_of_the_view(go):
    pytest.importorskip("dp_accounting")
    done = go(privacy={"use": "dp-sgd", "noise_multiplier": 4.0, "delta": 1e-3}, training={"steps": 3, "batch_size": 8})
    record = tried(done, "pick")
    one = target(done)
    cell = [Cell(bound(one.parts, {"use": "pick"}), one.vantage("server"))]
    staged = [one.attack(cell, r, Effort(cheap=2, optimized=2, gallery=5), "site_2")[0]["bound"]["rate"] for r in (1, 2, None)]
    assert staged[0] < staged[1] < staged[2], "the model of a later round is of earlier releases"
    assert record["bound"]["kappa"] < record["bound"]["rate"]


def test_the_bound_of_a_recorded_run_is_of_sampled_releases(go):
    """Closed form of the whole: no victim is surely in a round that happened."""
    pytest.importorskip("dp_accounting")
    done = go(privacy={"use": "dp-sgd", "noise_multiplier": 1.0, "delta": 1e-3}, training={"steps": 3, "batch_size": 4})
    said = tried(done, "pick")["bound"]
    charges = [tried_plan(done).charge(r) for r in (1, 2)]
    assert all(0 < c["sample_rate"] < 0.5 for c in charges)
    releases = [Release(c["noise_multiplier"], c["count"], c["sample_rate"]) for c in charges]
    adjacency = tried_plan(done).statement.adjacency
    assert said["rate"] == pytest.approx(gaussian_bound(said["kappa"], releases, adjacency).rate, rel=1e-6)
    sure = [Release(c["noise_multiplier"], c["count"]) for c in charges]
    assert said["rate"] < 0.9 * gaussian_bound(said["kappa"], sure, adjacency).rate


def tried_plan(run: Any) -> Any:
    one = target(run)
    return one.parts.mechanism.plan(one.parts.privacy_setting(one.sizes))


def test_who_sees_sums_before_the_noise_is_told_so(go):
    done = go(
        privacy={"use": "dp-sgd", "placement": "server", "noise_multiplier": 2.0, "delta": 1e-3}, training={"steps": 1, "batch_size": 4}
    )
    noise = tried_plan(done).defence(2, 3).noise
    assert noise > 0
    for vantage, told in (("server", 0.0), ("site:site_1", noise)):
        tried(done, "members", vantage)
        assert [ctx.defence.noise for _, ctx in Asked.given[:1]] == [told], vantage
