"""Final metrics as small tables: for a terminal, for Markdown, for a notebook.

A *source* is what a run leaves behind: the content of ``result.json``, its ``metrics`` part, or the rows of ``metrics.jsonl``.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Source = Mapping[str, Any] | Iterable[Mapping[str, Any]]
WEIGHTS = ("global", "personalized")
#: keys of a metrics row that are not metrics.
ROW_KEYS = frozenset({"round", "site", "split", "weights"})
MISSING = "–"
#: the row that stands for the mean over sites where scores leave them only in a sum (``run.metrics: sum``).
ALL_SITES = "all"


@dataclass(frozen=True)
class FinalMetrics:
    """The metrics a run ended with.

    Args:
        sites: weights -> site -> metric -> value; a value that is undefined is NaN.
        mean: weights -> metric -> value over sites; where the source gives no mean, the plain mean over sites that have a value.
        round: the round the values belong to; None where the source does not say.
        split: ``test`` or ``validation``; None where the source does not say.

    """

    sites: Mapping[str, Mapping[str, Mapping[str, float]]]
    mean: Mapping[str, Mapping[str, float]]
    round: int | None = None
    split: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """Which of ``global`` and ``personalized`` have any value."""
        return tuple(w for w in WEIGHTS if any(self.sites.get(w, {}).values()) or self.mean.get(w))

    @property
    def site_names(self) -> tuple[str, ...]:
        """Slugs of all sites with a value, in the order they appear."""
        return tuple(dict.fromkeys(site for w in WEIGHTS for site in self.sites.get(w, {})))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, in the order they appear."""
        found = (m for w in WEIGHTS for values in (self.mean.get(w, {}), *self.sites.get(w, {}).values()) for m in values)
        return tuple(dict.fromkeys(found))

    @property
    def one_model(self) -> bool:
        """Whether global and personalized values are equal throughout: then there is one model for all."""
        return set(self.weights) == set(WEIGHTS) and all(
            _equal(self.value("global", s, m), self.value("personalized", s, m)) for s in (None, *self.site_names) for m in self.metrics
        )

    def worst(self, weights: str, metric: str) -> tuple[str, float]:
        """The site with the lowest value, and that value; ``("", NaN)`` where no site has one."""
        found = {site: v for site in self.site_names if math.isfinite(v := self.value(weights, site, metric))}
        site = min(found, key=lambda s: found[s], default="")
        return site, found.get(site, math.nan)

    def value(self, weights: str, site: str | None, metric: str) -> float:
        """One value, ``site`` None for the mean; NaN where there is none."""
        values = self.mean.get(weights, {}) if site is None else self.sites.get(weights, {}).get(site, {})
        return values.get(metric, math.nan)


@dataclass(frozen=True)
class Grid:
    """A table of text: header, rows, and a line or two below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default=())

    def rich(self) -> Table:
        """For a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(clean(self.title)), caption=Text(clean(" ".join(self.notes))) if self.notes else None, title_justify="left"
        )
        for index, name in enumerate(self.header):
            table.add_column(Text(clean(name, keep_lines=True)), justify="left" if index == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        return table

    def transposed(self) -> Grid:
        """Rows as columns, where the names of rows are short and those of columns are not."""
        columns = zip(*self.rows, strict=True)
        head, *cells = columns if self.rows else ((),)
        rows = [(name.replace("\n", ", "), *values) for name, values in zip(self.header[1:], cells, strict=False)]
        return Grid(self.title, ("", *head), tuple(rows), self.notes)

    def markdown(self) -> str:
        """For a README or an issue."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(clean(cell).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"

        ruler = "|" + "|".join("---" if index == 0 else "---:" for index in range(len(self.header))) + "|"
        parts = [line(self.header), ruler, *(line(row) for row in self.rows)]
        return "\n".join([*parts, *(("", *self.notes) if self.notes else ())])

    def html(self) -> str:
        """For a notebook; everything is escaped."""

        def cells(tag: str, row: Sequence[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell).replace(chr(10), '<br>')}</{tag}>" for cell in row) + "</tr>"

        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        body = "".join(cells("td", row) for row in self.rows)
        head = f"<caption>{html.escape(self.title)}</caption><thead>{cells('th', self.header)}</thead>"
        return f"<table>{head}<tbody>{body}</tbody></table>{notes}"

    def _repr_html_(self) -> str:
        return self.html()


def final_metrics(source: Source) -> FinalMetrics:
    """The final values of a source. Of rows, the last round of the test split counts, of the validation split where no test row is."""
    if not isinstance(source, Mapping):
        return _from_rows(list(source))
    parts = _mapping(source.get("metrics", source))
    sites = {w: {s: _numbers(v) for s, v in _mapping(_mapping(parts.get(w)).get("sites")).items()} for w in WEIGHTS}
    mean = {w: _numbers(_mapping(parts.get(w)).get("mean")) or _mean(sites[w]) for w in WEIGHTS}
    sites = {w: _single(sites[w]) for w in WEIGHTS}
    rounds = source.get("selected_round", source.get("rounds"))
    return FinalMetrics(sites, mean, rounds if isinstance(rounds, int) else None, source.get("split"))


def metrics_grid(source: Source, *, names: Mapping[str, str] | None = None) -> Grid:
    """Sites by metrics, global and personalized side by side, the mean first. ``names``: slug -> name that people read."""
    final = source if isinstance(source, FinalMetrics) else final_metrics(source)
    columns = [(m, w) for m in final.metrics for w in final.weights]
    rows = [(label, *(number(final.value(w, site, m)) for m, w in columns)) for label, site in _site_rows(final.site_names, names)]
    where = f"{final.split} data" if final.split else "held-out data"
    when = f", round {final.round}" if final.round is not None else ""
    return Grid(
        f"Final metrics ({where}{when})", ("site", *(f"{m.replace('_', ' ')}\n{w}" for m, w in columns)), tuple(rows) if columns else ()
    )


def comparison_grid(sources: Mapping[str, Source], metric: str, *, names: Mapping[str, str] | None = None) -> Grid:
    """One metric of several runs: sites by runs (label -> source), global and personalized side by side where they differ.

    The mean over sites comes first, then the worst site: the lowest value, so give a metric of which more is better.
    """
    finals = {label: final_metrics(source) for label, source in sources.items()}
    columns = [(label, w) for label, final in finals.items() for w in (final.weights[:1] if final.one_model else final.weights)]
    sites = tuple(dict.fromkeys(site for final in finals.values() for site in final.site_names))
    rows = [(name, *(number(finals[label].value(w, site, metric)) for label, w in columns)) for name, site in _site_rows(sites, names)]
    if sites:
        rows.insert(1, ("worst site", *(number(finals[label].worst(w, metric)[1]) for label, w in columns)))
    heads = [f"{label}\n{'one model' if finals[label].one_model else w}" for label, w in columns]
    return Grid(metric, ("site", *heads), tuple(rows))


def metrics_table(source: Source, *, names: Mapping[str, str] | None = None) -> Table:
    """Final metrics per site as a rich table."""
    return metrics_grid(source, names=names).rich()


def to_markdown(source: Source, *, names: Mapping[str, str] | None = None) -> str:
    """Final metrics per site as a Markdown table."""
    return metrics_grid(source, names=names).markdown()


def to_html(source: Source, *, names: Mapping[str, str] | None = None) -> str:
    """Final metrics per site as an HTML table, escaped."""
    return metrics_grid(source, names=names).html()


def metric_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that rows of metrics.jsonl hold, in the order they appear."""
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if key not in ROW_KEYS and _is_number(value)))


def as_float(value: int | float) -> float:
    """A number from a file. JSON has integers that no float holds: they are no measurement, and become NaN.

    >>> as_float(3), as_float(10**400)
    (3.0, nan)
    """
    try:
        return float(value)
    except OverflowError:
        return math.nan


def number(value: float | None) -> str:
    """Three decimals for scores up to one, fewer for larger values, a dash where undefined.

    >>> number(0.70251), number(12.345), number(48_211.0), number(float("nan"))
    ('0.703', '12.35', '48,211', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    digits = next((d for limit, d in ((1.0005, 3), (99.995, 2), (999.95, 1)) if abs(value) < limit), 0)
    return f"{value:,.{digits}f}"


def change(value: float | None) -> str:
    """A difference with its sign.

    >>> change(0.0213), change(-0.2), change(0.0001), change(float("nan"))
    ('+0.021', '-0.200', '0.000', '–')
    """
    shown = number(value)
    shown = "0.000" if shown == "-0.000" else shown
    return f"+{shown}" if value is not None and value > 0 and shown != "0.000" else shown


def size(count: float | None) -> str:
    """Bytes in decimal units.

    >>> size(999), size(1_234_567), size(None)
    ('999 B', '1.23 MB', '–')
    """
    if count is None or not math.isfinite(count):
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}" if abs(count) / scale < 999.5 else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"


def seconds(value: float | None) -> str:
    """A duration.

    >>> seconds(0.0312), seconds(75.25), seconds(4000)
    ('0.03 s', '1 min 15 s', '1 h 06 min')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clean(text: object, *, keep_lines: bool = False) -> str:
    """Text fit for a terminal: no control characters, so that a name from elsewhere cannot move the cursor or forge a line."""
    kept = (c if not unicodedata.category(c).startswith("C") or (keep_lines and c == "\n") else " " for c in str(text))
    return "".join(kept)


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> FinalMetrics:
    split = next((s for s in ("test", "validation") if any(row.get("split") == s for row in rows)), None)
    rows = [row for row in rows if row.get("split") == split and isinstance(row.get("round"), int)]
    last = max((row["round"] for row in rows), default=None)
    sites: dict[str, dict[str, dict[str, float]]] = {w: {} for w in WEIGHTS}
    for row in rows:
        if row["round"] == last and row.get("weights") in sites:
            sites[row["weights"]][str(row.get("site"))] = _numbers({k: v for k, v in row.items() if k not in ROW_KEYS})
    mean = {w: _mean(sites[w]) for w in WEIGHTS}
    sites = {w: _single(sites[w]) for w in WEIGHTS}
    return FinalMetrics(sites, mean, last, split)


def _single(sites: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The sites told one by one: none where a sum over all of them is all there is."""
    return {} if set(sites) == {ALL_SITES} else sites


def _mean(sites: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(metric for values in sites.values() for metric in values)
    found = {m: [v[m] for v in sites.values() if math.isfinite(v.get(m, math.nan))] for m in names}
    return {m: sum(values) / len(values) if values else math.nan for m, values in found.items()}


def _equal(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _numbers(values: Any) -> dict[str, float]:
    return {str(k): math.nan if v is None else as_float(v) for k, v in _mapping(values).items() if _is_number(v)}


def _site_rows(sites: Sequence[str], names: Mapping[str, str] | None) -> list[tuple[str, str | None]]:
    return [("mean of sites", None), *(((names or {}).get(site, site), site) for site in sites)]
