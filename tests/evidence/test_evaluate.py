"""Attacks on staged rounds: what they are given, that no truth reaches them, and what is made of every kind of answer."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.stats import chisquare

import pppml_core as pppml
from pppml_core import Component, ComponentConfig
from pppml_core.errors import ConfigError, RunFailed
from pppml_core.evidence import attacks, evaluate
from pppml_core.evidence.attacker import Attacker
from pppml_core.evidence.attacks import Target, bound
from pppml_core.evidence.deciding import controls_needed
from pppml_core.evidence.found import Cell, Effort, Picture
from pppml_core.evidence.knowledge import to_message
from pppml_core.evidence.reading import lesion_reader
from pppml_core.evidence.strips import panels
from pppml_core.evidence.victims import draw_victims, public_images
from pppml_core.evidence.view import encode_view
from pppml_core.interfaces.attack import Attack, Images, Reconstruction
from pppml_core.registry import Registry
from pppml_core.wire.codec import encode

SITES = ("site_1", "site_2", "site_3")


class NoConfig(ComponentConfig):
    depth: int = 3


class Finder(Attack):
    """The candidate whose expected update is nearest to the sight."""

    answers = "candidate"
    cheap = True

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        seen, model = view.last, ctx.model(view.last)
        sight = np.concatenate([u.ravel() for u in view.of(ctx.site).update.values()])
        scores = []
        for image, target in zip(ctx.candidates.images, ctx.candidates.targets, strict=True):
            made = ctx.expected(model, torch.from_numpy(image[None].copy()), torch.from_numpy(np.array([target])))
            scores.append(-float(np.square(np.concatenate([made[n].detach().numpy().ravel() for n in seen.weights]) - sight).sum()))
        return Reconstruction({"candidate": np.array(scores)}, {"evaluations": len(scores)})


class Constant(Finder):
    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        return Reconstruction({"candidate": np.zeros(len(ctx.candidates))})


class Painter(Attack):
    """Pictures, without any skill."""

    answers = "images"

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        return Reconstruction({"images": ctx.public.images[:1]})


class Reader(Painter):
    """Everything at once, of which it asks for nothing."""

    answers = "labels"
    batch = 3
    cheap = True

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        bias = ctx.gradient(view.of(ctx.site))["7.bias"]
        return Reconstruction({"labels": np.repeat(bias.argmin(keepdims=True), 3)})


class Drawer(Painter):
    """A picture without any skill, of the right label."""

    cheap = True

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        bias = ctx.gradient(view.of(ctx.site))["7.bias"]
        return Reconstruction({"images": ctx.public.images[:1], "labels": bias.argmin(keepdims=True)})


class Picky(Painter):
    def misfit(self, view: Any, ctx: Any) -> str:
        return "it never fits"


class Broken(Painter):
    """Answers that are none, by name."""

    made: ClassVar[Any] = None

    def run(self, view: Any, budget: Any, ctx: Any) -> Any:
        return type(self).made(ctx)


class Silent(Broken):
    """Like Broken, where a candidate is asked for."""

    answers = "candidate"


class Remembering(Finder):
    """Answers as it did when it first saw these candidates, in a sum of one site if there was one."""

    kept: ClassVar[dict[tuple[int, bytes], Any]] = {}

    def run(self, view: Any, budget: Any, ctx: Any) -> Reconstruction:
        name = (os.getpid(), ctx.candidates.images.tobytes())
        if len(view.of(ctx.site).sites) == 1:
            self.kept[name] = super().run(view, budget, ctx)
        return self.kept.get(name) or Reconstruction({"candidate": np.zeros(len(ctx.candidates))})


OFFERED = (Finder, Constant, Painter, Reader, Drawer, Picky, Broken, Silent, Remembering)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def registry():
    offered = [Component(c.__name__.lower(), NoConfig, f"{__name__}:{c.__name__}", "for a test") for c in OFFERED]
    return Registry.only({"attack": offered}, "pppml_dp.plugin", "pppml_secagg_plus.plugin")


@pytest.fixture(scope="module")
def go(registry, tmp_path_factory):
    """``go(**sections)``: a finished run of one round over three sites, as a target whose attacks run in this process."""

    def made(**sections: Any) -> Target:
        given = {"task": {"use": "tiny", "sites": 3, "examples": 60}, "training": {"steps": 1}, **sections}
        run = pppml.Experiment(run={"rounds": 1}, registry=registry, **given)
        done = run.run(tmp_path_factory.mktemp("run") / "a", reporters=False, report=False)
        return Target(done.folder, done.result, done.assembly, live=True)

    return made


@pytest.fixture(scope="module")
def plain(go):
    return go()


def tried(target: Target, use: str, vantage: str = "server", victims: int = 12, **more: Any) -> dict[str, Any]:
    cell = Cell(bound(target.parts, {"use": use}), target.vantage(vantage))
    effort = Effort(cheap=victims, optimized=victims, gallery=8, **more)
    return target.attack([cell], 1, effort, "site_1")[0]


# -- what an attack is given --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spied(monkeypatch):
    """Every request, as bytes, with its answer; rounds are held once, so that no key differs between evaluations."""
    told: list[tuple[str, bytes, bytes]] = []
    answer, hold, rounds = Attacker.answer, evaluate.Stage.hold, {}

    def spy(self: Any, attack: Any, view: Any, seconds: float, knowledge: Any) -> Any:
        out = answer(self, attack, view, seconds, knowledge)
        request = encode_view(view) + encode(to_message(knowledge)) + encode(dict(knowledge.config))
        told.append((attack.use, request, encode({"guess": out["guess"], "error": out["error"]})))
        return out

    def once(self: Any, round: int, weights: Any, batches: Any, seed: int) -> Any:
        key = (
            self.parts.config.aggregator.use,
            self.parts.config.privacy.use,
            round,
            seed,
            *(b.images.tobytes() for b in batches.values()),
        )
        if key not in rounds:
            rounds[key] = hold(self, round, weights, batches, seed)
        return rounds[key]

    monkeypatch.setattr(Attacker, "answer", spy)
    monkeypatch.setattr(evaluate.Stage, "hold", once)
    return told


@pytest.mark.parametrize("use", ["finder", "painter", "reader"])
def test_another_truth_changes_no_byte_of_what_an_attack_is_given_and_answers(plain, spied, monkeypatch, use):
    tried(plain, use, victims=4)
    first = list(spied)
    spied.clear()
    truth_of = evaluate.truth_of

    def poisoned(victim: Any, *more: Any) -> Any:
        truth = truth_of(victim, *more)
        other = np.random.default_rng(0).normal(size=truth.images.images.shape).astype(np.float32)
        places = tuple((p + 1) % 8 for p in truth.places)
        return replace(truth, images=Images(other, (truth.images.targets + 1) % 3), places=places, candidate=(truth.candidate + 1) % 8)

    monkeypatch.setattr(evaluate, "truth_of", poisoned)
    record = tried(plain, use, victims=4)
    assert len(first) >= 12  # target, control and random updates
    assert spied == first
    if use == "finder":
        assert record["metrics"]["candidate@1"]["rate"] == 0.0


def test_no_request_holds_a_victim_but_among_its_candidates_nor_a_path(plain, spied):
    tried(plain, "painter", victims=5)
    tried(plain, "finder", victims=5)
    tried(plain, "reader", victims=5)
    victims = {b: draw_victims(plain.parts, "site_1", 5, b, 0, 8) for b in (1, 3)}
    for use, request, _ in spied:
        assert str(plain.folder).encode() not in request
        drawn = victims[3 if use == "reader" else 1]
        held = [v for v in drawn if any(image.tobytes() in request for image in v.batch.images)]
        assert bool(held) == (use == "finder"), use
        in_public = [i for i in public_images(plain.parts, "site_1", 0).images if i.tobytes() in request]
        assert len(in_public) > 10, "so the search finds what is there"


def test_what_an_attack_knows_of_the_config_names_no_file(go, tmp_path):
    target = go()
    config = target.parts.config.model_copy(update={"training": target.parts.config.training.model_copy(update={"init": Path("w.st")})})
    target.parts.config = config
    stage = evaluate.Evaluation(target.parts, target.sizes, {}, 1, "site_1", Effort())
    victim = draw_victims(target.parts, "site_1", 1, 1, 0)[0]
    given = stage._knowledge(Painter(NoConfig()), victim, 1, 0, stage.stage)
    assert "w.st" not in json.dumps(given.config, default=str)
    assert given.config["training"]["optimizer"]["lr"] == config.training.optimizer.lr


def test_the_place_of_the_victim_says_nothing(plain):
    places = [v.place for seed in range(25) for v in draw_victims(plain.parts, "site_1", 60, 1, seed, 6)]
    # Seeded, so never red by chance.
    assert chisquare(np.bincount(places, minlength=6)).pvalue > 1e-3


def test_no_look_alike_is_public(go):
    """A candidate of whom the adversary knows that it is elsewhere can be ruled out."""
    small = go(task={"use": "tiny", "sites": 3, "examples": 9}).parts
    public = {i.tobytes() for i in public_images(small, "site_1", 3).images}
    for victim in draw_victims(small, "site_1", 9, 1, 3, 60):
        assert not any(i.tobytes() in public for i in victim.candidates.images)
        assert (victim.candidates.images[victim.place] == victim.batch.images[0]).all()
        assert sum((i == victim.batch.images[0]).all() for i in victim.candidates.images) == 1


def test_victims_are_of_different_patients_and_a_small_site_is_refused(plain):
    train = plain.parts.load("site_1").train
    drawn = draw_victims(plain.parts, "site_1", 30, 1, 0, 8)
    index = [next(i for i in range(60) if (train.example(i)[0] == v.batch.images[0]).all()) for v in drawn]
    assert len({train.groups[i] for i in index}) == 30
    for i, victim in zip(index, drawn, strict=True):
        twins = [j for j in range(60) if train.groups[j] == train.groups[i] and j != i]
        assert not any((c == train.example(j)[0]).all() for j in twins for c in victim.candidates.images)
    with pytest.raises(ConfigError, match="61 is attacked"):
        draw_victims(plain.parts, "site_1", 1, 61, 0)


# -- what is made of it -------------------------------------------------------------------------------------------------------------------


def test_an_attack_that_finds_is_recovered(plain):
    record = tried(plain, "finder")
    assert record["outcome"] == "recovered", record["reason"]
    assert record["metrics"]["candidate@1"]["rate"] == 1.0
    assert record["control"]["passed"]
    assert (record["staged"], record["victims"], record["site"], record["bound"]["rate"]) == (True, 12, "site_1", None)
    assert "no differential privacy" in record["bound"]["reason"]
    assert record["exposed"] == [{"sites": ["site_1"]}, {"sites": ["site_2"]}, {"sites": ["site_3"]}, {"sites": list(SITES)}]
    assert json.loads((plain.folder / "attacks/finder-server-r1.json").read_text()) == record


def test_a_site_with_fewer_victims_than_are_asked_for_is_attacked_on_those(plain):
    record = tried(plain, "finder", victims=100_000)
    held = len(plain.parts.load("site_1").train)
    assert 0 < record["victims"] <= held
    assert record["outcome"] == "recovered"


def test_where_noise_covers_all_it_is_not_shown_to_leak(go):
    target = go(privacy={"use": "dp-update", "noise_multiplier": 50.0, "delta": 1e-3, "clip": 0.05})
    record = tried(target, "finder")
    assert record["outcome"] == "not_shown_to_leak", record["reason"]
    assert record["control"]["passed"]
    assert record["control"]["candidate@1"]["rate"] == 1.0
    assert record["metrics"]["candidate@1"]["rate"] < 0.6
    assert not record["violation"]


@pytest.mark.parametrize("use", ["constant", "painter"])
def test_one_that_never_finds_shows_nothing(plain, use):
    record = tried(plain, use, victims=3)
    assert record["outcome"] == "inconclusive"
    assert record["control"]["passed"] is False
    assert "With the defence off it did not succeed" in record["reason"]


def test_a_misfit_is_told(plain):
    record = tried(plain, "picky")
    assert (record["outcome"], record["reason"], record["victims"]) == ("not_applicable", "it never fits", 0)
    own = tried(plain, "finder", "site:site_1")
    assert own["outcome"] == "not_applicable"
    assert "watched site is one of" in own["reason"]
    ring = tried(plain, "finder", "neighbours:site_1")
    assert ring["outcome"] == "not_applicable"
    assert "no neighbours" in ring["reason"]
    nothing = tried(plain, "finder", "link:site_1-site_2")
    assert nothing["outcome"] == "not_applicable"
    assert "decodes no sum" in nothing["reason"]


@pytest.mark.parametrize(
    ("use", "vantage", "why"),
    [
        ("finder", "server", None),
        ("picky", "server", "misfit"),
        ("finder", "site:site_1", "own"),
        ("finder", "neighbours:site_1", "no_such_party"),
        ("finder", "link:site_1-site_2", "hidden"),
        ("picky", "link:site_1-site_2", "hidden"),
    ],
)
def test_why_nothing_was_tried_is_a_field_and_no_matter_of_words(plain, use, vantage, why):
    assert tried(plain, use, vantage, victims=2)["why"] == why


def test_an_attacks_own_config_says_how_many_victims_and_seconds(plain, monkeypatch):
    asked = []
    answer = Attacker.answer
    monkeypatch.setattr(Attacker, "answer", lambda self, *a: asked.append((a[0].use, a[2])) or answer(self, *a))
    given = [{"use": "finder", "victims": 2, "seconds": 0.5}, {"use": "constant"}]
    cells = [Cell(bound(plain.parts, one), plain.vantage("server")) for one in given]
    few, usual = plain.attack(cells, 1, Effort(cheap=3, gallery=8, seconds=7.0), "site_1")
    assert (few["victims"], usual["victims"]) == (2, 3)
    # Each victim, its control and as many random updates as it takes.
    calls = [n * (2 + -(-controls_needed(n) // n)) for n in (2, 3)]
    assert [asked.count(pair) for pair in (("finder", 0.5), ("constant", 7.0))] == calls
    assert len(asked) == sum(calls)
    assert few["settings"] == usual["settings"] == {"depth": 3}
    assert (few["asked"]["victims"], few["asked"]["seconds"], usual["asked"]["seconds"]) == (2, 0.5, 7.0)


def test_labels_that_an_image_attack_infers_are_counted(plain):
    """As a claim of the record, of which the page's first screen is made."""
    record = tried(plain, "drawer", victims=24)
    assert record["metrics"]["claims"]["named"] == "shown", record["reason"]
    assert record["metrics"]["labels_right"]["n"] == 24
    assert "Labels named: " in record["reason"]
    assert record["outcome"] == "inconclusive", "pictures decide, and these show nothing"
    assert "named" not in tried(plain, "painter", victims=2)["metrics"]["claims"]


def raising(ctx: Any) -> Any:
    raise ZeroDivisionError("too clever")


BROKEN = {
    "raises": (raising, "ZeroDivisionError: too clever"),
    "no reconstruction": (lambda ctx: 3, "returned int"),
    "another shape": (lambda ctx: Reconstruction({"images": np.zeros((2, 1, 3, 3)), "candidate": np.zeros(3)}), "cannot be scored"),
    "words": (lambda ctx: Reconstruction({"images": "none", "candidate": "none"}), "cannot be scored"),
    "objects": (lambda ctx: Reconstruction({"images": object(), "candidate": object()}), "object"),
    "torch": (lambda ctx: Reconstruction({"images": torch.zeros(1), "candidate": torch.zeros(1)}), "Tensor"),
    "effort": (lambda ctx: Reconstruction({}, {"seconds": "long"}), "long"),
}


@pytest.mark.parametrize("use", ["broken", "silent"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_attack_shows_nothing_and_stops_nothing(plain, monkeypatch, capsys, use, name):
    made, said = BROKEN[name]
    monkeypatch.setattr(Broken, "made", staticmethod(made))
    record = tried(plain, use, victims=2)
    assert record["outcome"] == "inconclusive"
    assert record["why"] == "broke"
    assert record["reason"].startswith("The attack failed for 2 of 2 victims")
    assert said in record["reason"]
    assert record["victims"] == 2


@pytest.mark.parametrize("use", ["broken", "silent"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_numbers_show_nothing(plain, monkeypatch, use, value):
    def made(ctx: Any) -> Any:
        shape = ctx.public.images[:1].shape
        return Reconstruction({"images": np.full(shape, value), "candidate": np.full(8, value)}, {"loss": value})

    monkeypatch.setattr(Broken, "made", staticmethod(made))
    record = tried(plain, use, victims=2)
    assert record["outcome"] == "inconclusive"
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_one_failure_among_pictures_leaves_each_picture_with_its_victim(plain, monkeypatch):
    calls = iter(range(1000))

    def made(ctx: Any) -> Any:
        return Reconstruction({"images": ctx.public.images[:1]}) if next(calls) else raising(ctx)

    monkeypatch.setattr(Broken, "made", staticmethod(made))
    found: list[Any] = []
    write = attacks.record_of
    monkeypatch.setattr(attacks, "record_of", lambda f, *a, **k: found.append(f) or write(f, *a, **k))
    record = tried(plain, "broken", victims=3)
    assert "failed for 1 of 3 victims" in record["reason"]
    assert [len(p.guess) for p in found[0].pictures] == [0, 1, 1]
    assert (plain.folder / "attacks" / record["pictures"]).stat().st_size > 1000


def test_the_picture_that_is_shown_is_the_one_that_was_scored():
    """Of a batch each image has its own reconstruction: the first one's is not the nearest to it where another image needs that more."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 1, 6, 6))
    near_both = 0.6 * second + 0.4 * first  # nearest to the first among the guesses, and all that the second has
    far = np.clip(first + 0.8, 0, 2)
    guess = np.stack([near_both, far])
    errors = np.square(guess[:, None] - np.stack([first, second])[None]).mean(axis=(2, 3, 4))
    assert errors[0, 0] < errors[1, 0]
    assert errors[0, 1] + errors[1, 0] < errors[0, 0] + errors[1, 1]
    batch = Images(np.stack([first, second]).astype(np.float32), np.array([0, 1]))
    low, high = np.zeros((1, 1, 1)), np.ones((1, 1, 1))
    shown = panels(Picture(batch, np.clip(guess, 0, 1), batch, low, high))
    np.testing.assert_allclose(shown[0], first[0], atol=1e-6)
    np.testing.assert_allclose(shown[2], np.clip(far, 0, 1)[0])


def test_a_lesion_is_read_by_the_runs_own_final_model(go, monkeypatch):
    target = go(task={"use": "tiny", "sites": 3, "examples": 60, "kind": "segmentation"}, training={"steps": 20, "optimizer": {"lr": 0.5}})
    read = lesion_reader(target.folder, target.parts, 1)
    # An independent reading: the network as the run left it.
    network, held = copy.deepcopy(target.parts.model), load_file(target.folder / "model.safetensors")
    network.load_state_dict({**network.state_dict(), **{n: torch.from_numpy(a) for n, a in held.items()}})
    image = np.stack([np.asarray(target.parts.load("site_1").test.example(i)[0], np.float32) for i in range(3)])
    with torch.no_grad():
        wanted = network.eval()(torch.from_numpy(image)).argmax(dim=1).numpy()
    np.testing.assert_array_equal(read(image), wanted)
    monkeypatch.setattr(Broken, "made", staticmethod(lambda ctx: Reconstruction({"images": ctx.public.images[:1] * 0})))
    record = tried(target, "broken", victims=4)
    assert (record["metrics"]["dice"] if wanted.any() else None) is not None
    assert lesion_reader(target.folder / "nowhere", target.parts, 1) is None
    assert lesion_reader(target.folder, go().parts, 1) is None, "classes have no lesion to read"


def test_controls_are_made_once_for_all_cells_of_a_victim(plain, monkeypatch):
    asked = []
    answer = Attacker.answer
    monkeypatch.setattr(Attacker, "answer", lambda self, *a: asked.append(a[1].vantage.text) or answer(self, *a))
    cells = [Cell(bound(plain.parts, {"use": "finder"}), plain.vantage(v)) for v in ("server", "public", "site:site_2")]
    shared: dict[str, Any] = {}
    effort = Effort(cheap=3, gallery=8)
    plain.attack(cells, 1, effort, "site_1", controls=shared)
    # Three of each vantage; beside them each victim's control and two random updates, all on the server.
    assert [asked.count(v) for v in ("server", "public", "site:site_2")] == [3 + 9, 3, 3]
    asked.clear()
    plain.attack(cells[:1], 1, effort, "site_1", controls=shared)
    assert asked == ["server"] * 3
    assert len(shared) == 3


def test_an_attack_on_few_victims_gets_as_many_random_updates_as_it_takes_to_show_anything(plain, monkeypatch):
    """With 3 victims and 3 random updates even an attack that always wins shows nothing at 1 %: it takes 6 that fail."""
    asked = []
    answer = Attacker.answer
    monkeypatch.setattr(Attacker, "answer", lambda self, *a: asked.append(a[1].vantage.text) or answer(self, *a))
    record = tried(plain, "finder", victims=3)
    # of each victim: the attack, the same with the defence off, and two random updates
    assert len(asked) == 3 * (1 + 1 + 2)
    assert record["control"]["victims"] == 3


def test_what_was_seen_without_the_defence_helps_nobody_with_it(go, monkeypatch, tmp_path):
    """Two attackers a worker: in one process both would be one, so the spy tells them apart."""
    target = go(aggregator="secagg-plus")
    answer = Attacker.answer
    monkeypatch.setattr(os, "getpid", lambda: asking[-1])
    asking = [0]

    def spy(self: Any, *a: Any) -> Any:
        asking.append(id(self))
        return answer(self, *a)

    monkeypatch.setattr(Attacker, "answer", spy)
    cells = [Cell(bound(target.parts, {"use": "remembering"}), target.vantage(v)) for v in ("server", "public")]
    records = target.attack(cells, 1, Effort(cheap=12, gallery=8), "site_1")
    assert [r["outcome"] for r in records] == ["not_shown_to_leak"] * 2, [r["reason"] for r in records]
    assert records[0]["control"]["candidate@1"]["rate"] == 1.0


def test_an_attack_whose_process_ends_is_given_up_and_takes_no_other_along(plain, monkeypatch):
    answer, asked = Attacker.answer, []

    def ended(self: Any, attack: Any, *more: Any) -> Any:
        if attack.use != "painter":
            return answer(self, attack, *more)
        asked.append(attack.use)
        return {"guess": {}, "effort": {"seconds": 1.0}, "misfit": "", "error": "its process ended (exit code 9)", "ended": True}

    monkeypatch.setattr(Attacker, "answer", ended)
    cells = [Cell(bound(plain.parts, {"use": use}), plain.vantage("server")) for use in ("painter", "finder")]
    records = {r["attack"]: r for r in plain.attack(cells, 1, Effort(cheap=12, optimized=12, gallery=8), "site_1")}
    assert records["finder"]["outcome"] == "recovered"
    assert records["painter"]["outcome"] == "inconclusive"
    assert "exit code 9" in records["painter"]["reason"]
    # Its first victim, that one's control and random updates, and those who were asked meanwhile.
    assert len(asked) < 12


def told_noise(monkeypatch: Any, target: Target, vantage: str, victims: int = 2) -> set[float]:
    """Of the watched site's noise, as attackers are told of it who see the run's own sums."""
    told = []
    answer = Attacker.answer
    monkeypatch.setattr(
        Attacker, "answer", lambda self, *a: told.append((len(a[1].of("site_1").sites), a[3].defence.noise)) or answer(self, *a)
    )
    tried(target, "constant", vantage, victims=victims)
    monkeypatch.setattr(Attacker, "answer", answer)
    return {noise for sites, noise in told if sites == 3}


def test_an_attacker_is_told_the_noise_of_the_sum_it_sees(go, monkeypatch):
    """A third of the noise is each site's, but a sum has all of it: told for the watched site as if that stood alone."""
    target = go(privacy={**DP, "placement": "distributed", "colluders": 0}, aggregator={"use": "secagg-plus"})
    plan = target.parts.mechanism.plan(target.parts.privacy_setting(target.sizes))
    alone, whole = plan.defence(1, 1).noise, plan.defence(1, 3).noise
    assert whole > 1.5 * alone
    assert told_noise(monkeypatch, target, "server") == {whole}


def test_who_sees_a_sum_before_the_noise_is_told_that_there_is_none(go, monkeypatch):
    """The server that adds it sees the sum before; who listens to another site sees nothing of the watched one but noised models."""
    target = go(privacy={**DP, "placement": "server"}, aggregator={"use": "secagg-plus"})
    noise = target.parts.mechanism.plan(target.parts.privacy_setting(target.sizes)).defence(1, 3).noise
    assert noise > 0
    for vantage, told in (("server", 0.0), ("public", noise), ("link:site_2-server", noise)):
        assert told_noise(monkeypatch, target, vantage) == {told}, vantage


def test_a_lie_that_a_policy_would_see_is_told(plain, monkeypatch):
    def dead(self, weights, ctx):
        return {n: np.zeros_like(w) if n == next(iter(weights)) else w for n, w in weights.items()}

    assert tried(plain, "finder", victims=3)["caught"] == []
    monkeypatch.setattr(Finder, "plant", dead)
    record = tried(plain, "finder", victims=3)
    assert record["lied"]
    assert record["caught"], "all weights of a layer are 0"
    assert record["caught"][0] in record["reason"]


# -- bounds -------------------------------------------------------------------------------------------------------------------------------


def lying(target: Target, monkeypatch: Any) -> None:
    """The mechanism adds none of the noise it claims."""
    plan = target.parts.mechanism.plan

    def made(setting: Any) -> Any:
        out = plan(setting)
        out._noise = type(
            "None", (), {"variance": out._noise.variance, "bound": out._noise.bound, "sample": lambda s, n: np.zeros(n, int)}
        )()
        return out

    monkeypatch.setattr(target.parts.mechanism, "plan", made)


DP = {"use": "dp-sgd", "noise_multiplier": 30.0, "delta": 1e-3, "clip": 0.5}


@pytest.fixture(scope="module")
def private(go):
    return go(privacy=DP)


def test_a_claim_that_is_too_small_is_refuted(private, monkeypatch):
    honest = tried(private, "finder", victims=20)
    assert honest["bound"]["rate"] is not None
    assert (honest["violation"], honest["outcome"]) == (False, "not_shown_to_leak"), honest["reason"]
    lying(private, monkeypatch)
    record = tried(private, "finder", victims=20)
    assert (record["violation"], record["outcome"]) == (True, "recovered")
    assert record["reason"].startswith("The claim of privacy is refuted")
    assert record["metrics"]["candidate@1"]["low"] > record["bound"]["rate"]


@pytest.mark.parametrize(
    ("sections", "vantage", "said"),
    [
        ({"privacy": {**DP, "placement": "server"}}, "server", "trusted to add the noise"),
        ({"privacy": {**DP, "placement": "server"}}, "link:site_1-server", "listens"),
        (
            {"privacy": {**DP, "placement": "distributed", "colluders": 0}, "aggregator": {"use": "secagg-plus"}},
            "server+site:site_2",
            "leave the noise of 3 sites unknown, and these leave 2",
        ),
        ({"privacy": {"use": "clip-only", "clip": 0.5}}, "server", "no differential privacy"),
    ],
    ids=["server", "listener", "coalition", "clip-only"],
)
def test_outside_the_claim_there_is_no_bound(go, sections, vantage, said):
    record = tried(go(**sections), "finder", vantage, victims=12)
    assert record["bound"]["rate"] is None
    assert said in record["bound"]["reason"]
    assert not record["violation"]


def test_who_sees_sums_before_the_noise_is_told_so(go):
    target = go(privacy={**DP, "placement": "server"})
    assert tried(target, "finder", "server", victims=12)["outcome"] == "recovered"
    public = tried(target, "finder", "public", victims=12)
    assert public["outcome"] == "not_shown_to_leak", public["reason"]
    assert public["bound"]["rate"] is not None


# -- the process --------------------------------------------------------------------------------------------------------------------------

ELSEWHERE = """
import os, time
import numpy as np
from pppml_core import Component, ComponentConfig, hookimpl
from pppml_core.interfaces.attack import Attack, Reconstruction

class Config(ComponentConfig):
    do: str = "answer"

class Elsewhere(Attack):
    def run(self, view, budget, ctx):
        if self.config.do == "exit":
            os._exit(7)
        if self.config.do == "hang":
            time.sleep(1000)
        print("on standard output")
        open_files = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{n}")]
        told = repr((open_files, dict(os.environ).keys() and [], __import__("sys").argv))
        return Reconstruction({"images": ctx.public.images[:1], "told": told}, {"pid": os.getpid()})

@hookimpl
def pppml_attacks():
    return [Component("elsewhere", Config, "pppml_elsewhere:Elsewhere", "for a test")]
"""


def test_the_process_of_an_attack(tmp_path, monkeypatch):
    """It answers for an attack that it finds by itself; one that hangs is ended, one that crashes is told; neither takes others along."""
    (tmp_path / "lib/pppml_elsewhere-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "lib/pppml_elsewhere.py").write_text(ELSEWHERE)
    (tmp_path / "lib/pppml_elsewhere-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pppml-elsewhere\nVersion: 1.0\n")
    (tmp_path / "lib/pppml_elsewhere-1.0.dist-info/entry_points.txt").write_text("[pppml]\nplugin = pppml_elsewhere\n")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    registry = Registry.discover()
    plan = pppml.Experiment(task={"use": "tiny", "sites": 3}, run={"rounds": 1}, registry=registry)._plan()
    stage = evaluate.Evaluation(plan.assembly, plan.sizes, evaluate.to_numpy(plan.assembly.initial_weights), 1, "site_1", Effort())
    victim = draw_victims(plan.assembly, "site_1", 1, 1, 0)[0]
    batches = dict.fromkeys(plan.sizes, victim.batch)
    held = stage.stage.hold(1, evaluate.to_numpy(plan.assembly.initial_weights), batches, 0)
    view = evaluate.AdversaryView(evaluate.ON_THE_SERVER, (held.seen(evaluate.ON_THE_SERVER),))
    knowledge = stage._knowledge(Painter(NoConfig()), victim, 1, 0, stage.stage, held)

    def asked(one: Attacker, do: str) -> dict[str, Any]:
        return one.answer(bound(plan.assembly, {"use": "elsewhere", "do": do}), view, 1e-3, knowledge)

    with Attacker(plan.assembly, patience=120.0) as one:
        first = asked(one, "answer")
        assert first["error"] == ""
        np.testing.assert_array_equal(first["guess"]["images"], knowledge.public.images[:1])
        assert str(tmp_path / "run") not in first["guess"]["told"]
        assert asked(one, "answer")["effort"]["pid"] == first["effort"]["pid"]
        died = asked(one, "exit")
        assert (died["error"], died["guess"], died["ended"]) == ("its process ended (exit code 7)", {}, True)
        with pytest.raises(RunFailed, match="no attack 'finder'"):
            one.answer(Silent_config(), view, 1.0, knowledge)
        again = asked(one, "answer")
        assert again["error"] == ""
        one._patience = 0.5
        late = asked(one, "hang")
        assert late["error"].startswith("no answer within")
        assert late["guess"] == {}


def Silent_config() -> Any:
    class Config(NoConfig):
        use: str = "finder"

    return Config()
