"""What the benchmarks share: peers on the path, alternated timing of two or more sides, and a table of their ratios at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROWS = pytest.StashKey[list[dict[str, Any]]]()

# Last on the path: what is installed here wins over what a peer brought along.
sys.path += [str(HERE), str(HERE.parent / ".cache" / "peers")]
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

#: makes a function to be timed once; what it takes to make it is not timed.
Prepare = Callable[[], Callable[[], Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pppml benchmarks")
    group.addoption("--full", action="store_true", help="Every size and every share of dropouts; takes hours and gigabytes.")
    group.addoption("--pictures", type=Path, default=None, metavar="DIR", help="Draw the curves into this folder.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    config.addinivalue_line("markers", "full: sizes that are run only with --full")


@pytest.fixture
def alternated(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., dict[str, float]]:
    """`alternated(own, {name: prepare, ...}, rounds=5)`: times the side ``own``, the others once before each of its rounds.

    So all sides see the same moods of the machine. Medians and the ratios other / own (the median over pairs) go into the extra info and
    the table at the end. Returns the ratios.
    """

    def run(own: str, sides: Mapping[str, Prepare], rounds: int = 5) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in sides if name != own}

        def setup() -> tuple[tuple[Callable[[], Any]], dict[str, Any]]:
            for name in times:
                call = sides[name]()
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
            return (sides[own](),), {}

        sides[own]()()  # caches and imports, once for every side
        for name in times:
            sides[name]()()
        benchmark.pedantic(lambda call: call(), setup=setup, rounds=rounds)
        if benchmark.stats is None:
            return {}
        mine = benchmark.stats.stats.data
        ratios = {name: median(o / m for o, m in zip(found, mine, strict=True)) for name, found in times.items()}
        medians = {own: median(mine), **{name: median(found) for name, found in times.items()}}
        benchmark.extra_info |= {"medians": medians, "ratios": ratios, "pairs": rounds}
        request.config.stash[ROWS].append({"test": request.node.name, "own": own, "medians": medians, "ratios": ratios})
        return ratios

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("alternated pairs: seconds (medians), and how many times as long the others took")
    width = max(len(row["test"]) for row in rows)
    for row in rows:
        own = row["own"]
        others = "  ".join(f"{name} {row['medians'][name]:.4g} ({ratio:.2f}x)" for name, ratio in row["ratios"].items())
        terminalreporter.write_line(f"{row['test']:<{width}}  {own} {row['medians'][own]:.4g}  {others}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        skip = pytest.mark.skip(reason="only with --full")
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(skip)
