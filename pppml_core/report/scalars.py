"""The numbers of a run for trackers such as TensorBoard and MLflow: events in, ``(name, value, step)`` out, where a step is a round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pppml_core.report.tables import ROW_KEYS, WEIGHTS

#: stands for the mean over sites; no slug has a hyphen.
MEAN = "mean-over-sites"


class Scalar(NamedTuple):
    """One number of one round."""

    name: str
    value: float
    step: int


class RoundScalars:
    """Gathers a round and gives its numbers when it is finished, so that a round that is held again is told once.

    Names: ``METRIC/SPLIT/WEIGHTS/SITE``, also of ``mean-over-sites``; ``training/NAME``; ``bytes/up/STAGE`` and ``bytes/down/STAGE``, seen
    from the sites, of all attempts; ``seconds/STAGE``; ``round/seconds``, ``round/attempts``, ``round/survivors``, ``round/lost`` (answers
    that did not come); ``privacy/epsilon``. ``round/seconds`` comes first. Numbers that are undefined are left out.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._sums: dict[str, float] = {}
        self._rows: list[Mapping[str, Any]] = []

    def take(self, event: Mapping[str, Any]) -> list[Scalar]:
        """What is now known for good; an empty list most times. Events that are not known are passed over."""
        kind = event.get("event")
        if kind == "run-started":
            self._begin()
        elif kind == "round-started":
            self._add("round/attempts", 1)
        elif kind == "site-lost":
            self._add("round/lost", 1)
        elif kind == "metrics":
            self._rows += event["rows"]
        elif kind == "stage" and event["stage"] == "checkpoint":
            return list(_finite({"seconds/checkpoint": event["seconds"]}, event["round"]))
        elif kind == "stage":
            self._add(f"bytes/down/{event['stage']}", event["sent"])
            self._add(f"bytes/up/{event['stage']}", event["received"])
            self._add(f"seconds/{event['stage']}", event["seconds"])
        elif kind == "round-finished":
            return self._finished(event)
        elif kind == "run-finished":
            return list(_final(event["result"]))
        return []

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0) + value

    def _finished(self, event: Mapping[str, Any]) -> list[Scalar]:
        first = {"round/seconds": event["seconds"], "round/survivors": len(event["survivors"]), "privacy/epsilon": event.get("epsilon")}
        training = {f"training/{name}": value for name, value in (event.get("training") or {}).items()}
        known = {**first, "round/lost": 0, **self._sums, **training, **_of_rows(self._rows)}
        self._begin()
        return list(_finite(known, event["round"]))


def _of_rows(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    groups: dict[str, list[float]] = {}
    for row in rows:
        for metric, value in row.items():
            if metric not in ROW_KEYS and _number(value):
                found[f"{metric}/{row['split']}/{row['weights']}/{row['site']}"] = value
                groups.setdefault(f"{metric}/{row['split']}/{row['weights']}/{MEAN}", []).append(value)
    return found | {name: math.fsum(values) / len(values) for name, values in groups.items() if len(values) > 1}


def _final(result: Mapping[str, Any]) -> Iterator[Scalar]:
    """The scores on test data, which are made once, and the totals."""
    known: dict[str, Any] = {"total/bytes/up": result["bytes"]["up"], "total/bytes/down": result["bytes"]["down"]}
    known |= {
        f"total/seconds/{name}": value for name, value in {**result["seconds"]["by_stage"], "all": result["seconds"]["total"]}.items()
    }
    for weights in WEIGHTS:
        scores = result["metrics"][weights]
        for site, values in {MEAN: scores["mean"], **scores["sites"]}.items():
            known |= {f"{metric}/test/{weights}/{site}": value for metric, value in values.items()}
    yield from _finite(known, result["selected_round"])


def _finite(known: Mapping[str, Any], step: int) -> Iterator[Scalar]:
    return (Scalar(name, float(value), step) for name, value in known.items() if _number(value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A config's settings by dotted path. Lists are text; what is not set is left out.

    >>> flat_settings({"run": {"rounds": 3, "stop": None}, "reporters": ["console"]})
    {'run.rounds': 3, 'reporters': "['console']"}
    """
    out: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            out |= flat_settings(value, f"{prefix}{name}.")
        elif value is not None:
            out[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return out
