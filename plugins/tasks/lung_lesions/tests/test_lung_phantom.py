"""The phantom: the same pixels in any order, plausible HU, lesions in the lungs, scanners that differ."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pppml_core.interfaces.task import SPLITS
from pppml_core.learning import phantom as anatomy
from pppml_core.learning.scanner import Scanner
from pppml_core.randomness import Seeds
from pppml_lung_lesions.config import LungLesionsConfig
from pppml_lung_lesions.phantom import Phantom
from pppml_lung_lesions.plugin import pppml_tasks
from pppml_lung_lesions.scanners import TABLE, scanner
from pppml_lung_lesions.task import LungLesions

SMALL = {"patients": 4, "slices_per_patient": 2, "size": 32}


def test_the_component_builds_from_its_name_alone() -> None:
    component = pppml_tasks()[0]
    task = component.load()(component.config())
    spec = task.spec()
    assert (component.name, spec.size, spec.channels, spec.classes) == ("lung-lesions", (64, 64), 1, ("background", "lesion"))
    assert len(task.sites()) == 5
    assert task.misfits() == []
    assert "phantom" in task.card().title.lower()


def test_same_pixels_in_any_order_and_other_pixels_for_another_seed() -> None:
    one, other = (Phantom(LungLesionsConfig(**SMALL)) for _ in range(2))
    forward = {s: one.load(s) for s in one.scanners}
    backward = {s: other.load(s) for s in reversed(list(other.scanners))}
    for site in forward:
        for split in SPLITS:
            a, b = forward[site].part(split), backward[site].part(split)
            assert np.array_equal(a.images, b.images)
            assert np.array_equal(a.targets, b.targets)
    alone = one.slices("scanner_3", "train", 2)
    assert np.array_equal(alone[0], forward["scanner_3"].train.images[4:6])
    assert not np.array_equal(Phantom(LungLesionsConfig(**SMALL, phantom_seed=1)).slices("scanner_3", "train", 2)[0], alone[0])


def test_more_patients_keep_the_first_ones() -> None:
    few, many = (Phantom(LungLesionsConfig(**{**SMALL, "patients": n})).load("scanner_1").train for n in (4, 6))
    assert np.array_equal(few.images, many.images[: len(few)])


def test_examples_have_the_declared_form() -> None:
    task = LungLesions(LungLesionsConfig(**SMALL))
    for site in task.sites():
        data = task.load(site.slug)
        groups = [set(data.part(split).groups.tolist()) for split in SPLITS]
        assert len(set.union(*groups)) == sum(map(len, groups))
        image, target = data.train.example(0)
        assert image.shape == (1, 32, 32)
        assert image.dtype == np.float32
        assert target.dtype == np.int64
        assert -1 <= image.min() < image.max() <= 1
        assert set(np.unique(target)) <= {0, 1}


def test_tissues_have_plausible_hu() -> None:
    draw = Seeds(0).generator("tissue")
    body = anatomy.draw_patient(draw, lesions=0)
    slab = anatomy.render(body, np.linspace(0.3, 0.6, 6) * body.height, size=128, fov=350)
    lung = slab.hu[slab.lung > 0.99]
    assert -900 < np.median(lung) < -780
    assert slab.hu.min() == pytest.approx(-1000)
    assert 200 < slab.hu.max() < 500  # cortical bone
    outside = slab.hu[:, :8, :8]
    assert np.allclose(outside, -1000)
    soft = ((slab.hu > 20) & (slab.hu < 70)).mean()
    fat = ((slab.hu > -130) & (slab.hu < -70)).mean()
    assert soft > 0.05
    assert fat > 0.02
    assert 0.1 < slab.lung.mean() < 0.45  # both lungs' share of the slice


def test_lesions_lie_in_the_lungs_and_have_their_hu() -> None:
    glass, cores, inside = [], [], []
    for number in range(12):
        draw = Seeds(5).generator("lesion", number)
        body = anatomy.draw_patient(draw, lesions=5, consolidation=1.0)
        slab = anatomy.render(body, np.linspace(0.2, 0.9, 6) * body.height, size=96, fov=330)
        mask = slab.lesion > 0.97
        inside.append((slab.lung[slab.lesion >= 0.5] > 0.25).mean())
        glass.append(slab.hu[mask & (slab.hu < -450) & (slab.hu > -760)].size)
        cores.append(slab.hu[mask & (slab.hu > -20) & (slab.hu < 60)].size)
    assert min(inside) == 1.0
    assert sum(glass) > 500
    assert sum(cores) > 500
    assert all(one.hu < -500 or 0 <= one.hu <= 50 for one in body.lesions)


def test_thicker_slices_blur_vessels_and_lesion_masks_stay_binary() -> None:
    body = anatomy.draw_patient(Seeds(1).generator("vessels"), lesions=0)
    z = np.linspace(0.3, 0.7, 8) * body.height
    thin, thick = (
        Scanner("t", slice_mm=mm, noise_hu=0.0, sharpness=0, fov_mm=330).acquire(body, z, 64, Seeds(1).generator("n")) for mm in (1.0, 10.0)
    )
    lung = anatomy.render(body, z, size=64, fov=330).lung > 0.99
    assert thick[0][lung].std() < 0.9 * thin[0][lung].std()
    assert set(np.unique(thick[1])) <= {0, 1}


def test_scanners_differ_measurably() -> None:
    """Noise, sharpness, calibration and field of view, measured on one patient's images."""
    body = anatomy.draw_patient(Seeds(2).generator("one"), lesions=0)
    z = np.full(3, 0.35) * body.height
    measured = {}
    for one in TABLE:
        image = one.acquire(body, z, 64, Seeds(2).generator("noise"))[0]
        measured[one.name] = {
            "noise": float((image[0] - image[1]).std() / np.sqrt(2)),
            "air": float(np.median(image[:, :4, :4])),
            "body": float((image > -300).mean()),
            "detail": float(np.abs(image - gaussian_filter(image, (0, 1, 1)))[:, 20:44, 10:54].mean()),
        }
    for one in TABLE:
        # HU below -1024 are cut, so in air about half the noise is lost; over the whole slice most of it stays.
        assert 0.5 * one.noise_hu < measured[one.name]["noise"] < 1.1 * one.noise_hu
    bodies = [measured[one.name]["body"] for one in TABLE]
    assert np.corrcoef(bodies, [one.fov_mm for one in TABLE])[0, 1] < -0.9
    assert measured["old, calibration off"]["air"] > measured["thick, soft"]["air"] + 30
    assert measured["thin, sharp"]["detail"] > 1.5 * measured["thick, soft"]["detail"]


def test_sites_differ_in_size_and_can_be_made_equal() -> None:
    real = Phantom(LungLesionsConfig())
    assert [real.patients(s, "train") for s in real.scanners] == [54, 36, 27, 18, 15]
    even = Phantom(LungLesionsConfig(equal_sites=True))
    assert {even.patients(s, "train") for s in even.scanners} == {30}


def test_drawn_scanners_are_seeded_and_in_range() -> None:
    assert scanner(7, 0) == scanner(7, 0) != scanner(7, 1)
    for index in range(5, 20):
        one = scanner(index, 0)
        assert 1 <= one.slice_mm <= 7.5
        assert 290 <= one.fov_mm <= 350
        assert 0.9 <= one.prevalence <= 0.95
    assert len(Phantom(LungLesionsConfig(sites=20)).sites()) == 20


def test_the_default_phantom_is_small() -> None:
    source = Phantom(LungLesionsConfig())
    source.slices("scanner_1", "train", 0)  # imports scipy
    tracemalloc.start()
    masks = [source.load(site).train.targets for site in source.scanners]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    shares = [m.mean() for m in masks]
    assert 0.01 < min(shares) < max(shares) < 0.1


@pytest.mark.parametrize("size", [32, 128, 512])
def test_other_sizes_show_the_same_anatomy(size: int) -> None:
    source = Phantom(LungLesionsConfig(size=size, slices_per_patient=2, patients=2))
    hu, masks = source.slices("scanner_3", "train", 0)
    assert hu.shape == masks.shape == (2, size, size)
    reference = Phantom(LungLesionsConfig(size=64, slices_per_patient=2, patients=2)).slices("scanner_3", "train", 0)[0]
    assert (hu > -300).mean() == pytest.approx((reference > -300).mean(), abs=0.05)


def test_augmentation_only_draws_from_its_generator_and_turns_masks_with_images() -> None:
    train = Phantom(LungLesionsConfig(**SMALL)).load("scanner_3").train
    index = int(np.flatnonzero(train.labels())[0])
    np.random.seed(1)  # noqa: NPY002
    first = train.example(index, np.random.default_rng(7))
    np.random.seed(2)  # noqa: NPY002
    second = train.example(index, np.random.default_rng(7))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    plain = train.example(index)
    turned = [train.example(index, np.random.default_rng(seed)) for seed in range(8)]
    assert any(not np.array_equal(t, plain[1]) for _, t in turned)
    for image, target in turned:
        assert target.sum() == plain[1].sum()
        # The pixels under the mask are the same ones, up to the common intensity factor.
        moved, still = image[0][target == 1], plain[0][0][plain[1] == 1]
        factor = np.abs(moved).sum() / np.abs(still).sum()
        assert 0.89 < factor < 1.11
        assert np.allclose(np.sort(moved), np.sort(still * factor), atol=1e-4)


def test_a_few_steps_of_a_tiny_network_learn_lesions() -> None:
    """Lesions are visible: a per-pixel logistic regression on smoothed intensity beats the share of foreground clearly."""
    from sklearn.metrics import roc_auc_score

    train = Phantom(LungLesionsConfig(patients=6)).load("scanner_3").train
    images = np.stack([train.example(i)[0][0] for i in range(len(train))])
    lungs = gaussian_filter(images, (0, 1, 1))
    target = train.targets[: len(images)].astype(bool)
    dark = (lungs < 0.3) & (np.roll(lungs, 0) > -0.99)
    auc = roc_auc_score(target[dark], lungs[dark])
    assert auc > 0.75
