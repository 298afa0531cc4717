"""The first screen: who can see an image, who can pick a patient out or read the diagnosis, and what the strongest test was.

Defences of which the same is true share a line. Every sentence is put together from records of attacks and recorded guarantees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pppml_core.report import evidence_words as told
from pppml_core.report import words
from pppml_core.report.columns import Column
from pppml_core.report.evidence_rows import ORDER, Finding, Question, Row, Standing, best_tried, strongest

#: standing -> what stands first on a line.
LEAD: dict[Standing, str] = {
    "yes": "Shown", "undecided": "Could not be told", "no": "Not shown", "untested": "Could not be told", "hidden": "Nothing to read",
    "absent": "Not tested", "none": "Not tested",
}  # fmt: skip
#: the same of the strongest test.
CAME: dict[Standing, str] = {
    "yes": "It succeeded", "undecided": "It proves nothing", "no": "It failed", "untested": "It proves nothing", "hidden": "No test",
    "absent": "No test", "none": "No test",
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
        return told.STANDINGS[self.standing][0]

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
    grouped: dict[tuple[object, ...], list[tuple[str, Sequence[Row]]]] = {}
    for _, label, rows in looked:
        key = tuple((row.vantage, row.lying, tuple(row.standing(q) for q in questions)) for row in rows)
        grouped.setdefault(key, []).append((label, rows))
    lines = []
    for group in grouped.values():
        labels, tables = tuple(label for label, _ in group), [rows for _, rows in group]
        standing = strongest(row.standing(q) for rows in tables for row in rows for q in questions)
        heads = {"picked": "Pick out", "diagnosis": "Diagnosis"} if len(questions) > 1 else {}
        parts = tuple((heads.get(q, ""), words.capital(_sentence(tables, q))) for q in questions)
        lines.append(Line(labels, standing, parts, LEAD[standing]))
    return tuple(sorted(lines, key=lambda line: ORDER.index(line.standing)))


CAN = {"redrawn": ("redrawn", "see an image"), "picked": ("picked", "pick a patient out"), "diagnosis": ("read", "read the diagnosis")}


def _sentence(tables: Sequence[Sequence[Row]], question: Question) -> str:
    """What holds for one question at defences of equal standings: by whom it was shown, else by whom it was tried."""
    rows, done = tables[0], CAN[question]
    by = {s: [row for row in rows if row.standing(question) == s] for s in ORDER}
    standing = strongest(s for s, held in by.items() if held)
    best = best_tried([f for table in tables for row in table for f in row.of(question) if f.standing == standing])
    if standing == "yes":
        open_ = [row for s in ("undecided", "untested") for row in by[s]]
        not_for = f" Not shown for {_short(by['no'])}." if by["no"] else ""
        return f"{_whos(by['yes'])}{_figures(best, done[0])}.{not_for}" + (f" Could not be told for {_short(open_)}." if open_ else "")
    if standing == "no":
        tried = [*by["no"], *by["untested"], *by["hidden"]]
        whom = f"none of the {len(tried)} who were tried" if len(tried) > 1 else f"not {_whos(tried)}"
        could = f" For {_short(by['untested'])} the test proves nothing." if by["untested"] else ""
        return f"{whom}{_figures(best, done[0])}.{could}{_rest(by['none'])}"
    if standing in ("undecided", "untested"):
        why = (
            "more was found than guessing gives, but in too few trials"
            if standing == "undecided"
            else "the test fails with the defence off too"
        )
        return f"it is open whether {_whos(by[standing])} can {done[1]}: {why}.{_rest(by['none'])}"
    if standing == "hidden":
        proven = all(told.crypto(row) for row in by["hidden"])
        condition = ", as long as the assumptions of the encryption hold" if proven else ", but no guarantee says that it stays so"
        return f"{_whos(by['hidden'])} could decode nothing of a single site{condition}.{_rest(by['none'])}"
    return "nobody tried, which is no sign of safety."


def _rest(untried: Sequence[Row]) -> str:
    return f" Not tried: {_short(untried)}." if untried else ""


def _short(rows: Sequence[Row]) -> str:
    return told.listed(map(told.who_short, rows))


def _whos(rows: Sequence[Row]) -> str:
    return told.listed(map(told.who, rows)) if len(rows) <= 2 else _short(rows)


def _figures(best: Finding | None, done: str) -> str:
    """``: redrawn in 9 of 10 tries, in a staged training step on one image, round 1``."""
    if best is None:
        return ", from the redrawn image"
    rate = best.rate
    among = f" among {rate.among} look-alikes" if rate and rate.among else ""
    count = f"{done} in {'up to ' if best.standing == 'yes' else ''}{told.counted(rate)} tries{among}, " if rate else ""
    return f": {count}{told.how(best)}"


def _tests(looked: Looked) -> tuple[Line, ...]:
    grouped: dict[tuple[Standing, str], list[str]] = {}
    for _, label, rows in looked:
        owner = {id(f.record): row for row in rows for f in row.findings}
        best = best_tried([f for row in rows for f in row.findings])
        text = f"No attack told anything. {NO_SIGN}" if best is None else _test(best, owner[id(best.record)])
        grouped.setdefault(("none" if best is None else best.standing, text), []).append(label)
    lines = [Line(tuple(labels), standing, (("", text),), CAME[standing]) for (standing, text), labels in grouped.items()]
    return tuple(sorted(lines, key=lambda line: ORDER.index(line.standing)))


def _test(best: Finding, row: Row) -> str:
    victims = f"{best.victims} patient{'' if best.victims == 1 else 's'}"
    what = {"picked": "to be picked out", "redrawn": "to be redrawn", "named": "whose diagnosis was to be read",
            "measured": "whose lesion was to be measured"}.get(best.claim, f"to {told.OTHERS.get(best.claim, best.claim)}")  # fmt: skip
    off = best.control
    if best.passed:
        control = "Control passed" + (f": with the defence off it succeeds for {told.counted(off)}" if off else "")
    else:
        control = "Control not passed" + (f" ({told.counted(off)} with the defence off)" if off else "") + ", so it proves nothing"
    return f"{words.capital(str(best.record.get('attack')))} by {told.who_short(row)}: {victims} {what}. {control}."
