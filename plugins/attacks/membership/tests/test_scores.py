"""The formulas against numbers worked out by hand, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from pppml_membership.models import halves
from pppml_membership.scores import lira, log_ratio, logit, rmia, share

NAN = np.nan


def test_rmia_by_hand():
    """a = 0.5: p(x) = (1.5 p_out + 0.5) / 2.

    Queries: target 0.9, references 0.4 and 0.6 (p_out 0.5, p 0.625, ratio 1.44); target 0.45, references 0.5 and 0.5 (ratio 0.72).
    Public: target 0.5, a stranger to the first model alone, 0.2 there (p 0.4, ratio 1.25); target 0.5, to the second alone, 0.8 there
    (p 0.85, ratio 0.588); target 0.25, to both, 0.1 and 0.3 (p_out 0.2, p 0.4, ratio 0.625); the last one both were trained on.
    """
    asked, asked_out = np.log([0.9, 0.45]), np.log([[0.4, 0.5], [0.6, 0.5]])
    public = np.log([0.5, 0.5, 0.25, 1e-9])
    public_out = np.log([[0.2, NAN, 0.1, NAN], [NAN, 0.8, 0.3, NAN]])
    np.testing.assert_allclose(np.exp(log_ratio(asked, asked_out, 0.5)), [1.44, 0.72])
    np.testing.assert_allclose(np.exp(log_ratio(public[:3], public_out[:, :3], 0.5)), [1.25, 0.5 / 0.85, 0.625])
    # The first query beats all three public images, the second two of three; of equal shares the ratio decides, in less than one step.
    scores = rmia(asked, asked_out, public, public_out, a=0.5, gamma=1.0)
    np.testing.assert_allclose(scores, [(3 + 1.44 / 2.44) / 4, (2 + 0.72 / 1.72) / 4])
    # Twice as good as a public image is the first beside two of them, the second beside none.
    scores = rmia(asked, asked_out, public, public_out, a=0.5, gamma=2.0)
    np.testing.assert_allclose(scores, [(2 + 1.44 / 2.44) / 4, (0 + 0.72 / 1.72) / 4])


def test_the_share_counts_public_images_that_are_beaten_or_equalled():
    generator = np.random.default_rng(0)
    asked, public = np.append(generator.random(50), 0.25), np.append(generator.random(30), 0.25)
    for gamma in (1.0, 2.0):
        slow = [np.mean([x >= gamma * z for z in public]) for x in asked]
        np.testing.assert_allclose(share(asked, public, gamma), slow)


def test_offline_lira_against_scipy():
    generator = np.random.default_rng(1)
    p, out = generator.uniform(0.05, 0.95, 6), generator.uniform(0.05, 0.95, (16, 6))
    phi, shadows = np.log(p / (1 - p)), np.log(out / (1 - out))
    deviation = np.sqrt(np.mean([np.var(shadows[:, i], ddof=1) for i in range(6)]))
    wanted = [-np.log(norm(shadows[:, i].mean(), deviation).sf(phi[i])) for i in range(6)]
    np.testing.assert_allclose(lira(np.log(p), np.log(out)), wanted)
    np.testing.assert_allclose(logit(np.log(p)), phi)


def test_sure_models_give_finite_scores():
    sure = np.zeros(3)
    assert np.isfinite(logit(sure)).all()
    assert np.isfinite(lira(sure, np.zeros((2, 3)))).all()
    assert np.isfinite(rmia(np.array([-800.0]), np.array([[-800.0]]), np.array([-800.0]), np.array([[-800.0]]), a=1.0, gamma=1.0)).all()


@pytest.mark.parametrize("references", [1, 2, 3, 4])
def test_halves(references):
    inside = halves(41, references, np.random.default_rng(0))
    assert inside.shape == (references, 41)
    assert set(inside.sum(axis=1)) <= {20, 21}
    for first in range(0, references - 1, 2):
        np.testing.assert_array_equal(inside[first], ~inside[first + 1])
    if references >= 3:
        assert (inside[0] != inside[2]).any()
