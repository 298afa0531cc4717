"""Blind guesses are the best of their kind, by brute force, and know nothing of the victim."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pppml_core.evidence import guesses
from pppml_core.interfaces.attack import Defence, Images, Knowledge, Training
from pppml_core.testing.chances import as_often


def some(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def known(public: Images, **more: Any) -> Knowledge:
    low, high = np.full((1, 1, 1), -2.0, np.float32), np.full((1, 1, 1), 2.0, np.float32)
    spec: Any = SimpleNamespace(classes=("a", "b", "c"))
    nothing: Any = None
    return Knowledge("one", spec, nothing, nothing, Training(0.1), Defence(), low, high, public, **more)


def test_blind_pictures_are_the_best_of_their_kind() -> None:
    public, labels = some(0, 30, 2, 4, 4), np.arange(30) % 3
    made = guesses.blind_images(public, labels, np.array([2, 0]))

    def error(picture: np.ndarray, among: np.ndarray = public) -> float:
        return float(((among - picture) ** 2).mean())

    # Nothing beats the mean, and no constant the constant; no public image the neighbour.
    for step in (-1e-3, 1e-3):
        assert error(made["mean"][0] + step) > error(made["mean"][0])
        for channel in range(2):
            other = made["constant"][0].copy()
            other[channel] += step
            assert error(other) > error(made["constant"][0])
    assert np.ptp(made["constant"], axis=(2, 3)).max() == 0
    assert error(made["neighbour"][0]) == pytest.approx(min(error(x) for x in public))
    assert (made["grey"] == 0.5).all()
    for i, label in enumerate((2, 0)):
        own = public[labels == label]
        assert made["class mean"][i] == pytest.approx(own.mean(axis=0))
        assert error(made["class neighbour"][i], own) == pytest.approx(min(error(x, own) for x in own))
    assert {x.shape for x in made.values()} == {(2, 2, 4, 4)}


def test_without_public_images_grey_is_left_and_without_the_class_all_of_them() -> None:
    assert list(guesses.blind_images(some(0, 0, 1, 3, 3), np.zeros(0, np.int64), np.array([1]))) == ["grey"]
    made = guesses.blind_images(some(1, 5, 1, 3, 3), np.zeros(5, np.int64), np.array([1]))
    assert (made["class mean"] == made["mean"]).all()


def test_as_many_guesses_as_the_attack_made() -> None:
    public = some(2, 50, 1, 2, 2)
    for tries in (1, 7, 50, 80):
        found = guesses.as_many(public, tries)
        assert len(found) == min(tries, 50)
        assert all((x == public).all(axis=(1, 2, 3)).any() for x in found)
    assert len(guesses.as_many(public[:0], 5)) == 0


def test_a_victim_around_whom_the_gallery_was_gathered_is_found_by_its_looks() -> None:
    rng, found, trials = np.random.default_rng(3), {"around": 0, "alike": 0}, 300
    for _ in range(trials):
        people = rng.random((200, 1, 4, 4))
        nearest = np.argsort(((people - people[0]) ** 2).sum(axis=(1, 2, 3)))[:20]
        for name, gallery in (("around", people[nearest]), ("alike", people[:20])):
            found[name] += int(np.argmax(guesses.blind_candidates(gallery, people[100:])["centre"]) == 0)
    assert found["around"] > 0.5 * trials
    assert as_often(found["alike"], trials, 1 / 20)


def test_blind_picks_are_pairs_of_opposites() -> None:
    made = guesses.blind_candidates(some(4, 6, 1, 3, 3), some(5, 9, 1, 3, 3))
    assert set(made) == {"centre", "edge", "common", "odd"}
    assert (made["centre"] == -made["edge"]).all()
    assert (made["common"] == -made["odd"]).all()
    assert set(guesses.blind_candidates(some(4, 6, 1, 3, 3), some(5, 0, 1, 3, 3))) == {"centre", "edge"}


def test_labels_by_prevalence_and_every_constant() -> None:
    public = np.array([0] * 6 + [1] * 3 + [2] * 1)
    made = guesses.blind_labels(5, public, 3)
    assert made["prevalence"]["counts"] == pytest.approx([3.0, 1.5, 0.5])
    assert np.bincount(made["prevalence"]["labels"], minlength=3).sum() == 5
    assert np.abs(np.bincount(made["prevalence"]["labels"], minlength=3) - made["prevalence"]["counts"]).max() < 1
    assert made["always 1"]["labels"].tolist() == [1] * 5
    assert made["always 1"]["counts"].tolist() == [0, 5, 0]
    assert guesses.blind_labels(1, public, 3)["prevalence"]["labels"].tolist() == [0], "of one label it is the majority"
    assert guesses.blind_labels(3, public[:0], 3)["prevalence"]["counts"] == pytest.approx([1, 1, 1])


def test_areas_of_public_masks() -> None:
    masks = np.zeros((3, 2, 2), np.int64)
    masks[1, 0, 0], masks[2] = 2, 1
    assert guesses.foreground(masks).tolist() == [0.0, 0.25, 1.0]
    assert guesses.blind_area(masks) == {"mean": {"area": pytest.approx(1.25 / 3)}, "median": {"area": 0.25}}
    assert set(guesses.blind_area(masks[:0])) == {"none", "half"}
    assert guesses.labels_of(Images(np.zeros((3, 1, 2, 2), np.float32), masks)).tolist() == [0, 1, 1]


def test_guesses_have_the_form_of_answers() -> None:
    public = Images((4 * some(6, 12, 1, 4, 4) - 2).astype(np.float32), np.arange(12) % 3)
    knowledge = known(public, candidates=public, queries=public, sites=("one", "two"))
    victims = np.array([1, 1])
    drawn = guesses.best_guesses("images", knowledge, victims)
    assert drawn["mean"]["images"][0] == pytest.approx(public.images.mean(axis=0), abs=1e-6), "in the task's units"
    assert guesses.best_guesses("candidate", knowledge, victims)["centre"]["candidate"].shape == (12,)
    assert guesses.best_guesses("members", knowledge, victims)["coin"]["members"].tolist() == [0.0] * 12
    sites = guesses.best_guesses("site", knowledge, victims)
    assert {n: s["site"].argmax(axis=1).tolist() for n, s in sites.items()} == {"always one": [0] * 12, "always two": [1] * 12}
    assert guesses.best_guesses("update", knowledge, victims) == {}
    assert guesses.best_guesses("update", knowledge, victims, np.ones(3))["mean of all sites"]["update"].tolist() == [1, 1, 1]
    assert guesses.best_guesses("labels", knowledge, victims)["always 2"]["labels"].tolist() == [2, 2]


def test_the_gain_is_over_the_best_rule_and_means_over_images() -> None:
    blind = {"images": {"a": {"psnr": [10.0, 20.0], "mse": [0.1, 0.01]}, "b": {"psnr": [12.0, 12.0], "mse": [0.06, 0.06]}}}
    score = {"psnr": [20.0, 18.0], "mse": [0.01, 0.02], "dice": [None], "blind": blind}
    assert guesses.gain(score, "psnr") == pytest.approx(19.0 - 15.0)
    assert guesses.gain(score, "mse", lower_is_better=True) == pytest.approx(0.055 - 0.015)
    assert guesses.gain(score, "ssim") is None
    assert guesses.gain(score, "dice") is None


def test_a_scanner_is_known_by_its_looks() -> None:
    shapes = {"dark": (0.3, 0.05), "bright": (0.5, 0.05), "flat": (0.4, 0.02)}

    def taken(seed: int, site: str) -> Images:
        mean, spread = shapes[site]
        drawn = np.random.default_rng(seed).normal(mean, spread, (20, 1, 8, 8)).astype(np.float32)
        return Images(drawn, np.zeros(20, np.int64))

    asked = Images(np.concatenate([taken(i, s).images for i, s in enumerate(shapes)]), np.zeros(60, np.int64))
    whose = np.repeat(np.arange(3), 20)
    public = taken(9, "flat")
    told = known(public, queries=asked, sites=(*shapes, "unknown"), sites_public={s: taken(10 + i, s) for i, s in enumerate(shapes)})
    scores = guesses.best_guesses("site", told, np.zeros(1, np.int64))["looks"]["site"]
    assert scores.shape == (60, 4)
    assert (scores.argmax(axis=1) == whose).mean() > 0.9
    assert guesses.blind_sites(known(public, queries=asked, sites=tuple(shapes))) is None
