"""Runs of the tiny task under a mechanism, networks to plan for, and counts against probabilities."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import pppml_core as pppml
from pppml_core.interfaces.privacy import PrivacySetting
from pppml_core.registry import Registry
from pppml_dp.budget import Budget

INSTALLED = Registry.discover()
HAS_SECAGG = any(c.name == "secagg-plus" for c in INSTALLED.components("aggregator"))


def numbers(**changes):
    """Public numbers of a run, as a mechanism is planned for them."""
    usual = {
        "rounds": 20,
        "cohort": 10,
        "examples": dict.fromkeys("abcdefghij", 400),
        "batch_size": 40,
        "local_steps": dict.fromkeys("abcdefghij", 1),
        "gradient_calls": 1,
        "sample_rate": 0.1,
        "learning_rates": (0.5,) * 20,
        "coordinates": 2035,
        "min_survivors": 7,
        "sees_sum": ("server",),
        "sees_update": (),
        "coalition": 6,
    }
    return PrivacySetting(**{**usual, **changes})


@pytest.fixture
def setting():
    return numbers


@pytest.fixture
def experiment():
    """An experiment on the tiny task: sections as keywords."""

    def make(privacy, *, sites=5, examples=200, aggregator="plain", training=None, run=None, more_task=None, **sections):
        usual = {"steps": 1, "batch_size": 32, "optimizer": {"use": "sgd", "lr": 0.5}}
        return pppml.Experiment(
            task={"use": "tiny", "sites": sites, "examples": examples, **(more_task or {})},
            aggregator=aggregator,
            privacy=privacy,
            training={**usual, **(training or {})},
            run={"rounds": 2, **(run or {})},
            registry=INSTALLED,
            **sections,
        )

    return make


@pytest.fixture
def secagg():
    if not HAS_SECAGG:
        pytest.skip("pppml-secagg-plus is not installed")
    return "secagg-plus"


@pytest.fixture
def rule_is():
    """What a personalization says of itself to a mechanism."""
    return lambda **says: SimpleNamespace(**{"shares": True, **says})


@pytest.fixture
def stated_epsilon_alone(monkeypatch):
    """Plans without what other accountants find: that is a test of its own, and takes longer than all the rest of a plan."""
    monkeypatch.setattr(Budget, "cross_checks", lambda self: {})


@pytest.fixture(scope="session")
def assert_counts_fit():
    """``check(counts, probabilities)``: a chi-square test at 1e-9, and an exact one of what is rare.

    A cell in which fewer than 10 are expected has no chi-square distribution: one that is met once in a hundred tests would fail the test.
    Such cells are counted together, by the binomial distribution. For all counts of these tests the false alarms of both were computed,
    by convolving the statistic over Poisson cells: at most 2.5e-8.
    """

    def check(counts, probabilities, alarm=1e-9):
        counts, probabilities = np.asarray(counts), np.asarray(probabilities, float)
        total = int(counts.sum())
        assert math.isclose(probabilities.sum(), 1.0, rel_tol=1e-6), "the probabilities do not add up to one"
        often = probabilities * total >= 10
        rare, chance = int(counts[~often].sum()), probabilities[~often].sum()
        assert stats.binomtest(rare, total, chance).pvalue > alarm, (rare, chance * total)
        counts, expected = counts[often], probabilities[often]
        expected = expected * (counts.sum() / expected.sum())
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert stats.chi2.sf(statistic, len(counts) - 1) > alarm, (statistic, len(counts) - 1)

    return check
