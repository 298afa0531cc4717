"""When a site works, and how often: the rules ``hours`` and ``max_rounds_per_day``, held where a run is joined and where a round begins."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pppml_core.errors import ConfigError, PolicyRefusal
from pppml_core.federation.files import write_atomic
from pppml_core.federation.policy import Policy

ROUNDS_FILE = "rounds.json"


def local_time() -> datetime:
    """Of this machine."""
    return datetime.now().astimezone()


def hours(policy: Policy, now: datetime) -> str | None:
    """Why this is no working hour; None where it is one. From-to; over midnight where the end comes first."""
    if policy.hours is None:
        return None
    begin, end = policy.hours.split("-")
    time = f"{now:%H:%M}"
    inside = begin <= time < end if begin < end else time >= begin or time < end
    return None if inside else f"this site works from {begin} to {end}, and its clock says {time}"


class Rounds:
    """The rounds that a site has begun today: ``rounds.json`` in its home. A retry is the same round; with another model it is one more.

    A round is a text: the run, its number, and the hash of the model that is trained, with spaces between.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / ROUNDS_FILE

    def full(self, policy: Policy, now: datetime, begun: str = "") -> str | None:
        """Why no further round may begin today; None where one may, or where this one has begun (of a run and a number alone: with any
        model).
        """
        if policy.max_rounds_per_day is None:
            return None
        rounds = self._today(now)
        if any(one == begun or one.startswith(f"{begun} ") for one in rounds if begun) or len(rounds) < policy.max_rounds_per_day:
            return None
        return f"{len(rounds)} rounds were begun today, at most {policy.max_rounds_per_day} a day"

    def begin(self, policy: Policy, now: datetime, begun: str) -> None:
        """Count a round, before anything is trained in it. Raises PolicyRefusal where it is one too many."""
        with open(self._path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a rehearsal may have two processes with one home
            if (reason := self.full(policy, now, begun)) is not None:
                raise PolicyRefusal(f"max_rounds_per_day: {reason}")
            if begun not in (rounds := self._today(now)):
                write_atomic(self._path, json.dumps({"day": f"{now:%Y-%m-%d}", "rounds": [*rounds, begun]}).encode())

    def _today(self, now: datetime) -> list[str]:
        try:
            held = json.loads(self._path.read_bytes())
            day, rounds = held["day"], [str(one) for one in held["rounds"]]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError("the count of today's rounds is damaged", place=str(self._path), hint="remove the file") from error
        return rounds if day == f"{now:%Y-%m-%d}" else []


#: name of the rule -> ``(policy, home, now, the round) -> why not now, or None``.
TIMETABLE: dict[str, Callable[[Policy, Path, datetime, str], str | None]] = {
    "hours": lambda policy, home, now, begun: hours(policy, now),
    "max_rounds_per_day": lambda policy, home, now, begun: Rounds(home).full(policy, now, begun),
}


def check_timetable(policy: Policy, home: Path, now: datetime, begun: str = "") -> None:
    """Raise PolicyRefusal where no run may be joined, or this round not begun, at this time."""
    for name, check in TIMETABLE.items():
        if (reason := check(policy, home, now, begun)) is not None:
            raise PolicyRefusal(f"{name}: {reason}")
