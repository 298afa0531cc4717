"""Verdicts of the evidence: the cell of a question, the promises against a party, and the verdict on it with what it rests on.

The verdict on a party is the worst of the three questions about a patient. What was not tried, or not at every round, is said beside it.
A statistical bound is on picking a patient out, so it is a verdict on that question and not on the party.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pppml_core.report import evidence_words as told
from pppml_core.report import words
from pppml_core.report.evidence_findings import OPEN, QUESTIONS, Question, Standing, strongest, worst_of
from pppml_core.report.evidence_rows import Limit, Row

#: a bound that allows more than this promises nothing that a patient would call protection.
MEANINGFUL = 0.5
#: verdict -> its mark; the words carry it, the mark and the colour repeat it.
MARKS: Mapping[str, str] = {
    "LEAKS": "✗", "NOT SHOWN TO LEAK": "○", "PROVEN BOUND": "≤", "INCONCLUSIVE": "?", "NOT TESTED": "–", "NO SUCH PARTY": "·",
}  # fmt: skip
#: kind of protection -> mark and what it rests on.
PROTECTIONS: Mapping[str, tuple[str, str]] = {
    "cryptographic": ("◆", "holds as long as the named assumptions do: keys are kept, nobody else joins in, the encryption is not broken"),
    "statistical": ("≤", "differential privacy: a proven limit for every attack, known or not, as far as the claim reaches"),
    "empirical": ("○", "an attack was tried and failed: a better one may not"),
}
STANDINGS: Mapping[Standing, tuple[str, str]] = {
    "yes": ("✗", "yes"), "undecided": ("?", "perhaps"), "no": ("○", "not shown"), "broke": ("?", "the attack broke"),
    "untested": ("?", "inconclusive"), "hidden": ("◆", "sees nothing of it"), "absent": ("·", "no such party"), "none": ("–", "not tested"),
}  # fmt: skip
ASKED: Mapping[Question, str] = {"redrawn": "image", "picked": "identity", "diagnosis": "diagnosis"}


def answer(row: Row, question: Question) -> dict[str, str]:
    """One cell: mark, word and figures; ``proven``: the proven bound, where one answers the question."""
    standing, found = row.standing(question), row.of(question)
    mark, word = STANDINGS[standing]
    leading = [f for f in found if f.standing == standing]
    detail = ""
    if shown := worst_of(leading):
        detail = told.figures(shown)
        if doubtful := sum(f.standing in OPEN for f in found if f not in leading):
            detail += f"; {doubtful} of {len(found)} tests inconclusive"
    elif standing == "yes":
        detail = "from the redrawn image"
    proven = f"at most {told.percent(limit.rate)} over the whole run" if question == "picked" and (limit := proven_limit(row)) else ""
    return {"standing": standing, "mark": mark, "word": word, "detail": detail, "proven": proven}


def others(row: Row) -> list[dict[str, str]]:
    """What else was tried from there."""
    out = []
    for claim in dict.fromkeys(f.claim for f in row.of("other")):
        one = replace(row, findings=tuple(f for f in row.findings if f.claim == claim))
        out.append({"what": told.OTHERS.get(claim, claim), **answer(one, "other")})
    return out


def proven_limit(row: Row) -> Limit | None:
    """The bound over the whole run, where it promises something."""
    limit = row.limit
    return limit if limit is not None and limit.rate < MEANINGFUL else None


def crypto(row: Row) -> str:
    """What encryption promises against this party, as the aggregator's guarantees say; empty: nothing."""
    promised, parties = words.guarantees(row.column.first), row.parties
    # Only who is recorded to follow the protocol is one of the honest but curious.
    covered = promised.get("coalition_curious" if row.follows else "coalition_active")
    if promised.get("sees_update") != [] or not isinstance(covered, int) or parties is None or len(parties) > covered:
        return ""
    size = row.smallest_sum
    if size == 1:
        return ""
    if size:
        return f"it gets no more than a sum over {size} sites"
    return "it gets nothing of a single site" if row.looked else "it gets no more than the sum"


def guarantee(row: Row) -> list[dict[str, str]]:
    """The formal promises against this party: kind, mark and words."""
    out = []
    if promise := crypto(row):
        assumed = len(words.guarantees(row.column.first).get("assumes") or ())
        condition = f"if {assumed} assumption{'s hold' if assumed > 1 else ' holds'}" if assumed else "as the aggregator promises"
        out.append({"kind": "cryptographic", "mark": PROTECTIONS["cryptographic"][0], "text": f"{promise}, {condition}"})
    if limit := row.limit:
        weak = "" if limit.rate < MEANINGFUL else ": too weak to rely on"
        out.append({"kind": "statistical", "mark": PROTECTIONS["statistical"][0], "text": f"over the whole run, {_most(limit)}{weak}"})
    elif step := row.step:
        text = f"{step.over}, {_most(step)}; nothing is proven of the whole run"
        out.append({"kind": "statistical", "mark": PROTECTIONS["statistical"][0], "text": text})
    return out


def _most(limit: Limit) -> str:
    among = f" of {limit.among} images" if limit.among else ""
    return f"the patient is picked out{among} in at most {limit.rate:.1%} of tries (best blind guess {limit.kappa:.1%})"


def verdict(row: Row) -> str:
    """One of :data:`MARKS`: the worst of the three questions; of who was tried on none of them, that of what else was tried."""
    if row.leaks:
        return "LEAKS"
    asked, further = [row.standing(q) for q in QUESTIONS], strongest(f.standing for f in row.of("other"))
    if any(s in OPEN for s in asked):
        return "INCONCLUSIVE"
    if "no" in asked:
        return "NOT SHOWN TO LEAK"
    if "hidden" in asked and crypto(row):
        return "PROVEN BOUND"
    if further in OPEN:
        return "INCONCLUSIVE"
    if further == "no":
        return "NOT SHOWN TO LEAK"
    return "NO SUCH PARTY" if "absent" in asked else "NOT TESTED"


def mark(row: Row) -> str:
    """Of the verdict; a proven bound has that of the protection it rests on."""
    return PROTECTIONS["cryptographic"][0] if protection(row) == "cryptographic" else MARKS[verdict(row)]


def protection(row: Row) -> str:
    """What a verdict of protection rests on, one of :data:`PROTECTIONS`; empty for other verdicts."""
    return {"PROVEN BOUND": "cryptographic", "NOT SHOWN TO LEAK": "empirical"}.get(verdict(row), "")


def short(row: Row) -> str:
    """Beside a verdict in a narrow cell: what it rests on, whether it is of a part alone, and what is proven of picking."""
    partly = f"{protection(row)}{', in part' if missing(row) else ''}" if protection(row) else ""
    return "; ".join(filter(None, (partly, "proven bound on identity" if verdict(row) != "LEAKS" and proven_limit(row) else "")))


def missing(row: Row) -> list[str]:
    """What a verdict that nothing was shown does not speak of: questions and rounds at which no test told anything."""
    out = []
    if untried := [name for q, name in ASKED.items() if row.standing(q) in ("none", "absent")]:
        out.append(f"{told.listed(untried)} not tested")
    for question, name in ASKED.items():
        told_at, open_at = _rounds(row, question, open_=False), _rounds(row, question, open_=True)
        if row.standing(question) == "no" and (rounds := sorted(open_at - told_at)):
            out.append(f"{name} at round {told.listed(map(str, rounds))} could not be told")
    claims = dict.fromkeys(f.claim for f in row.of("other"))
    doubtful = [c for c in claims if strongest(f.standing for f in row.findings if f.claim == c) in OPEN]
    if doubtful and (row.of("redrawn") or row.of("picked") or row.of("diagnosis")):
        out.append(f"whether it can {told.listed(told.OTHERS.get(c, c) for c in doubtful)} could not be told")
    return out


def _rounds(row: Row, question: Question, *, open_: bool) -> set[int]:
    """At which rounds the tests of a question told nothing, or something."""
    return {r for f in row.of(question) if (f.standing in OPEN) == open_ and isinstance(r := f.record.get("round"), int)}


def strength(row: Row) -> str:
    """What stands behind the verdict."""
    came = verdict(row)
    if came == "LEAKS":
        if any(r.get("violation") is True for r in row.records):
            return "the claim of privacy is refuted"
        kinds = {f.claim for f in row.findings if f.standing == "yes"}
        return told.listed([text for claim, text in told.OUT.items() if claim in kinds])
    if came == "PROVEN BOUND":
        return "cryptographic, under its assumptions"
    if came == "NOT SHOWN TO LEAK":
        parts = missing(row)
        return _empirical(row) + (f"; in part: {'; '.join(parts)}" if parts else "")
    if came == "INCONCLUSIVE":
        return _open(row)
    if row.silent == "hidden":
        return "it decodes nothing, and no guarantee is stated"
    whys = [r.get("why") for r in row.records]
    if came == "NOT TESTED" and "own" in whys:
        return "the watched site is one of them"
    return "no attack that was tried applies" if came == "NOT TESTED" and "misfit" in whys else ""


def _empirical(row: Row) -> str:
    """``empirical: 100 images of 36 patients, control passed``, the fewest first."""
    tried = [f for f in row.findings if f.standing == "no" and f.question != "other"] or [f for f in row.findings if f.standing == "no"]
    best = [max((f for f in tried if f.claim == claim), key=lambda f: f.count) for claim in dict.fromkeys(f.claim for f in tried)]
    counts = list(dict.fromkeys(filter(None, map(told.victims, sorted(best, key=lambda f: f.count)))))
    passed = "control passed" if all(f.passed for f in tried) else "no passed control is recorded for all of it"
    return f"empirical: {', '.join([*([told.listed(counts)] if counts else []), passed])}"


def _open(row: Row) -> str:
    """Which questions are open, and why."""
    why: dict[str, list[str]] = {}
    asked: Sequence[Question] = [q for q in ASKED if row.standing(q) in OPEN]
    for question in asked or ("other",):
        standing = strongest(f.standing for f in row.of(question))
        for reason in dict.fromkeys(told.why_open(f) for f in row.of(question) if f.standing == standing):
            why.setdefault(reason, []).append(ASKED.get(question, ""))
    out = [f"{told.listed(names)}: {reason}" if any(names) else reason for reason, names in why.items()]
    if untried := [name for q, name in ASKED.items() if row.standing(q) == "none"]:
        out.append(f"{told.listed(untried)} not tested")
    return "; ".join(out)
