"""Scores, decisions and summaries of attacks, against brute force, exact enumeration and other libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import combinations, product
from math import comb
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest, boschloo_exact, hypergeom
from sklearn.metrics import roc_auc_score

from pppml_core.errors import PppmlError
from pppml_core.evidence import deciding, measures, tallies
from pppml_core.evidence.scoring import Truth, blind_scores, decide, score, summarize
from pppml_core.evidence.summary import best_guess, total_effort
from pppml_core.interfaces.attack import Answer, Defence, Images, Knowledge, Training

Make = Callable[[int], np.ndarray]


def known(public: Images, **more: Any) -> Knowledge:
    low, high = np.full((1, 1, 1), -1.0, np.float32), np.full((1, 1, 1), 1.0, np.float32)
    spec: Any = SimpleNamespace(classes=("a", "b", "c"))
    nothing: Any = None
    return Knowledge("one", spec, nothing, nothing, Training(0.1), Defence(), low, high, public, **more)


class Clinic:
    """Patients who look alike: one anatomy, and 5 % of each patient's own. In units of -1 to 1."""

    def __init__(self, own: float = 0.1) -> None:
        self.rng = np.random.default_rng(0)
        self.anatomy = self.rng.uniform(-0.7, 0.7, (1, 12, 12))
        self.own = own
        self.public = Images(self.people(60), self.rng.integers(0, 3, 60))
        self.gallery = self.people(50)
        self.knowledge = known(self.public)

    def people(self, count: int) -> np.ndarray:
        return (self.anatomy + self.own * self.rng.standard_normal((count, 1, 12, 12))).clip(-1, 1).astype(np.float32)

    def truth(self, victim: int, **more: Any) -> Truth:
        return Truth(Images(self.gallery[victim : victim + 1], np.array([victim % 3])), self.gallery, (victim,), **more)

    def scores(self, make: Make, victims: int = 20) -> list[dict[str, Any]]:
        return [score("images", {"images": make(v)[None]}, self.truth(v), self.knowledge) for v in range(victims)]

    def near(self, noise: float) -> Make:
        return lambda v: self.gallery[v] + noise * self.rng.standard_normal(self.gallery[v].shape)

    def noise(self, v: int) -> np.ndarray:
        return self.rng.uniform(-1, 1, self.gallery[v].shape)

    def mean(self, v: int) -> np.ndarray:
        return self.public.images.mean(axis=0)


@pytest.fixture(scope="module")
def clinic() -> Clinic:
    return Clinic()


def test_a_picture_of_25_decibel_that_is_everybodys_does_not_count(clinic: Clinic) -> None:
    found = clinic.scores(clinic.mean)
    assert min(s["psnr"][0] for s in found) > 24.5
    assert all(s["mse"][0] < 1e-2 for s in found)
    assert not any(s["redrawn"][0] for s in found)
    outcome, reason = decide("images", found, clinic.scores(clinic.near(0.02)), clinic.scores(clinic.noise))
    assert outcome == "not_shown_to_leak"
    assert "Images redrawn: 0 of 20 (at most 14%" in reason
    assert "with the defence off 20 of 20, on random gradients 0 of 20" in reason
    # Nor if it is a little better than the mean by what little every patient has in common with the others.
    slightly = clinic.scores(lambda v: clinic.mean(v) + 0.1 * (clinic.gallery[v] - clinic.mean(v)))
    assert not any(s["redrawn"][0] for s in slightly)
    gains = [summarize(found)["psnr_gain"], summarize(slightly)["psnr_gain"]]
    assert gains[0]["median"] <= 0 < gains[1]["median"] < 1


def test_a_picture_of_the_patient_counts_as_redrawn_and_picks_the_patient(clinic: Clinic) -> None:
    found = clinic.scores(clinic.near(0.02))
    assert all(s["redrawn"] == [True] and s["picked"] == [True] and s["rank"] == [1] and s["gallery"] == [50] for s in found)
    assert decide("images", found, found, clinic.scores(clinic.noise))[0] == "recovered"
    # A blurred picture picks the patient although its error is as large as that of anybody's: identity leaks before pixels do.
    faint = clinic.scores(lambda v: clinic.mean(v) + 0.15 * (clinic.gallery[v] - clinic.mean(v)))
    assert not any(s["redrawn"][0] for s in faint)
    made = {c.name: c.verdict for c in deciding.claims("images", faint, found, clinic.scores(clinic.noise))}
    assert made == {"picked": "shown", "redrawn": "not_shown"}
    assert decide("images", faint, found, clinic.scores(clinic.noise))[0] == "recovered"


def test_an_image_is_redrawn_only_below_20_decibel_and_at_half_of_the_best_blind_error() -> None:
    clinic = Clinic(own=0.6)
    truth, right = clinic.truth(0), clinic.gallery[0].astype(float)
    best = min(b["mse"][0] for b in blind_scores("images", truth, clinic.knowledge).values() if "mse" in b)
    direction = np.where(right > 0, -1.0, 1.0)  # inwards, so that nothing is clamped
    for error, counts in ((0.0099, True), (0.0101, False)):
        picture = right + 2 * np.sqrt(error) * direction
        assert score("images", {"images": picture[None]}, truth, clinic.knowledge)["redrawn"] == [counts]
    assert best > 0.0202, "here the first condition decides"
    alike = Clinic(own=0.1)
    truth, right = alike.truth(0), alike.gallery[0].astype(float)
    best = min(b["mse"][0] for b in blind_scores("images", truth, alike.knowledge).values() if "mse" in b)
    direction = np.where(right > 0, -1.0, 1.0)
    assert best < 0.01, "and here the second"
    for share, counts in ((0.49, True), (0.51, False)):
        picture = right + 2 * np.sqrt(share * best) * direction
        assert score("images", {"images": picture[None]}, truth, alike.knowledge)["redrawn"] == [counts]


def test_a_picture_that_fits_a_look_alike_better_is_not_of_the_victim() -> None:
    clinic = Clinic(own=0.6)
    twin = clinic.gallery[0] + 0.1 * clinic.rng.standard_normal((1, 12, 12)).astype(np.float32)
    truth = clinic.truth(0)
    without = Truth(truth.images, clinic.gallery, (0,))
    clinic.gallery[1] = twin  # in the gallery of both
    found = score("images", {"images": twin[None]}, without, clinic.knowledge)
    assert found["mse"][0] < 0.5 * min(b["mse"][0] for b in found["blind"]["images"].values() if "mse" in b)
    assert (found["rank"], found["redrawn"]) == ([2], [False])
    alone = score("images", {"images": twin[None]}, Truth(truth.images), clinic.knowledge)
    assert alone["redrawn"] == [True], "without a gallery nothing says that there is another"


def test_several_pictures_for_one_victim_compete_with_as_many_public_images(clinic: Clinic) -> None:
    truth = clinic.truth(3)
    many = np.concatenate([clinic.people(40), clinic.gallery[3:4]])
    found = score("images", {"images": many}, truth, clinic.knowledge)
    assert (found["tries"], found["redrawn"], found["picked"]) == (41, [True], [True])
    assert "as many public images" in found["blind"]["images"]
    public = score("images", {"images": clinic.public.images}, truth, clinic.knowledge)
    assert public["redrawn"] == [False]
    assert public["mse"] == pytest.approx(public["blind"]["images"]["as many public images"]["mse"])


def test_pictures_of_a_batch_are_matched_and_its_other_victims_do_not_compete(clinic: Clinic) -> None:
    places = (4, 9, 2)
    truth = Truth(Images(clinic.gallery[list(places)], np.array([0, 1, 2])), clinic.gallery, places)
    found = score("images", {"images": clinic.gallery[[2, 4, 9]]}, truth, clinic.knowledge)
    assert found["psnr"] == [100.0] * 3
    assert found["picked"] == [True] * 3, "though two others of the gallery fit one of the pictures as well"
    assert found["gallery"] == [48] * 3
    one_missing = score("images", {"images": clinic.gallery[[9, 4]]}, truth, clinic.knowledge)
    assert one_missing["redrawn"] == [True, True, False]
    assert one_missing["mse"][2] == pytest.approx(((clinic.gallery[2] / 2) ** 2).mean(), rel=1e-5), "against grey"


@pytest.mark.parametrize(
    "answer", [{}, {"images": None}, {"images": np.zeros((0, 1, 12, 12))}, {"images": np.full((1, 1, 12, 12), np.nan)}]
)
def test_an_answer_that_says_nothing_is_scored_as_one(clinic: Clinic, answer: dict[str, Any]) -> None:
    found = score("images", answer, clinic.truth(0), clinic.knowledge)
    assert (found["redrawn"], found["picked"], found["rank"]) == ([False], [False], [50])
    json.dumps(found, allow_nan=False)


def test_lesions_are_read_from_both_images_by_the_same_reader() -> None:
    masks = np.zeros((2, 12, 12), np.int64)
    masks[0, 3:6, 3:6] = 1
    images = np.where(masks[:, None] > 0, 0.8, -0.8).astype(np.float32)
    knowledge = known(Images(images * 0, masks))
    truth = Truth(Images(images, masks), reader=lambda x: x[:, 0] > 0)
    assert score("images", {"images": images}, truth, knowledge)["dice"] == [1.0, None]
    half = images.copy()
    half[0, 0, 3:6, 3:4] = -0.8
    assert score("images", {"images": half}, truth, knowledge)["dice"][0] == pytest.approx(2 * 6 / (9 + 6))
    area = score("area", {"area": 0.01}, truth, knowledge)
    assert area["area_error"] == pytest.approx(abs(0.01 - 9 / 288))


@pytest.mark.parametrize(
    ("labels", "accuracy", "right", "prevalence"),
    [
        ([2, 0, 0, 1], 1.0, True, 0.0),
        ([0, 0, 0, 0], 0.5, False, 0.5),
        ([0, 1], 0.5, False, 0.25),
        ([0, 0, 1, 9], 0.75, False, 0.25),
        ([0, 0, 1, 2, 2, 2], 4 / 6, False, 0.25),
    ],
)
def test_labels_of_a_batch_are_a_multiset(labels: list[int], accuracy: float, right: bool, prevalence: float) -> None:
    found = measures.named(labels, None, np.array([0, 1, 0, 2]), 3)
    assert found == {"label_accuracy": accuracy, "labels_right": right, "prevalence_error": prevalence}


def test_counts_are_scored_by_their_distance_to_the_true_ones() -> None:
    rng, true = np.random.default_rng(1), np.array([0, 1, 0, 2, 2, 2, 2, 1])
    for _ in range(20):
        counts = 8 * rng.dirichlet(np.ones(3))
        found = measures.named(None, counts, true, 3)
        distance = np.abs(counts - [2, 2, 4])
        assert found["label_accuracy"] == pytest.approx(1 - distance.sum() / 16)
        assert found["prevalence_error"] == pytest.approx(distance.max() / 8)
    assert measures.named(None, [np.nan, -1.0, 0.0], true, 3)["label_accuracy"] == 0.0
    with pytest.raises(PppmlError, match="counts"):
        measures.named(None, [1.0, 2.0], true, 3)


def test_members_are_counted_as_by_hand_and_by_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    for inside, outside in ((30, 100), (5, 60), (40, 300)):
        truth = np.arange(inside + outside) < inside
        scores = np.round(rng.standard_normal(len(truth)) + truth, 1)  # with ties
        found = measures.told_members(scores, truth)
        assert found["auc"] == pytest.approx(roc_auc_score(truth, scores))
        assert (found["members"], found["others"]) == (inside, outside)
        for rate in (0.01, 0.05):
            limit = np.sort(scores[~truth])[::-1][int(rate * outside + 1e-9)]  # the first of the others that must not be named
            expected = None if outside * rate < 3 else int((scores[truth] > limit).sum())
            assert found[f"found@{rate:g}"] == expected
        # Of equal scores the others come first.
        order = sorted(range(len(truth)), key=lambda i: (scores[i], not truth[i], -i))
        place = {i: at + 1 for at, i in enumerate(order)}
        assert found["member_ranks"] == [place[i] for i in np.flatnonzero(truth)]
        assert found["other_ranks"] == [place[i] for i in np.flatnonzero(~truth)]
    assert measures.told_members([1.0, 1.0], np.array([True, True]))["auc"] is None
    assert measures.told_members([np.nan] * 4, np.array([True, False] * 2))["member_ranks"] == [2, 1]


def test_the_chance_of_finding_members_is_exact_over_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "FALSE_POSITIVE_RATES", (0.5,))  # so that few others are enough
    inside, outside = 3, 6
    total = inside + outside
    counts: dict[int, int] = {}
    for chosen in combinations(range(total), inside):
        truth = np.isin(np.arange(total), chosen)
        found = measures.told_members(-np.arange(total), truth)["found@0.5"]
        counts[found] = counts.get(found, 0) + 1
    for found in counts:
        score_of = {"members": inside, "others": outside, "found@0.5": found}
        exact = sum(n for f, n in counts.items() if f >= found) / comb(total, inside)
        assert tallies._found([score_of], 0.5).p_guess == pytest.approx(exact, rel=1e-9)


def told(scores: Any, truth: np.ndarray) -> dict[str, Any]:
    """A victim whose scores these are."""
    return {**measures.told_members(scores, truth), "blind": {}}


def test_the_chance_of_an_order_is_exact_over_all_orders() -> None:
    """Mann and Whitney, by enumeration of all 84 places of 3 members among 9; values are those of the AUC."""
    every = [np.isin(np.arange(9), chosen) for chosen in combinations(range(9), 3)]
    made = [tallies.tally("members", [told(np.arange(9), truth)]) for truth in every]
    areas = np.array([roc_auc_score(truth, np.arange(9)) for truth in every])
    np.testing.assert_allclose([t.rate for t in made], areas)
    np.testing.assert_allclose([t.p_guess for t in made], [(areas >= area - 1e-9).mean() for area in areas])


def test_better_than_on_random_updates_is_exact_over_all_exchanges() -> None:
    """Bandos, Rockette and Gur: by enumeration of all 512 ways to exchange the two ranks of each of 9 queries."""
    rng, truth = np.random.default_rng(7), np.arange(9) < 4
    mine, random = (told(rng.standard_normal(9) + shift * truth, truth) for shift in (1.5, 0.0))
    ranks = [np.array([*s["member_ranks"], *s["other_ranks"]]) for s in (mine, random)]
    weight = np.where(truth, 1 / 4, -1 / 5)
    drawn = [float((weight * np.where(swap, ranks[1] - ranks[0], ranks[0] - ranks[1])).sum()) for swap in product((False, True), repeat=9)]
    found = deciding._above(tallies.tally("members", [mine]), tallies.tally("members", [random]))
    assert found == pytest.approx(np.mean(np.array(drawn) >= drawn[0] - 1e-9))
    assert deciding._above(tallies.tally("members", [random]), tallies.tally("members", [random])) > 0.5
    assert deciding._above(tallies.tally("members", [mine]), tallies.tally("members", [mine, random])) == 1.0, "not of the same queries"


def test_members_are_decided_by_the_order_of_all_queries() -> None:
    """Of 100 and 100 queries, 59 members among the highest 100 are not beyond chance at half of 1 %; the whole order is. Fixed seed."""
    truth, rng = np.arange(200) < 100, np.random.default_rng(9)
    shifted, off, random = (told(rng.standard_normal(200) + shift * truth, truth) for shift in (0.6, 3.0, 0.0))
    order = np.argsort([-r for r in (*shifted["member_ranks"], *shifted["other_ranks"])])
    best = int(truth[order[:100]].sum())
    assert hypergeom.sf(best - 1, 200, 100, 100) > 0.01 / 2, best
    outcome, reason = decide("members", [shifted], [off], [random])
    assert outcome == "recovered", reason
    assert "Pairs of a training image and another one put in the right order: " in reason
    assert "best guess 50.0%" in reason


def test_the_level_of_members_is_kept() -> None:
    """Scores that know nothing: of 60 lists at a level of 1 % more than 8 are called recovered with probability below 1e-6."""
    assert binom.sf(8, 60, 0.01) < 1e-6
    truth, rng = np.arange(60) < 30, np.random.default_rng(6)
    off = told(rng.standard_normal(60) + 4 * truth, truth)
    null = [[told(rng.standard_normal(60), truth) for _ in range(2)] for _ in range(60)]
    outcomes = [decide("members", [one], [off], [other])[0] for one, other in null]
    assert outcomes.count("recovered") <= 8
    assert outcomes.count("not_shown_to_leak") > 40


def test_members_of_several_victims_are_decided_together() -> None:
    rng = np.random.default_rng(3)

    def victims(shift: float) -> list[dict[str, Any]]:
        truth = np.arange(120) < 60
        knowledge = known(Images(np.zeros((0, 1, 4, 4), np.float32), np.zeros(0, np.int64)),
                          queries=Images(np.zeros((120, 1, 4, 4), np.float32), np.zeros(120, np.int64)))  # fmt: skip
        step = Truth(Images(np.zeros((1, 1, 4, 4), np.float32), np.zeros(1, np.int64)), members=truth)
        return [score("members", {"members": rng.standard_normal(120) + shift * truth}, step, knowledge) for _ in range(3)]

    told, not_told, random = victims(2.0), victims(0.0), victims(0.0)
    assert decide("members", told, told, random)[0] == "recovered"
    outcome, reason = decide("members", not_told, told, random)
    assert outcome == "not_shown_to_leak"
    assert "at 5% false alarms" in reason
    assert "at 1% false alarms" not in reason, "60 others cannot show one in a hundred"
    made = summarize(told)
    assert made["auc"] > 0.85
    assert made["tpr@0.05"]["n"] == 180
    assert "at least 300 are needed" in made["tpr@0.01"]["undefined"]


def candidates(scores_of: Callable[[int], np.ndarray], victims: int, size: int = 100) -> list[dict[str, Any]]:
    rng = np.random.default_rng(4)
    gallery = Images(rng.uniform(-1, 1, (size, 1, 4, 4)).astype(np.float32), np.zeros(size, np.int64))
    knowledge = known(Images(gallery.images[:0], gallery.targets[:0]), candidates=gallery)
    made = []
    for v in range(victims):
        truth = Truth(Images(gallery.images[v : v + 1], gallery.targets[:1]), candidate=v)
        made.append(score("candidate", {"candidate": scores_of(v)}, truth, knowledge))
    return made


def test_patients_picked_from_a_gallery_are_compared_with_chance_and_with_random_gradients() -> None:
    rng = np.random.default_rng(5)
    found = candidates(lambda v: np.eye(100)[v], 40)
    random = candidates(lambda v: rng.random(100), 40)
    assert decide("candidate", found, found, random)[0] == "recovered"
    outcome, reason = decide("candidate", random, found, random)
    assert outcome == "not_shown_to_leak"
    assert reason.startswith("Patients picked out of 100 look-alikes: ")
    assert "best guess 1.0%" in reason
    claim = deciding.claims("candidate", found[:2], found, random)[0]
    assert claim.target.p_guess == pytest.approx(binomtest(2, 2, 0.01, "greater").pvalue)
    assert claim.p_negative == pytest.approx(boschloo_exact([[2, 0], [0, 40]], "greater").pvalue, rel=1e-6)
    made = summarize(found)
    assert made["candidate@1"]["rate"] == 1.0
    assert made["candidate@5"]["chance"] == pytest.approx(0.05)
    with pytest.raises(PppmlError, match="100 are expected"):
        candidates(lambda v: np.zeros(99), 1)


def test_copies_of_the_victim_in_a_gallery_are_the_victim() -> None:
    gallery = np.zeros((4, 1, 2, 2), np.float32)
    gallery[2:] = 1.0
    found = measures.ranked([0.0, 0.0, 1.0, 1.0], gallery, (3,))
    assert found == {"rank": [1], "picked": [True], "gallery": [3]}


def test_a_gallery_that_gives_its_victim_away_by_its_looks_raises_the_best_guess() -> None:
    rng = np.random.default_rng(6)

    def around(make: Callable[[np.ndarray], np.ndarray]) -> list[dict[str, Any]]:
        made = []
        for _ in range(30):
            victim = rng.uniform(-0.3, 0.3, (1, 1, 6, 6))
            people = np.concatenate([victim, victim + rng.choice([-0.5, 0.5], (49, 1, 6, 6))])
            gallery = Images(people.astype(np.float32), np.zeros(50, np.int64))
            knowledge = known(Images(gallery.images[:0], gallery.targets[:0]), candidates=gallery)
            truth = Truth(Images(gallery.images[:1], gallery.targets[:1]), candidate=0)
            made.append(score("candidate", {"candidate": make(gallery.images)}, truth, knowledge))
        return made

    centre = around(lambda x: -np.abs(x - x.mean(axis=0)).sum(axis=(1, 2, 3)))
    claim = deciding.claims("candidate", centre, centre, around(lambda x: rng.random(50)))[0]
    assert claim.target.guess == 1.0
    assert claim.verdict == "untested", "no attack can be shown to beat a guess that is always right"
    assert best_guess("candidate", centre)["rule"] == "centre"


def labels(truths: list[int], guesses: list[int], public: list[int]) -> list[dict[str, Any]]:
    knowledge = known(Images(np.zeros((len(public), 1, 2, 2), np.float32), np.array(public)))
    return [
        score("labels", {"labels": [g]}, Truth(Images(np.zeros((1, 1, 2, 2), np.float32), np.array([t]))), knowledge)
        for t, g in zip(truths, guesses, strict=True)
    ]


def test_labels_must_beat_the_best_constant_with_hindsight() -> None:
    truths, public = [0, 1] * 20, [0] * 9 + [1]
    random = labels(truths, [0, 0, 1, 1] * 10, public)
    right = labels(truths, truths, public)
    assert decide("labels", right, right, random)[0] == "recovered"
    assert decide("labels", random, right, random)[0] == "not_shown_to_leak"
    # One who says the same of everybody is right of all in a clinic of one diagnosis; that is no reading of the update.
    alike = labels([1] * 40, [1] * 40, public)
    assert summarize(alike)["label_accuracy"] == 1.0
    outcome, reason = decide("labels", alike, alike, random)
    assert outcome == "inconclusive"
    assert "best guess 100.0%" in reason
    assert best_guess("labels", alike)["rule"] == "always 1"
    claim = deciding.claims("labels", right, right, random)[0]
    assert claim.target.p_guess == pytest.approx(binomtest(20, 20, 0.5, "greater").pvalue), "the sign test of who does better"


def test_areas_of_lesions_are_compared_with_the_public_mean() -> None:
    rng = np.random.default_rng(7)

    def victims(noise: float) -> list[dict[str, Any]]:
        made = []
        for _ in range(20):
            masks = (rng.random((1, 16, 16)) < rng.uniform(0, 0.5)).astype(np.int64)
            public = (rng.random((30, 16, 16)) < rng.uniform(0, 0.5, (30, 1, 1))).astype(np.int64)
            truth = Truth(Images(np.zeros((1, 1, 16, 16), np.float32), masks))
            guess = float(masks.mean()) + noise * rng.standard_normal()
            made.append(score("area", {"area": guess}, truth, known(Images(np.zeros((30, 1, 16, 16), np.float32), public))))
        return made

    good, bad, random = victims(0.001), victims(0.3), victims(0.5)
    assert decide("area", good, good, random)[0] == "recovered"
    outcome, reason = decide("area", bad, good, random)
    assert outcome == "not_shown_to_leak"
    assert "off by" in reason
    assert summarize(good)["area_error"]["median"] < 0.002


def test_hospitals_are_traced_query_by_query() -> None:
    rng = np.random.default_rng(8)
    queries = Images(np.zeros((30, 1, 2, 2), np.float32), np.zeros(30, np.int64))
    knowledge = known(Images(queries.images[:0], queries.targets[:0]), queries=queries, sites=("a", "b", "c"))
    truth = Truth(Images(queries.images[:1], queries.targets[:1]), sites=np.arange(30) % 3)

    def victims(weight: float) -> list[dict[str, Any]]:
        return [score("site", {"site": rng.random((30, 3)) + weight * np.eye(3)[np.arange(30) % 3]}, truth, knowledge) for _ in range(2)]

    found, random = victims(2.0), victims(0.0)
    assert decide("site", found, found, random)[0] == "recovered"
    assert decide("site", random, found, random)[0] == "not_shown_to_leak"
    assert summarize(found)["site_accuracy"]["n"] == 60
    assert measures.placed_sites(np.zeros((1, 3)), np.array([0])) == {"site_right": [False]}, "a tie is no answer"


def test_updates_are_decoded_only_far_below_the_error_of_the_mean_of_all_sites() -> None:
    rng = np.random.default_rng(9)
    true = rng.standard_normal(400)
    image = Images(np.zeros((1, 1, 2, 2), np.float32), np.zeros(1, np.int64))

    def one(guess: np.ndarray, mean: np.ndarray | None = None, tolerance: float = 0.0) -> dict[str, Any]:
        return score("update", {"update": guess}, Truth(image, update=true, mean_update=mean, tolerance=tolerance), known(image))

    noisy = true + 0.001 * rng.standard_normal(400)
    found = one(noisy)
    assert found["correlation"] == pytest.approx(np.corrcoef(noisy, true)[0, 1])
    assert found["max_error"] == pytest.approx(np.abs(noisy - true).max())
    assert found["relative_error"] == pytest.approx(np.linalg.norm(noisy - true) / np.linalg.norm(true))
    assert found["decoded"]
    assert not one(noisy, mean=true + 0.005 * rng.standard_normal(400))["decoded"], "the mean of all sites is nearly as good"
    rough = true + rng.choice([-0.05, 0.05], 400)
    assert not one(rough)["decoded"]
    assert one(rough, tolerance=0.051)["decoded"], "within the scheme's own error"
    assert not one(np.zeros(400), tolerance=100.0)["decoded"]
    assert one(np.full(400, np.nan))["relative_error"] == pytest.approx(1.0)
    exact, random = [one(true)] * 5, [one(rng.standard_normal(400)) for _ in range(5)]
    assert decide("update", exact, exact, random)[0] == "recovered"
    assert decide("update", random, exact, random)[0] == "not_shown_to_leak"
    assert summarize(random + exact)["relative_error"]["worst"] == 0.0, "of the victim about whom most was learned"


def test_without_a_positive_control_that_passed_nothing_is_not_shown(clinic: Clinic) -> None:
    noise = clinic.scores(clinic.noise)
    outcome, reason = decide("images", noise, noise, noise)
    assert outcome == "inconclusive"
    assert "With the defence off it did not succeed beyond doubt either" in reason
    assert decide("images", noise, [], noise)[0] == "inconclusive"
    assert decide("images", [], noise, noise) == ("inconclusive", "No victim was attacked.")


def test_too_few_control_trials_leave_a_success_undecided_and_never_call_it_safe(clinic: Clinic) -> None:
    found, noise = clinic.scores(clinic.near(0.02), 3), clinic.scores(clinic.noise, 8)
    assert decide("images", found, found, noise[:5])[0] == "inconclusive"
    assert deciding.controls_needed(3) == 6
    assert decide("images", found, found, noise[:6])[0] == "recovered"
    one_of_many = found[:1] + clinic.scores(clinic.noise, 9)
    outcome, reason = decide("images", one_of_many, clinic.scores(clinic.near(0.02), 10), clinic.scores(clinic.noise, 10))
    assert outcome == "inconclusive", "one image was redrawn"
    assert "too few trials to tell it from random gradients" in reason


@pytest.mark.parametrize("victims", [1, 3, 5, 10, 20])
@pytest.mark.parametrize("claims", [1, 2])
def test_the_controls_needed_are_those_of_the_exact_test(victims: int, claims: int) -> None:
    needed = deciding.controls_needed(victims, claims=claims)
    for trials, enough in ((needed, True), (needed - 1, False)):
        if trials:
            assert (boschloo_exact([[victims, 0], [0, trials]], "greater").pvalue <= 0.01 / claims) == enough


def test_what_a_random_gradient_gives_as_well_is_not_from_the_update(clinic: Clinic) -> None:
    """An attack that returns the victim from its prior alone succeeds on random gradients too: that is no leak, and no proof of safety."""
    found = clinic.scores(clinic.near(0.02))
    outcome, reason = decide("images", found, found, found)
    assert outcome == "inconclusive"
    assert "on random gradients 20 of 20" in reason


def test_the_level_is_kept_without_any_leak() -> None:
    """Ranks that are uniform: of 150 cells at a level of 1 % more than 11 are called recovered with probability below 1e-6."""
    rng = np.random.default_rng(10)

    def cell(trials: int) -> list[Mapping[str, Any]]:
        blind = {"candidate": {"any": {"candidate_picked": [False]}}}
        return [{"candidate_picked": [bool(rng.random() < 0.25)], "candidate_gallery": [4], "blind": blind} for _ in range(trials)]

    sure: list[Mapping[str, Any]] = [{"candidate_picked": [True], "candidate_gallery": [4], "blind": {"candidate": {}}}] * 40
    outcomes = [decide("candidate", cell(40), sure, cell(20))[0] for _ in range(150)]
    assert outcomes.count("recovered") <= 11
    assert outcomes.count("not_shown_to_leak") > 120


def test_blind_scores_may_be_computed_once(clinic: Clinic) -> None:
    truth = clinic.truth(1)
    guess = {"images": clinic.gallery[1:2]}
    assert score("images", guess, truth, clinic.knowledge, {"images": blind_scores("images", truth, clinic.knowledge)}) == score(
        "images", guess, truth, clinic.knowledge
    )


def test_an_answer_of_several_kinds_is_scored_in_all_of_them(clinic: Clinic) -> None:
    found = score("images", {"images": clinic.gallery[2:3], "labels": [2], "members": [1.0]}, clinic.truth(2), clinic.knowledge)
    assert found["labels_right"] is True
    assert "auc" not in found, "whose truth is not known"
    counted = score("labels", {"counts": [0.0, 0.1, 0.9]}, clinic.truth(2), clinic.knowledge)
    assert counted["label_accuracy"] == pytest.approx(0.9)


def test_misfits_are_refused(clinic: Clinic) -> None:
    answers: tuple[Answer, ...] = ("area", "candidate", "members", "site", "update")
    for answer in answers:
        with pytest.raises(PppmlError, match="is not given"):
            score(answer, {}, clinic.truth(0), clinic.knowledge)
    for shape in ((1, 12, 12), (1, 1, 12, 11), (1, 3, 12, 12)):
        with pytest.raises(PppmlError, match="shape"):
            score("images", {"images": np.zeros(shape)}, clinic.truth(0), clinic.knowledge)


def test_summaries_are_plain_numbers_and_name_the_worst_victim(clinic: Clinic) -> None:
    found = clinic.scores(clinic.near(0.02)) + clinic.scores(clinic.noise)
    made = summarize(found)
    json.dumps([made, best_guess("images", found), found], allow_nan=False)
    assert made["victims"] == 40
    assert made["redrawn"]["rate"] == made["mse<0.001"]["rate"] == made["reid@1"]["rate"] == 0.5
    assert made["reid@1"]["chance"] == pytest.approx(1 / 50)
    assert made["psnr"]["worst"] == pytest.approx(max(s["psnr"][0] for s in found))
    guess = best_guess("images", found)
    assert guess["psnr"]["median"] == pytest.approx(np.median([s["blind"]["images"][guess["rule"]]["psnr"][0] for s in found]))
    assert guess["rule"] in {"mean", "mean of look-alikes"}


def test_all_effort_that_was_told_is_kept() -> None:
    efforts = [{"evaluations": 3, "seconds": 0.5, "loss": 1.0, "label_rule_bias": 1.0}, {"seconds": 1.0, "loss": 3.0, "rounds": 2}]
    expected = {"evaluations": 3.0, "seconds": 1.5, "loss": 2.0, "label_rule_bias": 1.0, "rounds": 2.0, "victims": 2.0}
    assert total_effort(efforts) == expected
    assert total_effort([]) == {"victims": 0.0}


def test_what_image_attacks_say_of_labels_is_a_claim_of_its_own(clinic: Clinic) -> None:
    """It is counted where labels are inferred, and decides nothing about the pictures."""

    def scores(label: Callable[[int], int]) -> list[dict[str, Any]]:
        return [
            score("images", {"images": clinic.gallery[:1] * 0, "labels": [label(i)]}, clinic.truth(i), clinic.knowledge) for i in range(12)
        ]

    def right(i: int) -> int:
        return int(clinic.truth(i).images.targets[0])

    inferred, wrong = scores(right), scores(lambda i: (right(i) + 1) % 3)
    (claim,) = deciding.beside("images", inferred, inferred, wrong)
    assert (claim.name, claim.verdict) == ("named", "shown")
    assert "Labels named: 12 of 12" in claim.reason
    (claim,) = deciding.beside("images", wrong, inferred, wrong)
    assert claim.verdict == "not_shown"
    assert decide("images", inferred, inferred, wrong)[0] != "recovered"
    assert "named" not in {c.name for c in deciding.claims("images", inferred, inferred, wrong)}
    without = [{n: v for n, v in s.items() if n != "label_accuracy"} for s in inferred]
    assert deciding.beside("images", without, inferred, wrong) == []
    assert deciding.beside("candidate", inferred, inferred, wrong) == []


def test_chances_of_several_victims_combine_as_fisher_says() -> None:
    one = told(-np.arange(10), np.arange(10) < 5)
    p = 1 / comb(10, 5)
    chi2 = -4 * np.log(p)
    expected = np.exp(-chi2 / 2) * (1 + chi2 / 2)  # of four degrees of freedom
    assert tallies.tally("members", [one, one]).p_guess == pytest.approx(expected)
