"""What a site's people see of its work: ``log.jsonl`` in the home, one JSON object a line for every message that was answered.

For watching, not for proof: unlike the audit log it is bounded (the newest of four files, five megabytes each), and where it cannot be
written the site works on. A line holds ``time`` (UTC), ``level`` (info, warning, error), ``event`` (started, joined, answered, refused,
failed, audit-unwritable), where it applies ``run``, ``round``, ``attempt``, ``stage``, ``seconds``, bytes ``received`` and ``sent``, and
the ``reason`` that the coordinator was given. So it holds no secret, nothing of an image, and no path: it may be handed to whoever watches
the hospital's machines. What is wrong with data, with its paths, is told by the logger ``pppml.site`` on standard error.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from pppml_core import __version__
from pppml_core.federation.invitation import JOIN

LOG_FILE = "log.jsonl"
#: bytes of one file, and how many older ones are kept: `log.jsonl.1` is the newest of them.
SIZE, OLDER = 5_000_000, 3
_LEVELS = {"refused": logging.WARNING, "failed": logging.ERROR}
_SAME = ("run", "round", "attempt", "stage")
#: letters of a text that came from elsewhere.
_LETTERS = 600


class SiteLog:
    """Writes the log of one home. Never raises: a full disk is told on standard error."""

    def __init__(self, home: Path, size: int = SIZE, older: int = OLDER) -> None:
        handler = RotatingFileHandler(home / LOG_FILE, maxBytes=size, backupCount=older, encoding="utf-8", errors="replace", delay=True)
        handler.setFormatter(_Line())
        # Of this home alone: no logger that others find by name, and none that hands lines on.
        self._logger = logging.Logger("pppml.site.log")
        self._logger.addHandler(handler)
        self._handler = handler

    def started(self) -> None:
        """A process of this site has begun to listen."""
        self._tell(logging.INFO, "started", version=__version__, process=os.getpid())

    def answered(self, line: Mapping[str, Any], received: int, seconds: float) -> None:
        """One message was answered, as the audit log's ``line`` says; ``received``: bytes of what was asked."""
        kind = line["kind"]
        event = kind if kind in _LEVELS else "joined" if line["stage"] == JOIN else "answered"
        same = {name: line[name] for name in _SAME}
        reason = {"reason": line["reason"]} if "reason" in line else {}
        about = {**same, "seconds": round(seconds, 6), "received": received, "sent": line["bytes"], **reason}
        self._tell(_LEVELS.get(kind, logging.INFO), event, **about)

    def turned_away(self, line: Mapping[str, Any]) -> None:
        """Strangers were turned away, as the audit log's ``line`` says."""
        self._tell(logging.WARNING, "turned-away", count=line["count"])

    def unwritable(self, error: Exception) -> None:
        """The audit log cannot be written, so nothing leaves. Only the kind of error is told, since its text names files."""
        self._tell(logging.ERROR, "audit-unwritable", reason=type(error).__name__)

    def _tell(self, level: int, event: str, **about: Any) -> None:
        self._logger.log(level, event, extra={"about": about})
        with suppress(OSError):  # which the handler has told already
            self._handler.close()  # it is opened again for the next line: a site may be a process a message


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        about = {name: value[:_LETTERS] if isinstance(value, str) else value for name, value in vars(record)["about"].items()}
        return json.dumps({"time": moment, "level": record.levelname.lower(), "event": record.msg, **about})
