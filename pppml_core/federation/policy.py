"""A site's own policy: checked against a round's announced terms before any plugin code sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pppml_core.errors import PolicyRefusal


@dataclass(frozen=True)
class Policy:
    """What a site insists on, held locally; the server cannot change it.

    Args:
        min_cohort: fewest sites of a round this site takes part in.
        max_epsilon: largest epsilon the terms may announce; None: any, also no claim at all.
        plain_updates: whether the server may see this site's own update.
        max_colluders: how many other sites may work with the server without learning this site's update from a secure sum.
        min_honest: fewest sites besides those whose updates must be mixed, at least 2.
        min_degree: fewest neighbours on a sparse graph of masks.
    """

    min_cohort: int = 1
    max_epsilon: float | None = None
    plain_updates: bool = True
    max_colluders: int = 1
    min_honest: int = 2
    min_degree: int = 2

    def check(self, terms: Mapping[str, Any]) -> None:
        """Raise PolicyRefusal naming the first rule the terms break."""
        cohort = terms["cohort"]
        if len(set(cohort)) < self.min_cohort:
            raise PolicyRefusal(f"min_cohort: {len(set(cohort))} sites announced, at least {self.min_cohort} required")
        epsilon = terms["privacy"].get("epsilon")
        if self.max_epsilon is not None and (epsilon is None or epsilon > self.max_epsilon):
            said = "none" if epsilon is None else f"{epsilon:g}"
            raise PolicyRefusal(f"max_epsilon: {said} announced, at most {self.max_epsilon:g} allowed")
        if not self.plain_updates and terms["guarantees"]["sees_update"]:
            raise PolicyRefusal(f"plain_updates: {', '.join(terms['guarantees']['sees_update'])} would see this site's update")
