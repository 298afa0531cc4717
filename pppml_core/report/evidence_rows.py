"""Rows of the evidence: who looks at one defence (a column), everything that was tried from there, and what bounds it.

Where findings differ the one that tells most about a leak counts: shown, then undecided, then not shown, then what does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pppml_core.report.columns import Column
from pppml_core.report.evidence_findings import Finding, Question, Standing, findings_of, is_audit, plain_numbers, strongest
from pppml_core.report.records import Record, RunRecords, items


@dataclass(frozen=True)
class Limit:
    """A proven bound: no attack is right more often than ``rate``, where the best blind guess is with rate ``kappa``.

    Args:
        rate: in [0, 1].
        kappa: of the best blind guess.
        among: images of which one was to be picked; 0: not recorded.
        over: what it counts: ``run``, all rounds of the run with the staged one; else the round of the record and its kind, in words.
    """

    rate: float
    kappa: float
    among: int
    over: str = "run"


@dataclass(frozen=True)
class Row:
    """Who looks at one defence, and everything that was tried from there.

    ``weaker``: the rows of parties that are all among these, who so can do no more.
    """

    vantage: str
    lying: bool
    column: Column
    findings: tuple[Finding, ...]
    records: tuple[Record, ...]
    weaker: tuple[Row, ...] = ()

    @property
    def parts(self) -> frozenset[str]:
        """What the vantage joins by ``+``."""
        return frozenset(part.strip() for part in self.vantage.split("+"))

    @property
    def kinds(self) -> frozenset[str]:
        """``server``, ``site`` ... of each part."""
        return frozenset(part.partition(":")[0] for part in self.parts)

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
        whys = [r.get("why") for r in self.records]
        if "hidden" in whys and self.smallest_sum is None:
            return "hidden"
        return "absent" if "no_such_party" in whys else "none"

    @property
    def leaks(self) -> bool:
        """Whether anything was shown."""
        return any(f.standing == "yes" for f in self.findings) or any(r.get("violation") is True for r in self.records)

    @property
    def follows(self) -> bool:
        """Whether every record of what this party saw says that the server did not lie."""
        told = [r.get("lied") for r in self.records if "staged" in r]
        return bool(told) and all(one is False for one in told)

    @property
    def looked(self) -> bool:
        """Whether it is recorded which sums this party decodes."""
        return any(r.get("exposed") or r.get("why") == "hidden" for r in self.records)

    @property
    def smallest_sum(self) -> int | None:
        """Over how many sites the smallest sum is that this party decodes and that holds the watched site; None: it decodes none."""
        sums = [(r.get("site"), e.get("sites")) for r in self.records for e in items(r.get("exposed"))]
        return min((len(sites) for site, sites in sums if isinstance(sites, list) and site in sites), default=None)

    @property
    def parties(self) -> frozenset[str] | None:
        """The parties of the protocol that these are; None where it is not recorded who they are."""
        named = {name for kind, _, name in (part.partition(":") for part in self.parts) if kind == "site"}
        if "server" in self.kinds:
            named.add("server")
        # Who is a neighbour differs from ring to ring, and the records alone know of how many there are.
        told = [r["members"] for r in self.records if isinstance(r.get("members"), list)]
        if "neighbours" in self.kinds and not any(told):
            return None
        return frozenset(named) | max((frozenset(map(str, members)) for members in told), key=len, default=frozenset())

    @property
    def limit(self) -> Limit | None:
        """The weakest bound over all rounds of the run, also of those who are among these; None: there is none, or it is not recorded."""
        own, others = self.whole, [one for row in self.weaker for one in row.whole]
        known = [one for one in (*own, *others) if one is not None]
        if not own or len(known) < len(own) + len(others):
            return None
        return max(known, key=lambda one: one.rate)

    @property
    def whole(self) -> list[Limit | None]:
        """Of every record with a bound, that over all rounds of the run; None where the record has none."""
        return [_limit(r, b, "whole_run", self.column.first, "run") for r, b in self._bounds]

    @property
    def step(self) -> Limit | None:
        """The weakest bound that is on what was attacked alone, a staged step or a round."""
        made = [_limit(r, b, "rate", self.column.first, _over(r)) for r, b in self._bounds]
        return max((one for one in made if one is not None), key=lambda one: one.rate, default=None)

    @property
    def _bounds(self) -> list[tuple[Record, Mapping[str, object]]]:
        return [(r, b) for r in self.records if isinstance(b := r.get("bound"), Mapping)]


def _limit(record: Record, bound: Mapping[str, object], name: str, run: RunRecords, over: str) -> Limit | None:
    numbers = plain_numbers(bound)
    if not (0 <= numbers.get(name, -1) <= 1 and "kappa" in numbers):
        return None
    among = [f.rate.among for f in findings_of(record, run) if f.rate and f.rate.among]
    return Limit(numbers[name], numbers["kappa"], max(among, default=0), over)


def _over(record: Record) -> str:
    """What the bound of a record counts that is not on the whole run."""
    if record.get("staged") is True:
        return f"in this one step, at round {record.get('round', '?')}, and the model it began with"
    return f"up to round {record.get('round', '?')}"


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
    return sorted(
        (replace(row, weaker=tuple(one for one in made if one is not row and _among(one, row))) for row in made),
        key=lambda row: vantage_order((row.vantage, row.lying)),
    )


def _among(one: Row, other: Row) -> bool:
    """Whether whoever is ``one`` is a part of ``other``, and so can do no more."""
    if one.lying > other.lying:
        return False
    if one.parts <= other.parts:
        return True
    # What everybody may read, every party of the protocol has.
    mine, theirs = one.parties if one.kinds <= {"server", "site", "neighbours", "public"} else None, other.parties
    return mine is not None and theirs is not None and bool(theirs) and mine <= theirs


def vantage_order(key: tuple[str, bool]) -> tuple[int, int, bool, str]:
    """Server, coalitions with it, sites, neighbours, lines, outsiders."""
    kinds = [part.strip().partition(":")[0] for part in key[0].split("+")]
    known = ("server", "site", "neighbours", "link", "public")
    return (known.index(kinds[0]) if kinds[0] in known else len(known), len(kinds), key[1], key[0])


def lied(record: Record) -> bool:
    """Whether the record says that the server lied about the model."""
    return record.get("lied") is True


def audits(column: Column) -> list[tuple[Record, RunRecords]]:
    """Records that test the claim of privacy itself."""
    return [(record, run) for run in column.runs for record in run.attacks if is_audit(record)]
