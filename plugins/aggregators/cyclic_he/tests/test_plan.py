"""What is planned, promised and refused before anything is sent."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from pppml_core.config import resolve
from pppml_core.errors import PlanRefused
from pppml_core.registry import Registry
from pppml_core.testing import insecure_plugin
from pppml_core.testing.harness import site_names
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.values import ValueSpec
from pppml_cyclic_he import bound, plugin
from pppml_cyclic_he.aggregator import CyclicHE
from pppml_cyclic_he.config import CyclicHEConfig
from pppml_cyclic_he.session import HardenedSession

VALUE = ValueSpec(10, "integer", 32_767)


def planned(cyclic: Any, sites: int, rings: Any = "auto", backend: Any = None) -> Any:
    return cyclic.aggregator(rings, backend).plan(VALUE, site_names(sites))


@pytest.mark.parametrize(("sites", "rings"), [(3, 1), (4, 2), (5, 2), (6, 2), (20, 2)])
def test_as_many_rings_as_the_cohort_allows_up_to_two(cyclic: Any, sites: int, rings: int) -> None:
    assert planned(cyclic, sites).setting.rings.count == rings


@pytest.mark.parametrize(
    ("sites", "rings", "reason"),
    [
        (2, "auto", "a ring needs at least 3"),
        (1, "auto", "a ring needs at least 3"),
        (3, 2, "3 sites walk at most 1"),
        (4, 3, "4 sites walk at most 2 .1 without a common edge."),
        (5, 3, "5 sites walk at most 2"),
        (10, 5, "10 sites walk at most 4"),
    ],
)
def test_cohorts_that_are_refused(cyclic: Any, sites: int, rings: Any, reason: str) -> None:
    with pytest.raises(PlanRefused, match=reason):
        planned(cyclic, sites, rings)
    assert cyclic.aggregator(rings).misfits(VALUE, site_names(sites))


def test_values_that_are_refused(cyclic: Any) -> None:
    aggregator, names = cyclic.aggregator(), site_names(5)
    assert "integers only" in aggregator.misfits(ValueSpec(10, "real", None), names)[0]
    assert "no bound" in aggregator.misfits(ValueSpec(10, "integer", None), names)[0]
    small = TransparentBackend(cyclic.transparent.model_copy(update={"modulus": 17}))
    assert "larger `modulus`" in cyclic.aggregator(backend=small).misfits(VALUE, names)[0], "the back end's own reasons are handed on"
    assert aggregator.misfits(VALUE, names) == []


class Other(TransparentBackend):
    """The transparent double with other figures in its parameters."""

    def __init__(self, config: Any, **figures: Any) -> None:
        super().__init__(config)
        self.figures = figures

    def plan(self, value: ValueSpec, additions: int) -> Any:
        self.asked = (value, additions)
        return replace(super().plan(value, additions), **self.figures)


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"security_bits": 127}, "127 bits of security"),
        ({"log2_failure": -63.9}, "more often than once in 2"),
        ({"log2_failure": None}, "more often than once in 2"),
    ],
)
def test_parameters_that_are_refused(cyclic: Any, figures: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanRefused, match=reason):
        planned(cyclic, 5, backend=Other(cyclic.transparent, **figures))


def test_parameters_are_for_as_many_additions_as_sites(cyclic: Any) -> None:
    backend = Other(cyclic.transparent, log2_failure=-64.0)
    planned(cyclic, 5, backend=backend)
    assert backend.asked == (VALUE, 5)


@pytest.mark.parametrize(
    ("sites", "rings", "curious", "active"),
    [
        (3, 1, 1, 1),
        (5, 1, 1, 1),
        (10, 1, 1, 1),
        (4, 2, 2, 2),
        (5, 2, 3, 3),
        (7, 2, 3, 3),
        (8, 2, 4, 3),
        (10, 2, 4, 3),
        (10, 4, 7, 7),
        (20, 2, 4, 3),
    ],
)
def test_the_promise(cyclic: Any, sites: int, rings: int, curious: int, active: int) -> None:
    """The bounds of protocols.md; active: the connectivity of the union minus 1, n - 2 where it is complete."""
    promised = planned(cyclic, sites, rings).guarantees
    assert (promised.coalition_curious, promised.coalition_active) == (curious, active)
    assert promised.sees_sum == ("server",)
    assert promised.sees_update == ()
    assert promised.arithmetic == "exact"
    assert any("statistically" in text for text in promised.assumes)


def test_what_is_said_of_the_residual(cyclic: Any) -> None:
    """928 ciphertexts of degree 2048: 1.9 million coefficients, each hiding n/12 under n * 3.2^2 * (4 * 2048 / 3 + 1)."""
    backend = Other(cyclic.transparent, details={"degree": 2048, "slots": 2048})
    session = cyclic.aggregator(1, backend).plan(ValueSpec(1_900_000, "integer", 32_767), site_names(5))
    assert any("about 4.1 bits of a whole vector" in text for text in session.guarantees.assumes)
    assert any("depends on the back end" in text for text in planned(cyclic, 5).guarantees.assumes)


@pytest.mark.parametrize(("sites", "rings"), [(4, 2), (5, 1), (6, 2), (8, 2), (9, 3)])
def test_the_smallest_coalition_that_isolates_a_site(cyclic: Any, sites: int, rings: int) -> None:
    """By trying all coalitions; one site more than the bound is always enough."""
    made = planned(cyclic, sites, rings).setting.rings
    alone = [
        members
        for members in combinations(range(sites), made.curious() + 1)
        if set(made.initiators) <= {made.order[i] for i in members} and any(len(g) == 1 for g in bound.components(made.cycles, members))
    ]
    found = made.isolating()
    assert tuple(made.order.index(site) for site in found) in alone
    assert len(found) == made.curious() + 1


def test_approximate_is_weaker_and_says_so(cyclic: Any) -> None:
    promised = planned(cyclic, 5, backend=cyclic.Approximate()).guarantees
    assert promised.sees_sum == ("server", "a")
    assert promised.coalition_curious == 1
    assert any("the initiator sees the sum before the server" in text for text in promised.assumes)
    assert any("never tried again" in text for text in promised.assumes)


def test_approximate_goes_along_one_ring_with_a_small_error(cyclic: Any) -> None:
    assert planned(cyclic, 5, backend=cyclic.Approximate(1 / 24)).setting.rings.count == 1
    with pytest.raises(PlanRefused, match="one ring only"):
        planned(cyclic, 5, 2, cyclic.Approximate())
    for error in (0.0417, 1.0, None):
        with pytest.raises(PlanRefused, match="1/24"):
            planned(cyclic, 5, backend=cyclic.Approximate(error))


def test_every_party_makes_the_same_rings_in_any_order_of_the_cohort(cyclic: Any) -> None:
    one, other = (cyclic.aggregator().plan(VALUE, names).setting.rings for names in (tuple("abcdefg"), tuple("gbfdeca")))
    assert one == other
    assert one.sha256 == other.sha256
    assert one.sha256 != cyclic.aggregator(1).plan(VALUE, tuple("abcdefg")).setting.rings.sha256
    assert one.sha256 != cyclic.aggregator().plan(VALUE, tuple("abcdefh")).setting.rings.sha256


def test_from_a_configuration() -> None:
    """As a run builds it: the back end by name, within the aggregator."""
    registry = Registry.only(plugin, insecure_plugin)
    given = {"use": "cyclic-he", "rings": 1, "backend": {"use": "insecure-transparent", "security_bits": 128}}
    config = resolve({"task": "tiny", "aggregator": given}, registry=registry)
    aggregator = registry.build("aggregator", config.aggregator)
    assert isinstance(aggregator, CyclicHE)
    session = aggregator.plan(VALUE, site_names(4))
    assert isinstance(session, HardenedSession)
    assert session.setting.rings.count == 1
    assert isinstance(session.setting.backend, TransparentBackend)


def test_the_paper_variant_is_another_session(cyclic: Any) -> None:
    config = CyclicHEConfig(variant="paper", backend=cyclic.transparent)
    aggregator = CyclicHE(config, backend=TransparentBackend(cyclic.transparent))
    with pytest.raises(PlanRefused, match="CKKS with ring degree 8192"):
        aggregator.plan(VALUE, site_names(4))


def test_sums_are_released_in_the_smallest_words(cyclic: Any) -> None:
    sizes = {2**16: "u2", 2**16 + 1: "u4", 2**32: "u4", 2**32 + 15: "u8"}
    for modulus, dtype in sizes.items():
        setting = planned(cyclic, 3, backend=Other(cyclic.transparent, plaintext_modulus=modulus)).setting
        assert setting.sum_dtype == dtype, modulus
    assert planned(cyclic, 3, backend=cyclic.Approximate()).setting.sum_dtype == "i4"
