"""Who shares masks and secrets with whom: everybody with everybody, or each site with its k nearest on a ring in random order.

The ring (a Harary graph) is that of Bell et al. 2020, section 3; its order comes from a hash of all adverts, which holds a nonce of every
site that was committed to before any of them was shown, so every site computes the same graph and nobody chose it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np


class Graph:
    """The graph over ``members`` (in the order of the cohort).

    Args:
        members: the sites that advertised.
        degree: neighbours of each, even, or at least ``len(members) - 1``: all others.
        seed: 32 bytes that decide the order: the hash of all adverts.
    """

    def __init__(self, members: Sequence[str], degree: int, seed: bytes) -> None:
        self.members, self.degree, self.seed = tuple(members), min(degree, len(members) - 1), seed
        self.complete = degree >= len(members) - 1
        self._known: dict[str, frozenset[str]] = {}

    @cached_property
    def _ring(self) -> list[str]:
        words = np.frombuffer(hashlib.shake_256(b"pppml-secagg-plus-ring-v1" + self.seed).digest(8 * len(self.members)), "<u8")
        return [self.members[i] for i in np.argsort(words, kind="stable")]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.members if self.complete else self._ring)}

    def neighbours(self, site: str) -> frozenset[str]:
        """The sites that share a mask with ``site`` and hold shares of its secrets, besides itself. None of a site that is no member."""
        if site not in self._place:
            return frozenset()
        if self.complete:
            return frozenset(self.members) - {site}
        if (found := self._known.get(site)) is not None:
            return found
        at, half, count = self._place[site], self.degree // 2, len(self.members)
        return self._known.setdefault(site, frozenset(self._ring[(at + step) % count] for step in range(-half, half + 1) if step))

    def holders(self, site: str) -> frozenset[str]:
        """The sites that hold shares of the secrets of ``site``: its neighbours and itself."""
        return self.neighbours(site) | {site}
