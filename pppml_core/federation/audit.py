"""The audit log of a site: one line for every message that leaves it, on the disk before the message is handed to an engine.

``audit.jsonl`` in the home, a :mod:`.chain`. A line holds ``time`` (UTC), ``run``, ``round``, ``attempt``, ``stage``, ``kind``, ``to``,
``bytes`` and ``sha256`` of the frame, and ``fields``, the names in its body; where the site refused or failed also ``reason``, where it
joined a run ``about``, what it was told of it, and where it takes part in one how long its records of it are (:mod:`.witnesses`). What the
coordinator recorded of the rounds (``transcripts/``) has the same hashes, also of what went from site to site. Messages that nobody known
has signed are answered with the same few words and counted, a line a minute (``turned-away``, with ``count``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pppml_core.federation.chain import Chain, ChainBroken, Head, read_chain
from pppml_core.federation.identity import Identity
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import SERVER

AUDIT_FILE = "audit.jsonl"
#: names of fields told of one message, and letters of a text.
_FIELDS, _LETTERS = 64, 200


class Audit:
    """Writes the log of one home. Raises ChainBroken where it is gone: a home has one from its first day (:mod:`.witnesses`)."""

    def __init__(self, home: Path, identity: Identity) -> None:
        self._chain = Chain(home / AUDIT_FILE, identity)
        _check_there(home)
        with self._chain.opened():
            pass  # checked

    def count(self) -> int:
        """Lines so far."""
        return self._chain.count()

    def note_strangers(self, count: int, size: int) -> dict[str, Any]:
        """Write down that so many messages of nobody who is known were answered with the same words, of so many bytes together."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": bytes(16).hex(),
            "round": 0,
            "attempt": 1,
            "stage": "",
            "kind": "turned-away",
            "to": "strangers",
            "bytes": size,
            "sha256": "",
            "fields": ["reason"],
            "count": count,
            "reason": "not signed by the pinned coordinator or a site of a run, or too many at once",
        }
        self._chain.append(line)
        return line

    def note_words(self, kind: str, reason: str, count: int, size: int, sha256: str) -> None:
        """Write down what an engine says for this site beside its messages (:mod:`pppml_core.engines.words`): ``count`` times, ``size``
        bytes together; ``sha256``: of the bytes, where it is said once.
        """
        self._chain.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "run": bytes(16).hex(),
                "round": 0,
                "attempt": 1,
                "stage": "",
                "kind": kind,
                "to": SERVER,
                "bytes": size,
                "sha256": sha256,
                "fields": [],
                "count": count,
                "reason": reason[:_LETTERS],
            }
        )

    def note(self, frame: bytes, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write down a message that is about to leave; the line. Raises PppmlError or OSError where that fails: then it must not leave."""
        message = decode_message(frame)
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": message.run.hex(),
            "round": message.round,
            "attempt": message.attempt,
            "stage": message.stage,
            "kind": message.kind,
            "to": message.recipient,
            "bytes": len(frame),
            "sha256": hashlib.sha256(frame).hexdigest(),
            "fields": [name[:_LETTERS] for name in sorted(message.body)[:_FIELDS]],
        }
        if isinstance(reason := message.body.get("reason"), str):
            line["reason"] = reason
        if about is not None:
            line["about"] = dict(about)
        self._chain.append(line)
        return line


class Strangers:
    """Counts messages that were turned away before anything was done with them: at most one line a minute tells how many there were."""

    #: seconds.
    EVERY = 60.0

    def __init__(self) -> None:
        self._count = self._bytes = 0
        self._told = -math.inf

    def note(self, audit: Audit, size: int, now: float) -> dict[str, Any] | None:
        """One more, answered with ``size`` bytes; ``now``: monotonic seconds. The line that was written, or None.

        What a process has not told when it ends is lost.
        """
        self._count, self._bytes = self._count + 1, self._bytes + size
        if now - self._told < self.EVERY:
            return None
        line = audit.note_strangers(self._count, self._bytes)
        self._count, self._bytes, self._told = 0, 0, now
        return line


def read_audit(home: Path, public: bytes, noted: str | None = None) -> tuple[list[dict[str, Any]], Head]:
    """All lines, verified, and the head. Raises ChainBroken naming the first line that is not right."""
    _check_there(home)
    return read_chain(home / AUDIT_FILE, public, noted)


def _check_there(home: Path) -> None:
    if not (home / AUDIT_FILE).exists():
        raise ChainBroken("line 1 is missing: the log of what left this home is gone", place=AUDIT_FILE, hint="restore it from a backup")


def by_run(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each run, in order of its first message: ``run``, ``first``, ``last``, ``messages``, ``bytes``, ``kinds`` (name -> messages)."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        run = found.setdefault(line["run"], {"run": line["run"], "first": line["time"], "messages": 0, "bytes": 0, "kinds": {}})
        run["last"] = line["time"]
        run["messages"] += 1
        run["bytes"] += line["bytes"]
        kind = line["stage"] if line["kind"] == "reply" else line["kind"]
        run["kinds"][kind] = run["kinds"].get(kind, 0) + 1
    return list(found.values())
