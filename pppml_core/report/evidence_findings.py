"""Findings: what single records of attacks claim. Nothing is decided anew here; a record's own verdicts are read, and what a record does
not say is not filled in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pppml_core.learning.stats import clopper_pearson
from pppml_core.report.records import Record, RunRecords

#: ``yes``: shown; ``undecided``: more than guessing, too few trials; ``no``: not shown, though the test works with the defence off;
#: ``broke``: the attack itself failed; ``untested``: the test does not tell; ``hidden``: this party decodes nothing the site is in;
#: ``absent``: there is no such party in this run; ``none``: nobody tried.
Standing = Literal["yes", "undecided", "no", "broke", "untested", "hidden", "absent", "none"]
Question = Literal["diagnosis", "picked", "redrawn", "other"]
#: of several tests of one question by one party the first tells most about a leak ...
ORDER: tuple[Standing, ...] = ("yes", "undecided", "no", "broke", "untested", "hidden", "none", "absent")
#: ... and of several questions or parties the first is the worst.
WORST: tuple[Standing, ...] = ("yes", "undecided", "broke", "untested", "no", "hidden", "none", "absent")
#: somebody tried, and nothing follows.
OPEN: tuple[Standing, ...] = ("undecided", "broke", "untested")
QUESTIONS: tuple[Question, ...] = ("diagnosis", "picked", "redrawn")
#: claims (of :mod:`pppml_core.evidence.deciding`, and of tests that read no view: ``key``, ``read``), the gravest first, and the question
#: each answers.
CLAIMS: Mapping[str, Question] = {
    "redrawn": "redrawn", "picked": "picked", "named": "diagnosis", "measured": "diagnosis", "key": "other", "decoded": "other",
    "members": "other", "placed": "other", "read": "other",
}  # fmt: skip
#: what is about the scheme and its messages, and not about any patient; so is every claim that is not known.
PATIENTS = ("redrawn", "picked", "named", "measured", "decoded", "members", "placed")
#: of each kind of answer: what it claims, for records that do not say it claim by claim.
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "images": ("picked", "redrawn"), "labels": ("named",), "area": ("measured",), "candidate": ("picked",), "members": ("members",),
    "site": ("placed",), "update": ("decoded",),
}  # fmt: skip
#: where a claim's rate stands among the metrics.
RATES: Mapping[str, tuple[str, ...]] = {
    "picked": ("reid@1", "candidate@1"), "redrawn": ("redrawn",), "named": ("labels_right",), "placed": ("site_accuracy",),
    "decoded": ("decoded",), "members": ("tpr@0.05", "tpr@0.01"), "read": ("accuracy",),
}  # fmt: skip
_VERDICTS: Mapping[str, Standing] = {"shown": "yes", "undecided": "undecided", "not_shown": "no", "untested": "untested"}
_OUTCOMES: Mapping[str, Standing] = {"recovered": "yes", "not_shown_to_leak": "no", "inconclusive": "untested"}
_MOST = 10**7


@dataclass(frozen=True)
class Rate:
    """So many of ``n`` independent trials, with the interval the record gives; ``among``: of how many images one was picked, 0 where none
    was; ``at``: at which rate of false alarms, empty where there are none; ``limit``: the record's own upper limit.
    """

    rate: float
    low: float
    high: float
    n: int
    among: int = 0
    at: str = ""
    limit: float | None = None

    @property
    def hits(self) -> int:
        """How often."""
        return round(self.rate * self.n)

    @property
    def most(self) -> float:
        """The upper limit wherever "at most" is said, the record's; of older records Clopper and Pearson's, one-sided, 95 %."""
        # A two-sided interval at 90 % ends where the one-sided at 95 % does.
        return clopper_pearson(self.hits, self.n, 0.90).high if self.limit is None else self.limit


@dataclass(frozen=True)
class Finding:
    """One claim of one record. ``said``: the record's own verdict on this claim; empty where it gives but an outcome."""

    record: Record
    run: RunRecords
    claim: str
    standing: Standing
    said: str = ""

    @property
    def question(self) -> Question:
        """What a reader asks that this answers."""
        return CLAIMS.get(self.claim, "other")

    @property
    def rate(self) -> Rate | None:
        """How often it came true; None where that is no count."""
        return self._rate("metrics")

    @property
    def control(self) -> Rate | None:
        """The same in the control."""
        return self._rate("control")

    @property
    def passed(self) -> bool | None:
        """Whether the control of this very claim passed; None where the record does not say."""
        control = self.record.get("control")
        whole = control.get("passed") if isinstance(control, Mapping) else None
        # One control serves all claims of a record; a claim that it does not show is called untested.
        return False if self.said == "untested" else whole if isinstance(whole, bool) else None

    @property
    def guess(self) -> float | None:
        """How often the best blind guess comes true, as the record measured it; None: it did not."""
        bound, best = self.record.get("bound"), self.record.get("best_guess")
        if self.claim == "picked" and isinstance(bound, Mapping) and 0 <= plain_numbers(bound).get("kappa", -1) <= 1:
            return float(bound["kappa"])
        if self.claim == "members" or not isinstance(best, Mapping):
            return None  # (of members, a rate stands beside its rate of false alarms)
        if (found := self._rate("best_guess")) is not None:
            return max(found.rate, 1 / found.among if found.among else 0.0)
        return next((v for name in RATES.get(self.claim, ()) if 0 <= (v := plain_numbers(best).get(name, -1)) <= 1), None)

    def _rate(self, among: str) -> Rate | None:
        return rate_of(self.record.get(among), self.claim, candidate=self.record.get("answers") == "candidate")

    @property
    def look_alikes(self) -> float | None:
        """Among the images of a gallery: of the victim's site and label, the median over the victims; None: not recorded."""
        return plain_numbers(self.record).get("look_alikes")

    @property
    def count(self) -> int:
        """How many were attacked: images, or whatever this claim is about; 0: the record does not say."""
        if (rate := self.rate) is not None and self.claim != "named":
            return rate.n
        count = plain_numbers(self.record).get("victims", 0.0)
        return int(count) if self.claim in PATIENTS and self.claim not in ("members", "placed") and 0 < count < _MOST else 0

    @property
    def people(self) -> int | None:
        """Of how many patients the attacked images are; None: not recorded, or recorded of fewer images than these."""
        numbers = plain_numbers(self.record)
        people = numbers.get("people", 0.0)
        whole = self.claim in ("redrawn", "picked") and self.count in (numbers.get("victims"), people)  # (one image of each counts)
        return int(people) if whole and 1 <= people <= self.count else None


def findings_of(record: Record, run: RunRecords) -> list[Finding]:
    """The claims of a record; none where the attack did not apply."""
    outcome = str(record.get("outcome"))
    if outcome not in _OUTCOMES:
        return []
    metrics = record.get("metrics")
    made = metrics.get("claims") if isinstance(metrics, Mapping) else None
    if not (isinstance(made, Mapping) and made):
        return [Finding(record, run, name, _OUTCOMES[outcome]) for name in _asked(record)]
    found: dict[str, list[str]] = {}
    for name, verdict in made.items():
        found.setdefault(str(name).partition("@")[0], []).append(verdict if verdict in ("shown", "undecided", "not_shown") else "untested")
    said = {name: min(verdicts, key=lambda v: ORDER.index(_VERDICTS[v])) for name, verdicts in found.items()}
    failed: Standing | None = _failed(record, outcome, said.values())
    return [Finding(record, run, n, failed if failed and v == "not_shown" else _VERDICTS[v], v) for n, v in said.items()]


def _failed(record: Record, outcome: str, said: Iterable[str]) -> Standing | None:
    """What a claim is that was not shown because the attack gave no answers; None: it gave them."""
    if record.get("why") == "broke":
        return "broke"
    if outcome != "inconclusive" or ("undecided" in said and "why" in record):
        return None
    # Of older records: nothing but failed answers makes this inconclusive, unless another claim is undecided; then either may be so.
    return "untested" if "undecided" in said or "why" in record else "broke"


def _asked(record: Record) -> tuple[str, ...]:
    """What a record is about that has no claims: its kind of answer, or what it measured."""
    metrics = record.get("metrics")
    if isinstance(metrics, Mapping) and "key_recovered" in metrics:
        return ("key",)
    if rate_of(metrics, "read") is not None:
        return ("read",)
    return ANSWERS.get(str(record.get("answers")), ("else",))


def is_audit(record: Record) -> bool:
    """Whether a record tests a claim of privacy and not a party's view."""
    metrics = record.get("metrics")
    return record.get("attack") == "dp-audit" or (isinstance(metrics, Mapping) and "epsilon_claimed" in metrics)


def strongest(found: Iterable[Standing]) -> Standing:
    """Of several standings the one that tells most about a leak; ``none`` of none."""
    return min(found, key=ORDER.index, default="none")


def worst(found: Iterable[Standing]) -> Standing:
    """Of several questions or parties the worst; ``none`` of none."""
    return min(found, key=WORST.index, default="none")


def rate_of(metrics: Any, claim: str, *, candidate: bool = False) -> Rate | None:
    """The rate of a claim among a record's metrics; ``candidate``: of an attack that names a candidate, and may draw it besides."""
    if not isinstance(metrics, Mapping):
        return None
    names = RATES.get(claim, ())
    for name in reversed(names) if candidate else names:
        found = metrics.get(name)
        numbers = plain_numbers(found) if isinstance(found, Mapping) else {}
        if {"rate", "low", "high", "n"} <= numbers.keys() and 0 <= numbers["rate"] <= 1 and 1 <= numbers["n"] < _MOST:
            chance = numbers.get("chance", 0.0)
            at = f"{float(name.partition('@')[2]):.0%}" if name.startswith("tpr@") else ""
            among = round(1 / chance) if claim == "picked" and 1e-9 < chance <= 1 else 0
            limit = most if numbers["rate"] <= (most := numbers.get("at_most", -1.0)) <= 1 else None
            return Rate(numbers["rate"], numbers["low"], numbers["high"], int(numbers["n"]), among, at, limit)
    return None


def worst_of(found: Sequence[Finding]) -> Finding | None:
    """Of several tests of one question that ended alike the one with most success: by rate, then by its upper limit."""

    def key(f: Finding) -> tuple[float, float, int]:
        return (f.rate.rate, f.rate.most, f.count) if f.rate else (-1.0, 0.0, f.count)

    return max(found, key=key, default=None)


def strongest_test(found: Sequence[Finding]) -> Finding | None:
    """The test that says most: what was shown, the gravest first; else a test of patients before one of the scheme, then one that could
    have told, then the one on most, then the gravest.
    """
    grave = (*CLAIMS, "else")

    def key(f: Finding) -> tuple[bool, bool, int, int, int, int, float, float]:
        yes, rate = f.standing == "yes", f.rate
        most = (rate.rate, rate.most) if rate else (-1.0, 0.0)
        gravity = -grave.index(f.claim) if f.claim in grave else -len(grave)
        ranks = (gravity, 0, 0) if yes else (0, f.count, gravity)
        return (yes, not yes and f.claim in PATIENTS, -ORDER.index(f.standing), *ranks, *most)

    return max(found, key=key, default=None)


def plain_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a map."""
    return {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
