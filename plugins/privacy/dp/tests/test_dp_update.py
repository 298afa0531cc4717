"""Whole updates: the clip, and the paper's preset with what it claimed and what holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from pppml_dp.config import DpUpdateConfig
from pppml_dp.dp_update import DpUpdatePlan, make_update_plan, paper_sd

FALSE_ALARM = 1e-7
PAPER = {"use": "dp-update", "preset": "paper"}


def test_the_papers_epsilon_beside_the_claimed_one(experiment):
    plan = experiment(PAPER, run={"rounds": 50}).plan()
    told = plan.to_dict()
    privacy = told["privacy"]
    assert privacy["epsilon"] == pytest.approx(2759, rel=0.02)
    assert privacy["details"]["claimed_epsilon"] == 6
    assert (privacy["unit"], privacy["adjacency"], privacy["placement"]) == ("site", "zero-out", "local")
    words = next(s["gives"] for s in told["stages"] if s["name"].startswith("privacy"))
    assert "epsilon 6 was claimed (one round, sensitivity 1 under a clip of 7); the true epsilon over 50 rounds is 2,759" in words
    # PLD is stated; RDP is an upper bound by another way. An accountant that overflows is said not to apply.
    assert privacy["cross_checks"]["pld"] <= privacy["cross_checks"]["rdp"] <= 1.15 * privacy["cross_checks"]["pld"]
    assert privacy["cross_checks"]["prv"] is None


def test_the_papers_noise_by_hand():
    """Classical Gaussian mechanism: sqrt(2 ln(1.25 / delta)) x sensitivity / epsilon."""
    assert paper_sd() == pytest.approx(math.sqrt(2 * math.log(1.25 / 1.9e-4)) / 6, rel=1e-9) == pytest.approx(0.699, abs=5e-4)


def test_the_papers_noise_is_in_what_leaves_a_site(experiment, tmp_path, monkeypatch):
    """Updates are zeros, so the model moves by the mean of the sites' noise alone."""
    monkeypatch.setattr(DpUpdatePlan, "constrain", lambda self, flat: np.zeros_like(flat))
    run = experiment(PAPER, sites=2, examples=12, run={"rounds": 1}).run(tmp_path / "r", reporters=False, report=False)
    final, first = load_file(run.folder / "model.safetensors"), run._assembly.initial_state
    noise = torch.cat([(final[n].double() - first[n].double()).flatten() for n in first]).numpy() * math.sqrt(2)
    low, high = (stats.chi2.ppf(p, noise.size) / noise.size for p in (FALSE_ALARM / 2, 1 - FALSE_ALARM / 2))
    # The grid rounds the sensitivity up, by at most 1.1 percent, and the noise with it.
    assert low < np.mean(noise**2) / 0.699**2 < high * 1.011**2


@pytest.mark.parametrize("length", [0.1, 7.0, 1e6])
def test_an_update_is_scaled_to_the_clip_and_not_beyond_it(setting, length):
    plan = make_update_plan(DpUpdateConfig(clip=2.0, noise_multiplier=1.0), setting())
    update = np.random.default_rng(0).normal(size=2035)
    update *= length / np.linalg.norm(update)
    clipped = plan.constrain(update)
    assert np.linalg.norm(clipped) == pytest.approx(min(length, 2.0))
    assert np.dot(clipped, update) == pytest.approx(np.linalg.norm(clipped) * length)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_becomes_zero(setting, bad):
    plan = make_update_plan(DpUpdateConfig(noise_multiplier=1.0), setting())
    assert not plan.constrain(np.array([1.0, bad, 2.0])).any()


def test_nothing_of_a_clipped_update_saturates(setting):
    plan = make_update_plan(DpUpdateConfig(clip=2.0, noise_multiplier=1.0), setting())
    assert plan.encoding(1).range >= 2.0


def test_epsilon_solves_the_noise(setting):
    """Independent oracle: 20 Gaussian releases without sampling are one of z / sqrt(20) (analytic Gaussian, Balle and Wang 2018)."""
    plan = make_update_plan(DpUpdateConfig(epsilon=6, delta=1e-5, placement="distributed"), setting())
    mu = math.sqrt(20) / plan.statement.details["noise_multiplier"]

    def delta(epsilon):
        return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)

    assert delta(6.0 * 1.005) < 1e-5 < delta(6.0 * 0.98)
    assert plan.statement.epsilon == 6
