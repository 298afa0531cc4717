"""The noise that meets a target, the steps a budget allows, the searches behind them, and ledger entries."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pppml_core.errors import DataError, PppmlError
from pppml_dp.accounting import Event, epsilon, largest_count, noise_multiplier_for, skellam_variance_for
from pppml_dp.calibrate import first_within, four_digits, index_of
from pppml_dp.events import merged

BLOOD = 11_959


# --- the noise for a target

# Batch, steps, and noise multipliers for epsilon 6 at delta 1.9e-4, and 6, 3 and 1 at 1e-5, computed beforehand with another search.
JOINT = [
    (512, 701, ("1.02", "1.13", "1.78", "4.35")),
    (2048, 584, ("2.85", "3.28", "5.85", "15.5")),
]
ALONE = [(64, 449, "1.33"), (64, 2243, "2.54"), (256, 112, "2.35"), (256, 561, "4.93")]
WHOLE = [(957, 30, "4.18"), (957, 60, "5.92"), (957, 150, "9.35")]


@pytest.mark.parametrize(
    ("target", "delta", "rate", "count", "known"),
    [
        (target, delta, batch / BLOOD, steps, known)
        for batch, steps, row in JOINT
        for (target, delta), known in zip([(6.0, 1.9e-4), (6.0, 1e-5), (3.0, 1e-5), (1.0, 1e-5)], row, strict=True)
    ]
    + [(6.0, 1e-5, batch / 957, steps, known) for batch, steps, known in ALONE + WHOLE]
    + [(6.0, 1.9e-4, 32 / 1196, 5606, "1.50")],
)
def test_noise_multipliers_of_the_fact_sheet(target, delta, rate, count, known):
    half_a_digit = 0.5 * 10 ** -len(known.split(".")[1])
    assert noise_multiplier_for(target, delta, rate, count) == pytest.approx(float(known), abs=1.2 * half_a_digit, rel=1e-9)


@pytest.mark.parametrize(
    ("target", "rate", "count"),
    [(6.0, 0.05, 100), (0.1, 0.05, 100), (1.0, 1.0, 50), (100.0, 0.3, 20), (5000.0, 1.0, 50)],
)
def test_the_smallest_noise_of_four_digits_that_keeps_the_claim(target, rate, count):
    multiplier = noise_multiplier_for(target, 1e-5, rate, count)
    below = four_digits(index_of(multiplier) - 1)
    assert float(f"{multiplier:.3e}") == multiplier
    assert epsilon([Event("gaussian", rate, multiplier, count)], 1e-5) <= target < epsilon([Event("gaussian", rate, below, count)], 1e-5)
    assert largest_count(Event("gaussian", rate, multiplier), 1e-5, target) >= count


@pytest.mark.parametrize(("target", "rate", "count"), [(6.0, 0.05, 100), (1.0, 1.0, 50), (0.5, 0.1, 1)])
@pytest.mark.parametrize(("d1", "d2"), [(3.0, 2.0), (2.4e8, 1.56e5)])
def test_the_smallest_skellam_variance_of_four_digits_that_keeps_the_claim(target, rate, count, d1, d2):
    variance = skellam_variance_for(target, 1e-5, rate, count, d1, d2)
    event, below = (Event.skellam(rate, v, d1, d2, count) for v in (variance, four_digits(index_of(variance) - 1)))
    assert float(f"{variance:.3e}") == variance
    assert epsilon([event], 1e-5, "rdp") <= target < epsilon([below], 1e-5, "rdp")
    # The accountant of integer orders asks for somewhat more noise than PLD does of Gaussian noise.
    assert 1 < event.noise_multiplier / noise_multiplier_for(target, 1e-5, rate, count) < 1.3


def test_nothing_to_do_needs_no_noise():
    assert noise_multiplier_for(6.0, 1e-5, 0.1, 0) == 0
    assert skellam_variance_for(6.0, 1e-5, 0.1, 0, 3.0, 2.0) == 0


@pytest.mark.parametrize(
    ("target", "delta", "rate"), [(0.0, 1e-5, 0.1), (math.inf, 1e-5, 0.1), (6.0, 0.0, 0.1), (6.0, 1e-5, 0.0), (6.0, 1e-5, 1.1)]
)
def test_a_target_that_makes_no_sense_is_refused(target, delta, rate):
    with pytest.raises(PppmlError):
        noise_multiplier_for(target, delta, rate, 10)


# --- the steps a budget allows


@pytest.mark.parametrize(
    "event",
    [
        Event("gaussian", 0.05, 1.3), Event("gaussian", 0.05, 1.3, 7), Event("gaussian", 1.0, 5.0), Event("gaussian", 0.5, 0.4),
        Event.skellam(0.05, 2.0e4, 300.0, 100.0), Event("gaussian", 1.0, 0.3),
    ],
)  # fmt: skip
def test_the_largest_count_is_the_last_within_the_limit(event):
    accountant = "rdp" if event.kind == "skellam" else "pld"
    count = largest_count(event, 1e-5, 6.0)
    assert epsilon([event.times(count)], 1e-5, accountant) <= 6 < epsilon([event.times(count + 1)], 1e-5, accountant)


def test_counts_at_the_ends():
    assert largest_count(Event("gaussian", 0.1, 0.0), 1e-5, 6.0) == 0
    assert largest_count(Event("gaussian", 1.0, 0.1), 1e-5, 6.0) == 0
    assert largest_count(Event("gaussian", 0.1, 1.0), 1e-5, 0.0) == 0
    assert largest_count(Event("gaussian", 1.0, 1e9), 1e-5, 6.0) == 1_000_000
    assert largest_count(Event("gaussian", 1.0, 1e9, 1000), 1e-5, 6.0) == 1_000
    assert largest_count(Event("gaussian", 1.0, 1e100), 1e-5, 6.0) == 1_000_000
    assert largest_count(Event("gaussian", 1.0, 1e-100), 1e-5, 6.0) == 0


def test_a_limit_met_exactly_is_kept():
    event = Event("gaussian", 1.0, 5.0)
    assert largest_count(event, 1e-5, epsilon([event.times(17)], 1e-5)) == 17


# --- searches


@settings(deadline=None)
@given(st.integers(-200_000, 200_000))
def test_numbers_of_four_digits_are_counted(index):
    value = four_digits(index)
    assert float(f"{value:.3e}") == value
    assert index_of(value) == index
    assert four_digits(index - 1) < value < four_digits(index + 1)
    assert index_of(value * (1 + 1e-9)) == index + 1


@settings(max_examples=300, deadline=None)
@given(
    st.integers(-500, 500), st.integers(-600, 600), st.integers(1, 200), st.sampled_from(["line", "step", "curve", "infinite"]),
)  # fmt: skip
def test_a_search_finds_the_first_within(root, start, step, shape):
    asked = []

    def gap(i):
        asked.append(i)
        return {
            "line": root - i,
            "step": 1 if i < root else 0,
            "curve": math.exp(-i / 40) - math.exp(-root / 40),
            "infinite": math.inf if i < root else -1,
        }[shape]

    assert first_within(gap, start, -1000, 1000, step) == root
    assert len(asked) < 45


def test_a_search_stays_in_its_range():
    assert first_within(lambda i: -1.0, 50, 0, 100) == 0
    with pytest.raises(PppmlError):
        first_within(lambda i: 1.0, 50, 0, 100)


# --- ledger entries


@pytest.mark.parametrize("event", [Event("gaussian", 0.1, 1.25, 3), Event("gaussian", 1, 2), Event.skellam(0.1, 1e10, 2e8, 1.5e5, 4)])
def test_a_charge_survives_the_ledger(event):
    written = json.loads(json.dumps({"round": 3, **event.to_charge()}))
    assert Event.from_charge(written) == event
    assert written["event"] == f"poisson-{event.kind}"


def test_equal_events_are_merged():
    a, b = Event("gaussian", 0.1, 1.0, 2), Event.skellam(0.1, 9.0, 3.0, 3.0)
    assert merged([b, a, b, a.times(2)]) == (Event("gaussian", 0.1, 1.0, 6), b.times(2))
    assert merged([a.times(0)]) == ()


GOOD = {"event": "poisson-gaussian", "sample_rate": 0.1, "noise_multiplier": 1.0, "count": 1}
SKELLAM = Event.skellam(0.1, 1e4, 2e3, 1e2).to_charge()


@pytest.mark.parametrize(
    "charge",
    [
        None, [], "poisson-gaussian", {},
        {**GOOD, "event": "gaussian"}, {**GOOD, "event": "poisson-laplace"}, {**GOOD, "event": 3}, {**GOOD, "event": ["poisson-gaussian"]},
        {k: v for k, v in GOOD.items() if k != "count"}, {k: v for k, v in GOOD.items() if k != "sample_rate"},
        {**GOOD, "sample_rate": 0.0}, {**GOOD, "sample_rate": 1.5}, {**GOOD, "sample_rate": -0.1}, {**GOOD, "sample_rate": math.nan},
        {**GOOD, "sample_rate": "0.1"}, {**GOOD, "sample_rate": True}, {**GOOD, "sample_rate": None},
        {**GOOD, "noise_multiplier": -1.0}, {**GOOD, "noise_multiplier": math.nan}, {**GOOD, "noise_multiplier": math.inf},
        {**GOOD, "noise_multiplier": 1e-200},
        {**GOOD, "noise_multiplier": [1.0]}, {**GOOD, "noise_multiplier": 10**400},
        {**GOOD, "count": -1}, {**GOOD, "count": 1.0}, {**GOOD, "count": True}, {**GOOD, "count": "1"},
        {**SKELLAM, "variance": -1.0}, {**SKELLAM, "variance": 1e5}, {**SKELLAM, "variance": math.nan},
        {**SKELLAM, "d1": 50.0}, {**SKELLAM, "d2": 0.0}, {k: v for k, v in SKELLAM.items() if k != "variance"},
    ],
)  # fmt: skip
def test_a_malformed_charge_is_refused(charge):
    with pytest.raises(DataError, match="privacy charge"):
        Event.from_charge(charge)


def test_gaussian_noise_has_no_integer_sensitivities():
    with pytest.raises(DataError):
        Event("gaussian", 0.1, 1.0, 1, variance=4.0)
    with pytest.raises(DataError):
        Event.skellam(0.1, math.nan, 3.0, 2.0)
