"""What an attack has shown over its victims: recovered, not shown to leak, or inconclusive.

Each kind of answer makes one to three claims, such as "picks the patient out of look-alikes". A claim is *shown* where the attack succeeds
significantly more often than the best blind guess **and** than the same attack on random gradients (the negative control). Where it is
not shown, that says something only if the same attack shows it with the defence off (the positive control): otherwise the test could not
have found anything, and the outcome is inconclusive, never "protected". Tests are one-sided, and exact where trials
succeed or fail (degrees are compared by permutations); a patient counts once, with the first of its images, and so does a batch: its
first image is the victim, the others were drawn to fill the step. The level is shared out over the claims of one kind of answer
(Bonferroni). Which test decides a claim is fixed here, before anything is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pppml_core.evidence.bounds import kappa
from pppml_core.interfaces.attack import Answer, Outcome
from pppml_core.learning.stats import clopper_pearson

Scores = Sequence[Mapping[str, Any]]
Verdict = Literal["shown", "not_shown", "undecided", "untested"]
_RESAMPLES = 9999


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


@dataclass(frozen=True)
class Claim:
    """One thing an attack might show, and whether it did.

    Args:
        name: ``picked``, ``redrawn``, ``named``, ``measured``, ``members``, ``placed`` or ``decoded``; of members also ``members@RATE``.
        verdict: ``shown``; ``not_shown``, although it could have been; ``undecided``: more than guessing, but too few trials to tell it
            from random gradients; ``untested``: it was not shown with the defence off either.
        reason: a sentence with the figures.
        target: the attack on the defended run.
        positive, negative: the controls.
        p_negative: probability that the attack does so much better than on random gradients by chance.
    """

    name: str
    verdict: Verdict
    reason: str
    target: Tally
    positive: Tally
    negative: Tally
    p_negative: float


def decide(answers: Answer, target: Scores, positive: Scores, negative: Scores, level: float = 0.01) -> tuple[Outcome, str]:
    """The outcome of an attack, and why in plain words with the figures.

    Args:
        answers: the kind of answer that decides.
        target: :func:`.score` of each victim.
        positive: of the same attack with the defence off.
        negative: of the same attack on random gradients of the same size. There may be more trials than victims; with fewer than
            :func:`controls_needed` nothing can be shown.
        level: one-sided.
    """
    made = claims(answers, target, positive, negative, level)
    words = " ".join(claim.reason for claim in made)
    verdicts = {claim.verdict for claim in made}
    if "shown" in verdicts:
        return "recovered", words
    if "not_shown" in verdicts and "undecided" not in verdicts:
        return "not_shown_to_leak", words
    return "inconclusive", words or "No victim was attacked."


def claims(answers: Answer, target: Scores, positive: Scores, negative: Scores, level: float = 0.01) -> list[Claim]:
    """Every claim of this kind of answer; none where no victim was attacked. Arguments as of :func:`decide`."""
    if not target:
        return []
    target, positive = one_each(target), one_each(positive)
    names = _names(answers, target)
    share = level / len(names)
    return [_claim(n, _TALLIES[n](target), _TALLIES[n](positive), _TALLIES[n](negative), share) for n in names]


def beside(answers: Answer, target: Scores, positive: Scores, negative: Scores, level: float = 0.01) -> list[Claim]:
    """Claims of what the attack told besides, which do not decide its outcome: the labels, where it redraws images and infers them too.

    An answer of its own, so with a level of its own. Arguments as of :func:`decide`.
    """
    labelled = bool(target) and all("label_accuracy" in score for score in target)
    return claims("labels", target, positive, negative, level) if answers == "images" and labelled else []


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


def at_most(successes: int, trials: int) -> float:
    """Upper limit of a rate: Clopper and Pearson, one-sided, 95 %."""
    # A two-sided interval at 90 % ends where the one-sided at 95 % does.
    return clopper_pearson(successes, trials, 0.90).high


def controls_needed(victims: int, level: float = 0.01, claims: int = 2) -> int:
    """The fewest trials of a failing negative control with which an attack that always succeeds can be shown at all.

    ``claims``: among which the level is shared; pictures with a gallery make two. 3 victims need 6 trials, 10 victims 1.
    """
    needed = 1
    # The largest probability, over every common rate, that all victims succeed and no control does.
    while (victims**victims * needed**needed) / (victims + needed) ** (victims + needed) > level / claims:
        needed += 1
    return needed


def _names(answers: Answer, scores: Scores) -> list[str]:
    if answers == "images":
        return [*(["picked"] if "picked" in scores[0] else []), "redrawn"]
    if answers == "members":
        return ["members", *(f"members@{r}" for r in ("0.01", "0.05") if all(s[f"found@{r}"] is not None for s in scores))]
    return {"labels": ["named"], "area": ["measured"], "candidate": ["candidate"], "site": ["placed"], "update": ["decoded"]}[answers]


def _claim(name: str, target: Tally, positive: Tally, negative: Tally, level: float) -> Claim:
    p_negative = _above(target, negative)
    shown = target.p_guess <= level and p_negative <= level
    passed = positive.p_guess <= level and _above(positive, negative) <= level
    name = "picked" if name == "candidate" else name
    verdict: Verdict
    if shown:
        verdict, end = "shown", ""
    elif target.p_guess <= level and (negative.rate < target.rate or len(negative.values) < len(target.values)):
        verdict, end = "undecided", "That is more than guessing, but too few trials to tell it from random gradients."
    elif not passed:
        verdict, end = "untested", "With the defence off it did not succeed beyond doubt either, so this test says nothing."
    else:
        verdict, end = "not_shown", ""
    what = "ordered" if target.ranks else name.partition("@")[0]
    sentence = f"{_WHAT[what].format(target=_success(target), among=target.among, rate=_rate(name))}; "
    sentence += (
        f"best guess {target.percent(target.guess)}, with the defence off {positive.words()}, on random gradients {negative.words()}."
    )
    return Claim(name, verdict, f"{sentence} {end}".strip(), target, positive, negative, p_negative)


_WHAT = {
    "picked": "Patients picked out of {among} look-alikes: {target}",
    "redrawn": "Images redrawn: {target}",
    "named": "Labels named: {target}",
    "measured": "Lesion area, as a share of the image, on average: {target}",
    "members": "Training images told from others{rate}: {target}",
    "ordered": "Pairs of a training image and another one put in the right order: {target}",
    "placed": "Images traced to their hospital: {target}",
    "decoded": "Updates decoded: {target}",
}


def _rate(name: str) -> str:
    return f" at {float(name.partition('@')[2]):.0%} false alarms" if "@" in name else ""


def _success(tally: Tally) -> str:
    if not tally.binary or tally.error or not tally.values:
        return tally.words()
    most = at_most(int(sum(tally.values)), len(tally.values))
    return f"{tally.words()} (at most {most:.0%} of such victims, with 95 % confidence)"


def _above(one: Tally, other: Tally) -> float:
    """Probability that the first sample is so much above the second by chance, where both are of one kind.

    Successes and failures: Boschloo's exact test (1970), which is more powerful than Fisher's. Degrees: permutations of the trials. Scores
    of the same queries: permutations within each.
    """
    from scipy import stats

    if not one.values or not other.values:
        return 1.0
    if one.ranks:
        return _better_ordered(one, other)
    if one.binary and other.binary:
        won, lost = int(sum(one.values)), int(sum(other.values))
        if won * len(other.values) <= lost * len(one.values):
            return 1.0
        table = [[won, lost], [len(one.values) - won, len(other.values) - lost]]
        return float(stats.boschloo_exact(table, "greater").pvalue)
    settings = {"alternative": "greater", "n_resamples": _RESAMPLES, "vectorized": True, "rng": np.random.default_rng(0)}
    return float(stats.permutation_test((one.values, other.values), _difference, **settings).pvalue)


def _better_ordered(one: Tally, other: Tally) -> float:
    """The same of two AUCs over the same queries: each query's two ranks are exchanged at random.

    After Bandos, Rockette and Gur 2005, A permutation test sensitive to differences in areas for comparing ROC curves from a paired design.
    """
    from scipy import stats

    if [w for _, w in one.ranks] != [w for _, w in other.ranks]:  # not of the same queries
        return 1.0
    apart = np.array([w * (a - b) for (a, w), (b, _) in zip(one.ranks, other.ranks, strict=True)])
    settings = {"alternative": "greater", "n_resamples": _RESAMPLES, "vectorized": True, "rng": np.random.default_rng(0)}
    return float(stats.permutation_test((apart,), np.sum, permutation_type="samples", **settings).pvalue)


def _difference(one: Any, other: Any, axis: int = -1) -> Any:
    return np.mean(one, axis=axis) - np.mean(other, axis=axis)


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
