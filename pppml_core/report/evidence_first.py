"""The first screen: who can see an image, who can pick a patient out or read the diagnosis, and what the strongest test was.

Defences of which the same is true share a line. Every sentence is put together from records of attacks and recorded guarantees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pppml_core.report import evidence_verdicts as verdicts
from pppml_core.report import evidence_words as told
from pppml_core.report import words
from pppml_core.report.columns import Column
from pppml_core.report.evidence_findings import OPEN, WORST, Finding, Question, Standing, strongest_test, worst, worst_of
from pppml_core.report.evidence_rows import Row, vantage_order

#: standing -> what stands first on a line.
LEAD: dict[Standing, str] = {
    "yes": "Shown", "undecided": "Could not be told", "no": "Not shown", "broke": "Could not be told",
    "untested": "Could not be told", "hidden": "Nothing to read", "absent": "Not tested", "none": "Not tested",
}  # fmt: skip
#: the same of the strongest test.
CAME: dict[Standing, str] = {
    "yes": "It succeeded", "undecided": "It proves nothing", "no": "It failed", "broke": "It proves nothing",
    "untested": "It proves nothing", "hidden": "No test", "absent": "No test", "none": "No test",
}  # fmt: skip
NO_SIGN = "That is no sign of safety."


@dataclass(frozen=True)
class Line:
    """An answer for the defences ``labels``; ``standing`` decides its mark. ``parts``: head (may be empty) and sentences of each;
    ``lead``: the first words.
    """

    labels: tuple[str, ...]
    standing: Standing
    parts: tuple[tuple[str, str], ...]
    lead: str

    @property
    def mark(self) -> str:
        """Of the standing."""
        return verdicts.STANDINGS[self.standing][0]

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(f"{head}: {text}" if head else text for head, text in self.parts)


@dataclass(frozen=True)
class Answered:
    """A question with its lines, what was shown first."""

    question: str
    lines: tuple[Line, ...]


Looked = Sequence[tuple[Column, str, Sequence[Row]]]
SEE, PICK, TEST = (
    "Who can see a patient’s image?",
    "Who can pick a patient out of look-alikes, or read the diagnosis?",
    "What was the strongest test?",
)


def first_screen(looked: Looked) -> list[Answered]:
    """The three answers. ``looked``: each column with its label and rows."""
    return [
        Answered(SEE, _lines(looked, ("redrawn",))),
        Answered(PICK, _lines(looked, ("picked", "diagnosis"))),
        Answered(TEST, _tests(looked)),
    ]


def _lines(looked: Looked, questions: tuple[Question, ...]) -> tuple[Line, ...]:
    grouped: dict[tuple[Standing, ...], list[tuple[str, Sequence[Row]]]] = {}
    for _, label, rows in looked:
        grouped.setdefault(tuple(worst(row.standing(q) for row in rows) for q in questions), []).append((label, rows))
    heads = {"picked": "Pick out", "diagnosis": "Diagnosis"} if len(questions) > 1 else {}
    lines = []
    for found, group in grouped.items():
        labels, tables = tuple(label for label, _ in group), [rows for _, rows in group]
        parts: list[tuple[str, str]] = []
        before: Named = ("", "")
        for question, standing in zip(questions, found, strict=True):
            text, before = _sentence(tables, question, standing, before)
            parts.append((heads.get(question, ""), words.capital(text)))
        lead = LEAD[worst(found)] + (" in part" if worst(found) == "no" and "none" in found else "")
        lines.append(Line(labels, worst(found), tuple(parts), lead))
    return tuple(sorted(lines, key=lambda line: WORST.index(line.standing)))


CAN = {"redrawn": ("redrawn", "see an image"), "picked": ("picked", "pick a patient out"), "diagnosis": ("read", "read the diagnosis")}


#: who was named last, and how; what is the same is not said twice.
Named = tuple[str, str]


def _sentence(tables: Sequence[Sequence[Row]], question: Question, standing: Standing, before: Named) -> tuple[str, Named]:
    """What holds for one question at defences of equal standing: by whom it was shown, else by whom it was tried."""
    done, by = CAN[question], _by_standing(tables, question)
    found = [f for table in tables for row in table for f in row.of(question) if f.standing == standing]
    best = worst_of(found)
    at = told.how(best) if best else ""
    rest = _proven(tables, question) + (" Others were not tried." if by["none"] else "")
    if standing == "yes":
        who = _whos(by["yes"]) + _uneven(tables, question, ("yes",))
        open_ = [row for s in OPEN for row in by[s]]
        more = f" Not shown for {_short(by['no'])}." if by["no"] else ""
        more += f" Could not be told for {_short(open_)}." if open_ else ""
        named = "the same" if who == before[0] else who
        return f"{named}{_figures(best, done[0], at if at != before[1] else '')}.{more}", (who, at)
    if standing == "no":
        who = f"none of the {len(by['no'])} who were tried" if len(by["no"]) > 1 else f"not {_whos(by['no'])}"
        who += _uneven(tables, question, ("no",))
        return f"{who}{_figures(best, done[0], at if at != before[1] else '')}.{rest}", (who, at)
    if standing in OPEN:
        why = " or ".join(dict.fromkeys(map(told.why_open, found)))
        further = [row for s in OPEN if s != standing for row in by[s]]
        rest = (f" Open for {_short(further)} too." if further else "") + (f" Not shown for {_short(by['no'])}." if by["no"] else "") + rest
        return f"it is open whether {_whos(by[standing])} can {done[1]}: {why}.{rest}", ("", "")
    if standing == "hidden":
        proven = all(verdicts.crypto(row) for row in by["hidden"])
        condition = ", as long as the assumptions of the encryption hold" if proven else ", but no guarantee says that it stays so"
        return f"{_whos(by['hidden'])} could decode nothing of a single site{condition}.{rest}", ("", "")
    return "nobody tried, which is no sign of safety.", ("", "")


def _proven(tables: Sequence[Sequence[Row]], question: Question) -> str:
    """A bound on picking that holds for all who were tried, at every one of these defences; the weakest of them."""
    tried = [row for table in tables for row in table if row.of(question)]
    limits = [limit for row in tried if (limit := verdicts.proven_limit(row))]
    if question != "picked" or not limits or len(limits) < len(tried):
        return ""
    return f" Proven for any attack, over the whole run: at most {told.percent(max(one.rate for one in limits))}."


def _uneven(tables: Sequence[Sequence[Row]], question: Question, standings: Sequence[Standing]) -> str:
    """Said where these are not the same at every defence."""
    sets = {frozenset((row.vantage, row.lying) for row in table if row.standing(question) in standings) for table in tables}
    return " (the table says at which)" if len(sets) > 1 else ""


def _by_standing(tables: Sequence[Sequence[Row]], question: Question) -> dict[Standing, list[Row]]:
    """Everybody at these defences, each once, at the worst standing."""
    found: dict[tuple[str, bool], Row] = {}
    for row in (row for table in tables for row in table):
        known = found.setdefault((row.vantage, row.lying), row)
        if WORST.index(row.standing(question)) < WORST.index(known.standing(question)):
            found[row.vantage, row.lying] = row
    ordered = [found[key] for key in sorted(found, key=vantage_order)]
    return {s: [row for row in ordered if row.standing(question) == s] for s in WORST}


def _short(rows: Sequence[Row]) -> str:
    return told.listed(map(told.who_short, rows))


def _whos(rows: Sequence[Row]) -> str:
    return told.listed(map(told.who, rows)) if len(rows) <= 2 else _short(rows)


def _figures(best: Finding | None, done: str, at: str) -> str:
    """``: redrawn in up to 9 of 10 tries, in a staged training step on one image, round 1``."""
    if best is None:
        return ", from the redrawn image"
    rate, among = best.rate, told.gallery(best)
    count = f"{done} in {'up to' if best.standing == 'yes' else 'at most'} {told.counted(rate)} tries" if rate else ""
    count += f" among {among}" if among else "" if best.guess is None or not rate else f" (guessing: {told.percent(best.guess)})"
    said = [part for part in (count, at) if part]
    return f": {', '.join(said)}" if said else ""


def _tests(looked: Looked) -> tuple[Line, ...]:
    grouped: dict[tuple[Standing, str], list[str]] = {}
    for _, label, rows in looked:
        owner = {id(f.record): row for row in rows for f in row.findings}
        best = strongest_test([f for row in rows for f in row.findings])
        text = f"No attack told anything. {NO_SIGN}" if best is None else _test(best, owner[id(best.record)])
        grouped.setdefault(("none" if best is None else best.standing, text), []).append(label)
    lines = [Line(tuple(labels), standing, (("", text),), CAME[standing]) for (standing, text), labels in grouped.items()]
    return tuple(sorted(lines, key=lambda line: WORST.index(line.standing)))


def _test(best: Finding, row: Row) -> str:
    attack = words.capital(str(best.record.get("attack")))
    return f"{attack} by {told.who_short(row)}: {told.task(best)}. {told.control(best)}"
