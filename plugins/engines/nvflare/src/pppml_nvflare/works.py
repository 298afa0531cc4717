"""What a site was handed over Collab and has not answered yet, or has: so much of it and no more, done by one thread.

Whoever may call a site could otherwise have it hold as many letters, and threads, as they like.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from pppml_core.wire.messages import SERVER

#: letters that wait or are at work, at most; others than the coordinator may have half of them. And answers that are kept.
KEPT = 8

Do = Callable[[], bytes]


class Work:
    """One letter that was handed over, and what came of it."""

    def __init__(self, caller: str, do: Do) -> None:
        self.caller = caller
        self.answer = b""
        self.done = threading.Event()
        self._do: Do | None = do

    def finish(self) -> None:
        """Do it; nothing of the letter is kept."""
        assert self._do is not None
        self.answer, self._do = self._do(), None
        self.done.set()


class Works:
    """Takes works, does them one after the other, and keeps the newest answers for who asks again."""

    def __init__(self) -> None:
        self._held: dict[bytes, Work] = {}
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def find(self, ticket: bytes, caller: str) -> Work | None:
        """What this caller handed over with this ticket."""
        with self._lock:
            found = self._held.get(ticket)
            return found if found is not None and found.caller == caller else None

    def take(self, ticket: bytes, caller: str, do: Do) -> Work | None:
        """Have this done, which never raises; None where there is too much to do already, or the ticket is another's."""
        with self._lock:
            waiting = sum(not work.done.is_set() for work in self._held.values())
            if waiting >= (KEPT if caller == SERVER else KEPT // 2) or ticket in self._held:
                return None
            self._forget(coordinators=caller == SERVER)
            work = self._held[ticket] = Work(caller, do)
            if self._thread is None:
                self._thread = threading.Thread(target=self._labour, name="pppml-work", daemon=True)
                self._thread.start()
            self._queue.put(work)
        return work

    def end(self) -> None:
        """Do what was taken, and no more."""
        self._queue.put(None)

    def _forget(self, *, coordinators: bool) -> None:
        """Answers beyond the newest. The coordinator's are not pushed out by those of others."""
        done = [t for t, work in self._held.items() if work.done.is_set() and (work.caller == SERVER) is coordinators]
        for ticket in done[: max(0, len(done) - KEPT + 1)]:
            del self._held[ticket]

    def _labour(self) -> None:
        while (work := self._queue.get()) is not None:
            work.finish()
