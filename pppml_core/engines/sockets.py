"""What the coordinator and a site process say over their socket: a door that opens to a token, and a line of numbered frames.

A frame is three 64-bit little-endian numbers (the request it belongs to, length of the first part, length of the second) and the two
parts. A request has an empty first part; an answer has a small map about itself, then the reply. Nothing is pickled, and nothing is
allocated before it has arrived.
"""

from __future__ import annotations

import hmac
import socket
import struct
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from pppml_core.randomness import entropy

_HEAD = struct.Struct("<QQQ")
_CHUNK = 2**20
#: what the first part of an answer may hold: a clock, or an error with its traceback.
MAX_ABOUT = 2**20
#: as the codec's largest message.
MAX_FRAME = 2**32
#: halves of a token: the site shows one, the coordinator answers with the other.
HALF = 32
#: seconds a stranger at the door may take.
PATIENCE = 5.0


class Line:
    """One end of a connection. What arrives in part stays until the rest is there, so that a deadline may pass in between."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._held = bytearray()

    def send(self, number: int, about: bytes, data: bytes, deadline: float | None = None) -> None:
        """Send a frame. Raises OSError where it could not be handed over as a whole; the line is then of no more use."""
        self._wait_until(deadline)
        self._socket.sendall(_HEAD.pack(number, len(about), len(data)) + about)
        self._wait_until(deadline)
        self._socket.sendall(data)

    def receive(self, deadline: float | None = None) -> tuple[int, bytes, bytes]:
        """The next frame: its number and its two parts.

        Raises TimeoutError at the deadline (a value of ``time.monotonic``), EOFError where the other end is gone, OSError on a broken
        line or a frame that cannot be one.
        """
        while True:
            need = _HEAD.size
            if len(self._held) >= need:
                number, about, data = _HEAD.unpack_from(self._held)
                if about > MAX_ABOUT or data > MAX_FRAME:
                    raise OSError(f"a frame of {about:,} + {data:,} bytes")
                need += about + data
                if len(self._held) >= need:
                    start = _HEAD.size + about
                    parts = bytes(memoryview(self._held)[_HEAD.size : start]), bytes(memoryview(self._held)[start:need])
                    del self._held[:need]
                    return number, *parts
            self._wait_until(deadline)
            arrived = self._socket.recv(min(_CHUNK, max(need - len(self._held), 1)))
            if not arrived:
                raise EOFError("the line was closed")
            self._held += arrived

    def _wait_until(self, deadline: float | None) -> None:
        if deadline is None:
            self._socket.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        self._socket.settimeout(left)

    def close(self) -> None:
        """Hang up; whoever waits at this line, on either end, is told at once."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Door:
    """The coordinator's listening socket on the loopback interface. Who shows the first half of an expected token is let in, once."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self._expected: dict[bytes, Future[Line]] = {}
        self._lock = threading.Lock()
        self._closed = False
        #: strangers who have said nothing yet are turned away beyond this number; whoever is awaited knocks again.
        self._room = threading.BoundedSemaphore(64)
        self._thread = threading.Thread(target=self._listen, name="pppml-door", daemon=True)
        self._thread.start()

    def expect(self) -> tuple[bytes, Future[Line]]:
        """A fresh token, and the line of whoever shows it."""
        token, arrival = entropy(2 * HALF), Future[Line]()
        with self._lock:
            self._expected[token] = arrival
        return token, arrival

    def forget(self, token: bytes) -> None:
        """Let nobody in with this token any more."""
        with self._lock:
            arrival = self._expected.pop(token, None)
        if arrival is not None:
            arrival.cancel()

    def _listen(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                # Closed; or out of descriptors for a while, which strangers can bring about: the door stays open for those who are awaited.
                time.sleep(0.05)
                continue
            if not self._room.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._admit, args=(connection,), name="pppml-visitor", daemon=True).start()
            except RuntimeError:
                self._room.release()
                connection.close()

    def _admit(self, connection: socket.socket) -> None:
        try:
            self._welcome(connection)
        finally:
            self._room.release()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(PATIENCE)
            shown = _exactly(connection, HALF)
            with self._lock:
                token = next((t for t in self._expected if hmac.compare_digest(t[:HALF], shown)), None)
                arrival = None if token is None else self._expected.pop(token)
            if token is None or arrival is None:
                connection.close()
                return
            connection.sendall(token[HALF:])
            arrival.set_result(Line(connection))
        except (OSError, EOFError, InvalidStateError):
            connection.close()

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        self._closed = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE)
        with self._lock:
            waiting, self._expected = list(self._expected.values()), {}
        for arrival in waiting:
            arrival.cancel()


def knock(port: int, token: bytes) -> Line:
    """A site's way in. Raises OSError where no coordinator listens, or one that does not know the token."""
    for _ in range(7):  # turned away unheard while strangers crowd the door
        with suppress(EOFError, ConnectionResetError, BrokenPipeError):
            return _knock(port, token)
        time.sleep(0.25)
    try:
        return _knock(port, token)
    except EOFError as error:
        raise ConnectionError("the coordinator did not let this process in") from error


def _knock(port: int, token: bytes) -> Line:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    try:
        connection.sendall(token[:HALF])
        if not hmac.compare_digest(_exactly(connection, HALF), token[HALF:]):
            raise ConnectionError("this is not the coordinator that started this process")
    except (EOFError, OSError):
        connection.close()
        raise
    return Line(connection)


def _exactly(connection: socket.socket, length: int) -> bytes:
    held = b""
    while len(held) < length:
        arrived = connection.recv(length - len(held))
        if not arrived:
            raise EOFError("the line was closed")
        held += arrived
    return held
