"""The process in which a site lives, a child of its NVFlare client's: ``python -m pppml_nvflare.lodging HOME DESCRIPTOR``.

NVFlare ends a job for all sites when one site's process of that job ends by a fault. What may fail at a site, above all for want of memory,
is training. So it happens in a process of its own: when that ends, this site alone is lost, for this attempt, and the process is started
again when the next attempt opens. It goes on from its home, and refuses what its record there says it may have answered already.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from pppml_core.engines.parties import alone, end_with_parent
from pppml_core.errors import PppmlError
from pppml_core.federation.letter import frame_in
from pppml_core.wire.codec import decode_message
from pppml_core.wire.messages import WITHIN

#: seconds for the process to end once nobody needs it.
END = 10.0


class Gone(Exception):
    """The process is not there."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Lodging:
    """Starts the process of a home when it is first needed, hands it letters, and starts it again where an attempt begins."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None
        self._closed = False
        self._lock = threading.Lock()

    def receive(self, data: bytes, skipped: int = 0) -> bytes:
        """What the site answers, see :meth:`pppml_core.federation.resident.Resident.receive`. One at a time.

        Raises Gone where its process ended, now or earlier in this attempt; WireError where ``data`` are neither letter nor frame.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                if self._process is not None and decode_message(frame_in(data)).kind in WITHIN:
                    raise Gone(f"its process had ended (exit code {self._process.returncode})")
                self._start()
            self._send(data, skipped)
            return self._answer()

    def hand(self, data: bytes) -> bool:
        """Hand a letter over to a process that is there and idle, whose :meth:`reply` must then be taken. False where it is not. Raises
        Gone.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            there = self._process is not None and self._process.poll() is None
            if there:
                self._send(data, 0)
        except BaseException:
            self._lock.release()
            raise
        if not there:
            self._lock.release()
        return there

    def reply(self, patience: float | None = None) -> bytes | None:
        """The answer to what was handed over; None where it is not there within ``patience`` seconds. Raises Gone."""
        assert self._line is not None
        try:
            with self._noticing():
                if patience is not None and not self._line.poll(patience):
                    return None
            found = self._answer()
        except Gone:
            self._lock.release()
            raise
        self._lock.release()
        return found

    def _send(self, data: bytes, skipped: int) -> None:
        assert self._line is not None
        with self._noticing():
            self._line.send_bytes(str(skipped).encode())
            self._line.send_bytes(data)

    def _answer(self) -> bytes:
        assert self._line is not None
        with self._noticing():
            return self._line.recv_bytes()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """A broken line is a process that ended."""
        try:
            yield
        except (EOFError, OSError) as error:
            assert self._process is not None
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END)
            raise Gone(f"its process ended (exit code {self._process.poll()})") from error

    def _start(self) -> None:
        if self._closed:
            raise Gone("the NVFlare job is over")
        if self._line is not None:
            self._line.close()
        self._line, theirs = Pipe()
        try:
            command = [sys.executable, "-m", __name__, str(self._home), str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        finally:
            theirs.close()
        with self._noticing():
            if refused := self._line.recv_bytes():
                self._process.wait(END)
                raise Gone(f"its process could not begin: {refused.decode(errors='replace')}")

    def close(self) -> None:
        """Hang up: the process ends by itself; one that is at work is killed, and goes on from its home another time."""
        self._closed = True
        idle = self._lock.acquire(blocking=False)
        try:
            if self._process is None:
                return
            if idle and self._line is not None:
                self._line.close()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END)
            self._process.kill()
            self._process.wait()
        finally:
            if idle:
                self._lock.release()


def main() -> int:
    """Live here until whoever started this hangs up."""
    home, line = Path(sys.argv[1]), Connection(int(sys.argv[2]))
    end_with_parent()  # beside the work, so that nobody trains on for a client that is gone
    from pppml_core.federation.resident import Resident

    with ExitStack() as stack:
        try:
            # The one before may be about to end.
            stack.enter_context(alone(home, patience=END))
            resident = Resident(home)
        except PppmlError as error:
            print(error, file=sys.stderr)
            line.send_bytes(error.message.encode())
            return 1
        with suppress(EOFError, OSError):
            line.send_bytes(b"")
            while True:
                skipped = int(line.recv_bytes())
                line.send_bytes(resident.receive(line.recv_bytes(), skipped))
    return 0


if __name__ == "__main__":
    sys.exit(main())
