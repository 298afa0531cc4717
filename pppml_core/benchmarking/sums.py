"""Aggregators side by side: one sum of the same integers, all parties in this process one after another, each with its own clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from pppml_core.benchmarking.he import BOUND
from pppml_core.benchmarking.memory import peak_memory
from pppml_core.config import resolve
from pppml_core.engines.rehearsal import Rehearsal, Rehearsed, numbers_for
from pppml_core.interfaces.aggregation import Session
from pppml_core.registry import Registry
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER


@dataclass(frozen=True)
class SumRow:
    """One aggregator.

    Args:
        name: as it was asked for.
        refused: why it does not sum this; then the rest is zero.
        site_seconds: stage -> seconds of a site's own work, the median over sites; server_seconds: the same for the server.
        total_seconds: all parties one after another.
        bytes_per_number: what one site sends in the whole sum, for each number (median over sites).
        exact: whether the sum is the exact one.
        sees_update: who sees a site's own update; empty: nobody.
        coalition_curious, dropouts: what is promised for this cohort.
        peak_bytes: how far memory grew during one sum, all parties together.
    """

    name: str
    refused: str = ""
    site_seconds: Mapping[str, float] = field(default_factory=dict)
    server_seconds: Mapping[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    bytes_per_number: float = 0.0
    exact: bool = True
    sees_update: tuple[str, ...] = ()
    coalition_curious: int = 0
    dropouts: int = 0
    peak_bytes: int | None = None


def compare_sums(uses: Sequence[Any], *, sites: int = 5, length: int = 100_000, repeats: int = 3) -> Iterator[SumRow]:
    """A row for each aggregator, as they are done.

    Args:
        uses: names, or maps with ``use`` and settings, as in a config. Raises what a config that names them would.
        sites: how many are in the cohort.
        length: integers each contributes.
        repeats: sums that are timed.
    """
    registry = Registry.discover()
    configs = [resolve({"task": "tiny", "aggregator": use}, registry=registry).aggregator for use in uses]
    value, cohort = ValueSpec(length, "integer", BOUND), tuple(f"s{i:03d}" for i in range(sites))
    for use, config in zip(uses, configs, strict=True):
        aggregator = registry.build("aggregator", config)
        if misfits := aggregator.misfits(value, cohort):
            yield SumRow(label(use), refused=" | ".join(misfits))
        else:
            yield sum_row(label(use), aggregator.plan(value, cohort), repeats)


def sum_row(name: str, session: Session, repeats: int) -> SumRow:
    """Times one session; its sum is checked against the exact one."""
    exact = np.sum([numbers_for(session.value, seed) for seed in range(len(session.cohort))], axis=0, dtype=np.int64)
    with peak_memory() as peak:
        runs = [Rehearsal(session).run()]
    runs += [Rehearsal(session).run() for _ in range(repeats - 1)]
    return SumRow(
        name,
        site_seconds=_over(runs, session.cohort),
        server_seconds=_over(runs, (SERVER,)),
        total_seconds=median(sum(sum(stages.values()) for stages in run.seconds.values()) for run in runs),
        bytes_per_number=runs[0].sent_by_a_site() / session.value.length,
        exact=all(np.array_equal(run.sum.total, exact) for run in runs),
        sees_update=session.guarantees.sees_update,
        coalition_curious=session.guarantees.coalition_curious,
        dropouts=session.guarantees.dropouts,
        peak_bytes=peak.bytes,
    )


def _over(runs: Sequence[Rehearsed], parties: Sequence[str]) -> dict[str, float]:
    """Stage -> the median over runs and those of the parties that take part in the stage."""
    stages = dict.fromkeys(stage for run in runs for party in parties for stage in run.seconds[party])
    return {s: median(run.seconds[p][s] for run in runs for p in parties if s in run.seconds[p]) for s in stages}


def label(use: Any) -> str:
    """A component as a table names it: ``cyclic-he tenseal``."""
    if not isinstance(use, Mapping):
        return str(use)
    words = (label(value) if isinstance(value, Mapping) else str(value) for value in use.values())
    return " ".join(words)
