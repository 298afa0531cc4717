"""``write_report``: the files of one or several runs as one self-contained HTML page."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pppml_core.errors import ConfigError
from pppml_core.report import columns, personalization, personalization_words, words
from pppml_core.report.columns import Column
from pppml_core.report.evidence import evidence
from pppml_core.report.records import Record, RunRecords, items, read_run
from pppml_core.report.tables import MISSING, change, number, seconds, size


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write the report of these run directories to ``out`` and return it.

    Runs that differ only in seed become one column with intervals; ``local-only`` and centralized runs stand beside the others as
    brackets. Reads nothing but the files of the run directories; the page loads nothing from elsewhere and holds no script.

    Raises:
        DataError: a folder is no run directory.
        ConfigError: no folder was given, or ``out`` cannot be written.

    """
    if not run_dirs:
        raise ConfigError("no run directory was given", place="report", hint="pppml report RUN...")
    page = render([read_run(Path(folder)) for folder in run_dirs])
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=out.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(page)
            os.chmod(name, 0o644)
            os.replace(name, out)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # not the caller's mistake: the command line has its own words for it
            raise OSError(error.errno, error.strerror, str(out)) from error
        raise ConfigError(
            f"the report cannot be written: {error.strerror or error}", place=str(out), hint="give another file with -o"
        ) from error
    return out


def render(runs: Sequence[RunRecords]) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found, remarks = columns.columns(runs)
    found = columns.by_run_name(found) if any(run.attacks for run in runs) else found
    main = columns.main_column(found)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": size, "seconds": seconds, "number": number, "change": change, "capital": words.capital}
    environment.globals |= {"place": _Placer(), "verdict": personalization_words.verdict}
    metric, shown = main.first.primary_metric, evidence(found)
    return environment.get_template("template.html.j2").render(
        title=_title(main, found, tested=shown["tested"]),
        alerts=words.alerts(main, found),
        main=main,
        columns=found,
        remarks=remarks,
        headline=words.headline(main),
        planned=None if shown["tested"] and len(found) > 1 else main.first.plan.get("headline"),
        results=_results(found, main, metric),
        split=words.split_words(main.first),
        brackets=words.bracket_words(found, metric),
        intervals=words.interval_words(found),
        differences=columns.differences(found),
        comparison=_comparison(found, metric),
        curves=[(column, *_curves(column, metric)) for column in _ordered(main, found)],
        gains=[_gains(gain) for gain in personalization.gains(found)],
        examples=_examples(main, found),
        guarantees=_guarantees(main, found),
        privacy=_privacy(main, found),
        manifest={part: items(rows) for part, rows in main.first.manifest.items()},
        costs=[_costs(column) for column in found],
        traffic=_traffic(main.first),
        time=_time(main.first),
        pipeline=items(main.first.plan.get("stages")),
        predicted=main.first.part("plan", "bytes"),
        happenings=_happenings(main, found),
        evidence=shown,
        not_evaluated=words.not_evaluated(main, found),
        sites=items(main.first.plan.get("sites")),
        steps=main.first.steps_a_round,
        configs=[(column, _yaml(column.first.config)) for column in _ordered(main, found)],
        versions=_versions(main.first),
        runs=[(column, run) for column in found for run in column.runs],
    )


class _Placer:
    """Hands out SVGs marked safe (their text is escaped by matplotlib), each with ids of its own."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, svg: str) -> Any:
        from markupsafe import Markup

        from pppml_core.report.figures import with_ids

        self._count += 1
        return Markup(with_ids(svg, f"f{self._count}"))


def _title(main: Column, found: Sequence[Column], *, tested: bool) -> str:
    if len(found) == 1:
        return main.first.name
    if tested:
        return f"Who could learn what: {len(found)} runs side by side"
    labels = [column.label for column in found]
    return f"{', '.join(labels[:-1])} and {labels[-1]}, side by side" if len(found) < 5 else f"{len(found)} methods side by side"


def _ordered(main: Column, found: Sequence[Column]) -> list[Column]:
    return [main, *(column for column in found if column is not main)]


def _results(found: Sequence[Column], main: Column, metric: str | None) -> list[dict[str, Any]]:
    """One table a metric, the primary one first."""
    metrics = list(dict.fromkeys(m for column in _ordered(main, found) for run in column.runs for m in run.final.metrics))
    metrics.sort(key=lambda m: m != metric)
    sites = list(dict.fromkeys(site for column in _ordered(main, found) for run in column.runs for site in run.final.site_names))
    names = {slug: name for column in found for slug, name in column.first.site_names.items()}
    heads = [(column, column.weights) for column in found if column.weights]
    rows: list[tuple[str, str | None]] = [("Mean of sites", None), *((names.get(site, site), site) for site in sites)]
    return [
        {
            "metric": name,
            "heads": heads,
            "rows": [
                (label, [(column.estimate(w, site, name), w == weights[0]) for column, weights in heads for w in weights])
                for label, site in rows
            ],
        }
        for name in metrics
    ]


def _comparison(found: Sequence[Column], metric: str | None) -> Any:
    from pppml_core.report.figures import comparison

    return comparison(found, metric) if metric else None


def _gains(gain: personalization.Gains) -> dict[str, Any]:
    """One task's part of the section: numbers, sentences and figures."""
    from pppml_core.report.figures import forest

    told = personalization_words
    sides = [(f"{gain.metric}, against local-only", [m.alone for m in gain.methods])]
    sides.append((f"{gain.metric}, against one model for all", [m.one for m in gain.methods]))
    compared = [(title, [a for a in side if a is not None and a.sites]) for title, side in sides]
    drawn = [forest(side, gain, title) for title, side in compared]
    return {
        "gain": gain,
        "answer": told.answer(gain),
        "tallies": told.tallies(gain),
        "figures": [picture for picture in drawn if picture is not None],
        "rows": [(row.model.name, row) for row in gain.rows],
        "differences": [(f"Differences of {title}", side) for title, side in compared if side],
        "intervals": told.intervals(gain),
        "meaning": told.meaning(gain),
    }


def _curves(column: Column, metric: str | None) -> tuple[Any, Any, str]:
    from pppml_core.report.figures import curves

    return curves(column.first, metric) if metric else ([], (), "")


def _examples(main: Column, found: Sequence[Column]) -> list[tuple[Column, Any]]:
    from pppml_core.report.examples import example_pictures

    return [(column, pictures) for column in _ordered(main, found) if (pictures := example_pictures(column.first))]


def _guarantees(main: Column, found: Sequence[Column]) -> list[tuple[list[str], list[tuple[str, str]]]]:
    """Promises with the columns they hold for; columns of one promise share it."""
    shared: list[tuple[list[str], list[tuple[str, str]]]] = []
    for column in _ordered(main, found):
        said = words.guarantee_words(column)
        same = next((labels for labels, other in shared if other == said), None)
        if same is None:
            shared.append(([column.label], said))
        else:
            same.append(column.label)
    return shared


def _privacy(main: Column, found: Sequence[Column]) -> list[tuple[list[str], str, list[tuple[str, str]]]]:
    shared: list[tuple[list[str], str, list[tuple[str, str]]]] = []
    for column in _ordered(main, found):
        sentence, rows = words.privacy_words(column.first)
        same = next((labels for labels, s, r in shared if (s, r) == (sentence, rows)), None)
        if same is None:
            shared.append(([column.label], sentence, rows))
        else:
            same.append(column.label)
    return shared


def _happenings(main: Column, found: Sequence[Column]) -> list[tuple[str, str]]:
    """``(where, what)``, each said once: the columns and seeds it was recorded in stand together."""
    where: dict[str, dict[str, list[str]]] = {}
    for column in _ordered(main, found):
        for run in column.runs:
            for text in words.happenings(run):
                where.setdefault(text, {}).setdefault(column.label, []).append(str(run.seed))
    totals = {column.label: len(column.runs) for column in found}

    def told(label: str, seeds: list[str]) -> str:
        return label if len(seeds) == totals[label] else f"{label}, seed {', '.join(seeds)}"

    several = len(found) > 1 or len(main.runs) > 1
    return [("; ".join(told(label, seeds) for label, seeds in at.items()) if several else "", text) for text, at in where.items()]


def _costs(column: Column) -> dict[str, Any]:
    """Bytes, seconds and optimizer steps of a column's first run."""
    run = column.first
    sent, taken = run.part("result", "bytes"), run.part("result", "seconds")
    told = run.told("stage")
    return {
        "label": column.label,
        "up": sent.get("up", sum(e.get("received") or 0 for e in told) if told else None),
        "down": sent.get("down", sum(e.get("sent") or 0 for e in told) if told else None),
        "seconds": taken.get("total", sum(e.get("seconds") or 0 for e in run.told("round-finished")) or None),
        "rounds": run.rounds_done,
        "steps": MISSING if run.steps is None else f"{run.steps:,}",
        "batch": run.part("config", "training").get("batch_size", MISSING),
    }


def _traffic(run: RunRecords) -> list[dict[str, Any]]:
    """Bytes of each stage; directions from the events where the result gives only their sum."""
    told: dict[str, dict[str, Any]] = {}
    for event in run.told("stage"):
        entry = told.setdefault(str(event.get("stage")), {"up": 0, "down": 0})
        entry["up"] += event.get("received") or 0
        entry["down"] += event.get("sent") or 0
    kept = run.part("result", "bytes").get("by_stage") or told
    rows = []
    for stage, value in kept.items():
        ways = value if isinstance(value, dict) else told.get(stage, {})
        total = (ways.get("up") or 0) + (ways.get("down") or 0) if isinstance(value, dict) else value
        rows.append({"stage": str(stage), "up": ways.get("up"), "down": ways.get("down"), "value": total})
    return _with_shares(rows)


def _time(run: RunRecords) -> list[dict[str, Any]]:
    """Seconds of each stage: the run's own stage clock, or else the events."""
    told: dict[str, float] = {}
    for event in run.told("stage"):
        told[str(event.get("stage"))] = told.get(str(event.get("stage")), 0.0) + (event.get("seconds") or 0.0)
    kept = run.part("result", "seconds").get("by_stage") or told
    return _with_shares([{"stage": str(stage), "value": value} for stage, value in kept.items()])


def _with_shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    largest = max((row["value"] or 0 for row in rows), default=0)
    return [{**row, "share": round(100 * (row["value"] or 0) / largest, 2) if largest else 0} for row in rows]


def _versions(run: RunRecords) -> list[tuple[str, str]]:
    rows = [(str(name), str(version)) for source in ("plan", "result") for name, version in run.part(source, "versions").items()]
    for plugin in run.plan.get("plugins") or ():
        if isinstance(plugin, dict):
            rows.append(
                (str(plugin.get("distribution") or plugin.get("name") or plugin), str(plugin.get("version") or plugin.get("summary") or ""))
            )
        else:
            rows.append((str(plugin), ""))
    return list(dict.fromkeys(rows))


def _yaml(config: Record) -> str:
    import yaml

    # Through JSON first: a configuration may hold values that YAML would tag.
    return yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True) if config else ""
