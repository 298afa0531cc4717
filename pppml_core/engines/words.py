"""What an engine says for a site beside the site's own messages: that it is lost, or which node it is. In the audit log, as all else.

Who may call a site could have it say the same as often as they like. So the first of equal words is a line before it leaves, and those that
follow within a minute are counted and told together.

Lines are signed with the home's key. Where who speaks is a library's process, as NVFlare's client is, a process of pppml's own writes the
line (:func:`write_apart`, ``python -m pppml_core.engines.words HOME``), and that one alone reads the key.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pppml_core.errors import PppmlError, RunFailed
from pppml_core.federation.audit import Audit
from pppml_core.federation.identity import load_identity

LOSS, INTRODUCTION = "loss", "introduction"
#: seconds within which equal words are counted; kinds and reasons that are told apart meanwhile.
_EVERY, _APART = 60.0, 64
_OTHERS = "and others"


#: seconds for a process of its own to write a line.
_PATIENCE = 60.0
#: home, kind, reason, how many, bytes, and the hash where it is one. Raises PppmlError or OSError.
Write = Callable[[Path, str, str, int, int, str], None]


def write_here(home: Path, kind: str, reason: str, count: int, size: int, sha256: str) -> None:
    """A line, written and signed by this process."""
    Audit(home, load_identity(home)).note_words(kind, reason, count, size, sha256)


def write_apart(home: Path, kind: str, reason: str, count: int, size: int, sha256: str) -> None:
    """A line, written and signed by a process of its own; this one never has the key."""
    command, line = [sys.executable, "-m", __name__, str(home)], json.dumps([kind, reason, count, size, sha256])
    try:
        done = subprocess.run(command, input=line, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.SubprocessError as error:
        raise RunFailed("its line was not written in time", place=str(home)) from error
    if done.returncode:
        raise RunFailed(f"its line was not written: {' '.join(done.stderr.split())[-300:]}", place=str(home))


class Words:
    """Notes them in the logs of homes.

    Args:
        now: a clock, in seconds.
        write: puts a line on the disk.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, write: Write = write_here) -> None:
        self._now, self._write_line = now, write
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
        self._write_line(home, kind, reason, count, size, sha256)


def main() -> int:
    """Write the line that comes in, into the log of HOME."""
    kind, reason, count, size, sha256 = json.load(sys.stdin)
    try:
        write_here(Path(sys.argv[1]), kind, reason, count, size, sha256)
    except (PppmlError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
