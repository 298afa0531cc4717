"""How a run stands, from the files in its folder alone: nobody is asked, nothing is written, and the run may be dead."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pppml_core.config.source import load_yaml
from pppml_core.errors import CheckpointError, ConfigError
from pppml_core.federation.files import has_writer
from pppml_core.federation.rundir import RunDir
from pppml_core.interfaces.privacy import CONDITIONS

State = Literal["starting", "running", "stopped", "failed", "finished"]

#: the pace of a run is the median of so many last rounds.
RECENT = 10
#: how the error of a run begins that somebody interrupted: it has not failed.
INTERRUPTED = "KeyboardInterrupt"


class Tail:
    """New whole lines of a json-lines file that another process appends to, and may cut back when it is resumed."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._last = path, 0, b""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file was begun anew since the last call, and the objects since then; lines that are none are passed over."""
        try:
            with open(self._path, "rb") as file:
                file.seek(max(0, self._offset - len(self._last)))
                anew = file.read(len(self._last)) != self._last
                if anew:
                    self._offset, self._last = 0, b""
                    file.seek(0)
                return anew, list(self._whole(file.read()))
        except FileNotFoundError:
            anew, self._offset, self._last = self._offset > 0, 0, b""
            return anew, []

    def _whole(self, data: bytes) -> Iterator[dict[str, Any]]:
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            self._offset, self._last = self._offset + len(line), line
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and isinstance(found.get("event"), str):
                yield found


class Progress:
    """What the events of a run add up to. An event without what it should have is passed over, as is one of a later version."""

    def __init__(self) -> None:
        self.about: Mapping[str, Any] = {}
        self.round = self.attempt = self.done = self.up = self.down = self.aborted = self.warnings = 0
        self.since: float | None = None
        self.cohort: list[str] = []
        self.survivors: list[str] = []
        self.lost: dict[str, dict[str, Any]] = {}
        self.epsilon: float | str | None = None
        self.seconds: list[float] = []
        self.warning: Mapping[str, Any] | None = None
        self.error: Mapping[str, Any] | None = None
        self.last: Mapping[str, Any] | None = None
        self._no_stage()

    def _no_stage(self) -> None:
        self.stage: str | None = None
        self.stage_since: float | None = None
        self.asked: list[str] = []
        self.answered: list[str] = []

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one event."""
        self.last = event
        handler = getattr(self, "_" + str(event["event"]).replace("-", "_"), None)
        if handler is not None:
            try:
                handler(event)
            except (KeyError, TypeError, ValueError):
                return

    def _run_started(self, event: Mapping[str, Any]) -> None:
        self.about, self.error, self.cohort, self.lost = event, None, [], {}
        self.round = self.done = int(event["first_round"]) - 1
        self.attempt, self.since = 0, None
        self._no_stage()

    def _round_started(self, event: Mapping[str, Any]) -> None:
        if event["round"] != self.round:
            self.lost = {}
            self.since = event["time"]
        self.round, self.attempt, self.cohort = int(event["round"]), int(event["attempt"]), list(event["cohort"])
        self._no_stage()

    def _stage_started(self, event: Mapping[str, Any]) -> None:
        self._no_stage()
        self.stage, self.stage_since, self.asked = str(event["stage"]), event["time"], list(event["asked"])

    def _site_done(self, event: Mapping[str, Any]) -> None:
        self.answered.append(event["site"])
        self.lost.pop(event["site"], None)

    def _site_lost(self, event: Mapping[str, Any]) -> None:
        self.lost[event["site"]] = {"stage": event["stage"], "reason": event["reason"]}

    def _stage(self, event: Mapping[str, Any]) -> None:
        self.down += int(event["sent"])
        self.up += int(event["received"])
        self._no_stage()

    def _round_aborted(self, event: Mapping[str, Any]) -> None:
        self.aborted += 1
        text = f"attempt {event['attempt']} ended without a sum: {event['reason']} Next: {event['next']}."
        self.warning = {**event, "text": text}

    def _warning(self, event: Mapping[str, Any]) -> None:
        self.warnings += 1
        self.warning = {**event, "text": event["text"]}

    def _round_finished(self, event: Mapping[str, Any]) -> None:
        self.done, self.survivors = int(event["round"]), list(event["survivors"])
        self.seconds.append(float(event["seconds"]))
        self.epsilon = event.get("epsilon")
        self._no_stage()

    def _run_failed(self, event: Mapping[str, Any]) -> None:
        self.error = {"time": event.get("time"), "text": event["error"]}
        self._no_stage()

    @property
    def pace(self) -> float | None:
        """Seconds of a round."""
        return statistics.median(self.seconds[-RECENT:]) if self.seconds else None


class Watcher:
    """Reads a run's folder again and again; of its events, only what is new.

    Raises CheckpointError where there is no run, or one whose files are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = RunDir(Path(folder))
        if not self._folder.config.exists():
            raise CheckpointError("there is no run here", place=str(folder), hint="give a folder that `pppml run` wrote")
        run = _config(self._folder.config).get("run")
        self._run = {name: run.get(name) if isinstance(run, Mapping) else None for name in ("name", "rounds")}
        self._plan = self._folder.read_json("plan.json") or {}
        self._tail, self._progress = Tail(self._folder.path / "events.jsonl"), Progress()

    def look(self, now: float | None = None) -> dict[str, Any]:
        """How the run stands, as plain data.

        ``state`` is ``starting`` (sites are asked to join), ``running``, ``stopped`` (no process holds the run, it can be resumed),
        ``failed`` or ``finished``; ``held``: whether a process has the run's lock, None where the file system cannot tell. Times are in
        seconds since the epoch, ``age`` is seconds since the last event; ``events`` is False where the reporter ``jsonl`` writes none,
        so that only finished rounds are known.
        """
        # The lock first: a run that ends between two looks has then written its last event already.
        held = has_writer(self._folder.id)
        result = self._folder.read_json("result.json")
        anew, events = self._tail.read()
        if anew:
            self._progress = Progress()
        for event in events:
            # What the plan remarks is told again at every start; it is no news of the run.
            if event["event"] != "warning" or event.get("text") not in (self._plan.get("warnings") or ()):
                self._progress.take(event)
        p, now = self._progress, time.time() if now is None else now
        done = max(p.done, _newest_checkpoint(self._folder.checkpoints)) if p.last is None else p.done
        state = self._state(held, result)
        going = state == "running"
        return {
            "folder": str(self._folder.path),
            **self._run,
            "headline": self._plan.get("headline"),
            "state": state,
            "held": held,
            "events": (self._folder.path / "events.jsonl").exists(),
            "round": max(p.round, done),
            "finished_rounds": done,
            "attempt": p.attempt,
            "cohort": p.cohort,
            "round_since": p.since if p.round > p.done else None,
            "stage": p.stage,
            "stage_since": p.stage_since,
            "answered": p.answered,
            "waiting_for": [site for site in p.asked if site not in p.answered and site not in p.lost],
            "lost": p.lost,
            "survivors": p.survivors,
            "aborted_attempts": p.aborted,
            "seconds_per_round": p.pace,
            "expected_end": self._expected_end(now) if going else None,
            "bytes": _bytes(result) or {"up": p.up, "down": p.down},
            "epsilon": self._epsilon(result),
            "warnings": p.warnings,
            "last_warning": _told(p.warning),
            "last_error": p.error,
            "last_event": p.last and {"event": p.last["event"], "time": p.last.get("time")},
            "age": max(0.0, now - p.last["time"]) if p.last is not None and _is_time(p.last.get("time")) else None,
            "seconds": result["seconds"]["total"] if result else None,
            "model_sha256": result["model_sha256"] if result else None,
        }

    def _state(self, held: bool | None, result: Any) -> State:
        p = self._progress
        if result is not None:
            return "finished"
        ended = p.last is not None and p.last["event"] == "run-failed"
        if held:
            return "starting" if ended or not p.about else "running"
        if ended:
            return "stopped" if p.error and str(p.error["text"]).startswith(INTERRUPTED) else "failed"
        return "stopped" if held is False else "running"

    def _expected_end(self, now: float) -> float | None:
        p, rounds = self._progress, self._run["rounds"]
        if p.pace is None or not isinstance(rounds, int):
            return None
        begun = p.round > p.done and p.since is not None
        current = max(0.0, p.pace - (now - p.since)) if begun and p.since is not None else 0.0
        return now + current + p.pace * max(0, rounds - (p.round if begun else p.done))

    def _epsilon(self, result: Any) -> dict[str, Any] | None:
        claim = self._plan.get("privacy") or {}
        if claim.get("epsilon") is None:
            return None
        spent = result["privacy"].get("spent") if result else self._progress.epsilon
        details = {name: value for name, value in (claim.get("details") or {}).items() if name == "claimed_epsilon"}
        return {"spent": spent, **{name: claim.get(name) for name in ("mechanism", "epsilon", *CONDITIONS)}, "details": details}


def _config(path: Path) -> Mapping[str, Any]:
    try:
        return load_yaml(path).data
    except ConfigError as error:
        raise CheckpointError(f"is damaged: {error.message}", place=error.place, hint="restore the file, or start a new run") from error


def _newest_checkpoint(folder: Path) -> int:
    numbers = [path.stem.removeprefix("round-") for path in folder.glob("round-*.checkpoint")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _bytes(result: Any) -> dict[str, int] | None:
    return {name: result["bytes"][name] for name in ("up", "down")} if result else None


def _told(event: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if event is None else {name: event.get(name) for name in ("time", "round", "text")}


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
