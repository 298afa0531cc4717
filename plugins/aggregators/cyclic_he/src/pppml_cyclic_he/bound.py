"""How large a coalition may be: the collusion bounds of sums that travel along several rings.

The *union* is the graph of all edges of all cycles. A coalition T (the server always included) that lacks one initiator learns only the
sum of the honest sites, for one share of every update stays encrypted. A coalition that holds all initiators learns exactly the sums over
the connected components of the union without T. So the curious bound is the size of the smallest coalition that

- contains all initiators,
- leaves at least two honest sites, and
- disconnects them,

minus 1; n - 2 where there is none, since a coalition of n - 1 always reads the last site. The active bound is the vertex connectivity of
the union minus 1, n - 2 where the union is complete: an honest initiator might be used as a decryption oracle, so a lying coalition is
counted as if it held all keys. Both are computed by maximum flow (Menger), never assumed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

Cycle = Sequence[int]
Cycles = Sequence[Cycle]
Hop = tuple[int, int]
Graph = tuple[tuple[int, frozenset[int]], ...]


def breach(cycles: Cycles, initiators: Collection[int], known: Hop | None = None) -> int | None:
    """Size of the smallest coalition that holds these initiators and leaves at least two sites, disconnected; None where there is none.

    Args:
        cycles: each a list of all sites, in order, its first again after its last.
        initiators: sites that a coalition needs; none for parties that lie.
        known: a hop of the first cycle that joins nobody, for the coalition knows what went along it.
    """
    cut = _smallest_cut(_graph(cycles, frozenset(initiators), known))
    return None if cut is None else len(set(initiators)) + cut


def curious(cycles: Cycles, initiators: Collection[int], n: int) -> int:
    """Largest number of sites that, with the server, learn only the sum of the others while every party follows the protocol.

    Args:
        cycles: each a list of all sites, in order, its first again after its last.
        initiators: one a cycle; a site may start several.
        n: number of sites. Raises ValueError where a cycle does not visit exactly n sites, or an initiator is none of them.
    """
    sites = _sites(cycles, n)
    started = frozenset(initiators)
    if not started or not started <= sites:
        raise ValueError("every cycle needs an initiator that is one of the sites")
    smallest = breach(cycles, started)
    return n - 2 if smallest is None else smallest - 1


def active(cycles: Cycles, n: int) -> int:
    """The same for sites and a server that lie, the initiators' keys counted as theirs: vertex connectivity minus 1."""
    _sites(cycles, n)
    smallest = breach(cycles, ())
    return n - 2 if smallest is None else smallest - 1


def contract(cycles: Cycles, initiators: Collection[int], removed: Collection[int]) -> tuple[tuple[int, ...], ...]:
    """The cycles with ``removed`` sites bridged: the site before each is followed by the one after it. Sites keep their numbers.

    Raises ValueError where an initiator is removed (its ring has no key any more) or fewer than 3 sites are left.
    """
    gone = frozenset(removed)
    if gone & frozenset(initiators):
        raise ValueError("an initiator cannot be bridged: nobody else can decrypt its ring")
    left = tuple(tuple(site for site in cycle if site not in gone) for cycle in cycles)
    if any(len(cycle) < 3 for cycle in left):
        raise ValueError("fewer than 3 sites are left")
    return left


def components(cycles: Cycles, removed: Iterable[int] = ()) -> list[frozenset[int]]:
    """Connected components of the union without ``removed`` sites, in order of their smallest site."""
    graph = dict(_graph(cycles, frozenset(removed)))
    found: list[frozenset[int]] = []
    left = set(graph)
    while left:
        reached, edge = set(), [min(left)]
        while edge:
            site = edge.pop()
            if site not in reached:
                reached.add(site)
                edge.extend(graph[site] - reached)
        left -= reached
        found.append(frozenset(reached))
    return found


def _sites(cycles: Cycles, n: int) -> frozenset[int]:
    sites = frozenset(cycles[0]) if cycles else frozenset()
    if len(sites) != n or any(len(cycle) != n or frozenset(cycle) != sites for cycle in cycles):
        raise ValueError(f"every cycle must visit each of {n} sites once")
    return sites


def _graph(cycles: Cycles, removed: frozenset[int], known: Hop | None = None) -> Graph:
    """The union without ``removed`` and without the ``known`` hop of the first cycle: each site with its neighbours, in order of sites."""
    near: dict[int, set[int]] = {site: set() for cycle in cycles for site in cycle if site not in removed}
    for index, cycle in enumerate(cycles):
        for one, other in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
            if one in near and other in near and one != other and (index, one, other) != (0, *(known or ())):
                near[one].add(other)
                near[other].add(one)
    return tuple((site, frozenset(near[site])) for site in sorted(near))


@lru_cache(maxsize=4096)
def _smallest_cut(graph: Graph) -> int | None:
    """Fewest sites whose removal disconnects the graph; None where it is complete.

    A site v of smallest degree is either outside some smallest cut, which then separates it from a site it is not joined to, or in all
    of them; then two of its neighbours that are not joined lie on different sides (Esfahanian and Hakimi 1984). So these pairs suffice.
    """
    near = dict(graph)
    if all(len(neighbours) == len(near) - 1 for neighbours in near.values()):
        return None
    low = min(near, key=lambda site: (len(near[site]), site))
    around = sorted(near[low])
    pairs = [(low, far) for far in near if far != low and far not in near[low]]
    pairs += [(one, other) for i, one in enumerate(around) for other in around[i + 1 :] if other not in near[one]]
    best = len(near)
    for source, target in pairs:
        best = min(best, _disjoint_paths(near, source, target, best))
    return best


def _disjoint_paths(near: dict[int, frozenset[int]], source: int, target: int, enough: int) -> int:
    """Number of paths between two sites that are not joined, which share no site besides (at most ``enough``): the smallest cut between
    them, by Menger. Every site is an arc of capacity 1 from ``(site, 0)`` to ``(site, 1)``; each search adds a path along the residual.
    """
    residual: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for site, neighbours in near.items():
        residual[site, 0] = {(site, 1)}
        residual[site, 1] = {(other, 0) for other in neighbours}
    start, end = (source, 1), (target, 0)
    for count in range(enough):
        came = {start: start}
        edge = [start]
        while edge and end not in came:
            later = []
            for node in edge:
                for following in residual[node]:
                    if following not in came:
                        came[following] = node
                        later.append(following)
            edge = later
        if end not in came:
            return count
        node = end
        while node != start:
            previous = came[node]
            residual[previous].discard(node)
            residual[node].add(previous)
            node = previous
    return enough
