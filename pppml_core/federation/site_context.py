"""What the site side of a session is given in one attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from pppml_core.federation.identity import Identity
from pppml_core.federation.policy import Policy
from pppml_core.randomness import entropy


@dataclass(frozen=True)
class Context:
    """Implements ``interfaces.aggregation.SiteContext``, whose values the public fields are.

    Args:
        identity: of this site; signs.
        make: what this site adds to the sum.
        note: notes that what opens the sum over these sites leaves now, or raises PolicyRefusal.
    """

    site: str
    run: bytes
    round: int
    attempt: int
    cohort: tuple[str, ...]
    binding: bytes
    roster: Mapping[str, bytes]
    policy: Policy
    identity: Identity = field(repr=False)
    make: Callable[[], npt.NDArray[Any]] = field(repr=False)
    note: Callable[[Sequence[str]], None] = field(repr=False)

    def contribution(self) -> npt.NDArray[Any]:
        """The update (trained on the first call) or, in a sum of scores, these."""
        return self.make()

    def entropy(self, length: int) -> bytes:
        """From the operating system."""
        return entropy(length)

    def sign(self, statement: bytes) -> bytes:
        """With this site's identity."""
        return self.identity.sign(statement)

    def release(self, sites: Sequence[str]) -> None:
        """Once, and on the disk before it returns."""
        self.note(sites)
