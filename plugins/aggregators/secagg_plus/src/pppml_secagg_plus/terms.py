"""What all parties must agree on before a sum: how many sites, how many neighbours, how many shares; and what that guarantees."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np

from pppml_core.interfaces.aggregation import Guarantees
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.degree import choose, correct, private


@dataclass(frozen=True)
class Terms:
    """Args:
    sites: n, the cohort.
    degree: k, neighbours of each site; n - 1: everybody is everybody's neighbour.
    threshold: t, shares that rebuild a secret; as many signatures open the last stage.
    """

    sites: int
    degree: int
    threshold: int

    @property
    def sparse(self) -> bool:
        """Whether there are pairs of sites without a mask between them."""
        return self.degree < self.sites - 1

    @property
    def holders(self) -> int:
        """Shares of each secret: one for each neighbour and one for the site itself."""
        return self.degree + 1


def part(fraction: float, sites: int) -> int:
    """How many sites a fraction is: rounded down, from the decimal number that was written."""
    return floor(Fraction(str(fraction)) * sites)


def settle(config: SecAggPlusConfig, sites: int) -> Terms | str:
    """The terms for a cohort of this size, or why there are none, with the remedy."""
    degree, threshold = config.neighbours, config.threshold
    if degree == "auto":
        found = choose(sites, part(config.corrupt, sites), part(config.dropout, sites), config.sigma, config.eta)
        degree, computed = found or (sites - 1, _two_thirds(sites))
        threshold = computed if threshold == "auto" else threshold
    elif degree == "all":
        degree = sites - 1
    if degree > sites - 1:
        return f"neighbours: {degree} of {sites} sites; use at most {sites - 1}, or `neighbours: all`"
    if degree % 2 and degree < sites - 1:
        return f"neighbours: a ring joins equally many on both sides; use {degree + 1} instead of {degree}"
    holders = degree + 1
    threshold = _two_thirds(holders) if threshold == "auto" else threshold
    if threshold > holders:
        return f"threshold: {threshold} shares are needed but there are only {holders}; lower it, or `threshold: auto`"
    if 2 * threshold <= holders:
        return (
            f"threshold: with {threshold} of {holders} shares a lying server could have both secrets of a site; "
            f"use {(holders + 1) // 2 + 1} or more, or `threshold: auto`"
        )
    return Terms(sites, degree, threshold)


def _two_thirds(holders: int) -> int:
    return 2 * holders // 3 + 1


def word_of(value: ValueSpec, sites: int) -> np.dtype[np.unsignedinteger] | None:
    """The words that a sum is computed in: the smallest that hold it with its sign; None where 64 bits are too few."""
    bound = value.sum_bound(sites)
    if bound is None or bound >= 2**63:
        return None
    return np.dtype(np.uint32) if bound < 2**31 else np.dtype(np.uint64)


def guarantees(terms: Terms, config: SecAggPlusConfig) -> Guarantees:
    """What these terms promise."""
    return _sparse(terms, config) if terms.sparse else _complete(terms)


_ALWAYS = (
    "every site has pinned the true identities of the others",
    "members can falsify the sum: it is private, not verified",
)


def _complete(terms: Terms) -> Guarantees:
    """The bounds of Bonawitz et al. 2017, section 6, for t of n shares.

    Whoever follows the protocol: t - 1 sites rebuild nothing. A server that lies: with c sites it needs t signatures on each of two lists,
    c + x and c + y out of the n - c = x + y others, so 2t <= n + c. A sum over one honest site is its update: n - 2.
    """
    n, t = terms.sites, terms.threshold
    return Guarantees(
        sees_sum=(SERVER,),
        sees_update=(),
        sees_weight=(),
        dropouts=n - t,
        coalition_curious=min(t - 1, n - 2),
        coalition_active=min(2 * t - n - 1, n - 2),
        adversary="the server and any sites of a coalition, following the protocol (curious) or lying (active); a lying server may drop, "
        "invent, replay and change messages and tell different sites different things",
        assumes=(*_ALWAYS, *(("no site may vanish: all of them are needed",) if n == t else ())),
    )


def _sparse(terms: Terms, config: SecAggPlusConfig) -> Guarantees:
    """Bounds on a ring with k neighbours: what was asked for where its probabilities hold, else what is certain.

    Certain: a ring without fewer than k sites is in one piece, and t - 1 holders rebuild nothing; with k + 1 - t sites vanished this leaves
    t - 2 for the coalition. Probable: a coalition and dropouts that do not depend on the order of the ring, see ``degree.py``.
    """
    n, k, t = terms.sites, terms.degree, terms.threshold
    asked = part(config.corrupt, n), part(config.dropout, n)
    certain = t - 2, terms.holders - t
    holds = private(n, *asked, k, t, config.sigma) and correct(n, asked[1], k, t, config.eta)
    probable = holds and (asked[0] > certain[0] or asked[1] > certain[1])
    coalition, dropouts = asked if probable else certain
    assumes = [*_ALWAYS, f"sparse graph: {k} neighbours, {t} of {k + 1} shares rebuild a site's secrets"]
    if probable:
        assumes.append(
            "coalition and vanished sites are chosen without knowing the order of the ring, which the hash of all nonces draws: then more "
            f"than the sum is seen in at most 1 of 2^{config.sigma} rounds, and at most 1 of 2^{config.eta} is lost to vanished sites"
        )
    assumes.append("the server follows the protocol: one that invents sites or leaves some out could shape the ring")
    return Guarantees(
        sees_sum=(SERVER,),
        sees_update=(),
        sees_weight=(),
        dropouts=dropouts,
        coalition_curious=min(coalition, n - 2),
        coalition_active=0,
        adversary="the server and sites of a coalition that follow the protocol; nothing is claimed against a server that lies",
        assumes=tuple(assumes),
    )
