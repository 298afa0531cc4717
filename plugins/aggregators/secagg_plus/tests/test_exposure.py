"""``exposed``: the worst case of a curious coalition with all its memories, in numbers. (What it may not claim, the suite shows.)"""

from __future__ import annotations

from typing import Any

import pytest

from pppml_core.testing.harness import HarnessResult, SessionHarness, coalitions, exact_sum, site_names
from pppml_core.wire.messages import SERVER
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.session import SecAggPlus


def played(sites: int, faults: Any = (), **config: Any) -> tuple[SessionHarness, HarnessResult]:
    harness = SessionHarness(SecAggPlus(SecAggPlusConfig(**config)), sites, 5, faults=faults, remember=True)
    return harness, harness.run()


def decoded(harness: SessionHarness, result: HarnessResult, *coalition: str) -> set[frozenset[str]]:
    """The sets of sites whose sum is decoded; every value is the true one."""
    out = set()
    for found in harness.session().exposed(result.view((SERVER, *coalition))):
        assert (found.value.astype(object) == exact_sum((result.contributions[s] for s in found.sites), 5)).all()
        out.add(frozenset(found.sites) - set(coalition))
    return out - {frozenset()}


@pytest.mark.parametrize("fault", [None, ("c", "mask"), ("c", "share"), ("c", "unmask")])
def test_the_bound_is_exact(fault: tuple[str, str] | None) -> None:
    """n = 6, t = 4: any three with the server know the sum of the others; any four know all."""
    faults = [{"site": fault[0], "stage": fault[1], "do": "drop"}] if fault else []
    harness, result = played(6, faults, threshold=4)
    assert result.correct
    assert harness.session().guarantees.coalition_curious == 3
    for coalition in coalitions(site_names(6), 3):
        assert decoded(harness, result, *coalition) == {frozenset(result.survivors) - set(coalition)}, coalition
    for coalition in coalitions(site_names(6), 4):
        assert decoded(harness, result, *coalition) == {frozenset({s}) for s in set(result.survivors) - set(coalition)}, coalition


def test_sites_alone_see_nothing() -> None:
    harness, result = played(5)
    assert harness.session().exposed(result.view(site_names(5))) == []


def test_what_a_vanished_member_was_sent_counts_too() -> None:
    """a and b vanish before they get their boxes; the server has kept them, and two more colluders make four."""
    faults = [{"site": site, "stage": "mask", "do": "drop"} for site in "ab"]
    harness, result = played(6, faults, threshold=4)
    assert result.correct
    assert decoded(harness, result, "a", "b", "c", "d") == {frozenset("e"), frozenset("f")}
    assert decoded(harness, result, "a", "b", "c") == {frozenset("def")}


def test_a_ring_falls_into_parts() -> None:
    """Eight sites, four neighbours: those four see what is between them; four others that leave it whole see the sum."""
    harness, result = played(8, preset="paper")
    boxes = {p.message.sender: set(p.message.body["boxes"]) for p in result.transcript.sent_by_sites() if p.message.stage == "share"}
    for site in site_names(8):
        rest = set(site_names(8)) - boxes[site] - {site}
        assert frozenset({site}) in decoded(harness, result, *boxes[site])
        assert decoded(harness, result, *sorted(boxes[site])[:2]) == {frozenset(set(site_names(8)) - set(sorted(boxes[site])[:2]))}
        assert rest


def test_vanished_sites_thin_out_a_ring() -> None:
    """The promise of a ring counts them: with one vanished, three colluders can be one too many where two never are."""
    names, worst = site_names(7), 0
    for gone in names:
        harness, result = played(7, [{"site": gone, "stage": "mask", "do": "drop"}], preset="paper")
        assert result.correct
        promised = harness.session().guarantees.coalition_curious
        assert promised == 2
        others = [name for name in names if name != gone]
        for coalition in coalitions(others, promised):
            assert decoded(harness, result, *coalition) == {frozenset(others) - set(coalition)}
        worst += any(decoded(harness, result, *c) != {frozenset(others) - set(c)} for c in coalitions(others, promised + 1))
    assert worst, "no larger coalition decodes more than the sum"
