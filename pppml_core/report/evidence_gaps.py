"""What no record of attacks speaks of: what pppml has no test for, and what could have been tried here and was not."""

from __future__ import annotations

from collections.abc import Sequence

from pppml_core.report import evidence_words as told
from pppml_core.report.columns import Column
from pppml_core.report.evidence_findings import OPEN
from pppml_core.report.evidence_rows import Row

#: open whatever is run: no attack of pppml looks at these.
ALWAYS = (
    "Attackers who know what such images look like from a generative model: sharper pictures may be possible than those shown here.",
    "Side channels: time taken, memory, power, and whoever controls a hospital’s computer.",
    "Metadata: who takes part and when, sizes and times of messages, and the number of examples of a site where it serves as its weight.",
    "Sites that send poisoned updates to draw out what others hold.",
)
KINDS = {"server": "the central server", "site": "another site", "neighbours": "neighbours in a ring", "link": "who listens on a line",
         "public": "somebody with only the models"}  # fmt: skip
CLAIMS = {"redrawn": "redrawing an image", "picked": "picking a patient out", "named": "reading the diagnosis",
          "members": "telling who was trained on", "placed": "telling the hospital of an image"}  # fmt: skip


def gaps(looked: Sequence[tuple[Column, str, Sequence[Row]]]) -> list[str]:
    """Sentences, what is missing here first."""
    rows = [row for _, _, found in looked for row in found]
    if not rows:
        return ["Everything: no attack was run, so nothing on this page shows what an adversary could learn.", *ALWAYS]
    out, findings = [], [f for row in rows for f in row.findings]
    # Who was found to decode nothing, or not to exist, was looked for; an attack that did not apply looked at nothing.
    kinds = {kind for row in rows if row.findings or row.silent in ("hidden", "absent") for kind in row.kinds}
    if absent := [name for kind, name in KINDS.items() if kind not in kinds]:
        out.append(f"Nobody looked as {told.listed(absent)}.")
    tried = {f.claim for f in findings} | ({"named"} if any(f.claim == "measured" for f in findings) else set())
    if untried := [name for claim, name in CLAIMS.items() if claim not in tried]:
        out.append(f"Nobody tried {told.listed(untried)}.")
    if unread := [label for _, label, found in looked if not any(row.findings for row in found)]:
        out.append(f"No attack told anything about {told.listed(unread)}.")
    if doubtful := [f for f in findings if f.standing in OPEN]:
        pairs = dict.fromkeys(str(f.record.get("attack")) for f in doubtful)
        out.append(f"{len(doubtful)} of {len(findings)} tests could not have told, or not beyond doubt ({told.listed(pairs)}).")
    if not any(row.lying and row.findings for row in rows):
        out.append("A server that lies about the model: no test of one told anything.")
    views = [f for f in findings if isinstance(f.record.get("staged"), bool)]
    if views and all(f.record["staged"] for f in views):
        out.append("Whole rounds: every attack was on a staged training step, an attacker’s best case.")
    elif views:
        out.append("What several recorded rounds give away together, where an attack looked at one alone.")
    rounds = sorted({r for f in views if isinstance(r := f.record.get("round"), int)})
    out.append(f"Rounds other than {told.listed(map(str, rounds))}." if rounds else "Any round.")
    if sites := {str(f.record["site"]) for f in views if f.record.get("site")}:
        out.append(f"Patients of sites other than {told.listed(told.site(s, rows[0].column.first) for s in sorted(sites))}.")
    return [*out, *ALWAYS]
