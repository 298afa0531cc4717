"""Drills: marked ``drill``, and only those marked ``quick`` too are part of every test run. ``--drills`` runs all and counts them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from drilling.runs import Disturbed, wrong_sums
from drilling.table import TABLE, Drill, Ends

PROPERTY, EQUALITY = "drilled", "equality"
#: seconds of one drill, of dozens of processes one after another, on a machine that has other things to do too.
TOO_LONG = 3600


def pytest_addoption(parser):
    parser.addoption("--drills", action="store_true", help="run all drills, not the quick ones alone")


def pytest_configure(config):
    config.addinivalue_line("markers", "drill: a failure drill; only the quick ones run without --drills")
    config.addinivalue_line("markers", "quick: a drill that every test run holds")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("drill"):
            item.add_marker(pytest.mark.timeout(TOO_LONG))
    if config.getoption("--drills", default=False) or "drill" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("drill") and not item.get_closest_marker("quick")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def ended(run: Disturbed, round: int, everyone: list[str], site: str | None) -> Ends | None:
    """How a round ended, as the table puts it; None: in none of these ways."""
    survivors, aborted = run.survivors[round], run.aborted(round)
    if not survivors:
        return Ends.LOST if run.lost(round) else None
    if survivors == everyone:
        return Ends.AGAIN if aborted else Ends.WHOLE
    if survivors != [s for s in everyone if s != site]:
        return None
    return Ends.AGAIN_WITHOUT if aborted else Ends.WITHOUT


@pytest.fixture
def note(record_property) -> Callable[..., None]:
    """Notes what came of a drill, for the count at the end, and holds it against the table."""

    def one(drill: Drill, came: Ends | None, told: list[str], wrong: int = 0) -> list[str]:
        assert drill in TABLE, drill
        lost = drill.ends.survives and (came is None or not came.survives)
        record_property(PROPERTY, json.dumps([drill.engine, drill.stage, drill.name, wrong, int(lost)]))
        problems = [] if came is drill.ends else [f"{drill.name}: {came}, not {drill.ends}: {told}"]
        return problems if drill.was_told(told) else [*problems, f"{drill.name}: nobody was told {drill.told!r}: {told}"]

    return one


@pytest.fixture
def check_rounds(note, tmp_path) -> Callable[..., None]:
    """Holds a disturbed run, one drill a round, against the table and against the sums it should have made."""

    def check(run: Disturbed, rounds: dict[int, list[Drill]], struck: dict[int, str]) -> None:
        everyone = [f"site_{i + 1}" for i in range(run.sections["task"]["sites"])]
        wrong = wrong_sums(run, tmp_path / "reference")
        problems: list[str] = []
        for round, held in rounds.items():
            for drill in held:
                told = run.told(0 if drill.stage == "hello" else round)
                problems += note(drill, ended(run, round, everyone, struck.get(round)), told, int(round in wrong))
        assert wrong == [], f"wrong sums: {wrong}"
        assert not problems, "\n".join(["", *problems])

    return check


def _say_equal(terminalreporter, cases: list[Any]) -> None:
    if not cases:
        return
    terminalreporter.section("equal to local")
    for case, equal, engines in cases:
        said = [f"{what}: {'-' if on is None else 'all' if on == engines else 'only ' + ', '.join(on)}" for what, on in equal.items()]
        terminalreporter.write_line(f"{case:36} {'   '.join(said)}")


def pytest_terminal_summary(terminalreporter):
    """The drills that were held are counted, and what engines have in common is shown, also where several processes held them."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, []) if report.when == "call"]
    _say_equal(terminalreporter, [json.loads(v) for report in reports for name, v in report.user_properties if name == EQUALITY])
    held: list[list[Any]] = [json.loads(value) for report in reports for name, value in report.user_properties if name == PROPERTY]
    if not held:
        return
    engines, stages = sorted({h[0] for h in held}), {h[1] for h in held}
    say = terminalreporter.write_line
    terminalreporter.section("drills")
    say(f"{len(held)} drills, {len(stages)} stages and moments, {len(engines)} engines: {', '.join(engines)}")
    say(f"{sum(h[3] for h in held)} wrong sums, {sum(h[4] for h in held)} lost rounds that the table says survive")
    missing = {drill.name for drill in TABLE} - {h[2] for h in held}
    if missing and terminalreporter.config.getoption("--drills", default=False):
        say(f"{len(missing)} drills of the table were not held: " + "; ".join(sorted(missing)[:5]))
