"""Figures as SVG text that takes its colours from the page, so that they are right in light, in dark and on paper."""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.report.columns import Column
from pppml_core.report.personalization import Against, Gains
from pppml_core.report.records import RunRecords

#: drawn in these, which no page uses, then replaced by CSS variables.
INK, RULE, TRUTH, PREDICTION, PAGE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
SERIES = tuple(f"#0a0c{i:02x}" for i in range(1, 9))
VARIABLES = {INK: "--ink", RULE: "--rule", TRUTH: "--truth", PREDICTION: "--prediction", PAGE: "--page"} | {
    c: f"--c{i}" for i, c in enumerate(SERIES, 1)
}
DASHES = ("none", "5 2.5", "1.5 2")
#: with more sites than this, one line each in its own colour tells nothing.
MANY = len(SERIES) * 2
#: matplotlib's marker and the character that stands for it in a legend.
MARKS = (("o", "●"), ("s", "■"), ("D", "◆"), ("^", "▲"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))


@dataclass(frozen=True)
class Key:
    """One entry of a legend: ``colour`` is a CSS variable, ``dash`` an SVG dash pattern, ``mark`` a character in place of a line."""

    label: str
    colour: str
    dash: str = "none"
    width: float = 2.0
    mark: str = ""


@dataclass(frozen=True)
class Picture:
    """An SVG with what a reader who cannot see it is told."""

    svg: str
    alt: str
    title: str
    keys: tuple[Key, ...] = ()


def curves(run: RunRecords, metric: str) -> tuple[list[Picture], tuple[Key, ...], str]:
    """The metric of each site over rounds, one picture for global and one for personalized weights; the legend; the split shown."""
    split = _curve_split(run, metric)
    series = {w: _series(run, metric, w, split) for w in ("global", "personalized")}
    series = {w: found for w, found in series.items() if found}
    sites = list(dict.fromkeys(site for found in series.values() for site in found))
    keys = _site_keys([run.site_names.get(s, s) for s in sites])
    values = [v for found in series.values() for _, ys in found.values() for v in ys if math.isfinite(v)]
    pictures = []
    for weights, found in series.items():
        with chart(3.6, 2.3) as (axes, svg):
            for site in found:
                key = keys[sites.index(site)] if len(sites) <= MANY else Key("", "--rule", width=1)
                axes.plot(
                    *found[site],
                    color=_colour(key),
                    linewidth=key.width * 0.75,
                    linestyle=_linestyle(key.dash),
                    marker=_marker(found[site]),
                )
            mean = _mean_line(found)
            axes.plot(*mean, color=INK, linewidth=2.2, marker=_marker(mean))
            _rounds_axis(axes, values)
        ends = ", ".join(
            f"{run.site_names.get(s, s)} {ys[-1]:.3f}" for s, (_, ys) in itertools.islice(found.items(), 12) if math.isfinite(ys[-1])
        )
        alt = f"{metric} of {weights} weights on {split} data over rounds. Last values: mean {mean[1][-1]:.3f}; {ends}."
        pictures.append(Picture(svg[0], alt, f"{weights.capitalize()} weights"))
    legend = keys if len(sites) <= MANY else (Key(f"one of {len(sites)} sites", "--rule", width=1),)
    return pictures, (Key("mean of sites", "--ink", width=3), *legend), split


def comparison(found: Sequence[Column], metric: str) -> Picture | None:
    """Every site's final value in every column, as dots on a line, the mean on top."""
    shown = [(c, c.best_weights) for c in found if c.best_weights]
    sites = list(dict.fromkeys(s for c, _ in shown for s in c.first.final.site_names))
    if len(shown) < 2 or not sites or len(sites) > 40:
        return None
    names = {slug: name for c, _ in shown for slug, name in c.first.site_names.items()}
    rows: list[str | None] = [None, *sites]
    labels = ["mean of sites", *(shorten(names.get(s, s)) for s in sites)]
    told = []
    with chart(4.6, 0.6 + 0.27 * len(rows)) as (axes, svg):
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), labels, parse_math=False)
        axes.hlines(range(len(rows)), 0, 1, transform=axes.get_yaxis_transform(), color=RULE, linewidth=0.8, zorder=0)
        for index, (column, weights) in enumerate(shown):
            cells = [column.estimate(str(weights), s, metric) for s in rows]
            middle, low, high = (np.array([getattr(c, part) for c in cells]) for part in ("mean", "low", "high"))
            at = np.arange(len(rows)) + (index - (len(shown) - 1) / 2) * 0.12
            axes.hlines(at, low, high, color=SERIES[index % 8], linewidth=1.6, alpha=0.55)
            axes.plot(middle, at, linestyle="none", marker=MARKS[index % 8][0], markersize=5, color=SERIES[index % 8])
            told.append(f"{column.label} {middle[0]:.3f}")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    keys = tuple(Key(c.label, f"--c{i % 8 + 1}", mark=MARKS[i % 8][1]) for i, (c, _) in enumerate(shown))
    return Picture(svg[0], f"Final {metric} of each site by column. Means: {', '.join(told)}.", metric, keys)


def forest(found: Sequence[Against], gains: Gains, title: str) -> Picture | None:
    """Differences at each site with their intervals, a row a site, a mark a method: filled where the interval excludes zero."""
    sites = [site for site in gains.names if any(site in against.sites for against in found)]
    if not sites or len(sites) > 40:
        return None
    colours = [gains.models.index(against.model) % 8 for against in found]
    step, told, ends = 0.8 / max(len(found), 3), [], [0.0]
    with chart(4.6, 0.7 + max(0.27, 0.11 * len(found)) * len(sites)) as (axes, svg):
        axes.set_ylim(len(sites) - 0.4, -0.6)
        axes.set_yticks(range(len(sites)), [shorten(gains.names[s]) for s in sites], parse_math=False)
        axes.hlines(np.arange(len(sites) - 1) + 0.5, 0, 1, transform=axes.get_yaxis_transform(), color=RULE, linewidth=0.8, zorder=0)
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        for index, (against, colour) in enumerate(zip(found, colours, strict=True)):
            for site, one in against.sites.items():
                at = sites.index(site) + (index - (len(found) - 1) / 2) * step
                if one.has_interval:
                    axes.hlines(at, one.low, one.high, color=SERIES[colour], linewidth=1.6)
                    ends += [one.low, one.high]
                inside = SERIES[colour] if one.clear else PAGE
                axes.plot(one.mean, at, MARKS[colour][0], markersize=5, color=SERIES[colour], markerfacecolor=inside, zorder=3)
                ends.append(one.mean)
            told.append(f"{against.model.name}: {len(against.having(1))} sites above zero, {len(against.having(-1))} below")
        room = 0.08 * (max(ends) - min(ends)) or 0.01
        axes.set_xlim(min(ends) - room, max(ends) + room)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("worse  ←  0  →  better")
    keys = tuple(Key(a.model.name, f"--c{c + 1}", mark=MARKS[c][1]) for a, c in zip(found, colours, strict=True))
    return Picture(svg[0], f"{title}, by site. {'; '.join(told)}.", title, keys)


def outline(image: npt.NDArray[Any], truth: npt.NDArray[Any], prediction: npt.NDArray[Any], alt: str, title: str) -> Picture:
    """A grey or RGB image ``(H, W[, 3])`` in [0, 1] with the outlines of two integer masks ``(H, W)``; 0 is background."""
    height, width = image.shape[:2]
    with _canvas(1.6, 1.6 * height / width, image) as (axes, svg):
        for mask, colour, style in ((truth, TRUTH, "solid"), (prediction, PREDICTION, "dashed")):
            padded = np.pad(mask, 1)  # so that a region at the border is closed there
            for label in np.unique(mask[mask > 0]):
                across, down = np.arange(-1, width + 1), np.arange(-1, height + 1)
                axes.contour(across, down, padded == label, [0.5], colors=colour, linestyles=style, linewidths=1.5)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return Picture(svg[0], alt, title)


def photograph(image: npt.NDArray[Any], alt: str, title: str) -> Picture:
    """A grey or RGB image ``(H, W[, 3])`` in [0, 1]."""
    with _canvas(1.6, 1.6 * image.shape[0] / image.shape[1], image) as (_, svg):
        pass
    return Picture(svg[0], alt, title)


@contextmanager
def chart(width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """Axes of a chart, and a list that holds the SVG text afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    svg: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        yield axes, svg
        svg.append(_svg(figure))


@contextmanager
def _canvas(width: float, height: float, image: npt.NDArray[Any]) -> Iterator[tuple[Any, list[str]]]:
    """Axes that are all image, stored at its own resolution."""
    import matplotlib
    from matplotlib.figure import Figure

    svg: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, min(height, 4 * width)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="none", aspect="auto")
        yield axes, svg
        svg.append(_svg(figure))


_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "pppml", "font.size": 9, "text.usetex": False, "axes.formatter.use_mathtext": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": RULE, "xtick.color": INK, "ytick.color": INK, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}  # fmt: skip


def _svg(figure: Any) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text and is set by the reader's browser: matplotlib's own font need not have every letter of a site's name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def with_ids(svg: str, mark: str) -> str:
    """The SVG with every id, and what refers to it, beginning with ``mark``: ids must be unique on a page of many figures."""
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{mark}-", svg)


def _curve_split(run: RunRecords, metric: str) -> str:
    """The split evaluated in most rounds, validation where two tie."""
    rounds = {s: {r.get("round") for r in run.metrics if r.get("split") == s and r.get(metric) is not None} for s in ("validation", "test")}
    return max(rounds, key=lambda s: len(rounds[s]))


def _series(run: RunRecords, metric: str, weights: str, split: str) -> dict[str, tuple[list[int], list[float]]]:
    out: dict[str, tuple[list[int], list[float]]] = {}
    for row in sorted((r for r in run.metrics if isinstance(r.get("round"), int)), key=lambda r: int(r["round"])):
        if row.get("weights") == weights and row.get("split") == split and metric in row:
            value = row[metric]
            rounds, values = out.setdefault(str(row.get("site")), ([], []))
            rounds.append(row["round"])
            values.append(float(value) if isinstance(value, int | float) else math.nan)
    return {site: line for site, line in out.items() if any(math.isfinite(v) for v in line[1])}


def _mean_line(found: Mapping[str, tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    by_round: dict[int, list[float]] = {}
    for rounds, values in found.values():
        for r, v in zip(rounds, values, strict=True):
            if math.isfinite(v):
                by_round.setdefault(r, []).append(v)
    return sorted(by_round), [sum(by_round[r]) / len(by_round[r]) for r in sorted(by_round)]


def _rounds_axis(axes: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if values:
        spread = max(values) - min(values) or 0.1
        axes.set_ylim(min(values) - 0.06 * spread, max(values) + 0.06 * spread)


def _site_keys(names: Sequence[str]) -> tuple[Key, ...]:
    return tuple(Key(name, f"--c{i % 8 + 1}", DASHES[i // 8 % len(DASHES)]) for i, name in enumerate(names))


def _colour(key: Key) -> str:
    return next(colour for colour, variable in VARIABLES.items() if variable == key.colour)


def _linestyle(dash: str) -> Any:
    return "solid" if dash == "none" else (0, tuple(float(d) for d in dash.split()))


def _marker(line: tuple[list[int], list[float]]) -> str:
    return "o" if len(line[0]) == 1 else ""


def shorten(name: str, width: int = 24) -> str:
    """A name cut to ``width`` characters."""
    return name if len(name) <= width else name[: width - 1] + "…"
