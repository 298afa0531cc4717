"""The metric against the same formula with the ``d x d`` matrix written out."""

from __future__ import annotations

import numpy as np
import pytest

from pppml_core.learning.usual import RIDGE, Usual


def test_the_metric_is_the_shrunk_inverse_covariance():
    generator = np.random.default_rng(0)
    updates, vector = generator.normal(0, 1, (6, 9)) + generator.normal(0, 1, 9), generator.normal(0, 1, 9)
    centred = updates - updates.mean(axis=0)
    ridge = RIDGE * np.trace(centred @ centred.T) / 6
    metric = ridge * np.linalg.inv(centred.T @ centred + ridge * np.eye(9))
    usual = Usual(updates)
    np.testing.assert_allclose(usual.mean, updates.mean(axis=0))
    np.testing.assert_allclose(usual.metric(vector), metric @ vector)
    assert usual.length(vector) == pytest.approx(np.sqrt(vector @ metric @ vector))
    assert usual.length(np.zeros(9)) == 1.0


def test_of_equal_updates_every_direction_counts_alike():
    vector = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(Usual(np.ones((4, 3))).metric(vector), vector)
