"""How often each claim of an attack came true over its victims, and how likely the best blind guess does as well.

Which test compares the two is fixed here, for each claim, before anything is seen. What follows from it: :mod:`.deciding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pppml_core.evidence.bounds import kappa

#: of each victim what :func:`.score` measured.
Scores = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Tally:
    """How often a claim came true.

    Args:
        values: of each trial: 0 or 1, or a score in [0, 1] where successes are of degree (a share of labels, an error subtracted from 1).
        guess: rate of the best blind guess on the same victims.
        p_guess: probability that an attacker no better than that guess does as well.
        among: what the rates refer to, e.g. 100 look-alikes; 0: nothing.
        error: whether the values are errors taken from 1; they are worded as errors.
        ranks: of scored queries in place of trials: rank among all and weight of each, see :func:`_ordered`.
    """

    values: tuple[float, ...]
    guess: float
    p_guess: float
    among: int = 0
    error: bool = False
    ranks: tuple[tuple[float, float], ...] = ()

    @property
    def binary(self) -> bool:
        """Whether every trial simply succeeded or failed."""
        return not self.ranks and all(v in (0.0, 1.0) for v in self.values)

    @property
    def rate(self) -> float:
        """Mean of the trials; 0 without any."""
        return float(np.mean(self.values)) if self.values else 0.0

    def words(self) -> str:
        """``3 of 100``, or a percentage where successes are of degree."""
        if not self.values:
            return "none were made"
        if self.binary and not self.error:
            return f"{sum(self.values):.0f} of {len(self.values)}"
        return self.percent(self.rate)

    def percent(self, rate: float) -> str:
        """A rate of this kind in words."""
        return f"off by {1.0 - rate:.2%}" if self.error else f"{rate:.1%}"


def tally(claim: str, scores: Scores) -> Tally:
    """How often this claim came true. ``claim``: a name of :class:`.Claim`, or ``candidate`` for a patient picked among candidates."""
    return _TALLIES[claim](scores)


def one_each(scores: Scores) -> Scores:
    """The first score of each ``person``: several images of one patient are no independent trials. Scores that name nobody all stay."""
    known: set[Any] = set()
    kept = []
    for score in scores:
        person = score.get("person")
        if person is None or person not in known:
            kept.append(score)
        known.add(person)
    return kept


def of_victims(scores: Scores, metric: str) -> list[Any]:
    """A metric of pictures, of the victims alone: each list has a number for every image of a batch, the first is the victim's."""
    return [values[0] for s in scores if (values := _listed(s.get(metric)))]


def blind_rate(scores: Scores, prefix: str, kind: str) -> tuple[int, float]:
    """How many candidates there are at least, and how often the best blind guess picks the victim among them, see :func:`.kappa`."""
    among, picked = min(of_victims(scores, prefix + "gallery")), prefix + "picked"
    rules = [of_victims([s["blind"][kind][rule] for s in scores], picked) for rule in _rules(scores, kind, picked)]
    return int(among), kappa(int(among), [(sum(r), len(r)) for r in rules], _all(scores, "look_alikes"))


def _picked(scores: Scores, prefix: str, kind: str) -> Tally:
    """Each rank is uniform for an attacker without evidence, unless the gallery's looks give the victim away."""
    from scipy.stats import binomtest

    hits = of_victims(scores, prefix + "picked")
    if not hits:
        return Tally((), 0.0, 1.0)
    among, chance = blind_rate(scores, prefix, kind)
    p = binomtest(int(sum(hits)), len(hits), chance, "greater").pvalue
    return Tally(tuple(map(float, hits)), chance, float(p), among)


def _never_blind(scores: Scores, metric: str) -> Tally:
    """Successes that no blind guess has, by their definition: one is more than guessing; the negative control says whether by chance."""
    hits = of_victims(scores, metric)
    return Tally(tuple(map(float, hits)), 0.0, 0.0 if any(hits) else 1.0)


def _paired(scores: Scores, metric: str, kind: str, error: bool = False) -> Tally:
    """Against the rule that, with hindsight, is best over all victims: the sign test of who does better on each victim."""
    from scipy.stats import binomtest

    def good(value: float) -> float:
        return 1.0 - float(value) if error else float(value)

    mine = [good(v) for v in _all(scores, metric)]
    rules = [[good(v) for s in scores for v in _listed(s["blind"][kind][r][metric])] for r in _rules(scores, kind, metric)]
    if not mine or not rules:
        return Tally(tuple(mine), 0.0, 1.0, error=error)
    theirs = max(rules, key=lambda values: float(np.mean(values)))
    wins, losses = (sum(a > b for a, b in zip(x, y, strict=True)) for x, y in ((mine, theirs), (theirs, mine)))
    p = float(binomtest(wins, wins + losses, 0.5, "greater").pvalue) if wins + losses else 1.0
    return Tally(tuple(mine), float(np.mean(theirs)), p, error=error)


def _ordered(scores: Scores) -> Tally:
    """Pairs of a member and another query in the right order: their share is the AUC; Mann and Whitney's exact test over all orders.

    It looks at every score, and so tells more than how many members are among the highest. A value is the share of others below a member;
    equal scores count against the attack. Weights of ranks are 1 over the members and -1 over the others, so that their weighted sum is
    the AUC up to factors that do not depend on the attack.
    """
    from scipy.stats import combine_pvalues, mannwhitneyu

    chances, values, ranks = list[float](), list[float](), list[tuple[float, float]]()
    for s in scores:
        inside, outside = np.array(s["member_ranks"]), np.array(s["other_ranks"])
        if not len(inside) or not len(outside):
            continue
        chances.append(float(mannwhitneyu(inside, outside, alternative="greater", method="exact").pvalue))
        values += (np.searchsorted(np.sort(outside), inside) / len(outside)).tolist()
        ranks += [(float(r), 1 / len(inside)) for r in inside] + [(float(r), -1 / len(outside)) for r in outside]
    if not values:
        return Tally((), 0.0, 1.0)
    p = float(combine_pvalues(np.clip(chances, 1e-300, 1.0), "fisher").pvalue)
    return Tally(tuple(values), 0.5, p, ranks=tuple(ranks))


def _found(scores: Scores, rate: float) -> Tally:
    """Members among the highest scores at a rate of false alarms. Without evidence every order is equally likely."""
    from scipy.stats import combine_pvalues, hypergeom

    chances: list[float] = []
    values: list[float] = []
    for s in scores:
        inside, outside = s["members"], s["others"]
        found = s[f"found@{rate:g}"]
        if not inside or not outside or found is None:
            continue
        # At least `found` members come before `allowed + 1` others: so many are among the first `found + allowed`.
        first = found + int(rate * outside + 1e-9)
        chances.append(float(hypergeom.sf(found - 1, inside + outside, inside, first)))
        values += [1.0] * found + [0.0] * (inside - found)
    if not values:
        return Tally((), 0.0, 1.0)
    return Tally(tuple(values), rate, float(combine_pvalues(np.clip(chances, 1e-300, 1.0), "fisher").pvalue))


def _all(scores: Scores, metric: str) -> list[Any]:
    return [v for s in scores for v in _listed(s.get(metric))]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _rules(scores: Scores, kind: str, metric: str) -> list[str]:
    """Blind rules that every victim has with this metric."""
    blind = [s["blind"].get(kind, {}) for s in scores]
    return [rule for rule in (blind[0] if blind else {}) if all(metric in b.get(rule, {}) for b in blind)]


_TALLIES: dict[str, Callable[[Scores], Tally]] = {
    "picked": lambda s: _picked(s, "", "images"),
    "candidate": lambda s: _picked(s, "candidate_", "candidate"),
    "redrawn": lambda s: _never_blind(s, "redrawn"),
    "decoded": lambda s: _never_blind(s, "decoded"),
    "named": lambda s: _paired(s, "label_accuracy", "labels"),
    "measured": lambda s: _paired(s, "area_error", "area", error=True),
    "placed": lambda s: _paired(s, "site_right", "site"),
    "members": _ordered,
    "members@0.01": lambda s: _found(s, 0.01),
    "members@0.05": lambda s: _found(s, 0.05),
}
