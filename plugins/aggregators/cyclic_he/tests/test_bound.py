"""The collusion bounds against the rule itself: all coalitions of small cohorts, and graphs whose connectivity is known."""

import itertools

import networkx as nx
import numpy as np
import pytest

from pppml_cyclic_he.bound import _graph, _smallest_cut, active, components, contract, curious
from pppml_cyclic_he.template import decomposition


def union(cycles):
    graph = nx.Graph()
    for cycle in cycles:
        nx.add_cycle(graph, cycle)
    return graph


def smallest_reader(cycles, needed, n):
    """Size of the smallest coalition with ``needed`` that leaves two honest sites and disconnects the union, by trying all."""
    graph = union(cycles)
    for size in range(len(needed), n - 1):
        for more in itertools.combinations([site for site in range(n) if site not in needed], size - len(needed)):
            if not nx.is_connected(graph.subgraph(set(graph) - set(needed) - set(more))):
                return size
    return None


@pytest.mark.parametrize("n", range(3, 10))
def test_equal_the_rule_for_every_coalition(n):
    draw = np.random.default_rng(n)
    for _ in range(12):
        m = int(draw.integers(1, 4))
        cycles = [draw.permutation(n).tolist() for _ in range(m)]
        initiators = draw.choice(n, size=min(m, n), replace=False).tolist()
        reader, cutter = smallest_reader(cycles, initiators, n), smallest_reader(cycles, (), n)
        assert curious(cycles, initiators, n) == (n - 2 if reader is None else reader - 1), (cycles, initiators)
        assert active(cycles, n) == (n - 2 if cutter is None else cutter - 1), cycles


@pytest.mark.parametrize("n", [12, 15])
def test_equal_networkx_for_larger_cohorts(n):
    draw = np.random.default_rng(n)
    for _ in range(8):
        cycles = [draw.permutation(n).tolist() for _ in range(3)]
        initiators = draw.choice(n, size=3, replace=False).tolist()
        graph = union(cycles)
        outside = graph.subgraph(set(graph) - set(initiators))
        assert active(cycles, n) == nx.node_connectivity(graph) - 1
        assert curious(cycles, initiators, n) == 3 + nx.node_connectivity(outside) - 1


def test_the_site_of_fewest_neighbours_may_be_the_cut_itself():
    """Two groups of six in which everybody knows everybody, and one site that knows two of each: alone it holds them together."""
    pairs = [*itertools.combinations(range(6), 2), *itertools.combinations(range(6, 12), 2), (12, 0), (12, 1), (12, 6), (12, 7)]
    assert _smallest_cut(_graph(pairs, frozenset())) == nx.node_connectivity(nx.Graph(pairs)) == 1
    assert _smallest_cut(_graph([*pairs, (5, 11)], frozenset())) == 2
    assert _smallest_cut(_graph([*pairs, (5, 11)], frozenset({5}))) == 1


def test_one_ring_protects_against_one_site():
    for n in (3, 4, 5, 8, 20, 100):
        assert curious([range(n)], [0], n) == 1
        assert active([range(n)], n) == 1


def test_a_site_that_starts_two_rings_counts_once():
    rings = decomposition(7)[:2]
    assert curious(rings, [0, 0], 7) == smallest_reader(rings, {0}, 7) - 1 == 3
    assert curious(rings, [0, 1], 7) >= curious(rings, [0, 0], 7)


def test_the_choice_of_initiators_matters():
    rings = decomposition(10)[:2]
    found = {curious(rings, pair, 10) for pair in itertools.combinations(range(10), 2)}
    assert found == {3, 4}


def test_components():
    ring = [[0, 1, 2, 3, 4, 5]]
    assert components(ring) == [frozenset(range(6))]
    assert components(ring, {1, 4}) == [frozenset({0, 5}), frozenset({2, 3})]
    assert components(ring, {0, 2, 4}) == [frozenset({1}), frozenset({3}), frozenset({5})]
    assert components([*ring, [0, 2, 4, 1, 5, 3]], {1, 4}) == [frozenset({0, 2, 3, 5})]
    assert components(ring, range(6)) == []


def test_contract_joins_the_neighbours_of_a_bridged_site():
    cycles = ((0, 1, 2, 3, 4), (1, 3, 0, 2, 4))
    assert contract(cycles, (0, 1), {3}) == ((0, 1, 2, 4), (1, 0, 2, 4))
    assert contract(cycles, (0, 1), {3, 4}) == ((0, 1, 2), (1, 0, 2))
    assert contract(cycles, (0, 1), ()) == cycles
    with pytest.raises(ValueError, match="initiator"):
        contract(cycles, (0, 1), {1})
    with pytest.raises(ValueError, match="fewer than 3"):
        contract(cycles, (0, 1), {2, 3, 4})


def test_a_bridged_site_can_cost_protection():
    """Two rings over 8 sites with bound 4: among the contracted ones some have less, so the bound is computed again."""
    rings = decomposition(8)
    pairs = [(two, starts) for two in itertools.combinations(rings, 2) for starts in itertools.combinations(range(8), 2)]
    two, starts = next((two, starts) for two, starts in pairs if curious(two, starts, 8) == 4)
    after = {curious(contract(two, starts, {site}), starts, 7) for site in range(8) if site not in starts}
    assert min(after) == 3


@pytest.mark.parametrize(
    ("cycles", "initiators", "n"),
    [
        ([], [], 0),
        ([[0, 1, 2]], [], 3),
        ([[0, 1, 2]], [3], 3),
        ([[0, 1, 2]], [0], 4),
        ([[0, 1, 1]], [0], 3),
        ([[0, 1, 2, 1]], [0], 3),
        ([[0, 1, 2], [0, 1, 3]], [0, 1], 3),
    ],
)
def test_what_is_no_ring_is_refused(cycles, initiators, n):
    with pytest.raises(ValueError, match="cycle"):
        curious(cycles, initiators, n)


def test_a_hundred_sites_on_four_rings():
    """Not by trying all groups: of seven of a hundred there are more than ten billion."""
    rings = decomposition(101)[:4]
    assert active(rings, 101) == 7
    assert curious(rings, [0, 20, 40, 60], 101) >= 6
