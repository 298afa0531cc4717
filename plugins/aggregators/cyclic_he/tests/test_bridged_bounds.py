"""A bridged sum withstands what the plan promised: by trying all coalitions, on the graph and on what was really sent."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations
from typing import Any

import networkx as nx
import pytest

from pppml_core.wire.messages import SERVER
from pppml_cyclic_he.rings import Rings
from pppml_cyclic_he.template import largest_rings

COHORTS = [(n, m) for n in range(5, 11) for m in (1, 2, 3) if m <= largest_rings(n)]


def rings_of(sites: int, count: int) -> Rings:
    return Rings(tuple("abcdefghij"[:sites]), count)


def splits(rings: Rings, without: Collection[str], coalition: Collection[str]) -> bool:
    """Whether what the coalition knows of a sum without some sites falls into parts: the hops past its bridged members are known to it."""
    graph = nx.Graph()
    for ring in range(rings.count):
        path = rings.path(ring)
        place, left = path.index, [site for site in path if site not in without]
        for one, other in zip(left, [*left[1:], left[0]], strict=True):
            passed = path[place(one) + 1 : place(other) or len(path)]
            if ring or not set(passed) & set(coalition):
                graph.add_edge(one, other)
    graph.remove_nodes_from(coalition)
    return len(graph) > 1 and not nx.is_connected(graph)


@pytest.mark.parametrize(("sites", "count"), [(4, 1), (4, 2), (5, 1), (5, 2), (6, 2), (7, 2), (7, 3)])
def test_what_may_be_bridged(sites: int, count: int) -> None:
    """One site, or several: exactly where no coalition of the promised size, with bridged sites or without, splits what is left."""
    rings = rings_of(sites, count)
    others = [site for site in rings.order if site not in rings.initiators]
    coalitions = [set(c) for size in range(rings.curious() + 1) for c in combinations(rings.order, size)]
    for many in range(1, min(len(others), sites - 3) + 1):
        for without in combinations(others, many):
            split = [c for c in coalitions if splits(rings, without, c)]
            curious = [c for c in split if set(rings.initiators) <= c]
            active = [c for c in split if len(c) <= rings.active()]
            assert rings.keeps(without) == (not curious and not active), (without, curious, active)


@pytest.mark.parametrize(("sites", "count"), COHORTS)
def test_what_the_server_and_as_many_sites_as_promised_decode(cyclic: Any, memory: Any, sites: int, count: int) -> None:
    """After each single bridge that happens, if it happens: nothing but the sum of the others, whoever works with the server."""
    rings = rings_of(sites, count)
    session = cyclic.harness(sites, rings=count).session()
    promised = session.guarantees.coalition_curious
    bridged = 0
    for lost in rings.path(0)[1:]:
        if lost in rings.initiators:
            continue
        result = cyclic.run(sites, {"site": lost, "stage": "ring-1", "do": "drop"}, rings=count)
        if not rings.keeps([lost]):
            assert result.sum is None
            continue
        assert result.correct
        assert result.survivors == tuple(site for site in rings.order if site != lost)
        bridged += 1
        others = [site for site in rings.order if site not in rings.initiators]  # without all keys: test_knowledge.py
        for coalition in (rings.initiators + more for size in range(promised - count + 1) for more in combinations(others, size)):
            view = memory.view(result, (SERVER, *coalition), 1)
            parts = {frozenset(exposure.sites) - set(coalition) for exposure in session.exposed(view)} - {frozenset()}
            assert parts <= {frozenset(result.survivors) - set(coalition)}, (lost, coalition, parts)
    assert bridged or (sites, count) in {(8, 2), (9, 3), (10, 3)}, "cohorts in which every bridge would lower the bound"
