"""Where the wall seconds of a run went: training, evaluation, each exchange apart from these, checkpoints, and the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


class StageClock:
    """Fed with ``stage`` events and the sites' own clocks.

    Args:
        sites: seconds the sites spent in ``train`` and ``evaluate`` so far, summed over sites; what happened during a stage is taken out
            of it and counted under its own name.
        parallel: how many sites compute at once; their summed seconds are divided by it.

    ``exchange/contribute`` is the transport, codec and protocol of that stage. ``rest`` is the server's own work between stages.
    """

    def __init__(self, sites: Callable[[], Mapping[str, float]] = dict, parallel: int = 1) -> None:
        self._sites, self._parallel = sites, parallel
        self._seen = dict(sites())
        self._by_stage: dict[str, float] = {}
        self._before = 0.0
        self._started = time.perf_counter()

    def note(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        if event["event"] != "stage":
            return
        now = dict(self._sites())
        computed = 0.0
        for name, total in now.items():
            spent = (total - self._seen.get(name, 0.0)) / self._parallel
            self._add(name, spent)
            computed += spent
        self._seen = now
        name = event["stage"] if event["stage"] == "checkpoint" else f"exchange/{event['stage']}"
        self._add(name, max(0.0, event["seconds"] - computed))

    def _add(self, name: str, seconds: float) -> None:
        self._by_stage[name] = self._by_stage.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, with ``rest`` and ``total``."""
        total = self._before + time.perf_counter() - self._started
        known = {k: v for k, v in self._by_stage.items() if k != "rest"}
        return {**known, "rest": max(0.0, total - sum(known.values())), "total": total}

    def go_on_from(self, seconds: Mapping[str, float]) -> None:
        """Continue a resumed run's clock; the time between is not the run's."""
        self._before = seconds.get("total", 0.0)
        self._by_stage = {k: v for k, v in seconds.items() if k not in ("total", "rest")}
