"""Figures of the evidence: victims picked out by defence, against noise and against the number of sites in a sum; epsilon, claimed and
audited. Colours are the page's; every mark has a shape of its own too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pppml_core.report import evidence_words as told
from pppml_core.report import words
from pppml_core.report.evidence_findings import ORDER, Finding, Rate, plain_numbers
from pppml_core.report.evidence_rows import Row
from pppml_core.report.figures import INK, MARKS, PAGE, RULE, SERIES, Key, Picture, chart, shorten

DASHED = (0, (4, 2))


@dataclass(frozen=True)
class Point:
    """One party at one defence: how often it picked the victim out, and what bounds that on what was attacked, a step or a round."""

    who: str
    label: str
    row: Row
    found: Finding
    rate: Rate
    bound: float | None


def points(looked: Sequence[tuple[str, Sequence[Row]]]) -> list[Point]:
    """Of each party at each defence the test that tells most about a leak, then the one on most victims. ``looked``: labels with rows."""
    out = []
    for label, rows in looked:
        for row in rows:
            rates = [(f, f.rate) for f in row.of("picked") if f.rate and f.rate.among and f.standing in ("yes", "undecided", "no")]
            if rates:
                found, rate = max(rates, key=lambda pair: (-ORDER.index(pair[0].standing), pair[1].n, pair[1].rate))
                limit = found.record.get("bound")
                bound = plain_numbers(limit).get("rate") if isinstance(limit, Mapping) else None
                out.append(Point(told.who_short(row), label, row, found, rate, bound))
    return out


def by_defence(found: Sequence[Point]) -> Picture | None:
    """How often victims were picked out: a row a defence, a mark a party, the best guess as a dashed line, bounds as ticks."""
    labels, parties = _distinct([p.label for p in found]), _distinct([p.who for p in found])[:8]
    if not found or len(found) < 2:
        return None
    step = 0.7 / max(len(parties), 3)
    with chart(5.2, 0.8 + max(0.34, 0.15 * len(parties)) * len(labels)) as (axes, svg):
        axes.set(ylim=(len(labels) - 0.4, -0.6), xlim=(-0.03, 1.03))
        axes.set_yticks(range(len(labels)), [shorten(label) for label in labels], parse_math=False)
        for p in found:
            if p.who not in parties:
                continue
            place = parties.index(p.who)
            at = labels.index(p.label) + (place - (len(parties) - 1) / 2) * step
            axes.hlines(at, p.rate.low, p.rate.high, color=SERIES[place], linewidth=1.6)
            axes.plot(p.rate.rate, at, MARKS[place][0], markersize=5, color=SERIES[place])
            if p.found.guess is not None:
                axes.vlines(p.found.guess, at - step / 2, at + step / 2, color=INK, linewidth=1.2, linestyle=DASHED)
            if p.bound is not None and p.bound < 1:
                axes.plot(p.bound, at, "|", markersize=9, markeredgewidth=2, color=INK)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("victims picked out")
    alt = "Victims picked out. " + "; ".join(f"{p.label}, {p.who}: {_said(p)}" for p in found)
    return Picture(svg[0], f"{alt}.", "By defence", (*_keys(parties), *_lines(found)))


def against_noise(found: Sequence[Point]) -> Picture | None:
    """The same against the noise on a step, in clips; None without two amounts of noise."""
    return _against(found, _noise, "noise on a step, in clips (standard deviation)", "Against noise")


def against_cohort(found: Sequence[Point]) -> Picture | None:
    """The same against the number of sites in the smallest sum that is seen, where there is no noise; None without two numbers."""
    quiet = [p for p in found if _noise(p) == 0]
    return _against(quiet, lambda p: p.row.smallest_sum, "sites in the smallest sum that is seen", "Against the number of sites in a sum")


def _against(found: Sequence[Point], of: Callable[[Point], float | None], axis: str, title: str) -> Picture | None:
    placed = [(float(x), p) for p in found if (x := of(p)) is not None]
    if len({x for x, _ in placed}) < 2:
        return None
    parties = _distinct([p.who for _, p in placed])[:8]
    with chart(4.6, 3.0) as (axes, svg):
        axes.set_ylim(-0.03, 1.05)
        guessed = sorted({(x, p.found.guess) for x, p in placed if p.found.guess is not None})
        if guessed:
            axes.plot([x for x, _ in guessed], [g for _, g in guessed], color=INK, linewidth=1.2, linestyle=DASHED)
        for place, party in enumerate(parties):
            mine = sorted(((x, p) for x, p in placed if p.who == party), key=lambda pair: pair[0])
            xs = [x for x, _ in mine]
            axes.vlines(xs, [p.rate.low for _, p in mine], [p.rate.high for _, p in mine], color=SERIES[place], linewidth=1.4, alpha=0.6)
            axes.plot(xs, [p.rate.rate for _, p in mine], marker=MARKS[place][0], markersize=5, color=SERIES[place], linewidth=1.5)
        bounds = sorted({(x, p.bound) for x, p in placed if p.bound is not None})
        if bounds:
            axes.plot([x for x, _ in bounds], [b for _, b in bounds], color=INK, linewidth=1.2, marker="_", markersize=9)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel(axis)
        if all(x.is_integer() for x, _ in placed):
            axes.set_xticks(sorted({x for x, _ in placed}))
    alt = f"{title}. " + "; ".join(f"{p.who} at {x:g}: {_said(p)}" for x, p in placed)
    return Picture(svg[0], f"{alt}.", title, (*_keys(parties), *_lines([p for _, p in placed])))


@dataclass(frozen=True)
class Audited:
    """What an audit of the privacy claim measured: lower bound, and the most it could have shown with every guess right."""

    label: str
    claimed: float
    lower: float
    ceiling: float
    reason: str


def claims(found: Sequence[Audited]) -> Picture | None:
    """Epsilon, claimed and audited, as bars; a tick marks what the audit could certify at most."""
    if not found:
        return None
    with chart(5.2, 0.8 + 0.5 * len(found)) as (axes, svg):
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_yticks(range(len(found)), [shorten(a.label) for a in found], parse_math=False)
        for at, one in enumerate(found):
            axes.barh(at - 0.17, one.claimed, 0.26, color=PAGE, edgecolor=INK, linewidth=1.2)
            axes.barh(at + 0.17, one.lower, 0.26, color=SERIES[0])
            axes.plot(one.ceiling, at + 0.17, "|", markersize=13, markeredgewidth=2, color=SERIES[1])
        axes.axvline(0, color=RULE, linewidth=0.8)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("epsilon")
    alt = "; ".join(
        f"{a.label}: claimed {a.claimed:g}, measured at least {a.lower:.3g}, at most {a.ceiling:.3g} could be shown" for a in found
    )
    keys = (
        Key("claimed", "--ink", mark="□"),
        Key("measured: it is at least this", "--c1", mark="■"),
        Key("most that this audit could show", "--c2", mark="|"),
    )
    return Picture(svg[0], f"Epsilon, claimed and audited. {alt}.", "Promised, and what an audit could show", keys)


def _noise(point: Point) -> float | None:
    """In clips; 0 without a mechanism that adds any; None where it is not recorded."""
    said = words.privacy(point.row.column.first)
    if said.get("mechanism") in (None, "none", "clip-only"):
        return 0.0
    details = said.get("details")
    noise = details.get("noise_multiplier") if isinstance(details, Mapping) else None
    return float(noise) if isinstance(noise, int | float) else None


def _said(point: Point) -> str:
    """``4 of 100 among 100 images (99 look-alikes; guessing: 1%), bound 20.0%``."""
    among = told.gallery(point.found)
    return told.counted(point.rate) + (f" among {among}" if among else "") + ("" if point.bound is None else f", bound {point.bound:.1%}")


def _keys(parties: Sequence[str]) -> tuple[Key, ...]:
    return tuple(Key(party, f"--c{i + 1}", mark=MARKS[i][1]) for i, party in enumerate(parties))


def _lines(found: Sequence[Point]) -> tuple[Key, ...]:
    guess = (Key("the best blind guess", "--ink", "4 2", 1.5),) if any(p.found.guess is not None for p in found) else ()
    text = "no attack on this one step or round can do better (ReRo bound)"
    return (*guess, *((Key(text, "--ink", mark="|"),) if any(p.bound is not None for p in found) else ()))


def _distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
