"""The rings of a cohort: who follows whom, who decrypts, what stays protected when sites are left out, and a site's own rules for it.

Everything here follows from the names of the cohort and the number of rings; the server chooses nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from pppml_core.errors import PolicyRefusal
from pppml_core.interfaces.aggregation import SumPolicy
from pppml_core.wire.codec import sha256_of
from pppml_cyclic_he import bound
from pppml_cyclic_he.template import template


@dataclass(frozen=True)
class Rings:
    """``count`` rings over ``order``, the names of the cohort in alphabetical order."""

    order: tuple[str, ...]
    count: int

    @cached_property
    def cycles(self) -> tuple[tuple[int, ...], ...]:
        """Each ring as positions in ``order``, beginning at its initiator."""
        return template(len(self.order), self.count).cycles

    @cached_property
    def initiators(self) -> tuple[str, ...]:
        """The site that starts, closes and decrypts each ring."""
        return tuple(self.order[cycle[0]] for cycle in self.cycles)

    @cached_property
    def sha256(self) -> bytes:
        """What adverts name the rings by."""
        return sha256_of({"order": self.order, "cycles": self.cycles})

    def path(self, ring: int, without: Collection[str] = ()) -> tuple[str, ...]:
        """The sites of a ring in order, its initiator first, without those left out."""
        return tuple(self.order[i] for i in self.cycles[ring] if self.order[i] not in without)

    def next(self, ring: int, site: str, without: Collection[str] = ()) -> str:
        """The site after ``site``; after the last one comes the initiator."""
        path = self.path(ring, without)
        return path[(path.index(site) + 1) % len(path)]

    def ring_of(self, site: str) -> int | None:
        """The ring that ``site`` initiates, counted from 0."""
        return self.initiators.index(site) if site in self.initiators else None

    def curious(self) -> int:
        """How many sites may work with the server and learn only the sum of the others, if everybody follows the protocol."""
        return bound.curious(self.cycles, self._starters, len(self.order))

    def active(self) -> int:
        """The same for parties that lie."""
        return bound.active(self.cycles, len(self.order))

    def keeps(self, without: Collection[str]) -> bool:
        """Whether with these sites bridged as many sites of the cohort, bridged ones too, may work with the server as with all in the sum.

        If somebody carried the box that was sealed to a bridged site there, it knows what went along the hop past it, at the price of one
        more member. One such member is all that must be tried: without one more hop a graph's connectivity falls by one at most, which that
        price makes up for, save where the graph was complete.
        """
        opened: list[tuple[int, int] | None] = [None]
        for site in without:
            path = self.path(0, [other for other in without if other != site])
            place = path.index(site)
            opened.append((self.order.index(path[place - 1]), self.order.index(path[(place + 1) % len(path)])))
        left = bound.contract(self.cycles, self._starters, [self.order.index(site) for site in without])
        for promised, needed in ((self.curious(), self._starters), (self.active(), [])):
            for hop in opened:
                size = bound.breach(left, needed, hop)
                if size is not None and size + (hop is not None) <= promised:
                    return False
        return True

    def isolating(self) -> tuple[str, ...]:
        """The smallest coalition that, with the server, reads the update of one site: all initiators and all neighbours of that site."""
        near: dict[int, set[int]] = {site: set() for site in range(len(self.order))}
        for cycle in self.cycles:
            for one, other in zip(cycle, (*cycle[1:], cycle[0]), strict=True):
                near[one].add(other)
                near[other].add(one)
        starters = {cycle[0] for cycle in self.cycles}
        held = min((sorted(starters | near[site]) for site in near if site not in starters), key=lambda sites: (len(sites), sites))
        return tuple(self.order[site] for site in held)

    def check(self, policy: SumPolicy, without: Collection[str] = ()) -> None:
        """Raise PolicyRefusal unless a sum without these sites keeps what this site insists on."""
        left = len(self.order) - len(without)
        if not set(without) < set(self.order) or set(without) & set(self.initiators):
            raise PolicyRefusal("only sites of the cohort that start no ring can be left out")
        least = max(3, policy.min_cohort)
        if left < least:
            raise PolicyRefusal(f"min_cohort: a sum over {left} sites, at least {least} are required")
        if left - policy.max_colluders < max(2, policy.min_honest):
            raise PolicyRefusal(f"min_honest: {left} sites with {policy.max_colluders} colluders leave fewer than {policy.min_honest}")
        if without and not self.keeps(without):
            raise PolicyRefusal(f"without {', '.join(without)} the sum would withstand fewer sites than the plan says")
        # Never above the curious bound: a coalition that needs all keys too has to cut the same graph. Bridging keeps both.
        if (held := self.active()) < policy.max_colluders:
            many = f"{len(self.cycles)} rings of {len(self.order)} sites"
            raise PolicyRefusal(f"max_colluders: {many} withstand {held} that lie, not {policy.max_colluders}")

    @property
    def _starters(self) -> list[int]:
        return [cycle[0] for cycle in self.cycles]
