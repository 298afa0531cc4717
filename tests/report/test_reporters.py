import io
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console as RichConsole

from pppml_core.builtin.console import Console, ConsoleConfig
from pppml_core.builtin.jsonl import Jsonl, JsonlConfig
from pppml_core.errors import RunFailed

HEADLINE = "The server sees every update. Nothing is hidden from it."
ROWS = [
    {"round": 1, "site": site, "split": "validation", "weights": weights, "dice": value}
    for site, weights, value in [
        ("a", "global", 0.5),
        ("b", "global", 0.7),
        ("a", "personalized", 0.8),
        ("b", "personalized", float("nan")),
    ]
]
RESULT = {
    "rounds": 1,
    "model_sha256": "0123456789abcdef",
    "metrics": {
        "global": {"mean": {"dice": 0.6}, "sites": {"a": {"dice": 0.5}, "b": {"dice": 0.7}}},
        "personalized": {"mean": {}, "sites": {}},
    },
    "bytes": {"up": 1_234_567, "down": 7},
    "seconds": {"total": 75.0},
}


def story() -> list[dict[str, object]]:
    return [
        {
            "event": "run-started",
            "name": "ring",
            "folder": "runs/a",
            "rounds": 3,
            "first_round": 1,
            "sites": ["a", "b"],
            "headline": HEADLINE,
        },
        {"event": "round-started", "round": 1, "attempt": 1, "cohort": ["a", "b"]},
        {"event": "site-done", "round": 1, "stage": "contribute", "site": "a", "seconds": 0.5, "bytes": 400},
        {"event": "site-lost", "round": 1, "stage": "contribute", "site": "b", "reason": "no \x1b[2J[red]answer"},
        {"event": "stage", "round": 1, "stage": "contribute", "sent": 1000, "received": 2_000_000, "seconds": 0.6},
        {"event": "round-aborted", "round": 1, "attempt": 1, "reason": "too few sites.", "next": "retry"},
        {"event": "metrics", "round": 1, "rows": ROWS},
        {"event": "warning", "text": "12 values saturated"},
        {"event": "somebody-else's", "what": object()},
        {"event": "round-finished", "round": 1, "seconds": 12.5, "survivors": ["a"]},
        {"event": "run-finished", "result": RESULT},
    ]


def told(events: list[dict[str, object]], *, quiet: bool = False, folder: Path | None = None, **console: object) -> str:
    out = io.StringIO()
    reporter = Console(ConsoleConfig(quiet=quiet), RichConsole(file=out, width=100, **console))
    if folder:
        reporter.open(folder)
    for event in events:
        reporter.handle(event)
    reporter.close()
    return out.getvalue()


def test_a_log_file_gets_one_plain_line_a_round() -> None:
    text = told(story())
    assert text.startswith(HEADLINE)
    assert "round 1/3  12.5 s  up 2 MB  down 1 kB  dice 0.600 global, 0.800 personalized (validation)\n" in text
    assert "Site b lost in round 1, stage contribute: no  [2J[red]answer" in text
    assert "Warning: 12 values saturated" in text
    assert "too few sites. Next: retry." in text
    assert "1 min 15 s" in text
    assert "1.23 MB" in text
    assert all(c == "\n" or c.isprintable() for c in text)


def test_forced_colour_does_not_move_the_cursor_of_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1A" not in told(story())
    assert "\x1b[?25l" not in told(story())


def test_quiet_keeps_headline_warnings_and_failures() -> None:
    text = told([*story()[:-1], {"event": "run-failed", "error": "disk full"}], quiet=True)
    assert HEADLINE in text
    assert "saturated" in text
    assert "Run failed: disk full" in text
    assert "round 1/3" not in text
    assert "Final metrics" not in told(story(), quiet=True)


def test_plan_gives_primary_metric_and_names(tmp_path: Path) -> None:
    plan = {"task": {"primary_metric": "auc"}, "sites": [{"slug": "a", "name": "Hospital A"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    events = story()
    events[6] = {"event": "metrics", "round": 1, "rows": [{**row, "auc": 0.25} for row in ROWS]}
    text = told(events, folder=tmp_path)
    assert "auc 0.250 global" in text
    assert "Hospital A" in text


@pytest.mark.parametrize("event", [{}, {"event": None}, *({"event": e["event"]} for e in story())])
def test_events_without_their_fields_do_not_raise(event: dict[str, object]) -> None:
    told([event])


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_a_terminal_gets_two_bars() -> None:
    primary, secondary = os.openpty()
    read: list[bytes] = []

    def drain() -> None:  # a terminal that nobody reads from blocks its writer after a few kilobytes
        while True:
            try:
                read.append(os.read(primary, 4096))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(secondary, "w") as terminal:
        reporter = Console(ConsoleConfig(), RichConsole(file=terminal, force_terminal=True, width=120, legacy_windows=False))
        for event in story()[:3]:
            reporter.handle(event)
        assert reporter._progress is not None
        rounds, sites = reporter._progress.tasks
        assert (rounds.description, rounds.total, sites.description, sites.completed, sites.total) == ("round 1", 3, "contribute", 1, 2)
        reporter.handle(story()[4])
        assert reporter._progress.tasks[0].fields["detail"] == "up 2 MB  down 1 kB"
        reporter.close()
        reporter.close()
    reader.join(timeout=10)
    os.close(primary)
    shown = b"".join(read).decode()
    assert "round 1" in shown
    assert "0/3" in shown
    assert "\x1b[?25h" in shown, "the cursor is shown again"


def test_jsonl_writes_every_event_at_once_with_null_for_nan(tmp_path: Path) -> None:
    reporter = Jsonl(JsonlConfig())
    reporter.open(tmp_path / "run")
    events = [
        {"event": "metrics", "rows": ROWS, "time": 1.5},
        {"event": "odd", "a": np.float32("nan"), "b": np.arange(2), "c": b"123", "d": (math.inf, {1: Path("x")}), "e": "é\ud800"},
    ]
    for count, event in enumerate(events, 1):
        reporter.handle(event)
        assert len((tmp_path / "run/events.jsonl").read_bytes().splitlines()) == count, "a line is there before the next event"
    reporter.close()
    first, second = (json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text("utf-8").splitlines())
    assert first["rows"][3]["dice"] is None
    assert second == {"event": "odd", "a": None, "b": [0, 1], "c": "<3 bytes>", "d": [None, {"1": "x"}], "e": "é?"}


def test_jsonl_appends_and_sets_a_torn_line_apart(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "a"}\n{"event": "b')
    reporter = Jsonl(JsonlConfig())
    reporter.open(tmp_path)
    reporter.handle({"event": "c"})
    reporter.close()
    assert (tmp_path / "events.jsonl").read_text().splitlines() == ['{"event": "a"}', '{"event": "b', '{"event": "c"}']


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_jsonl_names_the_file_when_the_disk_is_full(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    reporter = Jsonl(JsonlConfig())
    reporter.open(tmp_path)
    with pytest.raises(RunFailed, match=r"events\.jsonl.*No space left.*--resume"):
        reporter.handle({"event": "a"})
    reporter.close()
