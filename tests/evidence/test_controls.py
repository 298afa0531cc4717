"""What makes an outcome believable: controls with nothing true in them, persons that count once, real coalitions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta

import pppml_core as pppml
from pppml_core import Component, ComponentConfig
from pppml_core.evidence import record as recording
from pppml_core.evidence.attacks import Target, bound
from pppml_core.evidence.bounds import Bound, kappa
from pppml_core.evidence.claims import outside
from pppml_core.evidence.deciding import decide
from pppml_core.evidence.evaluate import Cell, Effort, randomized
from pppml_core.evidence.found import Found
from pppml_core.evidence.scoring import summarize
from pppml_core.evidence.strips import captions
from pppml_core.evidence.tallies import blind_rate, one_each
from pppml_core.interfaces.attack import Attack, Reconstruction, Seen, Sight
from pppml_core.registry import Registry
from pppml_core.wire.messages import Message


class NoConfig(ComponentConfig):
    depth: int = 3


class Models(Attack):
    """Picks by what the two models differ by, and by nothing else that it sees."""

    answers = "candidate"
    cheap = True

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        seen, model = view.last, ctx.model(view.last)
        moved = np.concatenate([(seen.after[n] - seen.weights[n]).ravel() for n in seen.weights])
        scores = []
        for image, target in zip(ctx.candidates.images, ctx.candidates.targets, strict=True):
            made = ctx.expected(model, torch.from_numpy(image[None].copy()), torch.from_numpy(np.array([target])))
            one = np.concatenate([made[n].detach().numpy().ravel() for n in seen.weights])
            scores.append(float(moved @ one) / float(np.linalg.norm(one)))
        return Reconstruction({"candidate": np.array(scores)})


class Fragile(Models):
    """Breaks where there are no messages: in every control run on random updates."""

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        if not view.last.messages:
            raise ValueError("no messages")
        return super().run(view, budget, ctx)


class Timid(Models):
    """Breaks on every second victim where there is noise, and nowhere else; it finds nothing on the others."""

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        if ctx.defence.noise > 0:
            if ctx.seed % 2:
                raise ValueError("too noisy")
            return Reconstruction({"candidate": np.random.default_rng(ctx.seed).random(len(ctx.candidates.images))})
        return super().run(view, budget, ctx)


class Choosy(Models):
    """Fits every second victim."""

    def misfit(self, view: Any, ctx: Any) -> str:
        return "not this one" if ctx.seed % 2 else ""


@pytest.fixture(scope="module")
def registry():
    torch.set_num_threads(1)
    offered = [Component(c.__name__.lower(), NoConfig, f"{__name__}:{c.__name__}", "for a test") for c in (Models, Fragile, Timid, Choosy)]
    return Registry.only(
        {"attack": offered}, "pppml_dp.plugin", "pppml_secagg_plus.plugin", "pppml_cyclic_he.plugin", "pppml_he_tenseal.plugin"
    )


@pytest.fixture(scope="module")
def go(registry, tmp_path_factory):
    def made(sites: int = 1, rounds: int = 1, **sections: Any) -> Target:
        task = {"use": "tiny", "sites": sites, "examples": 60}
        run = pppml.Experiment(task=task, training={"steps": 1}, run={"rounds": rounds}, registry=registry, **sections)
        done = run.run(tmp_path_factory.mktemp("run") / "a", reporters=False, report=False)
        return Target(done.folder, done.result, done.assembly, live=True)

    return made


@pytest.fixture(scope="module")
def alone(go):
    return go()


def tried(target: Target, use: str, vantage: str = "public", victims: int = 12, round: int | None = 1) -> dict[str, Any]:
    cell = Cell(bound(target.parts, {"use": use}), target.vantage(vantage))
    return target.attack([cell], round, Effort(cheap=victims, optimized=victims, gallery=8), "site_1")[0]


def test_a_leak_through_the_models_is_shown_for_the_negative_control_has_no_model_of_the_round(alone):
    record = tried(alone, "models")
    assert record["metrics"]["candidate@1"]["rate"] == 1.0
    assert record["negative"]["candidate@1"]["rate"] < 0.6
    assert record["outcome"] == "recovered"


def test_random_updates_hold_nothing_true():
    generator = np.random.default_rng(0)
    weights = {"w": generator.normal(size=(4, 3)).astype(np.float32)}
    after, update = {"w": weights["w"] + 1}, {"w": np.ones((4, 3), np.float32)}
    message = Message(bytes(16), 1, 1, "session", "sum", "a", "server", {"x": update["w"]})
    true = Seen(1, weights, after, ("a",), (Sight(("a",), update, 1.0),), (message,), {"a": {"key": b"k"}}, ("server",))
    made = randomized(true, np.random.default_rng(1))
    assert (made.messages, made.secrets) == ((), {})
    for name, one in (("sight", made.sights[0].update["w"]), ("models", made.after["w"] - weights["w"])):
        assert np.isclose(np.linalg.norm(one), np.linalg.norm(update["w"]), rtol=1e-4), name
        assert abs(float(one.ravel() @ update["w"].ravel())) / float(np.square(update["w"]).sum()) < 0.9, name
    assert np.array_equal(made.weights["w"], weights["w"]), "what was public before the round stays"


def test_control_runs_that_broke_show_nothing(alone):
    record = tried(alone, "fragile", "server")
    assert record["metrics"]["candidate@1"]["rate"] == 1.0
    assert record["outcome"] == "inconclusive", "no trial on random updates was made"
    assert record["negative"] == {}
    assert "control runs (ValueError: no messages)" in record["reason"]


def test_an_attack_that_breaks_on_noised_views_alone_is_no_protection(go):
    """Its controls pass and nothing is picked: but for the victims that were lost to errors it would be called not shown."""
    target = go(privacy={"use": "dp-sgd", "epsilon": 4.0, "delta": 1e-3, "clip": 1.0, "placement": "local"})
    record = tried(target, "timid", "server")
    assert record["metrics"]["claims"] == {"picked": "not_shown"}, record["reason"]
    assert record["control"]["passed"]
    assert (record["outcome"], record["why"]) == ("inconclusive", "broke")
    assert "The attack failed for" in record["reason"]
    assert "too noisy" in record["reason"]


def test_a_victim_that_does_not_fit_does_not_throw_away_the_others(alone):
    record = tried(alone, "choosy", victims=24)
    assert 0 < record["victims"] < 24
    assert record["metrics"]["candidate@1"]["rate"] == 1.0
    assert f"did not fit {24 - record['victims']} further victims (not this one)" in record["reason"]


def score(picked: bool, person: str | None, blind: bool = False) -> dict[str, Any]:
    guess = {"candidate_picked": [blind], "candidate_gallery": [10], "candidate_rank": [1 if blind else 5]}
    mine = {"candidate_picked": [picked], "candidate_gallery": [10], "candidate_rank": [1 if picked else 5]}
    return {**mine, "person": person, "look_alikes": 9, "blind": {"candidate": {"centre": guess}}}


def test_several_images_of_one_patient_are_one_trial():
    wrong = [score(False, None) for _ in range(60)]
    same, different = [score(True, "p") for _ in range(6)], [score(True, f"p{i}") for i in range(6)]
    assert decide("candidate", different, different, wrong)[0] == "recovered"
    outcome, reason = decide("candidate", same, different, wrong)
    assert outcome != "recovered"
    assert "1 of 1" in reason
    assert len(one_each([score(True, None)] * 5)) == 5, "who is nobody in particular is no repetition"


def test_a_positive_control_of_one_patient_is_one_trial():
    """Ten images of one patient, all picked with the defence off: that the test works is shown of nobody but this one."""
    wrong, same = [score(False, f"q{i}") for i in range(60)], [score(True, "p") for _ in range(10)]
    made = decide("candidate", wrong, same, wrong)
    assert made[0] == "inconclusive"
    assert "with the defence off 1 of 1" in made[1]
    assert decide("candidate", wrong, [score(True, f"p{i}") for i in range(10)], wrong)[0] == "not_shown_to_leak"


def batch(redrawn: list[bool], person: str | None = None) -> dict[str, Any]:
    """A score of pictures of a batch; its first image is the victim's."""
    error = [1e-4 if r else 0.1 for r in redrawn]
    return {"redrawn": redrawn, "mse": error, "psnr": [-10 * float(np.log10(e)) for e in error], "person": person, "blind": {"images": {}}}


def test_a_batch_is_one_trial_and_its_first_image_is_the_victim():
    """The other images were drawn to fill the step, many of them again and again."""
    filled, wrong = [batch([False] + [True] * 7) for _ in range(20)], [batch([False] * 8) for _ in range(40)]
    right = [batch([True] + [False] * 7) for _ in range(20)]
    outcome, reason = decide("images", filled, right, wrong)
    assert outcome == "not_shown_to_leak"
    assert "Images redrawn: 0 of 20 (at most 14%" in reason
    assert "with the defence off 20 of 20, on random gradients 0 of 40" in reason
    assert decide("images", right, right, wrong)[0] == "recovered"
    made = summarize(filled)
    exact = {"rate": 0.0, "low": 0.0, "n": 20, "share": 7 / 8, "images": 160}
    for name in ("redrawn", "mse<0.001"):
        assert {k: v for k, v in made[name].items() if k in exact} == pytest.approx(exact, abs=1e-12)
        assert made[name]["at_most"] == pytest.approx(1 - 0.05 ** (1 / 20))
        assert made[name]["high"] == pytest.approx(3.8415 / 23.8415, abs=1e-4)  # Wilson's of 0 of 20
    assert made["psnr"] == pytest.approx({"median": 10.0, "worst": 10.0}), "degrees are of the victims too"


def test_the_worst_victim_of_a_strip_is_that_of_the_figures():
    """Of the last batch the second image is read best of all; it is no victim."""
    scores = [batch([False, False]), batch([True, False]), batch([False, False])]
    scores[2]["mse"][1], scores[2]["psnr"][1] = 1e-6, 60.0
    told: Any = SimpleNamespace(scores=scores, pictures=[None] * 3)
    made = {one["name"]: (one["victim"], one["psnr"]) for one in captions(told)}
    assert made["worst victim"] == (1, 40.0)
    assert summarize(scores)["psnr"] == pytest.approx({"median": 10.0, "worst": 40.0})


def test_a_rate_counts_one_image_of_a_patient():
    """30 images of five patients, those of one patient alike."""
    found = [score(i % 5 == 0, f"p{i % 5}") for i in range(30)]
    made = summarize(found)["candidate@1"]
    assert (made["rate"], made["n"], made["share"], made["images"]) == (pytest.approx(1 / 5), 5, pytest.approx(1 / 5), 30)
    assert made["at_most"] == pytest.approx(beta.ppf(0.95, 2, 4))
    assert summarize([score(i % 5 == 0, None) for i in range(30)])["candidate@1"]["n"] == 30, "who is nobody in particular is no repetition"


def test_a_claim_of_privacy_is_not_refuted_by_one_patient(alone, monkeypatch):
    """Six images of one patient, all picked: that happens by chance as often as one success does."""
    monkeypatch.setattr(recording, "bound_of", lambda *given, **more: Bound(0.2, 0.1))
    attack, cell = Models(NoConfig()), Cell(bound(alone.parts, {"use": "models"}), alone.vantage("server"))

    def violated(scores: list[dict[str, Any]]) -> bool:
        wrong = [score(False, None) for _ in range(20)]
        found = Found(cell, attack, scores=scores, control=scores, negative=wrong, seen=[Seen(1, {}, {}, ("a",), ())])
        plan = alone.parts.mechanism.plan(alone.parts.privacy_setting(alone.sizes))
        return bool(recording.record_of(found, plan, "site_1", 1, about="")["violation"])

    assert not violated([score(True, "p") for _ in range(6)])
    assert violated([score(True, f"p{i}") for i in range(6)])  # 0.2^6 = 6.4e-5, below 1e-4
    assert not violated([score(True, f"p{i}") for i in range(5)])


def test_a_bound_counts_the_guess_among_look_alikes():
    """Who knows the watched site guesses among its look-alikes, whatever the gallery holds besides."""
    found = [score(True, f"p{i}") | {"look_alikes": alike} for i, alike in enumerate((1, 1, 3))]
    assert blind_rate(found, "candidate_", "candidate") == (10, pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3))
    assert blind_rate([s | {"look_alikes": 9} for s in found], "candidate_", "candidate") == (10, pytest.approx(0.1))


def test_people_are_counted_apart_from_images(alone):
    people = len(set(alone.parts.load("site_1").train.groups.tolist()))
    assert people < 60, "the task has several images of one person"
    record = tried(alone, "models", victims=people + 5)
    assert (record["victims"], record["people"]) == (people + 5, people)


def test_who_knows_the_site_guesses_among_its_look_alikes():
    assert kappa(100, look_alikes=[99] * 7) == 0.01
    assert kappa(100, look_alikes=[1, 1]) == 0.5
    assert kappa(100, [(40, 100)], [1, 3]) == 0.4


@pytest.fixture
def plan():
    details = {"honest_shares": 3, "colluders": 1}
    said = SimpleNamespace(epsilon=1.0, placement="distributed", details=details)
    return SimpleNamespace(statement=said, placement="distributed")


@pytest.mark.parametrize(("members", "covered"), [((), True), (("b",), True), (("b", "c"), False), (("a",), False)])
def test_more_members_than_may_collude_are_outside_of_the_claim(alone, plan, members, covered):
    sight = Sight(("a", "d", "e"), {}, 1.0)
    seen = [Seen(1, {}, {}, ("a", "b", "c", "d", "e"), (sight,), members=("server", *members))]
    who = alone.vantage("server")
    assert (outside(plan, who, seen, "a") == "") == covered
    assert (outside(plan, replace(who, sites=frozenset(members)), seen, "a") == "") == covered


def test_neighbours_that_are_the_watched_site_itself_are_no_attack(go):
    target = go(3, aggregator={"use": "cyclic-he", "backend": {"use": "tenseal", "scheme": "bfv"}})
    record = tried(target, "models", "neighbours:site_2")
    assert record["outcome"] == "not_applicable"
    assert record["victims"] == 0


def test_a_bound_is_told_for_the_whole_run_beside_that_of_the_step(go):
    target = go(rounds=4, privacy={"use": "dp-sgd", "epsilon": 4.0, "delta": 1e-3, "clip": 1.0, "placement": "local"})
    first, last = tried(target, "models", "server", round=1)["bound"], tried(target, "models", "server", round=None)["bound"]
    assert first["rate"] < first["whole_run"] <= 1.0
    assert np.isclose(last["rate"], last["whole_run"]), "the last model came of all rounds"
    assert np.isclose(first["whole_run"], last["whole_run"], rtol=0.05), "the same run, whatever was attacked"


PAPER = {"use": "cyclic-he", "variant": "paper", "backend": {"use": "tenseal", "scheme": "ckks", "preset": "paper"}}
RING = {"use": "cyclic-he", "rings": 1, "backend": {"use": "tenseal", "scheme": "bfv"}}
RINGS = {**RING, "rings": 2}  # a site has up to four neighbours


@pytest.mark.parametrize(
    ("aggregator", "vantage", "outcome"),
    [
        ({"use": "plain"}, "server", "recovered"),
        ({"use": "secagg-plus"}, "server", "not_shown_to_leak"),
        (PAPER, "neighbours:site_1", "recovered"),
        (PAPER, "server", "not_shown_to_leak"),
        (RING, "neighbours:site_1", "not_shown_to_leak"),
        (RING, "server", "not_shown_to_leak"),
        (RINGS, "neighbours:site_1", "not_shown_to_leak"),
    ],
    ids=["plain", "secagg-plus", "paper-neighbours", "paper-server", "ring-neighbours", "ring-server", "rings-neighbours"],
)
def test_two_neighbours_read_an_update_of_the_papers_ring_and_none_of_the_hardened_one(go, aggregator, vantage, outcome):
    target = go(7 if aggregator is RINGS else 5, aggregator=aggregator)
    record = tried(target, "read-out", vantage, victims=8)
    assert record["control"]["passed"], record["reason"]
    assert record["outcome"] == outcome, record["reason"]
    assert record["metrics"]["decoded"]["rate"] == (1.0 if outcome == "recovered" else 0.0)
