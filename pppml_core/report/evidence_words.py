"""Words of the evidence: who looks, what was tried on how many, and what protects. Made of records and guarantees, of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pppml_core.report import words
from pppml_core.report.evidence_findings import PATIENTS, Finding, Rate
from pppml_core.report.evidence_rows import Row
from pppml_core.report.records import Record, RunRecords

#: of each claim: one of what is attacked, several of them (empty: they are not counted), and what was to come of it.
NOUNS: Mapping[str, tuple[str, str, str]] = {
    "redrawn": ("image", "images", "to be redrawn"),
    "picked": ("image", "images", "to be picked out"),
    "named": ("training step", "training steps", "whose diagnoses were to be read"),
    "measured": ("training step", "training steps", "whose lesions were to be measured"),
    "decoded": ("update", "updates", "to be decoded"),
    "members": ("training image", "training images", "to be told from others"),
    "placed": ("image", "images", "to be traced to their hospital"),
    "key": ("", "", "the secret key was to be found"),
    "read": ("message", "messages", "of two contents to be told apart"),
}
#: what else a party may be able to do, and what is out where it was shown.
OTHERS = {"key": "find the secret key", "decoded": "read one site's update", "members": "tell who was trained on",
          "placed": "tell the hospital of an image", "read": "tell messages apart", "else": "do what else was tried"}  # fmt: skip
OUT = {"redrawn": "image", "picked": "identity", "named": "diagnosis", "measured": "lesion size", "key": "secret key",
       "decoded": "a site’s update", "members": "who was trained on", "placed": "hospital of an image", "read": "messages told apart",
       "else": "what was tried"}  # fmt: skip
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
    told = [_one(kind, name, run, together=len(parts) > 1) for kind, name in parts]
    if "server" in row.kinds:
        follows = ", following the protocol" if row.follows and len(parts) == 1 else ""
        told[0] = "the central server" + (", lying about the model" if row.lying else follows)
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


def percent(rate: float) -> str:
    """``4 %``, with a digit more where it is small."""
    return f"{rate:.0%}" if rate == 0 or rate >= 0.0995 or abs(100 * rate - round(100 * rate)) < 0.05 else f"{rate:.1%}"


def victims(found: Finding) -> str:
    """``100 images of 36 patients``; empty where it is not recorded how many there were."""
    one, many, _ = NOUNS.get(found.claim, ("trial", "trials", ""))
    if not found.count or not many:
        return ""
    people = found.people
    return f"{found.count} {one if found.count == 1 else many}" + (f" of {people} patient{'' if people == 1 else 's'}" if people else "")


def task(found: Finding) -> str:
    """``100 images of 36 patients to be picked out``."""
    _, many, purpose = NOUNS.get(found.claim, ("", "", "what it looks for was to be found"))
    return f"{victims(found) or many} {purpose}".strip()


def gallery(found: Finding) -> str:
    """``100 images (99 look-alikes; guessing: 1%)``, as far as it is recorded; empty where nobody was picked from a gallery."""
    rate, alike, guess = found.rate, found.look_alikes, found.guess
    if not rate or not rate.among:
        return ""
    more = [] if alike is None else [f"{alike:.0f} look-alike{'' if round(alike) == 1 else 's'}"]
    more += [] if guess is None else [f"guessing: {percent(guess)}"]
    return f"{rate.among} images" + (f" ({'; '.join(more)})" if more else "")


def figures(found: Finding) -> str:
    """``0 of 10 (at most 26 %; guessing 2 %)``."""
    rate = found.rate
    if rate is None:
        return f"{told} tried" if (told := victims(found)) else ""
    within = f"at most {rate.most:.0%}" if found.standing == "no" else f"{rate.low:.0%} to {rate.high:.0%}"
    guess = "" if found.guess is None else f"; guessing {percent(found.guess)}"
    return f"{counted(rate)}{f' at {rate.at} false alarms' if rate.at else ''} ({within}{guess})"


def why_open(found: Finding) -> str:
    """Why nothing follows from a test that was made."""
    if found.standing == "undecided":
        return "more was found than guessing gives, but in too few trials"
    if found.standing == "broke":
        return "the attack itself broke"
    if found.passed is False:
        return "the test fails with the defence off too" if found.claim in PATIENTS else "the test fails in the control too"
    return "the test was inconclusive"


def control(found: Finding) -> str:
    """Whether the control passed, and what follows from the test."""
    record, off = found.record.get("control"), counted(found.control)
    what = str(record.get("what") or "") if isinstance(record, Mapping) else ""
    defence_off = found.claim in PATIENTS
    if found.passed is None:
        told = "No control is recorded"
    elif found.passed:
        told = "Control passed"
        if defence_off:
            told += f": with the defence off it succeeds for {off}" if off else ""
        elif what:
            told += f": {what}" + (f", {off}" if off else "")
    else:
        told = "Control not passed" + (f" ({off}{' with the defence off' if defence_off else ''})" if off else "")
    nothing = {"undecided": "It found more than guessing gives, but in too few trials, so it proves nothing",
               "broke": "But the attack itself broke, so it proves nothing",
               "untested": "So it proves nothing"}.get(found.standing, "")  # fmt: skip
    if not nothing and found.standing == "no" and not found.passed:
        nothing = "So it proves nothing"
    patients = "" if defence_off else " It is a test of the scheme, not of any patient’s image."
    return f"{told}.{f' {nothing}.' if nothing else ''}{patients}"


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
