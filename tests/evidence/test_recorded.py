"""Attacks on a round as it happened: who is asked about, what the control is, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import binom

import pppml_core as pppml
from pppml_core import Component, ComponentConfig
from pppml_core.evidence import attacker, deciding, recorded, tallies
from pppml_core.evidence.attacks import Target, bound
from pppml_core.evidence.bounds import Release, gaussian_bound
from pppml_core.evidence.deciding import controls_needed
from pppml_core.evidence.found import Cell, Effort
from pppml_core.evidence.knowledge import to_message
from pppml_core.evidence.measures import told_members
from pppml_core.evidence.recorded import Recorded
from pppml_core.evidence.scoring import Truth
from pppml_core.evidence.vantage import read_vantage
from pppml_core.evidence.view import encode_view, read_view
from pppml_core.interfaces.attack import Attack, Images, Reconstruction
from pppml_core.learning.data.examples import ArrayExamples
from pppml_core.registry import Registry
from pppml_core.wire.codec import encode

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


class Every(Pick):
    rounds = "all"


class Labels(Asked):
    answers = "labels"


@pytest.fixture(scope="module")
def registry():
    torch.set_num_threads(1)
    offered = [Component(c.__name__.lower(), Empty, f"{__name__}:{c.__name__}", "for a test") for c in (Members, Site, Pick, Every, Labels)]
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


def patients(run: Any, site: str) -> dict[bytes, str]:
    data = run.assembly.load(site)
    parts = [data.part(split) for split in ("train", "validation", "test")]
    return {np.asarray(part.example(i)[0], np.float32).tobytes(): str(part.groups[i]) for part in parts for i in range(len(part))}


@pytest.mark.parametrize("rule", ["fedavg", "batch norm", "adam"])
def test_the_control_is_what_the_site_gave(go, rule):
    more = {
        "fedavg": {},
        "batch norm": {"model": {"use": "tiny-net", "norm": "batch"}},
        "adam": {"training": {"optimizer": {"use": "adam"}}},
    }
    done = go(encoding={"use": "float"}, **more.get(rule, {}))
    view = read_view(done.folder, done.assembly, read_vantage("server", SITES), 2)
    recorded = Recorded(done.folder, done.assembly, target(done).sizes, 2, "site_2", Effort(), live=True)
    open_ = recorded.control(view)
    assert [one.round for one in open_.rounds] == [one.round for one in view.rounds] == [1, 2]
    for seen, control, site in ((v, c, s) for v, c in zip(view.rounds, open_.rounds, strict=True) for s in SITES):
        saw, made = seen.of(site), control.of(site)
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
    assert member.sum() * 2 == len(asked) == 18  # 9 patients of two images each are held out
    assert len(set(asked)) == len({patients(run, "site_2")[a] for a in asked}) == len(asked), "of a patient one image"
    assert 0.2 < np.flatnonzero(member).mean() / len(asked) < 0.8, "their order says nothing (seeded)"
    assert "Recorded: round 2" in record["about"]


def test_sites_are_asked_for_all_and_none_of_the_known_images(run):
    tried(run, "site", "public")
    view, ctx = Asked.given[0]
    assert view.vantage.text == "public"
    known = {i.tobytes() for known in ctx.sites_public.values() for i in known.images}
    assert set(ctx.sites_public) == set(SITES)
    assert not known & {i.tobytes() for i in ctx.queries.images}
    asked = [i.tobytes() for i in ctx.queries.images]
    whose = [{a: p for a, p in patients(run, s).items() if a in images(run, s, "train")} for s in SITES]
    assert set(asked) <= set().union(*whose)
    assert [len({w[a] for a in asked if a in w}) for w in whose] == [len(set(w.values())) for w in whose], "every patient is asked for"
    assert len(asked) == sum(len(set(w.values())) for w in whose), "with one image"


def test_candidates_are_the_victim_and_images_nobody_trained_on(run):
    record = tried(run, "pick")
    assert record["victims"] == 2
    for _, ctx in Asked.given:
        trained = [any(c.tobytes() in images(run, s, "train") for s in SITES) for c in ctx.candidates.images]
        assert sum(trained) == 1
        public = {i.tobytes() for i in ctx.public.images}
        assert not any(c.tobytes() in public for c in ctx.candidates.images)


def test_who_uses_several_rounds_gets_them_all(run):
    """Target, control and random updates alike; in the random ones nothing is true, nor in what the models of two rounds differ by."""
    tried(run, "every")
    assert len(Asked.given) == 2 * (2 + -(-controls_needed(2) // 2))
    assert all([one.round for one in view.rounds] == [1, 2] for view, _ in Asked.given)
    (true, _), (control, _), *wrong = Asked.given[: 2 + -(-controls_needed(2) // 2)]
    for name, weights in true.rounds[1].weights.items():
        np.testing.assert_array_equal(control.rounds[1].weights[name], weights)
    for view, _ in wrong:
        first, second = view.rounds
        for name, weights in second.weights.items():
            np.testing.assert_array_equal(weights, first.after[name])
            np.testing.assert_array_equal(first.weights[name], true.rounds[0].weights[name])
            moved, really = weights - first.weights[name], true.rounds[1].weights[name] - true.rounds[0].weights[name]
            assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(really), rel=1e-3)
        moved = np.concatenate([(second.weights[n] - w).ravel() for n, w in first.weights.items()])
        really = np.concatenate([(true.rounds[1].weights[n] - w).ravel() for n, w in first.weights.items()])
        # Of hundreds of coordinates: eight deviations, false alarm below 1e-14.
        assert abs(moved @ really) < 8 / len(moved) ** 0.5 * np.linalg.norm(moved) * np.linalg.norm(really)
    tried(run, "pick")
    assert all([one.round for one in view.rounds] == [2] for view, _ in Asked.given)


def test_random_updates_are_as_many_as_it_takes(run):
    """Also of an attack that searches; members are compared with one, query by query, and a long list of queries is enough by itself."""
    for use, wrong in (("pick", -(-controls_needed(2) // 2)), ("members", 1), ("site", 1)):
        tried(run, use)
        rounds = [view.last.sights[0].update for view, _ in Asked.given]
        each = len(rounds) // (2 if use == "pick" else 1)
        assert each == 2 + wrong, use


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
    record = tried(done, "every")
    assert len(Asked.given[0][0].rounds) == 2
    assert tried(done, "pick")["bound"] == record["bound"], "the models of one round come of all earlier ones"
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
    # Who listens to another site gets its update, and the watched one's only in what is published.
    for vantage, told in (("server", 0.0), ("site:site_1", noise), ("link:server-site_1", noise), ("link:server-site_2", 0.0)):
        tried(done, "members", vantage)
        known = Asked.given[0][1].defence.noise
        assert known == 0.0 if told == 0.0 else 0.5 * told <= known <= 2 * told, vantage


# -- what is true, and what is told -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["members", "site", "pick", "every"])
def test_another_truth_changes_no_byte_that_an_attack_is_given(run, monkeypatch, use):
    first = _requests(run, monkeypatch, use)
    monkeypatch.setattr(recorded, "Truth", _Poisoned)
    _Poisoned.made.clear()
    assert _requests(run, monkeypatch, use) == first
    assert {"members": "members", "site": "sites"}.get(use, "candidate") in _Poisoned.made


def test_nor_one_that_the_process_of_an_attack_is_sent(monkeypatch, tmp_path):
    """Of installed attacks on a run, frame by frame."""
    registry, names = Registry.discover(), ("membership", "site-inference", "gallery")
    if missing := set(names) - {c.name for c in registry.components("attack")}:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    task = {"use": "tiny", "sites": 3, "examples": 20}
    done = pppml.Experiment(task=task, run={"rounds": 2, "transcript": "secrets"}, training={"steps": 1}, registry=registry)
    done = done.run(tmp_path / "a", reporters=False, report=False)
    frames: list[bytes] = []
    write = attacker.write_frame
    monkeypatch.setattr(attacker, "write_frame", lambda stream, frame: (frames.append(bytes(frame)), write(stream, frame)))
    one = Target(done.folder, done.result, done.assembly)
    settings = ({"use": "membership", "method": "gradient"}, {"use": "site-inference"}, {"use": "gallery"})
    cells = [Cell(bound(one.parts, given), one.vantage("server")) for given in settings]

    def answered() -> tuple[list[bytes], list[Any]]:
        frames.clear()
        found = Recorded(one.folder, one.parts, one.sizes, 2, "site_2", Effort(cheap=2, gallery=5)).run(cells)
        assert not any(f.errors or f.misfit or f.broken for f in found)
        return list(frames), [f.scores for f in found]

    told, scores = answered()
    monkeypatch.setattr(recorded, "Truth", _Poisoned)
    again, others = answered()
    assert len(told) > 12
    assert again == told
    assert all(a != b for a, b in zip(scores, others, strict=True)), "so it was another truth"


def _requests(run: Any, monkeypatch: Any, use: str) -> list[bytes]:
    told: list[bytes] = []
    answer = attacker.Attacker.answer

    def spy(self: Any, attack: Any, view: Any, seconds: float, knowledge: Any) -> Any:
        told.append(encode_view(view) + encode(to_message(knowledge)) + encode(dict(knowledge.config)))
        return answer(self, attack, view, seconds, knowledge)

    with monkeypatch.context() as patch:
        patch.setattr(attacker.Attacker, "answer", spy)
        tried(run, use)
    assert len(told) >= 3
    return told


class _Poisoned(Truth):
    """Other members, other sites, other victims."""

    made: ClassVar[set[str]] = set()

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if self.members is not None:
            object.__setattr__(self, "members", ~self.members)
            self.made.add("members")
        if self.sites is not None:
            object.__setattr__(self, "sites", (self.sites + 1) % 3)
            self.made.add("sites")
        if self.candidate is not None:
            object.__setattr__(self, "candidate", (self.candidate + 1) % 5)
            object.__setattr__(self, "places", tuple((p + 1) % 5 for p in self.places))
            object.__setattr__(self, "images", Images(1 - self.images.images, self.images.targets))
            self.made.add("candidate")


# -- patients of many images --------------------------------------------------------------------------------------------------------------


def test_a_patient_of_many_images_makes_no_member(monkeypatch):
    """A site of 14 patients with 30 images each, scored by somebody who knows nothing, with an effect of the patient (intraclass
    correlation 0.9). Among 100 such lists at most as many are called recovered as 1 % may be, with a false alarm below 1e-6; where all
    images are asked about it is far more of them, so that the test could fail.
    """
    monkeypatch.setattr(deciding, "_RESAMPLES", 999)
    lists, most = 100, int(binom.isf(1e-6, 100, 0.01))
    groups = {s: np.repeat(np.arange(*ends), 30) for s, ends in (("train", (0, 7)), ("test", (7, 11)), ("validation", (11, 14)))}

    def examples(patients: Any) -> ArrayExamples:
        pictures = np.stack([patients, np.arange(len(patients))], 1)[..., None].astype(np.float32)
        return ArrayExamples(pictures, patients, patients, to_image=np.asarray)

    parts = {split: examples(patients) for split, patients in groups.items()}
    asked = object.__new__(Recorded)
    asked._parts = SimpleNamespace(load=lambda site: SimpleNamespace(part=parts.__getitem__))
    asked._effort = Effort()
    queries, inside = asked._members("a")
    assert (len(queries), inside.sum()) == (14, 7)
    assert len(set(queries.targets.tolist())) == 14
    assert all((patient < 7) == member for patient, member in zip(queries.targets, inside, strict=True))
    every, members = np.concatenate([queries.targets] * 30), np.concatenate([inside] * 30)
    assert _recovered(queries.targets, inside, lists) <= most < _recovered(every, members, lists)


def _recovered(patients: Any, inside: Any, lists: int) -> int:
    """In how many of these lists of scores, which say nothing, members are called recovered."""
    generator = np.random.default_rng(7)

    def scored(shift: float = 0.0) -> dict[str, Any]:
        effect, own = generator.standard_normal(14), generator.standard_normal(len(patients))
        return {**told_members(0.9**0.5 * effect[patients] + 0.1**0.5 * own + shift * inside, inside), "blind": {"members": {"coin": {}}}}

    found, off = 0, [scored(9.0)]
    for _ in range(lists):
        one, wrong = [scored()], [scored()]
        # Where the test against guessing fails, nothing is shown, and the permutations need not be made.
        found += tallies.tally("members", one).p_guess <= 0.01 and deciding.decide("members", one, off, wrong)[0] == "recovered"
    return found
