"""Vanishing sites: the sum of the survivors bit for bit, up to the number that may vanish; a clean end beyond it; never a wrong sum.

``PPPML_SCHEDULES`` sets the number of random schedules (default 60); with 1,000 or more, all pairs vanish at all stages.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest

from pppml_core.errors import RoundLost, TooFewSurvivors
from pppml_core.testing.harness import HarnessResult, SessionHarness, site_names
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.session import SecAggPlus

STAGES = ("advertise", "share", "mask", "agree", "unmask")
TEN = site_names(10)
SCHEDULES = int(os.environ.get("PPPML_SCHEDULES", "60"))
DEEDS = ("drop", "drop-reply", "delay", "duplicate", "tamper", "truncate", "replay")


def run(sites: Any = TEN, faults: Any = (), config: Any = None, **options: Any) -> HarnessResult:
    return SessionHarness(SecAggPlus(SecAggPlusConfig(**(config or {}))), sites, 6, faults=faults, **options).run()


def gone(stage: str, *sites: str) -> list[dict[str, Any]]:
    return [{"site": site, "stage": stage, "do": "drop", "times": 100} for site in sites]


def in_the_sum(stage: str, *sites: str) -> tuple[str, ...]:
    return TEN if stage in ("agree", "unmask") else tuple(site for site in TEN if site not in sites)


@pytest.mark.parametrize("stage", STAGES)
def test_every_site_and_every_pair_of_ten(stage: str) -> None:
    """t = 7, so three may vanish: every one and every pair. (Else than at mask and unmask, some pairs, unless it is thorough.)"""
    pairs = list(itertools.combinations(TEN, 2))
    if stage not in ("mask", "unmask") and SCHEDULES < 1000:
        pairs = [pair for pair in pairs if TEN.index(pair[1]) - TEN.index(pair[0]) in (1, 5)]
    for sites in (*itertools.combinations(TEN, 1), *pairs):
        result = run(faults=gone(stage, *sites))
        assert result.correct, (sites, result.aborted)
        assert result.survivors == in_the_sum(stage, *sites)


@pytest.mark.parametrize("stage", STAGES)
def test_as_many_as_promised_and_one_more(stage: str) -> None:
    result = run(faults=gone(stage, "a", "e", "j"))
    assert result.correct
    assert result.survivors == in_the_sum(stage, "a", "e", "j")
    result = run(faults=gone(stage, "a", "c", "e", "j"))
    assert isinstance(result.aborted, RoundLost if stage == "unmask" else TooFewSurvivors)
    assert f"stage {stage}" in str(result.aborted)
    assert "6 of 10 sites are left, 7 are needed" in str(result.aborted) or stage == "unmask"
    assert all(bool(over) == (stage == "unmask" and site not in "acej") for site, over in result.released.items())


def test_pairs_that_vanish_at_different_stages() -> None:
    for first, second in itertools.combinations(STAGES, 2):
        result = run(faults=[*gone(first, "b"), *gone(second, "g")])
        assert result.correct, (first, second, result.aborted)


def test_a_mask_of_64_bits() -> None:
    """Sums beyond 31 bits use the ring of 2**64: extremes, with and without a vanished site."""
    given = {site: np.full(6, (-1) ** i * (2**31 - 1), np.int32) for i, site in enumerate(TEN)}
    for faults in ((), gone("mask", "b", "d", "f")):
        result = run(faults=faults, contributions=given, bound=2**31 - 1)
        assert result.correct
    sent = {p.message.body["values"].dtype for p in result.transcript.sent_by_sites() if p.message.stage == "mask"}
    assert sent == {np.dtype(np.uint64)}


@pytest.mark.parametrize(("bound", "dtype"), [(2**31 // 3, np.uint32), (2**31 // 3 + 1, np.uint64)])
def test_the_smallest_ring_that_holds_the_sum(bound: int, dtype: type) -> None:
    given = {site: np.full(6, -bound, np.int32) for site in "abc"}
    result = run("abc", contributions=given, bound=bound)
    assert result.correct
    values = next(p.message.body["values"] for p in result.transcript.sent_by_sites() if p.message.stage == "mask")
    assert values.dtype == dtype


def schedule(draw: np.random.Generator) -> tuple[int, dict[str, Any], list[dict[str, Any]], int]:
    """Sites, settings, faults and attempts of one random schedule."""
    count = int(draw.integers(3, 9))
    ring = count >= 6 and draw.random() < 0.3
    config: dict[str, Any] = {"preset": "paper"} if ring else {}
    stages = ("commit", *STAGES) if ring else STAGES
    faults = [
        {
            "site": str(draw.choice(site_names(count))),
            "stage": str(draw.choice(stages)),
            "do": str(draw.choice(DEEDS)),
            "times": int(draw.integers(1, 3)),
        }
        for _ in range(draw.integers(0, 6))
    ]
    return count, config, faults, int(draw.integers(1, 4))


def test_random_schedules_never_give_a_wrong_sum() -> None:
    draw, sums = np.random.Generator(np.random.PCG64(2026)), 0
    for number in range(SCHEDULES):
        count, config, faults, attempts = schedule(draw)
        result = run(count, faults, config, attempts=attempts, seed=number)
        case = (number, count, config, faults, attempts)
        assert not result.crashes, (case, result.crashes)
        assert result.correct or result.aborted is not None, (case, result.survivors)
        over = {frozenset(named) for sets in result.released.values() for named in sets}
        assert len(over) <= 1, f"two sums were released: {case}"
        assert result.sum is None or over == {frozenset(result.survivors)}, case
        sums += result.correct
    assert SCHEDULES / 3 < sums < SCHEDULES, "schedules that all succeed or all fail say little"
