"""The sentences of *Does personalization pay?*: the answer first, then what stands behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pppml_core.report.columns import OWN_BEST
from pppml_core.report.personalization import FEWEST, LEVEL, Against, Gains, Measured, Method, seed_pairs
from pppml_core.report.tables import number


def answer(gains: Gains) -> list[str]:
    """What a reader wants to know first, and what cannot be told."""
    out = [f"Left out: {'; '.join(f'{c.label} ({reason})' for c, reason in gains.left_out)}."] if gains.left_out else []
    if gains.left_out and not any(c.role == "federated" for c in gains.columns):
        return ["This cannot be told: no federated run here has a result to compare.", *out]
    if not gains.levels:
        asked = {str(c.first.part("config", "run").get("metrics")) for c in gains.columns} or {"none"}
        return [f"This cannot be told: no scores of single sites left the sites (run.metrics: {', '.join(sorted(asked))}).", *out]
    if not any(m.model.role == "own" for m in gains.methods):
        out.append("No run here personalizes: what follows sets one model for all against each site alone.")
    alone = [
        m
        for m in gains.methods
        if m.alone is not None and m.alone.sites and (m.model.role == "own" or not m.model.column.has("personalized"))
    ]
    if not alone:
        which = "finished local-only" if any(c.role == "local-only" for c, _ in gains.left_out) else "local-only"
        text = f"Whether a site would be better off alone cannot be told: no {which} run on the same data was given."
        out.append(f"{text} Run the same configuration with personalization=local-only and give both folders to pppml report.")
    elif len(alone) > 1 and len({frozenset(m.alone.sites) for m in alone if m.alone is not None}) == 1:
        harmless = [m.model for m in alone if m.alone is not None and not m.alone.having(-1)]
        kept = f"{_of(len(harmless), len(alone))} methods leave no site worse off than it would be alone" if len(harmless) > 1 else ""
        kept = f"Only {harmless[0].name} leaves no site worse off than it would be alone" if len(harmless) == 1 else kept
        kept = kept or f"Every one of the {len(alone)} methods leaves at least one site worse off than it would be alone"
        out.append(f"{kept}{': ' + _listed([m.name for m in harmless]) if len(harmless) > 1 else ''}.")
        most = max(alone, key=lambda m: len(m.alone.having(-1)) if m.alone else 0)
        if most.alone is not None and (lost := most.alone.having(-1)):
            out[-1] += f" {most.model.name} leaves the most worse off: {_of(len(lost), len(most.alone.sites))}."
    out += _unequal(gains)
    if len(rows := [row for row in gains.rows if row.model.used and math.isfinite(row.mean)]) > 1:
        sites, any_has = gains.shared
        over = "" if len(sites) == any_has else f" (of {_of(len(sites), any_has)})"
        out.append(f"Highest mean of sites{over}: {_best(rows, 'mean')}. Highest worst site{over}: {_best(rows, 'worst')}.")
    return out


def _unequal(gains: Gains) -> list[str]:
    """That not every model was scored at every site, and what follows."""
    sites, any_has = gains.shared
    if len(sites) == any_has:
        return []
    every = dict.fromkeys(site for scored in gains.scored.values() for site in scored)
    lacking = {name: [_quoted(gains.names[s]) for s in every if s not in scored] for name, scored in gains.scored.items()}
    told = "; ".join(f"{name} not at {_listed(names)}" for name, names in lacking.items() if names)
    then = f"Means and worst sites below are over the {_of(len(sites), any_has)} sites that all have" if sites else "So none is ranked"
    return [f"Not every model was scored at every site: {told}. {then}; who gains and who loses is counted at each method's own sites."]


def tallies(gains: Gains) -> list[str]:
    """A sentence for each method: how many sites gain and lose by it, against alone and against one model for all."""
    out = []
    for method in gains.methods:
        if method.alone is not None and method.alone.sites:
            out.append(tally(method.alone, gains.names, "than alone"))
        if method.one is not None and method.one.sites and method.model.role == "own":
            out.append(tally(method.one, gains.names, f"than with {_base(method)}"))
    return out


def tally(against: Against, names: dict[str, str], than: str) -> str:
    """``3 of 5 sites are better off with X than alone, 2 of them clearly so; 1 is worse off, clearly so: Clinic C.``"""
    better, worse, level = (against.having(sign) for sign in (1, -1, 0))
    known = any(d.has_interval for d in against.sites.values())
    if not better and not worse:
        return f"No site gains or loses with {against.model.name}, against {than.removeprefix('than ').removeprefix('with ')}."
    head = f"{_of(len(better), len(against.sites))} sites {_are(len(better))} better off with {against.model.name} {than}"
    parts = [head + _clearly(len(better), len(against.clearly(1)), known)]
    if level:
        parts.append(f"{len(level)} {_are(len(level))} level")
    clear = against.clearly(-1)
    lost = f"{len(worse)} {_are(len(worse))} worse off{_clearly(len(worse), len(clear), known)}"
    if 0 < len(worse) < len(against.sites):
        mark = 0 < len(clear) < len(worse)
        lost += ": " + _listed([_quoted(names[s]) + (" (clearly)" if mark and s in clear else "") for s in worse])
    parts.append(lost if worse else "none is worse off")
    return "; ".join(parts) + "."


def intervals(gains: Gains) -> list[str]:
    """What the brackets are of, and why where they are not over patients."""
    if not gains.levels:
        return []
    cells = [cell for row in gains.levels.values() for cell in row]
    compared = [d for m in gains.methods for against in (m.alone, m.one) if against is not None for d in against.sites.values()]
    out = []
    if counts := [c.n for c in (*cells, *compared) if c.over == "patients" and c.has_interval]:
        seeds = {len(model.column.runs) for model in gains.models}
        averaged = "; a patient's score is first averaged over the seeds" if max(seeds) > 1 else ""
        span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        out.append(
            f"In brackets: 95 % bootstrap intervals over the test patients of each site ({span} a site; single images where a site names "
            f"no patients){averaged}. They cover the choice of patients, not the seed of training."
        )
        if any(c.over == "nothing" and c.n > 1 for c in cells):
            out.append("A site where every patient has the same score has no such interval: resampling tells nothing there.")
        if min(counts) < FEWEST:
            out.append(f"With fewer than {FEWEST} patients no difference is called clear, whatever its interval.")
    if any(c.over == "seeds" and c.has_interval for c in (*cells, *compared)):
        which = "The other brackets" if counts else "In brackets"
        out.append(f"{which}: 95 % Student intervals over seeds. They cover seeds only, not the choice of patients.")
    if not any(c.has_interval for c in (*cells, *compared)):
        out.append("No number here has an interval, so a small difference means nothing.")
    out += [f"No interval over patients for {_listed(labels)}: {reason}." for reason, labels in gains.reasons.items()]
    if (own := str(gains.columns[0].first.primary_metric)) != gains.metric:
        out.append(f"{gains.metric} is shown, since patients have no {own.replace('_', ' ')} of their own; the table above has it.")
    return out


def meaning(gains: Gains) -> list[str]:
    """What the words and numbers are, exactly."""
    dice = gains.metric == "dice"
    share = "the mean of d over its patients" if dice else "the mean of d, each patient counted with the number of its images"
    out = [
        "Harmed: a site that is better off alone, because its score with the method lies at least 0.0005 below its score with local-only. "
        "The same is counted against one model for all.",
        "Clearly: the 95 % interval of the paired difference excludes zero.",
        "Difference at a site: for each test patient, d = score with the method - score without it, each the mean over the seeds that both "
        f"were run with, if any; the site's difference is {share}. Interval: bias-corrected and accelerated bootstrap (Efron 1987), 2000 "
        "resamples of patients. Without scores of single patients: the mean difference over shared seeds, with Student's interval.",
        f"Even where nothing differs, about one in twenty such intervals excludes zero; {_count(gains)} were looked at here.",
    ]
    compared = [a for m in gains.methods for a in (m.alone, m.one) if a is not None and a.sites]
    apart = dict.fromkeys(f"{a.model.name} and {a.base.name}" for a in compared if not seed_pairs(a.model.column, a.base.column))
    if apart:
        out.append(
            f"No seed in common: {'; '.join(apart)}. There each score is the mean over all seeds that its own method was run with, so the "
            "difference also holds that of the seeds; without scores of single patients it has no interval."
        )
    bases = dict.fromkeys(f"{m.model.label} against {_base(m)}" for m in gains.methods if m.one is not None and m.model.role == "own")
    if bases:
        out.append(f"One model for all: {'; '.join(bases)}.")
    if any(c.role == "local-only" for c in gains.columns) and len([c for c in gains.columns if c.role == "local-only"]) > 1:
        pairs = [f"{m.model.name} against {m.alone.base.label}" for m in gains.methods if m.alone is not None]
        out.append(f"Of several local-only runs the one with the most similar settings is taken: {'; '.join(pairs)}.")
    return out


def verdict(against: Against | None, sign: int) -> str:
    """A cell of the table of methods: ``1 of 5 (1 clearly)``."""
    if against is None or not against.sites:
        return "–"
    count, clear = len(against.having(sign)), len(against.clearly(sign))
    known = any(d.has_interval for d in against.sites.values())
    return f"{count} of {len(against.sites)}" + (f" ({clear} clearly)" if count and known else "")


def _best(rows: Sequence[Method], part: str) -> str:
    highest = max(getattr(row, part) for row in rows)
    return f"{_listed([row.model.name for row in rows if getattr(row, part) > highest - LEVEL])} ({number(highest)})"


def _base(method: Method) -> str:
    assert method.one is not None
    base = method.one.base
    if base.column is method.model.column:
        what = "plain FedAvg" if base.column.is_fedavg else OWN_BEST if base.column.chosen_by_own else ""
        return "its own global model" + (f" ({what})" if what else "")
    return f"the global model of {base.label}"


def _count(gains: Gains) -> int:
    found: list[Measured] = [d for m in gains.methods for a in (m.alone, m.one) if a is not None for d in a.sites.values()]
    return sum(d.has_interval for d in found)


def _clearly(count: int, clear: int, known: bool) -> str:
    if not known or not count:
        return ""
    if clear == count:
        return ", clearly so" if count == 1 else ", all clearly so"
    return f", {clear} of them clearly so" if clear else ", not clearly so" if count == 1 else ", none of them clearly so"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _quoted(name: str) -> str:
    return f"“{name}”" if "," in name else name


def _listed(words: Sequence[str], most: int = 6) -> str:
    shown = list(words[:most]) + ([f"{len(words) - most} more"] if len(words) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"
