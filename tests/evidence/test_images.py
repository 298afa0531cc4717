"""Measures of reconstructions against other libraries, brute force and chance."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import f1_score

from pppml_core.errors import PppmlError
from pppml_core.evidence import images
from pppml_core.testing.chances import as_often


def some(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_images_come_to_the_unit_range_channel_by_channel_and_nothing_undefined_is_left() -> None:
    low, high = np.array([[[-1000.0]], [[0.0]]]), np.array([[[1000.0]], [[0.0]]])
    x = np.array([[[[-2000.0, 0.0], [np.nan, np.inf]], [[5.0, -5.0], [np.nan, 0.0]]]])
    assert images.to_unit(x, low, high).tolist() == [[[[0.0, 0.5], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]]


def test_mse_and_psnr_are_those_of_the_definition() -> None:
    a, b = some(0, 5, 3, 9, 7), some(1, 5, 3, 9, 7)
    expected = [sum((p - q) ** 2 for p, q in zip(x.ravel(), y.ravel(), strict=True)) / x.size for x, y in zip(a, b, strict=True)]
    assert images.mse(a, b) == pytest.approx(expected, rel=1e-12)
    assert images.psnr(a, b) == pytest.approx([20 * np.log10(1 / np.sqrt(e)) for e in expected], rel=1e-12)
    assert images.psnr(a, a).tolist() == [100.0] * 5
    assert images.psnr(np.zeros_like(a), np.ones_like(a)).tolist() == [0.0] * 5


def ssim_by_scipy(x: np.ndarray, y: np.ndarray, radius: int) -> float:
    """The paper's formula with scipy's Gaussian filter, where the window lies inside."""

    def mean(z: np.ndarray) -> np.ndarray:
        inside = tuple(slice(radius, side - radius) for side in z.shape)
        return gaussian_filter(z, 1.5, radius=radius)[inside]

    mx, my = mean(x), mean(y)
    vx, vy, c = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return float(((2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean())


@pytest.mark.parametrize(("size", "radius"), [((17, 23), 5), ((9, 9), 4), ((8, 8), 3), ((13, 12, 11), 5)])
def test_ssim_is_that_of_the_paper(size: tuple[int, ...], radius: int) -> None:
    a = some(2, 3, 2, *size)
    b = np.clip(a + 0.1 * (some(3, *a.shape) - 0.5), 0, 1)
    expected = [np.mean([ssim_by_scipy(x, y, radius) for x, y in zip(p, q, strict=True)]) for p, q in zip(b, a, strict=True)]
    assert images.ssim(b, a) == pytest.approx(expected, abs=1e-4)
    assert images.ssim(a, a) == pytest.approx(1.0, abs=1e-6)


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = some(4, 2, 1, 32, 32)
    b = np.clip(a + 0.2 * (some(5, *a.shape) - 0.5), 0, 1)
    settings = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [metrics.structural_similarity(x[0], y[0], **settings) for x, y in zip(a, b, strict=True)]
    assert images.ssim(b, a) == pytest.approx(expected, abs=1e-4)


def test_success_rates_count_below_each_threshold() -> None:
    rates = images.success_rates([1e-5, 5e-4, 5e-3, 1e-2, 0.3])
    assert {t: (r.estimate, r.n, r.method) for t, r in rates.items()} == {
        1e-2: (3 / 5, 5, "wilson"),
        1e-3: (2 / 5, 5, "wilson"),
        1e-4: (1 / 5, 5, "wilson"),
    }


@pytest.mark.parametrize("tries", [2, 4, 6])
def test_the_matching_is_the_best_of_all(tries: int) -> None:
    true, made = some(6, 4, 1, 3, 3), some(7, tries, 1, 3, 3)
    place, error = images.matched(made, true)
    cost = ((true[:, None] - made[None]) ** 2).mean(axis=(2, 3, 4))
    if tries >= 4:
        best = min(sum(cost[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(tries), 4))
    else:
        best = min(sum(cost[i, j] for j, i in enumerate(chosen)) for chosen in permutations(range(4), tries))
    paired = place >= 0
    assert paired.sum() == min(tries, 4)
    assert len(set(place[paired].tolist())) == paired.sum(), "no reconstruction is used twice"
    assert np.nansum(error) == pytest.approx(best, rel=1e-12)
    assert (np.isnan(error) == ~paired).all()


def test_reconstructions_in_another_order_are_matched_to_their_images() -> None:
    true = some(8, 5, 3, 6, 6)
    order = [3, 0, 4, 1, 2]
    place, error = images.matched(true[order], true)
    assert [order[p] for p in place] == [0, 1, 2, 3, 4]
    assert (error == 0).all()
    assert images.matched(true[:0], true)[0].tolist() == [-1] * 5


def test_identification_is_the_largest_correlation() -> None:
    gallery, made = some(9, 7, 2, 5, 5), some(10, 3, 2, 5, 5)
    expected = [max(np.corrcoef(g.ravel(), r.ravel())[0, 1] for r in made) for g in gallery]
    assert images.identify(made, gallery) == pytest.approx(expected, abs=1e-12)
    assert images.identify(0.3 * made + 0.2, gallery) == pytest.approx(expected, abs=1e-12), "brightness and contrast do not count"
    assert images.identify(np.full((1, 2, 5, 5), 0.3), gallery).tolist() == [0.0] * 7
    assert images.identify(made[:0], gallery).tolist() == [0.0] * 7


@pytest.mark.parametrize("tries", [1, 20])
def test_pictures_of_nobody_pick_a_victim_as_often_as_chance_however_many_there_are(tries: int) -> None:
    rng, picked, trials = np.random.default_rng(11), 0, 4000
    for _ in range(trials):
        scores = images.identify(rng.random((tries, 1, 3, 3)), rng.random((10, 1, 3, 3)))
        picked += images.rank(scores, int(rng.integers(10))) == 1
    assert as_often(picked, trials, 0.1)


def test_ranks_count_ties_and_undefined_scores_against_the_attack() -> None:
    scores = [0.5, 0.9, 0.5, np.nan, -np.inf]
    assert [images.rank(scores, v) for v in range(5)] == [3, 1, 3, 5, 5]
    assert images.rank(scores, 0, [1, 2]) == 1
    assert images.rank([0.0] * 10, 4) == 10


def test_copies_are_the_same_image_elsewhere() -> None:
    gallery = some(12, 4, 1, 2, 2)
    gallery[3] = gallery[1]
    assert [images.copies(gallery, i) for i in range(4)] == [[], [3], [], [1]]


def test_dice_of_masks_is_the_f1_score_of_pixels() -> None:
    one, other = some(13, 6, 6) > 0.6, some(14, 6, 6) > 0.5
    assert images.mask_dice(one, other) == pytest.approx(f1_score(one.ravel(), other.ravel()))
    assert images.mask_dice(one, np.zeros_like(one)) == 0.0
    assert images.mask_dice(np.zeros_like(one), other) is None
    with pytest.raises(PppmlError, match="cannot be compared"):
        images.mask_dice(one, other[:3])
