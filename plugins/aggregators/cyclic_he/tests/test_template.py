"""The fixed rings of a cohort: disjoint, complete, reproducible, and as protective as listed."""

import hashlib
import itertools
import re

import pytest

from pppml_cyclic_he import template as module
from pppml_cyclic_he.bound import active, curious
from pppml_cyclic_he.template import TABLE, ceiling, decomposition, largest_rings, search, template

#: (n, m) -> the curious bound that a good choice of two to six rings reaches.
LISTED = {**dict.fromkeys([(5, 2), (6, 2), (7, 2)], 3), **dict.fromkeys([(n, 2) for n in range(8, 21)], 4)}
LISTED |= {(10, 3): 6, (10, 4): 7, (20, 3): 6, (20, 4): 9, (20, 5): 10, (20, 6): 12}
#: where more sites than the listed ones may collude.
BETTER = {(20, 3): 7, (20, 5): 11, (20, 6): 13}

EVERY = [(n, m) for n in range(3, 25) for m in range(1, largest_rings(n) + 1)]


def edges(cycle):
    return [frozenset(pair) for pair in zip(cycle, (*cycle[1:], cycle[0]), strict=True)]


@pytest.mark.parametrize("n", [*range(3, 31), 99, 100])
def test_decomposition(n):
    cycles = decomposition(n)
    used = [edge for cycle in cycles for edge in edges(cycle)]
    assert len(cycles) == (n - 1) // 2
    assert all(sorted(cycle) == list(range(n)) for cycle in cycles)
    assert len(set(used)) == len(used) == n * ((n - 1) // 2)


@pytest.mark.parametrize(("n", "m"), EVERY)
def test_rings_visit_everyone_from_different_initiators(n, m):
    rings = template(n, m)
    used = [edge for cycle in rings.cycles for edge in edges(cycle)]
    assert len(rings.cycles) == len(rings.initiators) == len(set(rings.initiators)) == m
    assert all(sorted(cycle) == list(range(n)) for cycle in rings.cycles)
    assert tuple(cycle[0] for cycle in rings.cycles) == rings.initiators
    assert len(set(used)) == len(used) or (n, m) == (4, 2)


@pytest.mark.parametrize(("n", "m"), EVERY)
def test_bounds_are_computed(n, m):
    rings = template(n, m)
    assert rings.curious == curious(rings.cycles, rings.initiators, n)
    assert rings.active == active(rings.cycles, n) == min(2 * m - 1, n - 2)
    assert rings.active <= rings.curious <= n - 2


@pytest.mark.parametrize(("n", "m"), LISTED)
def test_reaches_the_listed_bounds(n, m):
    assert template(n, m).curious == BETTER.get((n, m), LISTED[n, m])
    assert template(n, m).curious >= LISTED[n, m]


def test_one_ring_and_four_sites():
    assert [template(n, 1).curious for n in range(3, 25)] == [1] * 22
    assert (template(4, 2).curious, template(4, 2).active) == (2, 2)


@pytest.mark.parametrize(("n", "m"), [(5, 2), (6, 2), (7, 2), (7, 3), (8, 2), (8, 3), (9, 2), (9, 3)])
def test_no_choice_of_cycles_and_initiators_is_better(n, m):
    """The ceiling is one: no choice from the decomposition exceeds it, and the template reaches it."""
    chosen = [(cycles, starts) for cycles in itertools.combinations(decomposition(n), m) for starts in itertools.combinations(range(n), m)]
    assert max(curious(cycles, starts, n) for cycles, starts in chosen) == ceiling(n, m) == template(n, m).curious


def test_close_to_the_ceiling_everywhere():
    short = {(n, m): ceiling(n, m) - template(n, m).curious for n, m in TABLE}
    assert set(short) == {(n, m) for n in range(5, 21) for m in range(2, largest_rings(n) + 1)}
    assert set(short.values()) == {0, 1}
    assert sum(short.values()) == 6
    assert all(by == 0 for (n, m), by in short.items() if m == 2)


@pytest.mark.parametrize("n", [21, 24, 50, 100])
def test_two_rings_of_large_cohorts_reach_the_ceiling(n):
    assert template(n, 2).curious == ceiling(n, 2) == 4


def test_the_same_on_every_machine():
    """A change of any template would leave sites of two versions with different rings."""
    plain = repr([(n, m, template(n, m).cycles, template(n, m).initiators) for n, m in EVERY])
    assert hashlib.sha256(plain.encode()).hexdigest() == "e8d14f896b5747f33ee9c077b4e3be970a5ffb5b8f85cd01676c0946816c5a93"


def test_the_table_is_what_the_search_finds(monkeypatch, capsys):
    """Cohorts where the search ends early, because the ceiling is reached: here the whole search can be repeated."""
    for n, m in [(5, 2), (8, 2), (10, 3), (11, 4), (13, 5), (20, 2)]:
        chosen, initiators = search(n, m, module.TABLE_MOVES)
        digits = " ".join("".join(module.DIGITS[index] for index in part) for part in (chosen, initiators))
        assert TABLE[n, m] == digits
    monkeypatch.setattr(module, "TABLE_MOVES", 50)
    module.main()
    printed = re.findall(r'\((\d+), (\d+)\): "(\w+) (\w+)",  # (\d+) of at most (\d+)\n', capsys.readouterr().out)
    assert {(int(n), int(m)) for n, m, *_ in printed} == set(TABLE)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (3, 0), (3, 2), (4, 3), (5, 3), (6, 3), (10, 5), (20, 10)])
def test_more_rings_than_there_are_are_refused(n, m):
    with pytest.raises(ValueError, match=f"{n} sites may have 1 to {largest_rings(n)} rings, not {m}"):
        template(n, m)
    assert [largest_rings(n) for n in (1, 2, 3, 4, 5, 6, 10, 20)] == [0, 0, 1, 2, 2, 2, 4, 9]
