"""What an attack has shown over its victims: recovered, not shown to leak, or inconclusive.

Each kind of answer makes one to three claims, such as "picks the patient out of look-alikes". A claim is *shown* where the attack succeeds
significantly more often than the best blind guess **and** than the same attack on random gradients (the negative control). Where it is
not shown, that says something only if the same attack shows it with the defence off (the positive control): otherwise the test could not
have found anything, and the outcome is inconclusive, never "protected". Tests are one-sided, and exact where trials
succeed or fail (degrees are compared by permutations); a patient counts once, with the first of its images, and so does a batch: its
first image is the victim, the others were drawn to fill the step. The level is shared out over the claims of one kind of answer
(Bonferroni). Which test decides a claim is fixed here, and against guessing in :mod:`.tallies`, before anything is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pppml_core.evidence.tallies import Scores, Tally, one_each, tally
from pppml_core.interfaces.attack import Answer, Outcome
from pppml_core.learning.stats import clopper_pearson

Verdict = Literal["shown", "not_shown", "undecided", "untested"]
_RESAMPLES = 9999


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
    return [_claim(n, tally(n, target), tally(n, positive), tally(n, negative), share) for n in names]


def beside(answers: Answer, target: Scores, positive: Scores, negative: Scores, level: float = 0.01) -> list[Claim]:
    """Claims of what the attack told besides, which do not decide its outcome: the labels, where it redraws images and infers them too.

    An answer of its own, so with a level of its own. Arguments as of :func:`decide`.
    """
    labelled = bool(target) and all("label_accuracy" in score for score in target)
    return claims("labels", target, positive, negative, level) if answers == "images" and labelled else []


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
