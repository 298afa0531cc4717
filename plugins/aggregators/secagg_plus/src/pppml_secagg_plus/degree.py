"""How many neighbours, and how many shares to rebuild a secret: exact failure probabilities of a random k-regular graph.

Bell, Bonawitz, Gascon, Lepoint, Raykova 2020, *Secure Single-Server Aggregation with (Poly)Logarithmic Overhead* (CCS 2020, eprint
2020/704), section 3: n sites lie on a ring in random order, each is joined to the k / 2 nearest on both sides (k even; a Harary graph), of
the sites C are corrupt and D vanish. Three things must not happen:

- *shares*: the corrupt neighbours of some honest site hold t shares of it, and rebuild its secrets;
- *parts*: the honest sites that stay fall into two parts with no mask between them, whose sums could be told apart;
- *loss*: fewer than t neighbours of some site stay, and the round is lost.

C and D are fixed before the order is drawn, so the number of marked sites among the k neighbours of a site is hypergeometric, and union
bounds over sites and over pairs of gaps give::

    shares <= n * P[X >= t],           X hypergeometric(n - 1 others, |C| marked, k drawn)
    parts  <= n (n - k - 1) / 2 * binom(n - k, |C| + |D| - k) / binom(n, |C| + |D|)
    loss   <= n * P[Y >= k - t + 1],   Y hypergeometric(n - 1 others, |D| marked, k drawn)

(a ring falls apart only where two separate runs of k / 2 neighbours each are gone). Sites may also vanish before the order is drawn, which
leaves the corrupt ones a larger part of the ring; ``shares`` is therefore taken at n - |D|, the other two are largest at n. Everything is
computed with integers, so no tail is lost to rounding. ``sigma`` bounds privacy, shares + parts <= 2**-sigma, half for each; ``eta`` bounds
loss <= 2**-eta.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import comb


def upper_tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """P[X >= least], X the marked ones among ``drawn`` of a ``population``: exact."""
    marked, drawn = min(marked, population), min(drawn, population)
    ways = sum(comb(marked, i) * comb(population - marked, drawn - i) for i in range(max(0, least), min(marked, drawn) + 1))
    return Fraction(ways, comb(population, drawn))


def shares_failure(n: int, corrupt: int, degree: int, threshold: int) -> Fraction:
    """A bound of the probability that the corrupt neighbours of some site hold ``threshold`` of its shares."""
    return n * upper_tail(n - 1, corrupt, degree, threshold)


def parts_failure(n: int, gone: int, degree: int) -> Fraction:
    """A bound of the probability that the ring falls apart when ``gone`` sites are taken out."""
    if gone < degree:
        return Fraction(0)
    return Fraction(n * (n - degree - 1), 2) * Fraction(comb(n - degree, gone - degree), comb(n, gone))


def loss_failure(n: int, dropped: int, degree: int, threshold: int) -> Fraction:
    """A bound of the probability that some site keeps fewer than ``threshold`` neighbours."""
    return n * upper_tail(n - 1, dropped, degree, degree - threshold + 1)


def private(n: int, corrupt: int, dropped: int, degree: int, threshold: int, sigma: int) -> bool:
    """Whether a graph of this degree keeps the sums of the honest together, but for a probability of 2**-sigma."""
    half = Fraction(1, 2 ** (sigma + 1))
    return shares_failure(n - dropped, corrupt, degree, threshold) <= half and parts_failure(n, corrupt + dropped, degree) <= half


def correct(n: int, dropped: int, degree: int, threshold: int, eta: int) -> bool:
    """Whether a round is lost with a probability of at most 2**-eta when ``dropped`` sites vanish."""
    return loss_failure(n, dropped, degree, threshold) <= Fraction(1, 2**eta)


@lru_cache(maxsize=256)
def choose(n: int, corrupt: int, dropped: int, sigma: int, eta: int) -> tuple[int, int] | None:
    """The smallest even degree below n - 1, with the smallest threshold for it, that meet both exponents; None where there is none.

    The threshold is also above half of the share holders (degree + 1) plus one: sites refuse a smaller one, with which a server could have
    both shares of a site by telling different lists to different sites.
    """
    for degree in range(2, n - 1, 2):
        if parts_failure(n, corrupt + dropped, degree) > Fraction(1, 2 ** (sigma + 1)):
            continue
        for threshold in range((degree + 2) // 2 + 1, degree + 1):
            if private(n, corrupt, dropped, degree, threshold, sigma):
                if correct(n, dropped, degree, threshold, eta):
                    return degree, threshold
                break
    return None
