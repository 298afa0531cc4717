"""Which record speaks for which cell of the evidence: records of attacks as findings, findings as rows (who looks) of defences (columns).

A finding is one claim of one record: who tried what, and whether it was shown. Nothing here is decided anew; a record's own verdicts are
put together, and where they differ the one that tells most about a leak counts: shown, then undecided, then not shown, then untested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pppml_core.report.columns import Column
from pppml_core.report.records import Record, RunRecords, items

#: ``yes``: shown; ``undecided``: more than guessing, too few trials; ``no``: not shown, though the test works with the defence off;
#: ``untested``: the test does not work with the defence off either; ``hidden``: this party decodes nothing the site is in; ``absent``:
#: there is no such party in this run; ``none``: nobody tried.
Standing = Literal["yes", "undecided", "no", "untested", "hidden", "absent", "none"]
Question = Literal["diagnosis", "picked", "redrawn", "other"]
ORDER: tuple[Standing, ...] = ("yes", "undecided", "no", "untested", "hidden", "none", "absent")
QUESTIONS: tuple[Question, ...] = ("diagnosis", "picked", "redrawn")
#: the claims of :mod:`pppml_core.evidence.deciding`, and the question each answers.
CLAIMS: Mapping[str, Question] = {
    "named": "diagnosis", "measured": "diagnosis", "picked": "picked", "redrawn": "redrawn", "members": "other", "placed": "other",
    "decoded": "other", "read": "other",
}  # fmt: skip
#: of each kind of answer: what it claims, for records that do not say it claim by claim.
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "images": ("picked", "redrawn"), "labels": ("named",), "area": ("measured",), "candidate": ("picked",), "members": ("members",),
    "site": ("placed",), "update": ("decoded",),
}  # fmt: skip
#: where a claim's rate stands among the metrics.
RATES: Mapping[str, tuple[str, ...]] = {
    "picked": ("reid@1", "candidate@1"), "redrawn": ("redrawn",), "named": ("labels_right",), "placed": ("site_accuracy",),
    "decoded": ("decoded",), "read": ("accuracy",),
}  # fmt: skip
_VERDICTS: Mapping[str, Standing] = {"shown": "yes", "undecided": "undecided", "not_shown": "no", "untested": "untested"}
_OUTCOMES: Mapping[str, Standing] = {"recovered": "yes", "not_shown_to_leak": "no", "inconclusive": "untested"}


@dataclass(frozen=True)
class Rate:
    """So many of ``n``, with the interval the record gives; ``among``: of how many look-alikes, 0 where there are none."""

    rate: float
    low: float
    high: float
    n: int
    among: int = 0

    @property
    def hits(self) -> int:
        """How often."""
        return round(self.rate * self.n)


@dataclass(frozen=True)
class Finding:
    """One claim of one record."""

    record: Record
    run: RunRecords
    claim: str
    standing: Standing

    @property
    def question(self) -> Question:
        """What a reader asks that this answers."""
        return CLAIMS.get(self.claim, "other")

    @property
    def rate(self) -> Rate | None:
        """How often it came true; None where that is no count."""
        return rate_of(self.record.get("metrics"), self.claim)

    @property
    def control(self) -> Rate | None:
        """The same with the defence off."""
        return rate_of(self.record.get("control"), self.claim)

    @property
    def passed(self) -> bool:
        """Whether the test works: it succeeds with the defence off, or it succeeded here."""
        control = self.record.get("control")
        failed = isinstance(control, Mapping) and control.get("passed") is False
        return self.standing == "yes" or (self.standing == "no" and not failed)

    @property
    def victims(self) -> int:
        """How many were attacked."""
        count = self.record.get("victims")
        rate = self.rate
        return count if isinstance(count, int) else rate.n if rate else 0


@dataclass(frozen=True)
class Row:
    """Who looks at one defence, and everything that was tried from there."""

    vantage: str
    lying: bool
    column: Column
    findings: tuple[Finding, ...]
    records: tuple[Record, ...]

    def of(self, question: Question) -> list[Finding]:
        """The findings that answer a question."""
        return [f for f in self.findings if f.question == question]

    def standing(self, question: Question) -> Standing:
        """What is known. A redrawn image shows the patient and what ails it, so it answers all three."""
        found = strongest(f.standing for f in self.of(question))
        if question in ("picked", "diagnosis") and found != "yes" and strongest(f.standing for f in self.of("redrawn")) == "yes":
            return "yes"
        if found == "none":
            return self.silent
        return found

    @property
    def silent(self) -> Standing:
        """Why nothing was tried: nothing to decode, nobody there, or nobody tried."""
        reasons = [str(r.get("reason", "")) for r in self.records if r.get("outcome") == "not_applicable"]
        if any("has no neighbours" in reason for reason in reasons):
            return "absent"
        return "hidden" if any("decodes no sum" in reason for reason in reasons) and self.smallest_sum is None else "none"

    @property
    def leaks(self) -> bool:
        """Whether anything was shown."""
        return any(f.standing == "yes" for f in self.findings) or any(r.get("violation") for r in self.records)

    @property
    def smallest_sum(self) -> int | None:
        """Over how many sites the smallest sum is that this party decodes and that holds the watched site; None: it decodes none."""
        sums = [(r.get("site"), e.get("sites")) for r in self.records for e in items(r.get("exposed"))]
        return min((len(sites) for site, sites in sums if isinstance(sites, list) and site in sites), default=None)

    @property
    def bound(self) -> tuple[float, float, int] | None:
        """The weakest ReRo bound of its records, the best blind guess beside it, and among how many; None: there is none."""
        made = [(b, r) for r in self.records if isinstance(b := r.get("bound"), Mapping) and _numbers(b, "rate", "kappa")]
        if not made:
            return None
        weakest, record = max(made, key=lambda pair: pair[0]["rate"])
        among = [f.rate.among for f in findings_of(record, self.column.first) if f.rate and f.rate.among]
        return float(weakest["rate"]), float(weakest["kappa"]), max(among, default=0)

    @property
    def parties(self) -> int:
        """How many parties of the protocol these are."""
        kinds = [part.strip().partition(":")[0] for part in self.vantage.split("+")]
        return sum({"server": 1, "site": 1, "neighbours": 2}.get(kind, 0) for kind in kinds)


def rows(column: Column) -> list[Row]:
    """Everybody who was looked through at one defence: the server first, outsiders last."""
    grouped: dict[tuple[str, bool], list[tuple[Record, RunRecords]]] = {}
    for run in column.runs:
        for record in run.attacks:
            if record.get("vantage") and not is_audit(record):
                grouped.setdefault((str(record["vantage"]), lied(record)), []).append((record, run))
    made = [
        Row(who, lying, column, tuple(f for r, run in found for f in findings_of(r, run)), tuple(r for r, _ in found))
        for (who, lying), found in grouped.items()
    ]
    return sorted(made, key=lambda row: vantage_order((row.vantage, row.lying)))


def vantage_order(key: tuple[str, bool]) -> tuple[int, int, bool, str]:
    """Server, coalitions with it, sites, neighbours, lines, outsiders."""
    kinds = [part.strip().partition(":")[0] for part in key[0].split("+")]
    known = ("server", "site", "neighbours", "link", "public")
    return (known.index(kinds[0]) if kinds[0] in known else len(known), len(kinds), key[1], key[0])


def findings_of(record: Record, run: RunRecords) -> list[Finding]:
    """The claims of a record; none where the attack did not apply."""
    outcome = str(record.get("outcome"))
    if outcome not in _OUTCOMES:
        return []
    metrics = record.get("metrics")
    made = metrics.get("claims") if isinstance(metrics, Mapping) else None
    if isinstance(made, Mapping) and made:
        found: dict[str, list[Standing]] = {str(name).partition("@")[0]: [] for name in made}
        for name, verdict in made.items():
            found[str(name).partition("@")[0]].append(_VERDICTS.get(str(verdict), "untested"))
        # Failed trials make a record inconclusive that would have shown nothing: then nothing is not shown.
        doubted = outcome == "inconclusive"
        stood = {name: strongest(v) for name, v in found.items()}
        return [Finding(record, run, name, "untested" if doubted and s == "no" else s) for name, s in stood.items()]
    names = ANSWERS.get(str(record.get("answers")), ("read",))
    return [Finding(record, run, name, _OUTCOMES[outcome]) for name in names]


def is_audit(record: Record) -> bool:
    """Whether a record tests a claim of privacy and not a party's view."""
    metrics = record.get("metrics")
    return record.get("attack") == "dp-audit" or (isinstance(metrics, Mapping) and "epsilon_claimed" in metrics)


def lied(record: Record) -> bool:
    """Whether the server lied about the model in this test."""
    return "lied about the model" in str(record.get("about", ""))


def plain_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a map."""
    return {str(name): float(value) for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}


def strongest(found: Iterable[Standing]) -> Standing:
    """Of several standings the one that tells most about a leak; ``none`` of none."""
    return min(found, key=ORDER.index, default="none")


def rate_of(metrics: Any, claim: str) -> Rate | None:
    """The rate of a claim among a record's metrics."""
    if not isinstance(metrics, Mapping):
        return None
    for name in RATES.get(claim, ()):
        found = metrics.get(name)
        if isinstance(found, Mapping) and _numbers(found, "rate", "low", "high", "n"):
            among = round(1 / found["chance"]) if _numbers(found, "chance") and found["chance"] > 1e-9 else 0
            return Rate(float(found["rate"]), float(found["low"]), float(found["high"]), int(found["n"]), among)
    return None


def best_tried(found: Sequence[Finding]) -> Finding | None:
    """The test that says most: what was shown, else what could have been; then the one with most success, then with most victims."""
    gravity = ("redrawn", "picked", "named", "measured", "decoded", "read", "placed", "members")

    def key(f: Finding) -> tuple[int, int, float, int]:
        shown = f.standing == "yes"
        serious = -gravity.index(f.claim) if f.claim in gravity else -len(gravity)
        return (-ORDER.index(f.standing), serious if shown else 0, (f.rate.rate if f.rate else 0.0) if shown else 0.0, f.victims)

    return max(found, key=key, default=None)


def audits(column: Column) -> list[tuple[Record, RunRecords]]:
    """Records that test the claim of privacy itself."""
    return [(record, run) for run in column.runs for record in run.attacks if is_audit(record)]


def _numbers(found: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(found.get(n), int | float) and math.isfinite(found[n]) for n in names)
