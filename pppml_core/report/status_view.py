"""How a run stands, as a small table for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pppml_core.interfaces.privacy import claim_words
from pppml_core.report.tables import clean, seconds, size

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"running": "bold green", "starting": "bold yellow", "finished": "bold", "stopped": "bold yellow", "failed": "bold red"}
#: names of sites that are spelt out before the rest is counted.
NAMES = 8


def status_table(status: Mapping[str, Any], now: float | None = None) -> Table:
    """A rich table of :meth:`pppml_core.federation.status.Watcher.look`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    styles = {"state": STYLES[status["state"]], "warning": "yellow", "error": "red", "lost": "yellow"}
    for name, text in _rows(status, time.time() if now is None else now):
        table.add_row(name, Text(clean(text), style=styles.get(name, "")))
    return table


def _rows(s: Mapping[str, Any], now: float) -> Iterator[tuple[str, str]]:
    yield "run", f"{s['name']} in {s['folder']}"
    yield "state", s["state"] + _remark(s)
    yield "round", f"{s['finished_rounds']} held in {seconds(s['seconds'])}" if s["state"] == "finished" else _round(s, now)
    if s["stage"] is not None and s["state"] == "running":
        yield "stage", _stage(s, now)
    for site, loss in s["lost"].items() if s["state"] != "finished" else ():
        yield "lost", f"{site} in stage {loss['stage']}: {loss['reason']}"
    if s["seconds_per_round"] is not None:
        end = s["expected_end"]
        tail = "" if end is None else f"; expected end about {_clock(end, now)}, in {seconds(max(0.0, end - now))}"
        yield "pace", f"{seconds(s['seconds_per_round'])} a round{tail}"
    yield "bytes", f"up {size(s['bytes']['up'])}, down {size(s['bytes']['down'])}"
    if s["model_sha256"] is not None:
        yield "model", f"sha256 {s['model_sha256'][:12]}"
    if s["epsilon"] is not None:
        yield "epsilon", _epsilon(s["epsilon"])
    if s["last_warning"] is not None:
        where = f"round {s['last_warning']['round']}: " if s["last_warning"]["round"] else ""
        more = f" ({s['warnings']} in all)" if s["warnings"] > 1 else ""
        yield "warning", f"{where}{s['last_warning']['text']}{more}"
    if s["last_error"] is not None:
        yield "error", s["last_error"]["text"]
    if s["age"] is not None:
        yield "last event", f"{s['last_event']['event']}, {seconds(s['age'])} ago"
    if s["state"] in ("stopped", "failed"):
        yield "go on", f"pppml run --resume {s['folder']}"


def _remark(s: Mapping[str, Any]) -> str:
    if s["held"] is None:
        return ", as far as its events say; whether a process holds the run cannot be told here"
    remarks = {
        "running": ", held by a process",
        "starting": ", held by a process; the sites are asked to join",
        "stopped": ", no process holds the run" + ("" if s["last_event"] or s["round"] else " (yet)"),
        "failed": ", no process holds the run",
        "finished": ", still held by a process" if s["held"] else "",
    }
    return remarks[s["state"]] + ("" if s["events"] else "; only finished rounds are known, as the reporter jsonl is not there")


def _round(s: Mapping[str, Any], now: float) -> str:
    if not s["round"]:
        return f"none of {s['rounds']} yet"
    if s["round_since"] is None:
        following = "; the final scores follow" if s["round"] == s["rounds"] else ""
        return f"{s['finished_rounds']} of {s['rounds']} done{following}"
    since = f", since {seconds(now - s['round_since'])}" if s["state"] == "running" else ""
    aborted = f"; {s['aborted_attempts']} attempts of the run ended without a sum" if s["aborted_attempts"] else ""
    return f"{s['round']} of {s['rounds']}, attempt {s['attempt']}, {len(s['cohort'])} sites{since}{aborted}"


def _stage(s: Mapping[str, Any], now: float) -> str:
    waiting = s["waiting_for"]
    names = ", ".join(waiting[:NAMES]) + (f" and {len(waiting) - NAMES} more" if len(waiting) > NAMES else "")
    asked = len(waiting) + len(s["answered"])
    return f"{s['stage']}, since {seconds(now - s['stage_since'])}; {len(s['answered'])} of {asked} answered" + (
        f", waiting for {names}" if names else ""
    )


def _epsilon(e: Mapping[str, Any]) -> str:
    spent = "not known yet" if e["spent"] is None else f"{e['spent']:.4g}" if isinstance(e["spent"], int | float) else e["spent"]
    return f"spent so far: {spent}; claimed: {claim_words(e)}"


def _clock(moment: float, now: float) -> str:
    there, here = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M" if there[:3] == here[:3] else "%Y-%m-%d %H:%M", there)
