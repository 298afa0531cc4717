"""What a site was handed over Collab and has not answered yet, or has: so much of it and no more, done one after the other by a thread.

Whoever may call a site could otherwise have it hold as many letters, and threads, as they like. Each caller has works of its own, so none
takes another's place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

#: letters of the coordinator's that wait or are at work, at most, and answers that are kept; and of each other site, which has one relay at
#: a time: one at work, and one that waits.
KEPT, PEERS = 8, 2


class Task(Protocol):
    """What is done with a letter. Neither method raises; where the first has no answer, the second is called."""

    def begin(self, patience: float) -> bytes | None:
        """The answer, where it is there within some seconds and nothing else is at work."""

    def finish(self) -> bytes:
        """The answer."""


class Work:
    """One letter that was handed over, and what came of it."""

    def __init__(self, caller: str, task: Task) -> None:
        self.caller = caller
        self.answer = b""
        self.done = threading.Event()
        self._waited_for = threading.Lock()
        self._task: Task | None = task

    def wait(self, seconds: float) -> bytes:
        """The answer, or nothing where it is not there within so many seconds. One waits; who comes besides gets what is there."""
        if seconds > 0 and self._waited_for.acquire(blocking=False):
            try:
                self.done.wait(seconds)
            finally:
                self._waited_for.release()
        return self.answer

    def begin(self, patience: float) -> bool:
        """Whether it could be done at once; nothing of the letter is kept then."""
        assert self._task is not None
        if (answer := self._task.begin(patience)) is None:
            return False
        self._end(answer)
        return True

    def finish(self) -> None:
        """Do it, or the rest of it."""
        assert self._task is not None
        self._end(self._task.finish())

    def _end(self, answer: bytes) -> None:
        self.answer, self._task = answer, None
        self.done.set()


class Works:
    """Takes works, does them one after the other, and keeps the newest answers for who asks again.

    Args:
        most: works that wait or are at work, and answers that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[bytes, Work] = {}
        self._queue: deque[Work] = deque()
        #: somebody who called has begun with a work; nothing else is done meanwhile.
        self._begun = False
        self._ended = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def find(self, ticket: bytes, caller: str) -> Work | None:
        """What this caller handed over with this ticket."""
        with self._changed:
            found = self._held.get(ticket)
            return found if found is not None and found.caller == caller else None

    def take(self, ticket: bytes, caller: str, task: Task, patience: float) -> Work | None:
        """Have this done; None where there is too much to do already, or the ticket is another's.

        Where nothing else is to do it is begun by who calls, which spares short works two turns between threads.
        """
        with self._changed:
            waiting = sum(not work.done.is_set() for work in self._held.values())
            if waiting >= self._most or ticket in self._held or self._ended:
                return None
            self._forget()
            work = self._held[ticket] = Work(caller, task)
            if waiting:
                self._leave_to_thread(self._queue.append, work)
                return work
            self._begun = True
        done = work.begin(patience)
        with self._changed:
            self._begun = False
            if not done:
                self._leave_to_thread(self._queue.appendleft, work)  # what was begun is finished first
            self._changed.notify()
        return work

    def end(self) -> None:
        """Finish what was taken, and take no more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _leave_to_thread(self, put: Callable[[Work], None], work: Work) -> None:
        put(work)
        if self._thread is None:
            self._thread = threading.Thread(target=self._labour, name="pppml-work", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _forget(self) -> None:
        """Answers beyond the newest."""
        done = [ticket for ticket, work in self._held.items() if work.done.is_set()]
        for ticket in done[: max(0, len(done) - self._most + 1)]:
            del self._held[ticket]

    def _labour(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._begun and (self._queue or self._ended))
                if not self._queue:
                    return
                work = self._queue.popleft()
            work.finish()
