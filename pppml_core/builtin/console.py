"""Reporter ``console``: live progress on a terminal, one plain line a round elsewhere, and a table of final metrics at the end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pppml_core.component import ComponentConfig
from pppml_core.interfaces.reporter import Event, Reporter
from pppml_core.report.tables import clean, final_metrics, metric_names, metrics_table, number, seconds, size

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID


class ConsoleConfig(ComponentConfig):
    """`console`: what a person watches while a run goes on."""

    quiet: bool = Field(False, description="only the headline, warnings and failures: no progress, no lines per round, no table")


class Console(Reporter):
    """Prints events. The headline comes first: who sees what must be read before anything is trained.

    Args:
        console: where to print; default: rich's console on stdout.

    """

    def __init__(self, config: ComponentConfig, console: RichConsole | None = None) -> None:
        super().__init__(config)
        self._given = console
        self._quiet = bool(getattr(config, "quiet", False))
        self._folder: Path | None = None
        self._reset()

    def _reset(self) -> None:
        self._console: RichConsole | None = None
        self._progress: Progress | None = None
        self._bars: tuple[TaskID, TaskID] | None = None
        self._rounds = self._round = self._cohort = self._up = self._down = 0
        self._round_started = time.monotonic()
        self._stage = ""
        self._rows: list[Mapping[str, Any]] = []
        self._names: dict[str, str] = {}
        self._metric: str | None = None

    def open(self, folder: Path) -> None:
        """Remember the folder: its ``plan.json`` names the primary metric and the sites."""
        self.close()
        self._reset()
        self._folder = folder

    def handle(self, event: Event) -> None:
        """Show one event; those it does not know are passed over."""
        handlers: dict[str, Callable[[Event], None]] = {
            "run-started": self._run_started,
            "round-started": self._round_begins,
            "site-done": self._site_done,
            "site-lost": self._site_lost,
            "stage": self._stage_ends,
            "round-aborted": self._aborted,
            "metrics": self._metrics,
            "warning": lambda e: self._say(f"Warning: {e.get('text', '')}", "yellow"),
            "round-finished": self._round_ends,
            "run-finished": self._run_finished,
            "run-failed": self._run_failed,
        }
        handler = handlers.get(str(event.get("event")))
        if handler is not None:
            handler(event)

    def close(self) -> None:
        """Stop the live display; safe to call twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    # -- events --------------------------------------------------------------------------------------------------------------

    def _run_started(self, event: Event) -> None:
        self._rounds = _int(event.get("rounds"))
        self._read_plan()
        if headline := str(event.get("headline") or ""):
            exposed = "the server sees every update" in headline.lower()
            self._say(headline, "bold red" if exposed else "bold")
        if self._quiet:
            return
        sites, first = event.get("sites") or (), _int(event.get("first_round"), 1)
        resumed = f", resumed at round {first}" if first > 1 else ""
        self._say(f"{event.get('name', 'run')}: {len(sites)} sites, {self._rounds} rounds{resumed}, in {event.get('folder', self._folder)}")
        if self._live():
            self._start_bars(completed=first - 1)

    def _round_begins(self, event: Event) -> None:
        self._round, self._cohort = _int(event.get("round")), len(event.get("cohort") or ())
        self._up = self._down = 0
        self._round_started, self._rows, self._stage = time.monotonic(), [], ""
        self._show_sites(stage="starting", done=0)

    def _site_done(self, event: Event) -> None:
        if event.get("stage") != self._stage:
            self._stage = str(event.get("stage"))
            self._show_sites(stage=self._stage, done=0)
        if self._progress is not None and self._bars is not None:
            self._progress.update(
                self._bars[1], advance=1, site=self._name(event.get("site")), detail=f"{seconds(_float(event.get('seconds')))} at the site"
            )

    def _site_lost(self, event: Event) -> None:
        where = f"round {event.get('round', '?')}, stage {event.get('stage', '?')}"
        self._say(f"Site {self._name(event.get('site'))} lost in {where}: {event.get('reason', 'no reason recorded')}", "yellow")

    def _stage_ends(self, event: Event) -> None:
        self._down += _int(event.get("sent"))
        self._up += _int(event.get("received"))
        self._stage = ""  # the next answer opens a new bar, also where a stage of the same name follows
        if self._progress is not None and self._bars is not None:
            self._progress.update(self._bars[0], detail=self._traffic())

    def _aborted(self, event: Event) -> None:
        self._say(
            f"Round {event.get('round', '?')}, attempt {event.get('attempt', '?')} ended without a sum: {event.get('reason', '')} "
            f"Next: {event.get('next', '?')}.",
            "yellow",
        )

    def _metrics(self, event: Event) -> None:
        self._rows = [row for row in event.get("rows") or () if isinstance(row, Mapping)]

    def _round_ends(self, event: Event) -> None:
        self._round = _int(event.get("round"), self._round)
        if self._progress is not None and self._bars is not None:
            self._progress.update(self._bars[0], completed=self._round, detail=self._traffic(), site=self._score())
        elif not self._quiet:
            taken = _float(event.get("seconds"))
            spent = seconds(time.monotonic() - self._round_started if math.isnan(taken) else taken)
            parts = [f"round {self._round}/{self._rounds or '?'}", spent, self._traffic(), self._score()]
            self._say("  ".join(part for part in parts if part))

    def _run_finished(self, event: Event) -> None:
        self.close()
        result = event.get("result")
        if self._quiet or not isinstance(result, Mapping):
            return
        if final_metrics(result).metrics:
            self._out().print(metrics_table(result, names=self._names))
        total, sent = result.get("seconds") or {}, result.get("bytes") or {}
        self._say(
            f"Done: {result.get('rounds', '?')} rounds in {seconds(_float(total.get('total')))}, up {size(sent.get('up'))}, "
            f"down {size(sent.get('down'))}, model {str(result.get('model_sha256') or '?')[:12]}, folder {self._folder or '?'}"
        )

    def _run_failed(self, event: Event) -> None:
        self.close()
        self._say(f"Run failed: {event.get('error', 'no reason recorded')}", "bold red")

    # -- how it is shown -----------------------------------------------------------------------------------------------------

    def _out(self) -> RichConsole:
        if self._console is None:
            from rich.console import Console as RichConsole

            self._console = self._given or RichConsole()
        return self._console

    def _live(self) -> bool:
        # FORCE_COLOR makes rich call a pipe a terminal; moving a cursor in a log file would still be wrong.
        out = self._out()
        return out.is_terminal and not out.is_dumb_terminal and bool(getattr(out.file, "isatty", lambda: False)())

    def _say(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._out().print(Text(clean(text), style=style), soft_wrap=True)

    def _start_bars(self, completed: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        def text(key: str, width: int | None = None) -> TextColumn:
            column = Column(no_wrap=True, overflow="ellipsis", min_width=width)
            return TextColumn("{task." + key + "}", markup=False, table_column=column)

        self._progress = Progress(
            text("description", 10), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), text("fields[site]"),
            text("fields[detail]"), console=self._out(), transient=True,
        )  # fmt: skip
        rounds = self._progress.add_task("rounds", total=self._rounds or None, completed=completed, site="", detail="")
        sites = self._progress.add_task("starting", total=None, site="", detail="")
        self._bars = (rounds, sites)
        self._progress.start()

    def _show_sites(self, stage: str, done: int) -> None:
        if self._progress is not None and self._bars is not None:
            self._progress.reset(self._bars[1], description=clean(stage), total=self._cohort or None, completed=done, site="", detail="")
            self._progress.update(self._bars[0], description=f"round {self._round}")

    def _traffic(self) -> str:
        return f"up {size(self._up)}  down {size(self._down)}"

    def _score(self) -> str:
        """The primary metric's mean over sites, ``dice 0.512 global, 0.601 personalized (validation)``; empty where nothing is known."""
        metric = self._metric or next(iter(metric_names(self._rows)), None)
        if metric is None or not self._rows:
            return ""
        splits = {row.get("split") for row in self._rows}
        split = "validation" if "validation" in splits else next((s for s in splits if s), None)
        final = final_metrics([row for row in self._rows if row.get("split") == split])
        values = [f"{number(final.value(w, None, metric))} {w}" for w in final.weights]
        return f"{metric} {', '.join(values)} ({split})" if values else ""

    def _name(self, site: Any) -> str:
        return clean(self._names.get(str(site), str(site)))

    def _read_plan(self) -> None:
        path = self._folder / "plan.json" if self._folder else None
        if path is None or not path.is_file():
            return
        plan = json.loads(path.read_text("utf-8"))
        self._metric = (plan.get("task") or {}).get("primary_metric")
        self._names = {site["slug"]: site.get("name") or site["slug"] for site in plan.get("sites") or () if "slug" in site}


def _int(value: Any, default: int = 0) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else default


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
