"""The evidence of a page: first screen, table of who could learn what, pictures, curves, audits, and what was not tested."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pppml_core.report import evidence_figures as figures
from pppml_core.report import evidence_verdicts as verdicts
from pppml_core.report import evidence_words as told
from pppml_core.report import words
from pppml_core.report.columns import Column
from pppml_core.report.evidence_findings import QUESTIONS, is_audit, plain_numbers
from pppml_core.report.evidence_first import Looked, first_screen
from pppml_core.report.evidence_gaps import gaps
from pppml_core.report.evidence_rows import Row, audits, rows, vantage_order
from pppml_core.report.evidence_strips import strips
from pppml_core.report.records import Record

#: with more defences than this, their tables are folded.
OPEN = 3


def evidence(found: Sequence[Column]) -> dict[str, Any]:
    """Everything that the template shows. ``tested``: whether there is a record of an attack on what parties see."""
    attacked = [c for c in found if any(run.attacks for run in c.runs)]
    shown = [c for c in found if c in attacked or c.role == "federated"] if attacked else []
    looked: Looked = [(c, c.label, rows(c)) for c in shown]
    tested = any(table for _, _, table in looked)
    spots = figures.points([(label, table) for _, label, table in looked])
    curves = [p for p in (figures.by_defence(spots), figures.against_noise(spots), figures.against_cohort(spots)) if p is not None]
    audited = [one for column, label, _ in looked for one in _audited(column, label)]
    return {
        "tested": tested,
        "first": first_screen(looked) if tested else [],
        "alerts": _refuted(looked),
        "defences": [_defence(column, label, table) for column, label, table in looked],
        "overview": _overview(looked),
        "open": len(looked) <= OPEN,
        "marks": verdicts.MARKS,
        "protections": verdicts.PROTECTIONS,
        "strips": [strip for column, label, _ in looked for strip in strips(column, label)],
        "curves": curves,
        "audits": audited,
        "audit_figure": figures.claims([a for a in audited if math.isfinite(a.claimed + a.lower + a.ceiling)]),
        "custody": [(label, told.custody(column.first)) for column, label, _ in looked],
        "gaps": gaps(looked),
        "records": [(label, record) for column, label, _ in looked for run in column.runs for record in run.attacks],
    }


def _defence(column: Column, label: str, table: Sequence[Row]) -> dict[str, Any]:
    among = {f.rate.among for row in table for f in row.of("picked") if f.rate and f.rate.among}
    made = [_row(row) for row in table]
    return {
        "label": label,
        "words": words.capital(told.defence(column.first)),
        "among": f"{among.pop()} images" if len(among) == 1 else "many images",
        "rows": made,
        "others": any(row["others"] for row in made),
        "about": list(dict.fromkeys(str(r["about"]) for row in table for r in row.records if r.get("about"))),
        "claim": next((str(r["defence"]) for row in table for r in row.records if r.get("defence")), ""),
        "assumes": [str(a) for a in words.guarantees(column.first).get("assumes") or ()],
        "details": [_detail(row, record) for row in table for record in row.records],
    }


def _row(row: Row) -> dict[str, Any]:
    verdict = verdicts.verdict(row)
    return {
        "who": words.capital(told.who(row)),
        "answers": {question: verdicts.answer(row, question) for question in QUESTIONS},
        "others": verdicts.others(row),
        "guarantee": [] if verdict == "NO SUCH PARTY" else verdicts.guarantee(row),
        "verdict": verdict,
        "mark": verdicts.mark(row),
        "strength": verdicts.strength(row),
    }


def _detail(row: Row, record: Record) -> dict[str, str]:
    bound = record.get("bound")
    limit = ""
    if isinstance(bound, Mapping):
        numbers = plain_numbers(bound)
        over = {"rate": "in this one step" if record.get("staged") is True else "in this round", "whole_run": "over the whole run"}
        most = [f"at most {numbers[name]:.1%} {where}" for name, where in over.items() if name in numbers]
        limit = f"{'; '.join(most)} ({bound.get('method')}, {bound.get('adjacency')})" if most else str(bound.get("reason") or "")
    effort = record.get("effort")
    spent = plain_numbers(effort) if isinstance(effort, Mapping) else {}
    return {
        "attack": str(record.get("attack")),
        "who": told.who_short(row),
        "round": str(record.get("round", "–")),
        "kind": told.kind(record) or "–",
        "outcome": str(record.get("outcome", "not recorded")).replace("_", " "),
        "reason": str(record.get("reason", "not recorded")),
        "bound": limit,
        "effort": ", ".join(f"{_amount(value)} {name.replace('_', ' ')}" for name, value in spent.items() if name != "victims"),
    }


def _amount(value: float) -> str:
    """A whole number where it is one, or is large."""
    return f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"


def _overview(looked: Looked) -> dict[str, Any]:
    """Verdicts: a row a defence, a column a party."""
    if len(looked) < 2:
        return {}
    parties = {(row.vantage, row.lying): row for _, _, table in looked for row in table}
    keys = sorted(parties, key=vantage_order)
    cells = []
    for _, label, table in looked:
        by = {(row.vantage, row.lying): (verdicts.verdict(row), verdicts.mark(row), verdicts.short(row)) for row in table}
        cells.append((label, [by.get(key, ("NOT TESTED", verdicts.MARKS["NOT TESTED"], "")) for key in keys]))
    return {"heads": [words.capital(told.who_short(parties[key])) for key in keys], "rows": cells}


def _refuted(looked: Looked) -> list[str]:
    out = []
    for column, label, _ in looked:
        bad = [r for run in column.runs for r in run.attacks if r.get("violation") or (is_audit(r) and r.get("outcome") == "recovered")]
        if bad:
            text = f"The claim of privacy of {label} is refuted by {told.listed(dict.fromkeys(str(r.get('attack')) for r in bad))}"
            out.append(f"{text}: something is broken, and none of its promises should be relied on.")
    return out


def _audited(column: Column, label: str) -> list[figures.Audited]:
    out = []
    for record, run in audits(column):
        metrics = record.get("metrics")
        found = plain_numbers(metrics) if isinstance(metrics, Mapping) else {}
        values = [found.get(k, math.nan) for k in ("epsilon_claimed", "epsilon_lower", "epsilon_ceiling")]
        name = label if len(column.runs) == 1 else f"{label}, seed {run.seed}"
        if record.get("outcome") != "not_applicable":
            out.append(figures.Audited(name, values[0], values[1], values[2], str(record.get("reason", ""))))
    return out
