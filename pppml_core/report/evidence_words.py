"""Words of the evidence: who looks, what was found, what protects. Made of attack records and recorded guarantees, of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pppml_core.report import words
from pppml_core.report.evidence_rows import Finding, Question, Rate, Row, Standing
from pppml_core.report.records import Record, RunRecords

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
    "yes": ("✗", "yes"), "undecided": ("?", "perhaps"), "no": ("○", "not shown"), "untested": ("?", "inconclusive"),
    "hidden": ("◆", "sees nothing of it"), "absent": ("·", "no such party"), "none": ("–", "not tested"),
}  # fmt: skip
OTHERS = {"members": "tell who was trained on", "placed": "tell the hospital of an image", "decoded": "read one site's update",
          "read": "read messages"}  # fmt: skip
SUMS = {
    "plain": "updates in the clear at the server", "secagg-plus": "masked sum (secagg-plus)",
    "he-fedavg": "encrypted sum at the server (he-fedavg)", "cyclic-he": "encrypted sum along a ring (cyclic-he)",
}  # fmt: skip


def defence(run: RunRecords) -> str:
    """What protects the updates, in one line."""
    aggregator, privacy = run.part("config", "aggregator"), words.privacy(run)
    use = str(aggregator.get("use") or "")
    told = SUMS.get(use, use or "aggregator not recorded")
    if aggregator.get("variant") == "paper":
        told += ", as published"
    elif isinstance(rings := aggregator.get("rings"), int):
        told += f", {rings} ring{'s' if rings > 1 else ''}"
    mechanism = str(run.part("config", "privacy").get("use") or privacy.get("mechanism") or "none")
    where = {"local": "at every site", "distributed": "shared out over the sites", "server": "by the server"}
    if mechanism == "none":
        return f"{told}; no noise"
    if mechanism == "clip-only":
        return f"{told}; updates cut to a size, no noise"
    return f"{told}; noise ({mechanism}) {where.get(str(privacy.get('placement')), '')}".rstrip()


def site(slug: str, run: RunRecords) -> str:
    """A site's name, without what stands after a colon where that is enough."""
    names = run.site_names
    short = {s: n.partition(":")[0].strip() for s, n in names.items()}
    name = short.get(slug, slug)
    return name if list(short.values()).count(name) < 2 else names.get(slug, slug)


def who(row: Row) -> str:
    """Who looks, in plain words."""
    run, parts = row.column.first, [part.strip().partition(":")[::2] for part in row.vantage.split("+")]
    kinds = {kind for kind, _ in parts}
    told = [_one(kind, name, run, together=len(parts) > 1) for kind, name in parts]
    if "server" in kinds:
        told[0] = "the central server" + (", lying about the model" if row.lying else "" if len(parts) > 1 else ", following the protocol")
    return told[0] if len(told) == 1 else f"{told[0]} together with {listed(told[1:])}"


def who_short(row: Row) -> str:
    """Who looks, for a narrow cell."""
    run, told = row.column.first, []
    for part in row.vantage.split("+"):
        kind, _, name = part.strip().partition(":")
        told.append({"server": "server", "site": site(name, run), "neighbours": f"ring neighbours of {site(name, run)}",
                     "link": f"line {name}", "public": "outsider with the models"}.get(kind, part))  # fmt: skip
    return " + ".join(told) + (" (lying)" if row.lying else "")


def _one(kind: str, name: str, run: RunRecords, *, together: bool) -> str:
    if kind == "site":
        return site(name, run) if together else f"another site, {site(name, run)}, by itself"
    if kind == "neighbours":
        return f"the neighbours of {site(name, run)} in the ring"
    if kind == "link":
        one, _, other = name.partition("-")
        ends = ["the server" if end == "server" else site(end, run) for end in (one, other)]
        return f"whoever listens on the line between {ends[0]} and {ends[1]}"
    return {"server": "the central server", "public": "somebody who has only the published models"}.get(kind, f"{kind} {name}".strip())


def listed(told: Iterable[str], *, semicolons: bool = False) -> str:
    """``a, b and c``; parts that have commas of their own are set apart by semicolons."""
    parts = list(told)
    mark = ";" if semicolons or (len(parts) > 2 and any("," in p for p in parts)) else ","
    return parts[0] if len(parts) == 1 else f"{f'{mark} '.join(parts[:-1])}{mark if mark == ';' else ''} and {parts[-1]}" if parts else ""


def counted(rate: Rate | None) -> str:
    """``9 of 10``."""
    return "" if rate is None else f"{rate.hits} of {rate.n}"


def answer(row: Row, question: Question) -> dict[str, str]:
    """One cell: mark, word and figures."""
    standing, found = row.standing(question), row.of(question)
    mark, word = STANDINGS[standing]
    leading = [f for f in found if f.standing == standing]
    detail = ""
    if leading:
        shown = max(leading, key=lambda f: (f.rate.rate if f.rate else 0.0, f.victims) if standing == "yes" else (0.0, f.victims))
        detail = figures(shown)
        if doubtful := sum(f.standing == "untested" for f in found if f not in leading):
            detail += f"; {doubtful} of {len(found)} tests inconclusive"
    elif standing == "yes":
        detail = "from the redrawn image"
    return {"standing": standing, "mark": mark, "word": word, "detail": detail}


def figures(found: Finding) -> str:
    """``0 of 10 (at most 28 %; guessing 2 %)``."""
    rate = found.rate
    if rate is None:
        return f"{found.victims} tried" if found.victims else ""
    within = f"at most {rate.high:.0%}" if found.standing == "no" else f"{rate.low:.0%} to {rate.high:.0%}"
    return f"{counted(rate)} ({within}{f'; guessing {1 / rate.among:.0%}' if rate.among else ''})"


def others(row: Row) -> list[dict[str, str]]:
    """What else was tried from there."""
    out = []
    for claim in dict.fromkeys(f.claim for f in row.of("other")):
        one = Row(row.vantage, row.lying, row.column, tuple(f for f in row.findings if f.claim == claim), row.records)
        out.append({"what": OTHERS.get(claim, claim), **answer(one, "other")})
    return out


def crypto(row: Row) -> str:
    """What encryption promises against this party, as the aggregator's guarantees say; empty: nothing."""
    promised = words.guarantees(row.column.first)
    covered = promised.get("coalition_curious")
    if row.lying:
        covered = promised.get("coalition_active")
    if promised.get("sees_update") != [] or not isinstance(covered, int) or row.parties > covered:
        return ""
    size = row.smallest_sum
    if size == 1:
        return ""
    return f"it gets no more than a sum over {size} sites" if size else "it gets nothing of a single site"


def guarantee(row: Row) -> list[dict[str, str]]:
    """The formal promises against this party: kind, mark and words."""
    out = []
    if told := crypto(row):
        assumed = len(words.guarantees(row.column.first).get("assumes") or ())
        condition = f"if {assumed} assumption{'s hold' if assumed > 1 else ' holds'}" if assumed else "as the aggregator promises"
        out.append({"kind": "cryptographic", "mark": PROTECTIONS["cryptographic"][0], "text": f"{told}, {condition}"})
    if bound := row.bound:
        rate, blind, among = bound
        most = f"at most {rate:.1%} of patients can be picked{f' out of {among}' if among else ''} (blind guess {blind:.1%})"
        weak = "" if rate < MEANINGFUL else ": too weak to rely on"
        out.append({"kind": "statistical", "mark": PROTECTIONS["statistical"][0], "text": most + weak})
    return out


def verdict(row: Row) -> str:
    """One of :data:`MARKS`."""
    standings = [f.standing for f in row.findings]
    if row.leaks:
        return "LEAKS"
    if (row.bound is not None and row.bound[0] < MEANINGFUL) or (row.silent == "hidden" and crypto(row)):
        return "PROVEN BOUND"
    if "undecided" in standings:
        return "INCONCLUSIVE"
    if "no" in standings:
        return "NOT SHOWN TO LEAK"
    if "untested" in standings:
        return "INCONCLUSIVE"
    return "NO SUCH PARTY" if row.silent == "absent" else "NOT TESTED"


def mark(row: Row) -> str:
    """Of the verdict; a proven bound has that of the protection it rests on."""
    return PROTECTIONS["cryptographic"][0] if protection(row) == "cryptographic" else MARKS[verdict(row)]


def protection(row: Row) -> str:
    """What a verdict of protection rests on, one of :data:`PROTECTIONS`; empty for other verdicts."""
    told = verdict(row)
    if told == "PROVEN BOUND":
        return "statistical" if row.bound is not None and row.bound[0] < MEANINGFUL else "cryptographic"
    return "empirical" if told == "NOT SHOWN TO LEAK" else ""


def strength(row: Row) -> str:
    """What stands behind the verdict."""
    told = verdict(row)
    if told == "LEAKS":
        if any(r.get("violation") for r in row.records):
            return "the claim of privacy is refuted"
        kinds = {f.claim for f in row.findings if f.standing == "yes"}
        named = {"redrawn": "image", "picked": "identity", "named": "diagnosis", "measured": "lesion size"} | OTHERS
        return listed([text for claim, text in named.items() if claim in kinds])
    if told == "PROVEN BOUND":
        return "statistical" if protection(row) == "statistical" else "cryptographic, under its assumptions"
    tried = [f for f in row.findings if f.standing == "no"]
    if told == "NOT SHOWN TO LEAK":
        most = max(f.victims for f in tried)
        return f"empirical: {most} victim{'s' if most > 1 else ''}, control passed"
    if told == "INCONCLUSIVE":
        return "too few trials to tell" if any(f.standing == "undecided" for f in row.findings) else "control not passed"
    return "it decodes nothing, and no guarantee is stated" if row.silent == "hidden" else ""


def how(found: Finding) -> str:
    """What exactly was attacked, in a few words."""
    staged = found.record.get("staged")
    at = f"round {found.record.get('round', '?')}"
    if staged is None:
        return f"in {at}"
    about = str(found.record.get("about", ""))
    images = about.partition("one training step on ")[2].partition(" image")[0]
    what = f" on {images} image{'' if images == 'one' else 's'}" if images else ""
    return f"in a staged training step{what}, {at}" if staged else f"in {at} as it happened"


def kind(record: Record) -> str:
    """``staged step`` or ``recorded round``; empty where the record does not say."""
    return "staged step" if record.get("staged") is True else "recorded round" if record.get("staged") is False else ""


def custody(run: RunRecords) -> list[tuple[str, str]]:
    """Who holds which keys, as far as the aggregator's assumptions tell."""
    promised = words.guarantees(run)
    if not promised:
        return []
    keys = [str(a) for a in promised.get("assumes") or () if "key" in str(a)]
    if run.part("config", "aggregator").get("use", "plain") == "plain":
        keys = keys or ["the aggregator encrypts nothing, so there are no keys to keep"]
    return [
        ("Who holds the keys", " ".join(f"{words.capital(k)}." for k in keys) or "The aggregator’s assumptions name no holder of keys.")
    ]
