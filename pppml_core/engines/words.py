"""What an engine says for a site beside the site's own messages: that it is lost, or which node it is. In the audit log, as all else.

Who may call a site could have it say the same as often as they like. So the first of equal words is a line before it leaves, and those that
follow within a minute are counted and told together.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pppml_core.errors import PppmlError
from pppml_core.federation.audit import Audit
from pppml_core.federation.identity import load_identity

LOSS, INTRODUCTION = "loss", "introduction"
#: seconds within which equal words are counted; kinds and reasons that are told apart meanwhile.
_EVERY, _APART = 60.0, 64
_OTHERS = "and others"


class Words:
    """Notes them in the logs of homes."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._audits: dict[Path, Audit] = {}
        #: home, kind and reason -> when it was told last, and how many, of how many bytes, were not.
        self._told: dict[tuple[Path, str, str], tuple[float, int, int]] = {}
        self._lock = threading.Lock()

    def note(self, home: Path, kind: str, data: bytes, reason: str) -> None:
        """These bytes are about to leave. Raises PppmlError or OSError where that cannot be written: then they must not."""
        with self._lock:
            now = self._now()
            for left in [key for key, (when, count, _) in self._told.items() if now - when >= _EVERY and not count]:
                del self._told[left]
            key = (home, kind, reason)
            if key not in self._told and len(self._told) >= _APART:
                key = (home, kind, _OTHERS)
            when, count, size = self._told.get(key, (-math.inf, 0, 0))
            count, size = count + 1, size + len(data)
            if now - when >= _EVERY:
                self._write(key, count, size, hashlib.sha256(data).hexdigest() if count == 1 else "")
                when, count, size = now, 0, 0
            self._told[key] = when, count, size

    def end(self) -> None:
        """Tell what was only counted so far."""
        with self._lock:
            for key, (_, count, size) in self._told.items():
                if count:
                    with suppress(PppmlError, OSError):
                        self._write(key, count, size, "")
            self._told = {}

    def _write(self, key: tuple[Path, str, str], count: int, size: int, sha256: str) -> None:
        home, kind, reason = key
        if home not in self._audits:
            self._audits[home] = Audit(home, load_identity(home))
        self._audits[home].note_words(kind, reason, count, size, sha256)
