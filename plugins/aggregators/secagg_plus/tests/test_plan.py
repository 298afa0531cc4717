"""Terms, guarantees and refusals of the plan."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pppml_core.errors import PlanRefused
from pppml_core.testing.harness import site_names
from pppml_core.values import ValueSpec
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.session import SecAggPlus, SecAggPlusSession
from pppml_secagg_plus.terms import Terms, part

VALUE = ValueSpec(10, "integer", 32_767)


def plan(sites: int, value: ValueSpec = VALUE, **config: Any) -> SecAggPlusSession:
    return SecAggPlus(SecAggPlusConfig(**config)).plan(value, site_names(sites))


def misfits(sites: int, value: ValueSpec = VALUE, **config: Any) -> str:
    return " ".join(SecAggPlus(SecAggPlusConfig(**config)).misfits(value, site_names(sites)))


@pytest.mark.parametrize(
    ("n", "t", "curious", "active", "dropouts"),
    [(3, 3, 1, 1, 0), (4, 3, 2, 1, 1), (5, 4, 3, 2, 1), (7, 5, 4, 2, 2), (10, 7, 6, 3, 3), (20, 14, 13, 7, 6), (100, 67, 66, 33, 33)],
)
def test_bounds_of_the_complete_graph(n: int, t: int, curious: int, active: int, dropouts: int) -> None:
    """min(t - 1, n - 2) and min(2t - n - 1, n - 2), with t = floor(2n / 3) + 1."""
    session = plan(n)
    assert session.terms == Terms(n, n - 1, t)
    g = session.guarantees
    assert (g.coalition_curious, g.coalition_active, g.dropouts) == (curious, active, dropouts)
    assert g.sees_update == g.sees_weight == ()
    assert ("all of them are needed" in " ".join(g.assumes)) == (n == 3)


def test_a_higher_threshold_is_more_private_and_less_robust() -> None:
    g = plan(10, threshold=10).guarantees
    assert (g.coalition_curious, g.coalition_active, g.dropouts) == (8, 8, 0)


@pytest.mark.parametrize(("n", "curious", "dropouts"), [(6, 2, 1), (10, 2, 1), (100, 2, 1)])
def test_the_preset_of_the_paper(n: int, curious: int, dropouts: int) -> None:
    """Five shares, four needed: little, and said so. With five sites it is the complete graph."""
    session = plan(n, preset="paper")
    assert session.terms == Terms(n, 4, 4)
    g = session.guarantees
    assert (g.coalition_curious, g.coalition_active, g.dropouts) == (curious, 0, dropouts)
    assert "nothing is claimed against a server that lies" in g.adversary
    assert not any("2^" in text for text in g.assumes), "what is certain needs no probability"
    assert plan(5, preset="paper").guarantees.coalition_active == 2
    assert "neighbours: 4 of 4 sites" in misfits(4, preset="paper")


def test_the_preset_for_many() -> None:
    session = plan(1000, preset="large")
    assert session.terms.degree < 100
    g = session.guarantees
    assert (g.coalition_curious, g.coalition_active, g.dropouts) == (200, 0, 100)
    said = " ".join(g.assumes)
    assert "at most 1 of 2^40 rounds" in said
    assert "at most 1 of 2^30 is lost" in said
    assert plan(1000, preset="large", sigma=60).terms.degree > session.terms.degree
    less = plan(1000, preset="large", threshold=60)
    assert (less.guarantees.coalition_curious, less.guarantees.dropouts) == (58, less.terms.holders - 60), (
        "this threshold does not meet eta"
    )
    assert "2^" not in " ".join(less.guarantees.assumes)
    certain = plan(1000, preset="large", corrupt=0.01, dropout=0.0, neighbours=40).guarantees
    assert (certain.coalition_curious, certain.dropouts) == (26, 13), "what is certain is more than what was asked for"


def test_a_setting_beside_a_preset_wins() -> None:
    assert SecAggPlusConfig(preset="paper", threshold=5).threshold == 5
    again = SecAggPlusConfig(**SecAggPlusConfig(preset="paper").model_dump())
    assert (again.threshold, again.neighbours) == (4, 4)


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1}, {"neighbours": 1}, {"neighbours": "some"}, {"preset": "x"}, {"sigma": 10}, {"corrupt": 0.6}, {"unknown": 1}]
)
def test_settings_out_of_range(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        SecAggPlusConfig(**wrong)


@pytest.mark.parametrize(
    ("sites", "config", "said"),
    [
        (2, {}, "secagg-plus needs three sites, here are 2"),
        (5, {"threshold": 6}, "aggregator.threshold: 6 shares are needed but there are only 5"),
        (6, {"threshold": 3}, "use 4 or more"),
        (9, {"neighbours": 9}, "neighbours: 9 of 9 sites; use at most 8"),
        (9, {"neighbours": 5}, "use 6 instead of 5"),
    ],
)
def test_refusals_say_what_to_do(sites: int, config: Any, said: str) -> None:
    assert said in misfits(sites, **config)
    with pytest.raises(PlanRefused, match="refused"):
        plan(sites, **config)


def test_sums_beyond_64_bits_are_refused() -> None:
    assert "64 bits" in misfits(4, ValueSpec(10, "integer", 2**61))
    assert misfits(3, ValueSpec(10, "integer", 2**61)) == ""
    assert "64 bits" in misfits(4, ValueSpec(10, "integer", None))


def test_four_bytes_a_parameter() -> None:
    long = ValueSpec(1_000_000, "integer", 32_767)
    assert 4_000_000 <= plan(20, long).predicted_bytes()["mask"] < 4_000_500


def test_a_part_is_that_of_the_decimal_number() -> None:
    assert part(0.29, 100) == 29  # 0.29 * 100 is 28.999999999999996
    assert part(0.1, 19) == 1
