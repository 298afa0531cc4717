"""The estimators against other ways to compute them."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pppml_label_restoration.counts import Classes, classes_of, posterior_counts, two_stages, whole


def test_the_same_prediction_for_all_is_plain_least_squares():
    """Readings ``p - e``: ``n = B (p - db)``, exactly, for two classes and for many, with labels that come several times."""
    generator = np.random.default_rng(0)
    for classes in (2, 5, 9):
        p = generator.dirichlet(np.ones(classes))
        counts = generator.multinomial(8, generator.dirichlet(np.ones(classes))).astype(float)
        known = Classes(p[:, None] - np.eye(classes), np.zeros((classes, classes)), np.full(classes, 1 / classes))
        found = posterior_counts(p - counts / 8, 1 / 8, 8, np.full(classes, 1e-12), known)
        np.testing.assert_allclose(found, counts, atol=1e-6)


def test_it_is_the_posterior_mean_in_information_form():
    """The other form of the same formula, on all but the last class: the inverse of summed precisions."""
    generator = np.random.default_rng(1)
    classes, readings, count, weight = 3, 5, 40, 0.2
    means, within = generator.normal(0, 1, (readings, classes)), np.cov(generator.normal(0, 0.2, (readings, 20)))
    share, error = np.array([0.5, 0.3, 0.2]), generator.uniform(0.1, 0.3, readings)
    counts = np.array([22.0, 11.0, 7.0])
    seen = weight * means @ counts + generator.normal(0, 0.1, readings)
    # n_3 = count - n_1 - n_2.
    effect = weight * (means[:, :2] - means[:, 2:])
    precision = np.linalg.inv(weight**2 * count * within + np.diag(error))
    before = np.linalg.inv(count * (np.diag(share) - np.outer(share, share))[:2, :2])
    mean = np.linalg.solve(
        before + effect.T @ precision @ effect,
        before @ (count * share[:2]) + effect.T @ precision @ (seen - weight * count * means[:, 2]),
    )  # fmt: skip
    found = posterior_counts(seen, weight, count, error, Classes(means, within, share))
    np.testing.assert_allclose(found, [*mean, count - mean.sum()], rtol=1e-8)


def test_one_image_has_bayes_rule():
    generator = np.random.default_rng(2)
    means, within, share = generator.normal(0, 1, (3, 4)), np.diag([0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    seen, error = generator.normal(0, 1, 3), np.array([0.1, 0.2, 0.3])
    likely = share * [multivariate_normal.pdf(seen, 0.5 * means[:, c], 0.25 * within + np.diag(error)) for c in range(4)]
    np.testing.assert_allclose(posterior_counts(seen, 0.5, 1, error, Classes(means, within, share)), likely / likely.sum())


@pytest.mark.parametrize("count", [1, 8])
def test_noise_leaves_the_prevalence(count):
    known = Classes(np.eye(3), np.zeros((3, 3)), np.array([0.2, 0.3, 0.5]))
    seen = np.array([1.0, 0, 0])
    found = [posterior_counts(seen, 1 / count, count, np.full(3, sd**2), known) for sd in (1e-6, 0.3, 1.0, 1e6)]
    np.testing.assert_allclose(found[0], [count, 0, 0], atol=1e-4)
    np.testing.assert_allclose(found[-1], count * known.prevalence, rtol=1e-4)
    assert found[0][0] > found[1][0] > found[2][0] > found[3][0]


def test_classes_are_learned():
    readings = np.array([[1.0, 0], [3, 0], [0, 5], [0, 7]])
    known = classes_of(readings, np.array([0, 0, 2, 2]), np.array([[9.0, 9], [4, 4], [9, 9]]))
    np.testing.assert_allclose(known.means, [[2, 4, 0], [0, 4, 6]])
    np.testing.assert_allclose(known.within, [[1, 0], [0, 1]])
    np.testing.assert_allclose(known.prevalence, [(2 + 1 / 3) / 5, (1 / 3) / 5, (2 + 1 / 3) / 5])


def test_two_stages_by_hand():
    """Impact -1. Stage 1 gives 0 and 2 one each and leaves -1.2 and 0.7; less the offsets -1.2 and 0.5; stage 2: 0, then 0 (-0.2)."""
    found = two_stages(np.array([-2.2, 0.4, -0.3, 0.1]), 4, -1.0, np.array([0.0, 0.1, 0.2, 0.1]))
    np.testing.assert_array_equal(found, [3, 0, 1, 0])
    np.testing.assert_array_equal(two_stages(np.array([-3.0, -2, -1]), 1, -6.0, np.zeros(3)), [1, 0, 0])
    assert two_stages(np.array([0.1, 0.2]), 4, 0.0, np.zeros(2)) is None


def test_whole_numbers():
    np.testing.assert_array_equal(whole(np.array([2.6, 0.4, 4.9999999999, 0.0])), [3, 0, 5, 0])
    np.testing.assert_array_equal(whole(np.array([0.4, 0.35, 0.25])), [1, 0, 0])
    np.testing.assert_array_equal(whole(np.array([8.0, 0.0])), [8, 0])
