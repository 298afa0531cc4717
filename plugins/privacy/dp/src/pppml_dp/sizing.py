"""How much noise: from a budget or a multiplier to the event that is charged and the distribution each party samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pppml_core.errors import ConfigError
from pppml_core.interfaces.privacy import PrivacySetting
from pppml_dp import placing
from pppml_dp.accounting import Event, accountant_of, epsilon, noise_multiplier_for, skellam_variance_for
from pppml_dp.budget import Budget
from pppml_dp.config import DpSgdConfig, DpUpdateConfig
from pppml_dp.grid import Grid, make_grid, share_variance, variance_for
from pppml_dp.noise import IntegerNoise, integer_noise


@dataclass(frozen=True)
class Sized:
    """``noise``: of one share; None: there is none. ``budget``: what a round is charged."""

    grid: Grid
    noise: IntegerNoise | None
    budget: Budget


def size_noise(
    config: DpSgdConfig | DpUpdateConfig,
    setting: PrivacySetting,
    *,
    rate: float,
    each: int,
    expected: float,
    delta: float,
    multiplier: float | None,
) -> Sized:
    """Size the noise of a run.

    Args:
        config: which distribution, where it is placed, how many colluders, and the budget where there is one.
        setting: public numbers of the run.
        rate: probability of each protected unit to be in a sum.
        each: noised sums of a round.
        expected: clipped vectors in a sum, about: it decides how fine the grid can be.
        delta: of the claim.
        multiplier: noise in sensitivities; 0: none; None: solve for ``config.epsilon``.
    """
    count = each * setting.rounds
    skellam = config.noise == "skellam"
    solved = multiplier is None
    if multiplier is None:
        assert config.epsilon is not None
        multiplier = noise_multiplier_for(config.epsilon, delta, rate, max(1, count))
    grid = make_grid(setting.coordinates, expected, multiplier)
    if multiplier == 0:
        none = Event("gaussian", rate, 0.0, each)
        return Sized(grid, None, Budget(none, setting.rounds, delta, math.inf, math.inf))
    if skellam:
        variance = (multiplier * grid.l2) ** 2
        if solved:
            assert config.epsilon is not None
            variance = skellam_variance_for(config.epsilon, delta, rate, max(1, count), grid.l1, grid.l2)
        event = Event.skellam(rate, variance, grid.l1, grid.l2, each)
    else:
        variance = variance_for(grid, multiplier)
        event = Event("gaussian", rate, multiplier, each)
    honest = max(1, placing.honest_shares(config.placement, setting, config.colluders))
    noise = integer_noise(config.noise, share_variance(variance, honest))
    planned = epsilon([event] * setting.rounds, delta, accountant_of([event]))
    budget = Budget(event, setting.rounds, delta, planned, config.epsilon or planned)
    if not budget.affords([budget.charge()]):
        text = f"with `noise_multiplier: {multiplier:g}` the first round would exceed `epsilon: {config.epsilon:g}`"
        raise ConfigError(text, place="epsilon", hint="raise noise_multiplier, or leave it out: the noise is then solved for epsilon")
    return Sized(grid, noise, budget)
