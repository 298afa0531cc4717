"""Which rings a cohort uses: a fixed choice of cycles and initiators for (n, m) that every site makes for itself.

The cycles come from Walecki's decomposition of the complete graph (Lucas 1883, Alspach 2008): floor((n - 1)/2) Hamiltonian cycles no two
of which share an edge. The collusion bound depends on which m of them are taken and who starts each. For n up to 20 ``TABLE`` holds the
choice that :func:`search` found; ``python -m pppml_cyclic_he.template`` finds it again. For larger cohorts a shorter search of the same
kind runs when a template is asked for. There is nothing random in it: the same choice on every machine and Python version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pppml_cyclic_he.bound import active, curious

#: Digits of ``TABLE``: cycles of the decomposition and initiators, each one character.
DIGITS = "0123456789abcdefghij"
#: Trial moves of the search for a cohort larger than the table's, and of the search that made the table.
MOVES, TABLE_MOVES = 3_000, 300_000


@dataclass(frozen=True)
class Template:
    """Rings over sites 0 to n - 1: ``cycles[r]`` visits all sites and begins at its initiator, ``initiators[r]``."""

    cycles: tuple[tuple[int, ...], ...]
    initiators: tuple[int, ...]

    @property
    def curious(self) -> int:
        """The honest-but-curious bound, computed."""
        return curious(self.cycles, self.initiators, len(self.cycles[0]))

    @property
    def active(self) -> int:
        """The active bound, computed."""
        return active(self.cycles, len(self.cycles[0]))


def largest_rings(n: int) -> int:
    """Most rings a cohort of n may use: as many as there are edge-disjoint cycles; 4 sites may use two that share edges; 0 below 3."""
    if n < 3:
        return 0
    return 2 if n == 4 else (n - 1) // 2


@lru_cache(maxsize=512)
def template(n: int, m: int) -> Template:
    """The rings of n sites with m rings. Raises ValueError where a cohort cannot have them."""
    if not 1 <= m <= largest_rings(n):
        raise ValueError(f"{n} sites may have 1 to {largest_rings(n)} rings, not {m}")
    if m == 1:
        return _starting(([*range(n)],), (0,))
    if n == 4:
        return _starting(([0, 1, 2, 3], [1, 3, 2, 0]), (0, 1))
    if (n, m) in TABLE:
        chosen, initiators = (tuple(map(DIGITS.index, part)) for part in TABLE[n, m].split())
    else:
        chosen, initiators = search(n, m, MOVES)
    cycles = decomposition(n)
    return _starting([cycles[index] for index in chosen], initiators)


def decomposition(n: int) -> list[list[int]]:
    """Walecki's floor((n - 1)/2) Hamiltonian cycles over 0 to n - 1, no two with a common edge; n at least 3.

    For n = 2k + 1: k turns of the zigzag 0, 1, -1, 2, -2, ..., k modulo 2k, each closed by the last site. Two neighbours of a zigzag lie k
    apart; over its k turns these pairs share no site, so that for n = 2k + 2 one site more fits between them.
    """
    k = (n - 1) // 2
    zigzag = [step // 2 + 1 if step % 2 else -(step // 2) for step in range(2 * k)]
    cycles = [[(place + turn) % (2 * k) for place in zigzag] + [2 * k] for turn in range(k)]
    return cycles if n % 2 else [[*cycle[:k], n - 1, *cycle[k:]] for cycle in cycles]


def ceiling(n: int, m: int) -> int:
    """No choice of m edge-disjoint cycles over n sites has a larger curious bound.

    The m initiators have 2m neighbours each, at most m - 1 of them initiators; so some other site is a neighbour of a = ceil((m^2 + m) /
    (n - m)) initiators or more, and the initiators with its other 2m - a neighbours cut it off.
    """
    if 2 * m == n - 1:
        return n - 2  # the union is complete
    beside = -(-(m * m + m) // (n - m))
    return min(n - 3, 3 * m - beside - 1)


def search(n: int, m: int, moves: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices into :func:`decomposition` and initiators with the largest curious bound found in ``moves`` trial moves.

    A climb from a start of its own for each restart: one cycle or one initiator is exchanged and the exchange kept where the sites that
    are cheapest to cut off do not get cheaper or more. What this cheap rule accepts is measured by the true bound.
    """
    edges = [_edges(cycle) for cycle in decomposition(n)]
    draws = _draws(f"pppml-cyclic-he template {n} {m}")
    best: tuple[int, tuple[int, ...], tuple[int, ...]] = (-1, (), ())
    chosen, initiators = _some(draws, len(edges), m), _some(draws, n, m)
    score, stalled = (-1, 0), 0
    for _ in range(moves):
        if stalled > 40 * n:
            chosen, initiators = _some(draws, len(edges), m), _some(draws, n, m)
            score, stalled = (-1, 0), 0
        trial, starts = list(chosen), list(initiators)
        part, whole = (trial, len(edges)) if next(draws) % 2 and len(edges) > m else (starts, n)
        spare = [index for index in range(whole) if index not in part]
        part[next(draws) % m] = spare[next(draws) % len(spare)]
        found = _cheapest([edges[index] for index in trial], starts, n)
        stalled += 1
        if found < score:
            continue
        if found > score:
            stalled = 0
        chosen, initiators, score = trial, starts, found
        if m + found[0] - 1 > best[0]:
            bound = curious([decomposition(n)[index] for index in chosen], initiators, n)
            best = max(best, (bound, tuple(chosen), tuple(initiators)), key=lambda known: known[0])
            if bound == ceiling(n, m):
                break
    return best[1], best[2]


def _cheapest(edges: Sequence[Sequence[tuple[int, int]]], initiators: Sequence[int], n: int) -> tuple[int, int]:
    """(fewest neighbours outside the initiators that a site outside them has, minus the number of sites that have so few)."""
    started, near = frozenset(initiators), [0] * n
    for ring in edges:
        for one, other in ring:
            near[one] += other not in started
            near[other] += one not in started
    outside = [near[site] for site in range(n) if site not in started]
    return min(outside), -outside.count(min(outside))


def _edges(cycle: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))


def _starting(cycles: Sequence[Sequence[int]], initiators: Sequence[int]) -> Template:
    """The cycles, each turned to begin at its initiator."""
    turned = []
    for cycle, first in zip(cycles, initiators, strict=True):
        place = list(cycle).index(first)
        turned.append((*cycle[place:], *cycle[:place]))
    return Template(tuple(turned), tuple(initiators))


def _draws(name: str) -> Iterator[int]:
    """Numbers that follow from a name: SHA-256 of name and counter. Public, for searching only, the same everywhere."""
    counter = 0
    while True:
        digest = hashlib.sha256(f"{name} {counter}".encode()).digest()
        yield from (int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4))
        counter += 1


def _some(draws: Iterator[int], whole: int, count: int) -> list[int]:
    """``count`` different numbers below ``whole``."""
    left = list(range(whole))
    return [left.pop(next(draws) % len(left)) for _ in range(count)]


#: (sites, rings) -> the cycles taken from the decomposition and their initiators; beside it the curious bound and its ceiling.
TABLE: dict[tuple[int, int], str] = {
    (5, 2): "10 20",  # 3 of at most 3
    (6, 2): "01 42",  # 3 of at most 3
    (7, 2): "12 65",  # 3 of at most 3
    (7, 3): "012 564",  # 5 of at most 5
    (8, 2): "10 42",  # 4 of at most 4
    (8, 3): "210 426",  # 5 of at most 5
    (9, 2): "23 40",  # 4 of at most 4
    (9, 3): "231 520",  # 6 of at most 6
    (9, 4): "1320 7163",  # 7 of at most 7
    (10, 2): "10 47",  # 4 of at most 4
    (10, 3): "310 748",  # 6 of at most 6
    (10, 4): "3012 4372",  # 7 of at most 7
    (11, 2): "21 37",  # 4 of at most 4
    (11, 3): "402 926",  # 6 of at most 6
    (11, 4): "3142 4185",  # 8 of at most 8
    (11, 5): "04213 7a124",  # 9 of at most 9
    (12, 2): "10 03",  # 4 of at most 4
    (12, 3): "241 7a1",  # 6 of at most 6
    (12, 4): "4021 59a0",  # 8 of at most 8
    (12, 5): "10243 38b96",  # 9 of at most 9
    (13, 2): "43 b6",  # 4 of at most 4
    (13, 3): "401 09c",  # 6 of at most 6
    (13, 4): "4305 4297",  # 8 of at most 8
    (13, 5): "13205 b4961",  # 10 of at most 10
    (13, 6): "203145 2ba57c",  # 11 of at most 11
    (14, 2): "02 64",  # 4 of at most 4
    (14, 3): "521 ad8",  # 6 of at most 6
    (14, 4): "1350 794a",  # 8 of at most 9
    (14, 5): "40315 5a183",  # 10 of at most 10
    (14, 6): "450312 16ab32",  # 11 of at most 11
    (15, 2): "36 96",  # 4 of at most 4
    (15, 3): "046 4eb",  # 7 of at most 7
    (15, 4): "4235 138a",  # 9 of at most 9
    (15, 5): "62013 d4185",  # 10 of at most 11
    (15, 6): "410536 9b0621",  # 12 of at most 12
    (15, 7): "0243615 c013678",  # 13 of at most 13
    (16, 2): "12 6a",  # 4 of at most 4
    (16, 3): "104 a35",  # 6 of at most 7
    (16, 4): "2064 fd2a",  # 9 of at most 9
    (16, 5): "21304 6081f",  # 11 of at most 11
    (16, 6): "516420 ba6f58",  # 12 of at most 12
    (16, 7): "6341520 dc269ba",  # 13 of at most 13
    (17, 2): "12 b4",  # 4 of at most 4
    (17, 3): "706 e39",  # 7 of at most 7
    (17, 4): "7150 5fgc",  # 9 of at most 9
    (17, 5): "03167 c06a7",  # 11 of at most 11
    (17, 6): "352106 b7ca89",  # 13 of at most 13
    (17, 7): "1764320 a43f2d6",  # 14 of at most 14
    (17, 8): "53041627 4ecag30d",  # 15 of at most 15
    (18, 2): "17 06",  # 4 of at most 4
    (18, 3): "341 91g",  # 7 of at most 7
    (18, 4): "2736 2504",  # 9 of at most 9
    (18, 5): "41025 4gb8d",  # 11 of at most 11
    (18, 6): "304726 dfcga0",  # 13 of at most 13
    (18, 7): "0672145 7238149",  # 14 of at most 14
    (18, 8): "37601254 c37549gd",  # 15 of at most 15
    (19, 2): "12 84",  # 4 of at most 4
    (19, 3): "108 b5h",  # 7 of at most 7
    (19, 4): "1324 ha29",  # 9 of at most 9
    (19, 5): "76543 580bg",  # 11 of at most 11
    (19, 6): "630842 140h58",  # 13 of at most 13
    (19, 7): "4281567 g0dhfei",  # 15 of at most 15
    (19, 8): "62584370 8gd60b41",  # 16 of at most 16
    (19, 9): "671342805 i3dh01f4c",  # 17 of at most 17
    (20, 2): "65 4h",  # 4 of at most 4
    (20, 3): "371 aci",  # 7 of at most 7
    (20, 4): "6703 847b",  # 9 of at most 9
    (20, 5): "02513 06c18",  # 11 of at most 12
    (20, 6): "876531 61abj4",  # 13 of at most 14
    (20, 7): "0867125 29a083d",  # 15 of at most 15
    (20, 8): "43075186 ae9d7ich",  # 16 of at most 17
    (20, 9): "073462185 fdcb1gae4",  # 17 of at most 17
}


def main() -> None:
    """Print the table, made anew."""
    for n in range(5, 21):
        for m in range(2, largest_rings(n) + 1):
            chosen, initiators = search(n, m, TABLE_MOVES)
            cycles = [decomposition(n)[index] for index in chosen]
            digits = ("".join(DIGITS[index] for index in part) for part in (chosen, initiators))
            print(f'    ({n}, {m}): "{" ".join(digits)}",  # {curious(cycles, initiators, n)} of at most {ceiling(n, m)}', flush=True)


if __name__ == "__main__":
    main()
